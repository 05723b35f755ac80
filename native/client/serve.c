/* serve.c - one read of a userfaultfd, one message of the server; see serve.h. */
#include "client/serve.h"

#include <errno.h>
#include <string.h>

#include "client/arrange.h"
#include "client/asked.h"
#include "client/objects.h"
#include "client/poison.h"
#include "client/reader.h"
#include "client/resolve.h"
#include "client/view.h"
#include "core/control.h"
#include "core/fd.h"

void serve_anew(struct attachment *att)
{
    att->around = (struct around){0};
    memset(att->linked, 0, (att->mm.size / att->mm.quantum / 64 + 1) * sizeof(uint64_t));
}

void serve_faults(struct attachment *att, const struct uffd_msg *msgs, ssize_t got)
{
    for (ssize_t i = 0; i < got / (ssize_t)sizeof *msgs; i++)
        if (msgs[i].event == UFFD_EVENT_PAGEFAULT)
            resolve_fault(att, msgs[i].arg.pagefault.address, msgs[i].arg.pagefault.flags);
}

/* Does what the server asks for. 0 or -errno. */
static int obey(struct attachment *att, const struct msg *msg)
{
    switch (msg->op) {
    case MSG_REARM:
        poison_rearm(att, msg->arg[0], msg->arg[1]);
        return 0;
    case MSG_REVOKE:
        return resolve_revoke(att, msg->arg[0], msg->arg[1], msg->arg[2] & REVOKE_OBJECTS);
    default:
        return arrange(att, msg->arg[0], msg->arg[1], false);
    }
}

/* Whether a server that has refused us may take us in a while: it is short of something. ESTALE: it
 * does not know us, and will not. */
static bool refused_for_now(const struct msg *msg)
{
    return msg->op == MSG_REPLY && msg->seq == SEQ_REJOIN && msg->result && msg->result != -ESTALE;
}

/* The descriptor that came with an answer to OBJECT, taken out of `fds`; or -errno. */
static int object_of(const struct msg *msg, bool lost, int fds[MSG_FDS])
{
    const int fd = fds[0];

    if (msg->result)
        return msg->result < 0 ? msg->result : -EPROTO;
    fds[0] = -1;
    return fd >= 0 ? fd : lost ? -EMFILE : -EPROTO;
}

int serve_server(struct attachment *att)
{
    struct msg msg;
    int fds[MSG_FDS];
    int err = control_recv(att->ctl, &msg, fds, CONTROL_AT_ONCE);

    if (err == -ETIMEDOUT)
        return 0;
    const bool lost = err == -EMFILE; /* the rest of the message has come */
    err = lost ? 0 : err;
    if (!err && refused_for_now(&msg))
        err = -EAGAIN; /* we knock again, as if it were away */
    if (!err && msg.op == MSG_REPLY && msg.seq >> 32 == SEQ_OBJECT >> 32)
        object_answer(att, (uint32_t)msg.seq, object_of(&msg, lost, fds));
    if (!err && msg.op == MSG_REPLY && msg.seq >> 32 == SEQ_FAULT >> 32)
        resolve_told(att, &msg);
    if (!err && msg.op == MSG_REPLY && msg.seq >> 32 == SEQ_CHARGE >> 32)
        resolve_charged(att, &msg);
    for (unsigned i = 0; i < MSG_FDS; i++)
        fd_close(fds[i]);
    if (!err && (msg.op == MSG_REARM || msg.op == MSG_REVOKE || msg.op == MSG_ARRANGE)) {
        msg.result = obey(att, &msg);
        msg.op = MSG_REPLY;
        /* Faults wait for us: a server that reads no answers has to be joined anew. */
        err = control_send(att->ctl, &msg, NULL, 0, CONTROL_AT_ONCE);
    }
    return err;
}

int serve_rejoin(struct attachment *att, int sock, int program)
{
    struct msg msg = {.op = MSG_REJOIN, .seq = SEQ_REJOIN, .arg = {att->slot, att->claim}};
    const int fds[] = {att->mm.fd, att->uffd, program};

    if (att->reader)
        reader_introduce(att, &msg);
    return control_send(sock, &msg, fds, program < 0 ? 2 : 3, CONTROL_AT_ONCE);
}

void serve_rejoined(struct attachment *att)
{
    /* Threads that wait for an answer fault again, and ask this server. */
    objects_unask(att);
    asked_forget(att);
    view_wake_all(att);
}
