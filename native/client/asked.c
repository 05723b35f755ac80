/* asked.c - see asked.h. */
#include "client/asked.h"

struct asked *asked_place(struct attachment *att, uint64_t offset)
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
