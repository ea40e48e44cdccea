"""Whether the child can serve: one probe, the wait until it is up, load progress, and the watchdog afterwards.

May import process, logs, linux, timing and the leaves.
"""
