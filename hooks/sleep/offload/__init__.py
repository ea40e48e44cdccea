"""The library that moves GPU memory: its C sources (packaged data), how it is built, and how its sockets are asked.

`build` compiles and finds it, `client` asks it, `answers` reads what it says, `errors` has what fails. May import
the leaves of supervisor: its errors.
"""

from hooks.sleep.offload.errors import GpuMemoryError

__all__ = ["GpuMemoryError"]
