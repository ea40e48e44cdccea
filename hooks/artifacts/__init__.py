"""Files that must be there and whole before a start: the marker written last, an inventory, readers of model formats.

May import supervisor.
"""

from hooks.artifacts.files import sha256_of, write_atomically
from hooks.artifacts.inventory import Artifact, FoundFile, Inventory, take_inventory
from hooks.artifacts.marker import MARKER, Marker, MarkerError
from hooks.artifacts.step import ArtifactError, ArtifactsPresent

__all__ = [
    "MARKER",
    "Artifact",
    "ArtifactError",
    "ArtifactsPresent",
    "FoundFile",
    "Inventory",
    "Marker",
    "MarkerError",
    "sha256_of",
    "take_inventory",
    "write_atomically",
]
