/*
 * protocol.h - what travels over a control connection (AF_UNIX, SOCK_SEQPACKET).
 *
 * A connection has the rights of the region descriptor it was made from
 * (MSHAREFS_CONNECT), or of the host mm it rejoined with. One fixed message a
 * packet, descriptors beside it; a reply carries the request's `seq`.
 *
 *   op          from    arg                             descriptors    reply
 *   TOKEN       client  (token in `text`)                              result
 *   ATTACH      client  prot                                           size, quantum, attach_flags;
 *                                                                      text: socket path; .mm, .mem,
 *                                                                      userfaultfd device
 *   READY       client  slot, claim                     uffd           result
 *   FORKED      child   slot, claim                     socket, uffd   none: it is in use as it comes
 *   REJOIN      client  slot, claim                     .mm, uffd      result
 *   DETACH      client                                                 result
 *   MAP         client  offset, size, prot, flags,      object         result
 *                       object offset
 *   UNMAP       client  offset, size                                   result
 *   PROTECT     client  offset, size, prot, flags                      result
 *   STAT        client                                                 struct mshare_stat in `text`
 *   DESCRIBE    client  (what in `text`)                               memfd with JSON
 *   OBJECT      client  number                                         result; its file. Answered at
 *                                                                      once: the client may be asked
 *                                                                      something meanwhile
 *   REARM       server  start, end (region offsets)                    result: forget what was made
 *                                                                      to fault natively there
 *   REVOKE      server  start, end (region offsets),                   result: let go of every page
 *                       revoke_flags                                   there; faults bring them back
 *   ARRANGE     server  start, end (region offsets)                    result: execution is permitted
 *                                                                      there as the mappings say now
 *
 * Who is asked: REARM, whoever has poison; REVOKE, whoever touched the range; ARRANGE,
 * whoever is attached, for a fetch that is not permitted is not seen by us. So a client
 * is also sent it when it has come (FORKED, REJOIN), if anything is executable.
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
};

/* In the reply to ATTACH. */
enum attach_flags {
    ATTACH_ANY_PROT = 1, /* the mappings in the region alone say what is permitted (-o quirks=v3) */
};

/* Of REVOKE. */
enum revoke_flags {
    REVOKE_OBJECTS = 1, /* also of objects, and of the descriptors of objects */
};

/* Requests of the service thread: these bits and what is asked for. Others count from 0. */
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
