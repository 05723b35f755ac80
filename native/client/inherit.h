/*
 * inherit.h - how the shadow of a forked child comes to its descriptors: from its parent's
 * shadow, over a socket. Neither the parent nor the child has any.
 */
#ifndef MSHARE_INHERIT_H
#define MSHARE_INHERIT_H

#include "client/attachment.h"

/* Opens the address at which the shadow hears of children. Without it they cannot be attached.
 * Precondition: in the shadow, which may still make sockets. */
void inherit_listen(struct attachment *att);
/* The shadow of a parent: one child's wish is there, or a stranger's message. */
void inherit_give(struct attachment *att);
/* The shadow of a child, which has no descriptor yet: asks for them. A socket, or -errno. */
int inherit_ask(const struct attachment *att);
/* In the parent, before fork(2): there will be a child. Precondition: both locks held. */
void inherit_expect(struct attachment *att);
/* The mother of such a shadow: takes them out of the parent's shadow itself, where that is
 * permitted, but for those of objects. att->shadow.parent_ctl is the parent's connection. 0 or
 * -errno. */
int inherit_fetch(struct attachment *att);
/* In the child: it will ask, by the shadow that it makes, as long as it lives until
 * inherit_end(). Its own children are counted by themselves. */
void inherit_begin(struct attachment *att);
void inherit_end(struct attachment *att);
/* The shadow of a parent: whether there is such a child. */
bool inherit_asked_soon(const struct attachment *att);
/* Of the children that are counted there, one need not be waited for any more. */
void inherit_done(struct births *births);
/* Takes what comes over that socket, and closes it. att->shadow.parent_ctl: the parent's connection
 * to the server, for a word; -1: it has none. 0 or -errno. */
int inherit_take(struct attachment *att, int sock);

#endif
