"""Random faults from the matrix on a loop: `make soak SECONDS=60 SOAK_ARGS="--seed 7"`.

Several servers at once are supervised in this process, some by `supervise()` on one event loop and some by Daemons.
Each plays episodes: a row of the fault matrix, more faults at random times, and a stop at a random moment. After each
episode its events must be a legal sequence, its port free, and no process of it alive; at the end this process must
hold the descriptors and threads that it held before, and the memory that it uses must not have grown with the lives.

The seed decides what is done and when it is asked for; what the machine makes of that differs between runs.
"""
