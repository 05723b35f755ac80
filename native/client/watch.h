/*
 * watch.h - the set of descriptors whose events the service thread waits for: an epoll(7)
 * with the userfaultfds and the control connection of every attachment.
 *
 * The set is private to the process and lives as long as its service thread.
 */
#ifndef MSHARE_WATCH_H
#define MSHARE_WATCH_H

#include <sys/epoll.h>

#include "client/attachment.h"

/* What an event is about. */
enum watch_source { WATCH_UFFD, WATCH_CTL, WATCH_MOVED };

/* Makes the set. 0 or -errno. Precondition: the table's lock held, and no set yet. */
int watch_start(void);
/* Whether there is a set. Precondition: the table's lock held. */
bool watch_started(void);
/* Closes the set: in a forked child, which has no service thread, or when none could be made.
 * Precondition: the table's lock held, and no service thread. */
void watch_forget(void);
/* Waits for events as epoll_wait(2) does. Precondition: on the service thread. */
int watch_wait(struct epoll_event *events, int count, int timeout_ms);
/* The attachment that an event belongs to, and in *source what it is about. */
struct attachment *watch_whose(const struct epoll_event *event, enum watch_source *source);

/* Adds the userfaultfd and, if there is one, the connection of `att`. 0 or -errno.
 * Precondition: att->lock held. */
int watch_add(struct attachment *att);
/* Adds att->moved_uffd. 0 or -errno. Precondition: att->lock held. */
int watch_add_moved(struct attachment *att);
/* Takes all of them out. Precondition: att->lock held, the process's own attachments. */
void watch_remove(struct attachment *att);
/* The server of `att` is gone: its connection is closed. Precondition: att->lock held. */
void watch_lose_server(struct attachment *att);
/* A new connection, `sock`, takes its place. 0 or -errno, and then `sock` is still the
 * caller's. Precondition: att->lock held, and no connection. */
int watch_regain_server(struct attachment *att, int sock);
/* How many attachments have no server. Precondition: none. */
unsigned watch_away(void);
/* Gives the set, or a descriptor in it, a new number. 0 or -errno; then *fd, one of att's
 * own, is the old one. Precondition: the table's lock held, and att->lock. */
int watch_move(void);
int watch_move_fd(struct attachment *att, int *fd, enum watch_source source);
/* Whether `fd` is the set. Precondition: the table's lock held. */
bool watch_is(int fd);

#endif
