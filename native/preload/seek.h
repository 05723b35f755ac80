/*
 * seek.h - lseek(2) of a region file.
 */
#ifndef MSHARE_PRELOAD_SEEK_H
#define MSHARE_PRELOAD_SEEK_H

/* The descriptors of these numbers are closed: lseek(2) looks again at the next ones. */
void preload_seek_forget(unsigned first, unsigned last);

#endif
