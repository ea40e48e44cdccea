"""`supervise gpu-memory build`, and what `--gpu-memory offload` changes in a profile and its hooks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from supervisor import events
from supervisor.cli.exits import exits_with_status
from supervisor.errors import ProfileError, SupervisorError

if TYPE_CHECKING:
    from supervisor.profile import Profile
    from supervisor.steps import Hooks, Step

__all__ = ["gpu_memory", "offloading"]


@click.group("gpu-memory", short_help="Put GPU memory aside while a server sleeps: build the library.")
def gpu_memory() -> None:
    """Put the GPU memory of any CUDA engine aside while it sleeps, at the speed of the bus."""


@gpu_memory.command("build", short_help="Compile the library here, with cc.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where it goes.  [the cache, where --gpu-memory offload finds it]",
)
@exits_with_status
def build(output: Path | None) -> int:
    """Compile the library that puts GPU memory aside, from the packaged sources, with $CC or cc.

    It needs a C compiler, and neither CUDA nor a GPU. `exec --gpu-memory offload` does the same at its first start.

    Exit codes: 0 built, or built before; 2 DIR cannot be written to; 3 no compiler, it refused, or the result does not
    load here.
    """
    from hooks.sleep.offload import build as builder

    try:
        library = builder.build(output)
    except (OSError, RuntimeError) as error:
        allowed = f"a folder that can be written to ({error})"
        raise ProfileError(field="--output", value=str(output or "the cache"), allowed=allowed) from error
    click.echo(f"The library is {library}")
    if why := builder.load_error(library):
        click.echo(f"supervise: it does not load here: {why}.", err=True)
        return 3
    if output is None:
        click.echo("Next: supervise exec --gpu-memory offload -- COMMAND..., or GpuMemory() in a profile.")
    else:
        click.echo(f'Next: GpuMemory(library=Path("{library}")) in a profile.')
    return 0


def offloading(
    profile: Profile, hooks: Hooks, way: str | None, *, proof: tuple[Step, ...]
) -> tuple[Profile, Hooks, tuple[events.Notice, ...]]:
    """The profile and hooks with GPU memory put aside at a seal, if that is the way, and what to tell the user.

    The library is built if it is not there yet. Where that fails the server starts all the same, and a sleep is then
    refused with the reason.

    Args:
        profile, hooks: what is supervised.
        way: `offload`; `driver`, or None: left where it is.
        proof: Steps that pass only on a server whose memory came back right.

    Raises:
        ProfileError: the profile brings a way of its own, or the server's memory cannot be put aside as it is set up.
    """
    if way is None or (way == "driver" and not hooks.sleep):
        return profile, hooks, ()
    from hooks.sleep import GpuMemory, Offload

    if (way == "offload") is any(isinstance(step, Offload) for step in hooks.sleep):
        return profile, hooks, ()  # as the profile has it
    if hooks.sleep:
        own = ", ".join(step.name for step in hooks.sleep)
        allowed = f"left out: the profile has a way to sleep of its own ({own}), and there can be only one"
        raise ProfileError(field="--gpu-memory", value=way, allowed=allowed)
    notices = _built()
    memory = GpuMemory(for_snapshot=False, proof=proof)
    try:
        profile = memory.profile(profile)
    except ProfileError as error:
        field = "--gpu-memory" if error.field == "gpu_memory" else error.field
        raise ProfileError(field=field, value=error.value, allowed=error.allowed) from error
    return profile, hooks + memory.hooks(), notices


def _built() -> tuple[events.Notice, ...]:
    """Builds the library where it is missing; returns what to say where that fails."""
    from hooks.sleep.offload import build as builder

    try:
        builder.build()
    except (SupervisorError, OSError, RuntimeError) as error:
        words = f"the library that puts GPU memory aside could not be built, so it stays on the GPU: {error}"
        return (events.Notice(detail=words),)
    return ()
