"""Engines: each turns its settings into a `Profile`, and says in a `Dialect` how its server speaks.

May import the core (profile, dialect, steps, errors, redact); the core imports no engine, and neither do hooks: they
ask `child.profile.dialect`. One package for each engine. `base` holds what every engine is, `help_flags` reads help
texts, `catalogue` finds the engines: a new one is a new package with a module `kind`, and nothing else changes. The
names that a command line knows (`supervise run local`) are entry points of the group `warmboot.profiles`.
"""

from supervisor.engines.base import Engine, EngineKind, PlainServer

__all__ = ["Engine", "EngineKind", "PlainServer"]
