"""What the settings of several engines check alike: command, model, key, variables, and a health body of one kind."""

from __future__ import annotations

import json
import os
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from supervisor.errors import require
from supervisor.redact import MASK, Secret

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from supervisor.engines.help_flags import Binary

__all__ = ["accept_status_ok", "argv", "check_inherited", "check_key", "check_model", "shares_gpu_memory", "yaml_file"]


def argv(binary: Binary) -> tuple[str, ...]:
    """Return the beginning of a command, of which a program alone may be given."""
    return binary if isinstance(binary, tuple) else (os.fspath(binary),)


def check_model(model: str | Path, served_name: str) -> None:
    """Raise ProfileError unless the model is a directory or an id of a hub, and its name is not blank."""
    text = os.fspath(model)
    require(bool(text.strip()) and not text.startswith("-"), "model", text, "a directory, or an id of a hub")
    require(bool(served_name.strip()), "served_name", served_name, "a name that is not blank")


def check_key(api_key: Secret | None, *, open_access: bool) -> None:
    """Raise ProfileError unless the key is a Secret or None, and not given for a server that is meant to be open."""
    keyed = api_key is None or isinstance(api_key, Secret)
    require(keyed, "api_key", MASK, "a Secret, or None")  # the value stays out of the message
    require(not (api_key and open_access), "open_access", True, "False when an api_key is set")


def check_inherited(patterns: Collection[str], never: Collection[str]) -> None:
    """Raise ProfileError for a pattern of inherited variables that lets through one of those that never may be."""
    for pattern in patterns:
        hidden = [name for name in never if fnmatchcase(name, pattern)]
        require(not hidden, "inherit_env", pattern, f"too narrow for {', '.join(hidden)}")


def shares_gpu_memory(argv: Sequence[str], ranks: Collection[str], own: str) -> str | None:
    """Say why the GPU memory of a vLLM or SGLang cannot be put aside; None: nothing speaks against it.

    With a sleep mode of their own they allocate by themselves (vLLM's cumem.py by `cuMemCreate`, SGLang by a library
    that is preloaded too), which nobody else can put aside. Tensor-parallel ranks exchange CUDA IPC handles of the
    memory that the custom all-reduce works in. Memory that can be put aside has none; without that all-reduce both fall
    back to NCCL, whose memory stays where it is (seen: vLLM 0.26.0).

    Args:
        argv: the command.
        ranks: the flags that say over how many GPUs a layer is spread.
        own: the flag of its own sleep mode.
    """
    given = [word.replace("_", "-") for word in argv]
    if own in given:
        return f"with {own} the engine allocates GPU memory in a way of its own; leave that flag out"
    if "--disable-custom-all-reduce" in given:
        return None
    counts = [after for word, after in pairwise(given) if word in ranks]
    counts += [word.partition("=")[2] for word in given if word.partition("=")[0] in ranks]
    if not any(count.isdecimal() and int(count) > 1 for count in counts):
        return None
    return "its ranks share GPU memory by CUDA IPC; with --disable-custom-all-reduce they do not"


def yaml_file(config: str | Path) -> Path:
    """Return the path of a YAML file, which need not exist yet; raises ProfileError for another name."""
    path = Path(config)
    require(path.suffix in (".yaml", ".yml"), "config", path, "a file named .yaml or .yml")
    return path


def accept_status_ok(status: int, body: str) -> str | None:
    """Judge a health answer: only 200 with `{"status": "ok"}` is up; otherwise the body's own message says why not."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        said = None
    if isinstance(said, dict):
        if status == 200 and said.get("status") == "ok":
            return None
        error = said.get("error")
        if isinstance(error, dict) and isinstance(error.get("message"), str) and error["message"].strip():
            return " ".join(error["message"].split())[:200]
    return f"HTTP {status}: {' '.join(body.split())[:200] or 'empty body'}"
