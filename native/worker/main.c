/*
 * worker/main.c - mshare-worker: one process of a demonstration or a benchmark.
 *
 * Commands come in on stdin, one on each line. Every command is answered by one line
 * of JSON on stdout, so a caller can give commands to many workers at once and then
 * wait for all of them. The worker ends when its stdin does.
 *
 * memory
 *   attach PATH           attach the region at PATH, to read and write
 *   map BYTES PATH        map BYTES of a plain file, 0: all of it
 *   shm BYTES ID          attach the System V segment ID of BYTES
 *   hugepages             ask for huge pages where they are advised
 *   mprotect read|write   the whole mapping of this process: read-only, or both
 *   watch                 put the mapping under write-protect userfaultfd
 *   detach                let go of it
 * pattern
 *   fill SEED BYTES       write SEED's pattern into every page of the first BYTES
 *   verify SEED BYTES     read them all and compare
 * accesses
 *   order SEED FIRST PAGES COUNT sequential|random|zipf
 *                         choose COUNT of PAGES pages from page FIRST on: in a
 *                         row, each at most once, or by Zipf's law (0.99)
 *   touch PASSES read|write   a word of each page, in that order
 *   sweep PASSES BYTES read|write   every cache line of the first BYTES
 *   fork COUNT nothing|read|write   children one after the other, which touch
 * calls
 *   open PATH             the file that the next four are about
 *   create OFFSET BYTES   ioctl MSHAREFS_CREATE_MAPPING of anonymous memory
 *   unmap OFFSET BYTES    ioctl MSHAREFS_UNMAP
 *   protect OFFSET BYTES read|write   ioctl MSHAREFS_PROTECT: read-only, or both
 *   punch OFFSET BYTES    fallocate(FALLOC_FL_PUNCH_HOLE)
 *   make, stat, remove PATH   create a file, look at it, unlink it
 *   rename PATH           to PATH.renamed and back
 *   dontneed OFFSET BYTES madvise(2) of the mapping of this process
 *   pageout PID ADDRESS BYTES   process_madvise(2) of another's
 * victims
 *   spin                  a thread that does nothing but look at the clock
 *   lost                  the nanoseconds for which it was interrupted so far
 *   still                 it ends
 * the rest
 *   repeat COUNT COMMAND[;COMMAND]   all of them, COUNT times
 *   report                nothing but the figures
 *   quit                  end; no answer
 *
 * An answer, figures as [before, after] of the command:
 *
 *   {"ok":true,"ns":51,"minflt":[90,91],"majflt":[0,0],"user_us":[..],
 *    "system_us":[..],"vmpte_kb":[40,44],"pages":1,"wrong":0,"first_wrong":0}
 *   {"ok":false,"errno":22,"error":"mshare_attach: Invalid argument"}
 *
 * `pages` is how many were visited; `wrong` and `first_wrong` (a page number) are the
 * findings of verify. Faults and times are those of all threads and of the children
 * that have ended. Commands that get memory add "value":ADDRESS, `watch` adds the number
 * of its descriptor, `spin` its thread's id, `lost` its time. `repeat` adds
 * "each_ns":{"p50":..,"p90":..,"p99":..,"max":..} of one round. Before its answer a long
 * command reports its progress: {"progress":BYTES}, the bytes done since the last such line.
 */
#define _GNU_SOURCE
#include "worker/worker.h"

#include "worker/calls.h"
#include "worker/figures.h"
#include "worker/memory.h"
#include "worker/pattern.h"
#include "worker/touch.h"
#include "worker/victim.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STEPS_MAX 4 /* commands of a repeat */
#define ROUNDS_MAX 1000000u

static int run_report(struct worker *w, const struct arguments *args)
{
    (void)w, (void)args;
    return 0;
}

static const struct command commands[] = {
    {"attach", 0, true, run_attach},      {"map", 1, true, run_map},
    {"shm", 2, false, run_shm},           {"hugepages", 0, false, run_hugepages},
    {"mprotect", 0, true, run_mprotect},  {"watch", 0, false, run_watch},
    {"detach", 0, false, run_detach},     {"fill", 2, false, run_fill},
    {"verify", 2, false, run_verify},     {"order", 4, true, run_order},
    {"touch", 1, true, run_touch},        {"sweep", 2, true, run_sweep},
    {"fork", 1, true, run_fork},          {"open", 0, true, run_open},
    {"create", 2, false, run_create},     {"unmap", 2, false, run_unmap},
    {"protect", 2, true, run_protect},    {"punch", 2, false, run_punch},
    {"make", 0, true, run_make},          {"stat", 0, true, run_stat},
    {"rename", 0, true, run_rename},      {"remove", 0, true, run_remove},
    {"dontneed", 2, false, run_dontneed}, {"pageout", 3, false, run_pageout},
    {"spin", 0, false, run_spin},         {"lost", 0, false, run_lost},
    {"still", 0, false, run_still},       {"report", 0, false, run_report},
};

