"""GPU memory put aside while a server is sealed, and brought back: for any engine on CUDA, without its knowledge.

`gpu_memory` has the setting that profiles and hosts use, `steps` the Steps, `moving` what they do in all processes of a
server at once, `accounting` the judgement whether all GPU memory in use was caught, `folder` the private folder of the
library's sockets; `offload` has the library itself: its C sources, how it is built, and how it is asked. May import
supervisor.
"""

from hooks.sleep.gpu_memory import GpuMemory
from hooks.sleep.steps import Offload, Reload

__all__ = ["GpuMemory", "Offload", "Reload"]
