"""Files that must be there and whole before a start: the marker written last, and readers of model formats.

May import supervisor.
"""

from hooks.artifacts.step import Artifact, ArtifactError, ArtifactsPresent, Report, Row, verify

__all__ = ["Artifact", "ArtifactError", "ArtifactsPresent", "Report", "Row", "verify"]
