"""Whether the server can serve.

One request and its typed result (probe), who answers and for which model (identity), the wait until it is up (wait)
with the log line that shortens it (hint), the progress of the load, and the checks afterwards (watchdog).
May import process, logs, linux, timing and the leaves.
"""
