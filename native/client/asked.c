/* asked.c - see asked.h. */
#include "client/asked.h"

#include <errno.h>

#include "core/control.h"

/* The place for a question about the page at `offset`, or the open one about it. NULL: there are
 * too many. */
static struct asked *place(struct attachment *att, uint64_t offset)
{
    struct asked *found = NULL;

    for (unsigned i = 0; i < ASKED_MAX; i++) {
        if (att->asked_faults[i].open && att->asked_faults[i].offset == offset)
            return &att->asked_faults[i];
        if (!att->asked_faults[i].open)
            found = &att->asked_faults[i];
    }
    return found;
}

int asked_send(struct attachment *att, struct msg *msg, uint64_t kind, struct asked question)
{
    struct asked *asked = place(att, question.offset);

    if (att->ctl < 0)
        return -EINPROGRESS;
    if (!asked)
        return -EAGAIN;
    if (asked->open)
        return -EINPROGRESS;
    msg->seq = kind | (uint64_t)(asked - att->asked_faults);
    if (control_send(att->ctl, msg, NULL, 0, CONTROL_AT_ONCE) == -ETIMEDOUT)
        return -EAGAIN;
    /* Other errors mean that the server is gone: see asked_forget(). */
    *asked = question;
    asked->open = true;
    return -EINPROGRESS;
}

struct asked *asked_answered(struct attachment *att, uint64_t seq)
{
    const uint32_t number = (uint32_t)seq;

    if (number >= ASKED_MAX || !att->asked_faults[number].open)
        return NULL;
    att->asked_faults[number].open = false;
    return &att->asked_faults[number];
}

void asked_forget(struct attachment *att)
{
    for (unsigned i = 0; i < ASKED_MAX; i++)
        att->asked_faults[i].open = false;
}
