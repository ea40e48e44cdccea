/* Waiting until the GPU has no work of this process any more. */
#ifndef WARMBOOT_IDLE_H
#define WARMBOOT_IDLE_H

#include <stdbool.h>

#include "failure.h"

/* Wait until every known device is idle, for `limit_s` seconds at most in all. The lock of `regions` is not held. */
bool wait_until_idle(double limit_s, struct failure *why);

#endif
