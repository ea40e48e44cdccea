/* The driver can wait without a limit only, so a thread does: one that waits for ever is left behind. */
#define _GNU_SOURCE
#include "idle.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "regions.h"

/* One wait; whoever is done with it last frees it. */
struct wait {
    pthread_mutex_t lock;
    pthread_cond_t ended;
    CUcontext context;
    CUresult result;
    bool over, abandoned;
};

static void discard(struct wait *wait) {
    pthread_mutex_destroy(&wait->lock);
    pthread_cond_destroy(&wait->ended);
    free(wait);
}

static void *synchronize(void *argument) {
    struct wait *wait = argument;
    CUresult result = cuda.ctx_set_current(wait->context);
    if (result == CUDA_SUCCESS)
        result = cuda.ctx_synchronize();
    pthread_mutex_lock(&wait->lock);
    wait->result = result;
    wait->over = true;
    bool mine = wait->abandoned;
    pthread_cond_signal(&wait->ended);
    pthread_mutex_unlock(&wait->lock);
    if (mine)
        discard(wait);
    return NULL;
}

static struct wait *begin(CUcontext context) {
    struct wait *wait = calloc(1, sizeof *wait);
    if (wait == NULL)
        return NULL;
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&wait->ended, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&wait->lock, NULL);
    wait->context = context;
    pthread_t thread;
    if (pthread_create(&thread, NULL, synchronize, wait) != 0) {
        discard(wait);
        return NULL;
    }
    pthread_detach(thread);
    return wait;
}

bool wait_until_idle(double limit_s, struct failure *why) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += (time_t)limit_s;
    until.tv_nsec += (long)((limit_s - (double)(time_t)limit_s) * 1e9);
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    for (int device = 0; device < MAX_DEVICES; device++) {
        pthread_mutex_lock(&regions.lock);
        CUcontext context = regions.devices[device].known ? regions.devices[device].context : NULL;
        pthread_mutex_unlock(&regions.lock);
        if (context == NULL)
            continue;
        struct wait *wait = begin(context);
        if (wait == NULL)
            return fail_host_memory(why, sizeof *wait, "a thread that waits for the GPU");
        pthread_mutex_lock(&wait->lock);
        while (!wait->over && pthread_cond_timedwait(&wait->ended, &wait->lock, &until) == 0)
            ;
        bool over = wait->over;
        CUresult result = wait->result;
        wait->abandoned = !over;
        pthread_mutex_unlock(&wait->lock);
        if (!over)
            return fail(why, "not_idle", "GPU %d still has work after %.1f s; nothing was put aside", device, limit_s);
        discard(wait);
        if (result != CUDA_SUCCESS)
            return fail_cuda(why, "cuCtxSynchronize", result);
    }
    return true;
}
