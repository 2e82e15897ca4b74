/* A team of threads that share pieces of work, one after the other.
 *
 * The leader divides the tasks of a piece of work into equal segments, one for each member. A member claims chunks of
 * its own segment, one at a time, then chunks that are left in other segments; the leader returns when all tasks are
 * done. So a member reads in the next piece of work what it has written in this one, and still has in its cache. Which
 * thread does which tasks changes no result: no task depends on another.
 *
 * Nobody waits for a worker that has not claimed anything, so a worker that the system has put to sleep delays nobody.
 * Between two pieces of work, workers spin for a while, then yield their processor. The team does not know how threads
 * are made: a thread becomes a worker by calling `team_work`, until `team_stop`, or until there is nobody left to call
 * that.
 */
#pragma once

#include <stdatomic.h>
#include <stdint.h>

#include "clock.h"

#if defined(_WIN32)
#include <windows.h>
#define YIELD() SwitchToThread()
#else
#include <sched.h>
#define YIELD() sched_yield()
#endif

#if defined(__x86_64__) || defined(__i386__)
#define PAUSE() __builtin_ia32_pause()
#else
#define PAUSE() ((void)0)
#endif

enum {
    TEAM_MAXIMUM = 64,
    SPINS = 2000, /* about as long as waking a sleeping thread takes */
};

typedef void (*TeamWork)(void *context, int64_t begin, int64_t end, int thread);

/* Tasks [claimed, end) are not yet claimed. No two segments share a cache line, at whatever address the team is. */
typedef struct {
    _Atomic uint64_t claimed;       /* number of the piece of work << 32 | task */
    _Atomic int64_t end;
    char padding[112];
} Segment;

typedef struct {
    Segment segments[TEAM_MAXIMUM];
    int size;                       /* threads, the leader included */
    _Atomic(TeamWork) work;
    _Atomic(void *) context;
    _Atomic int64_t chunk;
    _Atomic uint32_t offered;       /* number of the piece of work */
    _Atomic int64_t done;           /* how many of its tasks are done */
    _Atomic int stopped;
    int64_t *waited;                /* nanoseconds in which the leader waits for others are added here; or NULL */
} Team;

/* Claim and do chunks of the piece of work with this number until none is left. */
static void team_do_chunks(Team *team, uint32_t number, int thread) {
    for (int i = 0; i < team->size; i++) {
        Segment *segment = &team->segments[(thread + i) % team->size];
        while (1) {
            uint64_t claimed = atomic_load(&segment->claimed);
            const int64_t begin = (uint32_t)claimed, segment_end = atomic_load(&segment->end);
            const int64_t chunk = atomic_load(&team->chunk);
            const TeamWork work = atomic_load(&team->work);
            void *context = atomic_load(&team->context);
            if (claimed >> 32 != number) return;
            if (begin >= segment_end) break;
            const int64_t end = begin + chunk < segment_end ? begin + chunk : segment_end;
            /* Succeeds only while the piece of work is still the one read above. */
            if (!atomic_compare_exchange_strong(&segment->claimed, &claimed, (uint64_t)number << 32 | (uint64_t)end))
                continue;
            work(context, begin, end, thread);
            atomic_fetch_add(&team->done, end - begin);
        }
    }
}

/* Do all tasks of a piece of work, in chunks of `grain` or a multiple of it; fewer than 2**31 tasks. */
static void team_run(Team *team, TeamWork work, void *context, int64_t tasks, int64_t grain) {
    if (team->size == 1 || tasks <= grain) {
        if (tasks > 0) work(context, 0, tasks, 0);
        return;
    }
    const int64_t all_grains = (tasks + grain - 1) / grain;
    const int64_t chunk_grains = all_grains / (4 * team->size); /* four chunks for each thread even out their delays */
    const uint32_t number = atomic_load(&team->offered) + 1;
    /* Nobody can claim anything until the last of these lines: a worker that read a mix of old and new fails its
     * exchange. */
    for (int i = 0; i < team->size; i++)
        atomic_store(&team->segments[i].claimed, (uint64_t)(number - 1) << 32 | UINT32_MAX);
    atomic_store(&team->work, work);
    atomic_store(&team->context, context);
    atomic_store(&team->chunk, chunk_grains > 1 ? chunk_grains * grain : grain);
    atomic_store(&team->done, 0);
    for (int i = 0; i < team->size; i++) {
        const int64_t begin = all_grains * i / team->size * grain, end = all_grains * (i + 1) / team->size * grain;
        atomic_store(&team->segments[i].end, end < tasks ? end : tasks);
        atomic_store(&team->segments[i].claimed, (uint64_t)number << 32 | (uint64_t)(begin < tasks ? begin : tasks));
    }
    atomic_store(&team->offered, number);
    team_do_chunks(team, number, 0);
    if (team->waited) *team->waited -= now_ns();
    for (int spins = 0; atomic_load(&team->done) < tasks; spins++) {
        if (spins < SPINS) PAUSE();
        else YIELD();
    }
    if (team->waited) *team->waited += now_ns();
}

/* Be a worker, numbered from 1. `is_over` returns whether the team has ended although nobody stopped it. */
static void team_work(Team *team, int thread, int (*is_over)(void)) {
    uint32_t number = 0;
    for (int spins = 0; !atomic_load(&team->stopped) && !is_over(); spins++) {
        const uint32_t offered = atomic_load(&team->offered);
        if (offered != number) {
            number = offered;
            team_do_chunks(team, number, thread);
            spins = 0;
        } else if (spins < SPINS) {
            PAUSE();
        } else {
            YIELD();
        }
    }
}

static void team_start(Team *team, int size) {
    team->size = size;
    team->waited = NULL;
    for (int i = 0; i < TEAM_MAXIMUM; i++) atomic_store(&team->segments[i].claimed, UINT32_MAX);
    atomic_store(&team->offered, 0);
    atomic_store(&team->stopped, 0);
}

static void team_stop(Team *team) { atomic_store(&team->stopped, 1); }
