"""A checkpoint and a restore in gVisor, on this machine, before a deploy: of any profile, or of a host's entry.

May import loading, engines, hooks and everything below them; knows no host, no engine's dialect and no command line.
Hosts register how their entries are rehearsed (`entries`). `inside` runs in the sandbox, the rest around it.
"""
