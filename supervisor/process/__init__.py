"""The child process: spawned, signalled, reaped and torn down here and nowhere else.

May import linux, logs, timing and the leaves (errors, events, profile, child, redact).
"""
