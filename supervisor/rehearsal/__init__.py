"""A checkpoint and a restore of a profile in gVisor, on this machine, before a deploy.

May import everything below the command line, hooks included; knows no Modal.
"""
