/*
 * protocol.h - the messages of a control connection (AF_UNIX, SOCK_SEQPACKET).
 *
 * A connection has the rights of the region descriptor it was made from
 * (MSHAREFS_CONNECT), or of the host mm it rejoined with. Each packet is one message
 * of fixed size, with descriptors beside it; a reply carries the request's `seq`.
 *
 *   op          from    arg                             descriptors    reply
 *   TOKEN       client  (token in `text`)                              result
 *   ATTACH      client  prot                                           size, quantum, attach_flags;
 *                                                                      text: socket path; .mm,
 *                                                                      .mem, userfaultfd device
 *   READY       client  slot, claim                     uffd           result
 *   FORKED      child   slot, claim                     socket, uffd   none: the socket is in use
 *   REJOIN      client  slot, claim                     .mm, uffd      result
 *   DETACH      client                                                 result
 *   FAULT       reader  (struct fault_ask in `text`)                   struct fault_told in `text`
 *   FIGURES     reader  (struct figures in `text`)                     none
 *   MAP         client  offset, size, prot, flags,      object         result
 *                       object offset
 *   UNMAP       client  offset, size                                   result
 *   PROTECT     client  offset, size, prot, flags                      result
 *   VERB        client  number of an ioctl of ours                     result; memfd with its
 *                       (its argument in `text`)                       output, if it has one
 *   WINDOW      client  region, slot, claim (a reader: 0, 0, and its   result; EAGAIN: that one has
 *                       window's address)                              no connection yet
 *   STAT        client                                                 struct mshare_stat in `text`
 *   DESCRIBE    client  (what in `text`)                               memfd with JSON
 *               user    inode number ("clients")                       the same; without a region
 *   OBJECT      client  number                                         result; its file. Answered
 *                                                                      at once: the client may be
 *                                                                      asked something meanwhile
 *   CHARGE      client  offset, size                                   result; 0: the pages are
 *                                                                      there, 1: the client is to
 *                                                                      make them. ENOMEM: their
 *                                                                      owner cannot pay for them.
 *                                                                      EAGAIN: ask again
 *   ADOPT       client                                                 the region's memory: an
 *                                                                      object of its own, for plain
 *                                                                      mappings. From then on the
 *                                                                      region has no other
 *                                                                      attachments, and lives with
 *                                                                      those. text: why not
 *   LOOK        user                                                   result, when the entries of
 *                                                                      memory that Linux fills are
 *                                                                      up to date
 *   REARM       server  start, end (region offsets)                    result: guard pages there
 *                                                                      are removed
 *   REVOKE      server  start, end (region offsets),                   result: every page there is
 *                       revoke_flags                                   let go; faults bring it back
 *   ARRANGE     server  start, end (region offsets)                    result: execution is
 *                                                                      permitted there as the
 *                                                                      mappings say now
 *
 * WINDOW gives a new connection the rights of an attachment of the process that made it, which the
 * kernel tells. So a thread of a client can ask for a change, while the connection of the
 * attachment is there for what the server asks meanwhile.
 *
 * REARM goes to the clients that have guard pages, REVOKE to those that touched the range,
 * ARRANGE to all that are attached, since we do not see an instruction fetch that is not
 * permitted. So a client that has just come (FORKED, REJOIN) is sent ARRANGE, too, if anything
 * is executable.
 *
 * A reader is a client whose region descriptor is open for reading only (ATTACH_READER). It cannot
 * write the host mm, so the server has a slot for it and fills entries on its behalf (FAULT).
 * Where others name slot and claim, a reader names the window: its address, the protection that was
 * asked for, and enum attach_way. Its READY, FIGURES and DETACH have its figures in `text`.
 */
#ifndef MSHARE_PROTOCOL_H
#define MSHARE_PROTOCOL_H

#include <assert.h>
#include <stdint.h>

#include "core/layout.h"

enum msg_op {
    MSG_REPLY = 1,
    MSG_TOKEN,
    MSG_ATTACH,
    MSG_READY,
    MSG_FORKED,
    MSG_REJOIN,
    MSG_DETACH,
    MSG_MAP,
    MSG_UNMAP,
    MSG_STAT,
    MSG_DESCRIBE,
    MSG_REARM,
    MSG_PROTECT,
    MSG_REVOKE,
    MSG_OBJECT,
    MSG_ARRANGE,
    MSG_ADOPT,
    MSG_LOOK,
    MSG_FAULT,
    MSG_FIGURES,
    MSG_VERB,
    MSG_WINDOW,
    MSG_CHARGE,
};

/* Flags in the reply to ATTACH. */
enum attach_flags {
    ATTACH_ANY_PROT = 1, /* only the region's mappings say what is permitted (-o quirks=v3) */
    ATTACH_READER = 2,   /* .mm and .mem are open for reading only, see above */
    ATTACH_INNER = 4,    /* ordinary calls on the window are for the region (-o window=inner) */
    ATTACH_CHARGED = 8,  /* the owner pays for pages (-o charge=owner): CHARGE before making any */
    ATTACH_PRIVATE = 16, /* they are the process's own (-o window=private) */
};

/* Flags of REVOKE. */
enum revoke_flags {
    REVOKE_OBJECTS = 1, /* let go also of objects, and of their descriptors */
};

/* `seq` of the service thread's requests: such a bit, and the number of what is asked for; others
 * start at 0. */
#define SEQ_OBJECT (1ull << 32)
#define SEQ_FAULT (1ull << 33)
#define SEQ_REJOIN (1ull << 34)
#define SEQ_CHARGE (1ull << 35)

#define MSG_TEXT 192
#define MSG_FDS 3

struct msg {
    uint32_t op;
    int32_t result; /* replies: 0 or -errno */
    uint64_t seq;
    uint64_t arg[5];
    char text[MSG_TEXT];
};

/* What others write into their slots. */
struct figures {
    uint64_t faults, links, materialised, segv, prefaulted, evicted, refaulted;
    uint32_t budget, budget_asked, budget_grown, poisoned, unshared;
};

/* A reader's fault: what it would do if it could write (struct fault). */
struct fault_ask {
    uint64_t offset, start, end, limit;
    uint64_t ahead; /* where pages that it may map beyond `end` end, if they have entries */
    uint32_t object, skip;
    uint16_t fill;
    uint16_t present; /* the page is there; otherwise it is to be made */
    uint32_t links;   /* 1: its quantum is linked by this */
    struct figures figures;
};

struct fault_told {
    uint64_t start, end, filled, beside;
    uint64_t present[SPAN_PAGES / 64];
    struct mm_vma vma;
    uint64_t epoch;   /* of the snapshot that says so */
    uint32_t verdict; /* enum fault_verdict */
    uint32_t pad;
};

static_assert(sizeof(struct fault_ask) <= MSG_TEXT, "a question fits a message");
static_assert(sizeof(struct fault_told) <= MSG_TEXT, "an answer fits a message");

#endif
