"""How a command ends: its exit code, and a paragraph on stderr when that is not 0."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from supervisor.errors import SupervisorError
from supervisor.linux.exhaustion import detect
from supervisor.logs.clean import clean

__all__ = ["account", "exits_with_status", "only_part", "prepare_process"]


def exits_with_status(command: Callable[..., int]) -> Callable[..., None]:
    """Ends the process with the exit code that a command returns.

    A SupervisorError becomes a paragraph on stderr and its own exit code; any other error, after its traceback, 1.
    """

    @wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            status = command(*args, **kwargs)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise  # click has its own words for these
        except Exception as error:  # noqa: BLE001  whatever it is, it ends in words and in an exit code
            status, words, trace = account(error)
            click.echo(clean(f"{trace}supervise: {words}"), err=True)
        sys.exit(status)

    return wrapper


def account(error: Exception) -> tuple[int, str, str]:
    """The exit code for an error, what to say of it, and the traceback when it is a defect, else nothing."""
    known = error if isinstance(error, SupervisorError) else detect(error)
    if known is not None:
        words = "\n".join([f"{type(known).__name__}: {known}", *getattr(known, "__notes__", ())])
        return known.cli_status, words, ""
    cause = only_part(error)
    words = f"{type(cause).__name__}: {cause}. This is a defect of supervise or of the profile's code."
    return 1, words, "".join(traceback.format_exception(error))


def only_part(error: Exception) -> Exception:
    """The exception in groups of one, or the error itself."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def prepare_process() -> None:
    """Makes the process fit to supervise, whatever it inherited: standard streams are open, SIGCHLD is not ignored."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # in this order they get descriptors 0, 1, 2
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123  open until the exit
    if threading.current_thread() is threading.main_thread():  # the only one that may
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would hide how children end
