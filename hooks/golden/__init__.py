"""The golden answer: recorded before the seal, asked for again after the restore, compared.

May import hooks.http, hooks.warmup and supervisor.
"""

from hooks.golden.step import Golden, GoldenMismatch, goldens

__all__ = ["Golden", "GoldenMismatch", "goldens"]
