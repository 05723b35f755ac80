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
 *   MAP         client  offset, size, prot, flags,      object         result
 *                       object offset
 *   UNMAP       client  offset, size                                   result
 *   PROTECT     client  offset, size, prot, flags                      result
 *   STAT        client                                                 struct mshare_stat in `text`
 *   DESCRIBE    client  (what in `text`)                               memfd with JSON
 *   OBJECT      client  number                                         result; its file. Answered
 *                                                                      at once: the client may be
 *                                                                      asked something meanwhile
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
 * REARM goes to the clients that have guard pages, REVOKE to those that touched the range,
 * ARRANGE to all that are attached, since we do not see an instruction fetch that is not
 * permitted. So a client that has just come (FORKED, REJOIN) is sent ARRANGE, too, if anything
 * is executable.
 */
#ifndef MSHARE_PROTOCOL_H
#define MSHARE_PROTOCOL_H

#include <stdint.h>

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
};

/* Flags in the reply to ATTACH. */
enum attach_flags {
    ATTACH_ANY_PROT = 1, /* only the region's mappings say what is permitted (-o quirks=v3) */
};

/* Flags of REVOKE. */
enum revoke_flags {
    REVOKE_OBJECTS = 1, /* let go also of objects, and of their descriptors */
};

/* `seq` of the service thread's requests: this bit and the number asked for; others start at 0. */
#define SEQ_OBJECT (1ull << 32)

#define MSG_TEXT 192
#define MSG_FDS 3

struct msg {
    uint32_t op;
    int32_t result; /* replies: 0 or -errno */
    uint64_t seq;
    uint64_t arg[5];
    char text[MSG_TEXT];
};

#endif