/* The number at *text, which ends at a blank or at the end; moves *text on. */
static bool take_number(char **text, uint64_t *number)
{
    char *end;

    errno = 0;
    *number = strtoull(*text, &end, 10);
    if (end == *text || errno || (*end && *end != ' '))
        return false;
    *text = end;
    return true;
}

/* Finds the command in `line` and parses its arguments; NULL: there is no such command. */
static const struct command *parse(char *line, struct arguments *args)
{
    size_t length = strcspn(line, " ");
    const struct command *command = NULL;
    char *rest = line + length;

    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (strlen(commands[i].name) == length && !memcmp(commands[i].name, line, length))
            command = &commands[i];
    if (!command)
        return NULL;
    for (unsigned i = 0; i < command->numbers; i++)
        if (!take_number(&rest, &args->number[i]))
            return NULL;
    rest += *rest == ' ';
    args->text = rest;
    return (*rest != 0) == command->text ? command : NULL;
}

/* The work of a line: commands, to be done `rounds.count` times. */
struct task {
    const struct command *step[STEPS_MAX];
    struct arguments args[STEPS_MAX];
    unsigned steps;
    bool repeated;
    struct rounds rounds;
};

static bool parse_task(char *line, struct task *task)
{
    static const char word[] = "repeat ";
    char *rest = NULL;

    *task = (struct task){.rounds.count = 1};
    task->repeated = !strncmp(line, word, sizeof word - 1);
    if (task->repeated) {
        line += sizeof word - 1;
        if (!take_number(&line, &task->rounds.count) || !*line || !task->rounds.count ||
            task->rounds.count > ROUNDS_MAX)
            return false;
        line++;
    }
    /* A path may hold a semicolon: only repeat takes one for its own. */
    char *one = task->repeated ? strtok_r(line, ";", &rest) : line;
    for (; one; one = task->repeated ? strtok_r(NULL, ";", &rest) : NULL) {
        if (task->steps == STEPS_MAX)
            return false;
        task->step[task->steps] = parse(one, &task->args[task->steps]);
        if (!task->step[task->steps++])
            return false;
    }
    return task->steps;
}

static int do_task(struct worker *w, struct task *task)
{
    int err = 0;

    for (uint64_t round = 0; !err && round < task->rounds.count; round++) {
        uint64_t started = now_ns();

        for (unsigned i = 0; !err && i < task->steps; i++)
            err = task->step[i]->run(w, &task->args[i]);
        task->rounds.ns[round] = now_ns() - started;
    }
    return err;
}

static void obey(struct worker *w, char *line)
{
    struct figures before, after;
    struct task task;
    int err = 0;

    w->pages = w->wrong = w->first_wrong = 0;
    w->value = -1;
    if (!parse_task(line, &task))
        err = fail(w, "no such command", -EINVAL);
    if (!err) {
        /* Written here, so that its pages are present before anything is measured. */
        task.rounds.ns = calloc(task.rounds.count, sizeof *task.rounds.ns);
        if (task.rounds.ns)
            memset(task.rounds.ns, 1, task.rounds.count * sizeof *task.rounds.ns);
        else
            err = fail(w, "calloc", -ENOMEM);
    }
    if (!err) {
        w->failed = "/proc/self/status";
        err = figures_before(&before);
    }
    if (!err)
        err = do_task(w, &task);
    if (!err) {
        w->failed = "/proc/self/status";
        err = figures_after(&after);
    }
    if (err)
        printf("{\"ok\":false,\"errno\":%d,\"error\":\"%s: %s\"}\n", -err, w->failed,
               strerror(-err));
    else
        print_answer(w, &before, &after, task.repeated ? &task.rounds : NULL);
    fflush(stdout);
    free(task.rounds.ns);
}

int main(void)
{
    struct worker w = {.backend = NOTHING, .fd = -1};
    char *line = NULL;
    size_t room = 0;

    while (getline(&line, &room, stdin) > 0 && strcmp(line, "quit\n")) {
        line[strcspn(line, "\n")] = 0;
        obey(&w, line);
    }
    free(line);
    return 0;
}
