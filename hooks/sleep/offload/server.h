/* The control socket of a process with GPU memory: see README.md beside this for what it speaks. */
#ifndef WARMBOOT_SERVER_H
#define WARMBOOT_SERVER_H

#include <stdbool.h>

/* Listen on `<folder>/<pid>.sock` on a thread of its own; false: that cannot be, and errno says why. */
bool server_start(const char *folder);

/* Forget the listener, in a fork. */
void server_forget(void);

#endif
