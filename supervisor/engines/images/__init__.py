"""Images: a small server for text-to-image pipelines of diffusers, and its settings.

`server` is the program, which runs in the engine's own environment; `settings` makes its profile, `dialect` is how it
speaks. May import the core.
"""

from supervisor.engines.images.dialect import IMAGES, accept, parse_line
from supervisor.engines.images.settings import PROGRAM, Images

__all__ = ["IMAGES", "PROGRAM", "Images", "accept", "parse_line"]
