"""The golden answer: a server's answer to a fixed question, recorded before the seal and compared after the restore.

`generation` reads an answer token by token and compares two, `drawing` does so with pictures; `step` has the Steps.
May import hooks.http and supervisor.
"""

from hooks.golden.step import Golden, GoldenMismatch, goldens

__all__ = ["Golden", "GoldenMismatch", "goldens"]
