"""Modal on this machine, without an account: its own CLI and container entrypoint against a local control plane.

May import serving, hooks and the supervisor with its rehearsal. `supervise rehearse` finds `entry.prepare` through the
entry point group `warmboot.rehearsals`. Containers on Modal need nothing of this room.
"""
