/*
 * input.h - a fuzz input, read as numbers. Missing numbers at its end are 0.
 */
#ifndef FUZZ_INPUT_H
#define FUZZ_INPUT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct input {
    const uint8_t *at;
    size_t left;
};

static inline uint64_t input_bytes(struct input *input, size_t bytes)
{
    const size_t got = bytes < input->left ? bytes : input->left;
    uint64_t value = 0;

    if (!got)
        return 0;
    memcpy(&value, input->at, got);
    input->at += got;
    input->left -= got;
    return value;
}

static inline uint8_t input_u8(struct input *input) { return (uint8_t)input_bytes(input, 1); }

static inline uint16_t input_u16(struct input *input) { return (uint16_t)input_bytes(input, 2); }

static inline uint64_t input_u64(struct input *input) { return input_bytes(input, 8); }

/* A number below `limit`. */
static inline uint64_t input_below(struct input *input, uint64_t limit)
{
    return input_bytes(input, limit > UINT16_MAX ? 8 : 2) % limit;
}

#endif
