/*
 * descriptors.h - our descriptors may have numbers that the program wants for itself.
 */
#ifndef MSHARE_DESCRIPTORS_H
#define MSHARE_DESCRIPTORS_H

/* Gives up the number `fd`, one of ours. 0 or -errno. Precondition: the table's lock held. */
int descriptors_give_up(int fd);

#endif
