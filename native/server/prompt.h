/*
 * prompt.h - a thread that soon gets a processor when it has something to do.
 *
 * One thread answers all requests of a mount. Where many programs want the processors, it would
 * wait for each of them to use up its slice, some milliseconds, several times for one stat(2). A
 * thread that asks for short slices itself goes before those (EEVDF, Linux 6.12), as long as it has
 * had no more than its share; and a higher weight makes that share larger, so that one user's
 * requests, which are the server's work, do not use it up for all.
 */
#ifndef MSHARE_PROMPT_H
#define MSHARE_PROMPT_H

/* Short slices and a nice value for the calling thread, and for those that it will start. Only
 * where nobody has chosen anything for it. Without the right to that nice value (RLIMIT_NICE) it
 * gets the slices alone. 0 or -errno. */
int prompt_thread(int nice);

#endif
