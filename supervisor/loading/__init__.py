"""Loading a profile that a user names: `module:attribute`, `path/file.py:attribute`, or a registered name.

May import lifecycle and everything below it; nothing of engines, hooks, rehearsal or the command line.
"""

from supervisor.loading.modules import ProfileCodeFailed, load_file, load_module, raised_by
from supervisor.loading.profiles import load
from supervisor.loading.variables import variables

__all__ = ["ProfileCodeFailed", "load", "load_file", "load_module", "raised_by", "variables"]
