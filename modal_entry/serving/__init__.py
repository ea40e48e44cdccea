"""A deployment's sheet, its images and volumes, what a deploy fixes, and the class that serves it on Modal.

May import hooks and supervisor, inside functions only: Modal reads these modules at every deploy and container start.
"""

from modal_entry.serving.deployment import Deployment
from modal_entry.serving.server import Server

__all__ = ["Deployment", "Server"]
