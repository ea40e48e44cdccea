"""The two volumes that hold weights and builds, for the deployments of every environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import modal

__all__ = ["BUILDS", "BUILDS_NAME", "MODELS", "MODELS_NAME", "builds_volume", "models_volume", "volumes_environment"]

MODELS_NAME: Final = "llama-models"
BUILDS_NAME: Final = "llama-cpp-builds"

MODELS: Final = Path(os.environ.get("WARMBOOT_MODELS_PATH") or "/models")
BUILDS: Final = Path(os.environ.get("WARMBOOT_BUILDS_PATH") or "/llama-build")
"""Where containers have them; the variables are for tests, which may not write to the root."""


def volumes_environment() -> str:
    """The Modal environment whose volumes are used, whichever one an app is deployed to.

    One environment for all, so that staging serves the very files that production serves afterwards.
    """
    return os.environ.get("WARMBOOT_VOLUMES_ENVIRONMENT") or "main"


# Created once and for all: a container counts these objects and wants as many as the deploy had.
models_volume = modal.Volume.from_name(MODELS_NAME, environment_name=volumes_environment(), create_if_missing=True)
builds_volume = modal.Volume.from_name(BUILDS_NAME, environment_name=volumes_environment(), create_if_missing=True)
