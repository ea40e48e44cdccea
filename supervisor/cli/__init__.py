"""The command line. It sits on top of everything and may import hooks and engines; nothing imports it."""

from supervisor.cli.app import main

__all__ = ["main"]
