/*
 * service.h - the thread that takes this process's faults.
 */
#ifndef MSHARE_SERVICE_H
#define MSHARE_SERVICE_H

/* Starts the thread if need be. 0 or -errno. Precondition: the table's lock held. */
int service_start(void);

#endif
