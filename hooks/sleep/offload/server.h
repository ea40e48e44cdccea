/* The control socket of a process with GPU memory, which speaks a line of JSON each way. */
#ifndef WARMBOOT_SERVER_H
#define WARMBOOT_SERVER_H

#include <stdbool.h>

/* Listen on `<folder>/<pid>.sock` on a thread of its own; false: that cannot be, and errno says why. */
bool server_start(const char *folder);

/* Forget the listener and the connection, in a fork. */
void server_forget(void);

#endif
