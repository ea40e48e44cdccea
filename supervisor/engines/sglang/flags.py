"""SGLang's command line: which flag stands for which setting, what a build knows, and which keys a YAML may have."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from supervisor.engines import help_flags
from supervisor.engines.yaml_keys import top_level_keys
from supervisor.errors import ProfileError, UnsupportedFlag, require
from supervisor.redact import MASK

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

    from supervisor.engines.help_flags import Binary

__all__ = ["OWNED", "capabilities", "check_config", "check_extra", "flag_of", "refuse_owned"]

OWNED: Final = {
    "model": "--model-path --model",
    "served_name": "--served-model-name",
    "host": "--host",
    "port": "--port",
    "tp_size": "--tp-size --tensor-parallel-size --tp",
    "dp_size": "--dp-size --data-parallel-size --dp",
    "context_length": "--context-length",
    "mem_fraction_static": "--mem-fraction-static",
    "dtype": "--dtype",
    "load_format": "--load-format",
    "metrics": "--enable-metrics",
    "memory_saver": "--enable-memory-saver --enable-weights-cpu-backup --enable-draft-weights-cpu-backup",
    "config": "--config",
    "api_key": "--api-key",
    "admin_key": "--admin-api-key",
}
"""The flags that belong to a setting, first the spelling that is used."""

_HELP_S: Final = 180.0  # the first help after an installation compiles the imports: 21 s later on, on two busy cores
_OWNER: Final = {flag: setting for setting, flags in OWNED.items() for flag in flags.split()}
# These move the server away from where the probes ask, or past the check of the key (seen in its source, 0.5.23).
_UNREACHABLE: Final = {
    **dict.fromkeys(
        ("--ssl-keyfile", "--ssl-certfile", "--fastapi-root-path", "--encoder-only"),
        "probes ask http://host:port/health",
    ),
    **dict.fromkeys(("--grpc-port", "--smg-grpc-mode", "--grpc-mode", "--use-ray"), "its listener asks for no key"),
    "--tokenizer-worker-num": "with several tokenizers SGLang asks for no key at all",
    "--delete-ckpt-after-loading": "a restart reads the weights again",
    "--skip-server-warmup": "without the warmup its health is green before it has computed anything",
}
# Left at None, a setting leaves its key to the file; these have a value, or a meaning, in any case.
_NEVER_CONFIGURED: Final = ("model", "served_name", "host", "port", "config", "api_key", "admin_key", "memory_saver")
_SECRET: Final = ("api_key", "admin_key")


def capabilities(command: Binary, env: Mapping[str, str]) -> frozenset[str]:
    """Return the flags that a build of SGLang knows; its help takes seconds, because it imports torch."""
    return help_flags.capabilities(command, env, limit_s=_HELP_S)


def flag_of(argument: str) -> str | None:
    """The flag that an argument is; None for a value, such as `-1`."""
    return argument.partition("=")[0] if re.match(r"-{1,2}[A-Za-z]", argument) else None


def refuse_owned(argument: str) -> None:
    """Refuse an extra argument that is a setting's, or that leads past the probes or the key."""
    name = flag_of(argument)
    if name in _OWNER:
        shown = MASK if _OWNER[name] in _SECRET else argument  # what stands behind its '=' may be the key
        raise ProfileError(field="extra_args", value=shown, allowed=f"free of {name}: use the setting {_OWNER[name]!r}")
    if name in _UNREACHABLE:
        raise ProfileError(field="extra_args", value=argument, allowed=f"free of {name}: {_UNREACHABLE[name]}")


def check_extra(arguments: Iterable[str], known: frozenset[str], command: str) -> None:
    """Refuse what belongs to a setting, and what the build does not list; abbreviations are not listed.

    Raises:
        ProfileError: the argument belongs to a setting, or leads past the probes or the key.
        UnsupportedFlag: the build does not list it.
    """
    for argument in arguments:
        if name := flag_of(argument):
            refuse_owned(argument)
            if name not in known:
                raise UnsupportedFlag(
                    field="extra_args", value=name, allowed=name, binary=command
                )  # not what follows =


def check_config(path: Path, given: Collection[str], known: frozenset[str] | None = None, command: str = "") -> None:
    """Refuse a key of the YAML file that a setting owns, that is unsafe, or that the build does not know.

    SGLang turns `key: value` into `--key value` before the command line, which then wins without a word.

    Args:
        path: the file.
        given: the settings that have a value; one that is left at None leaves its key free.
        known: the flags of the build; None: not compared.
        command: the program, for errors.

    Raises:
        ProfileError: a key belongs to a setting, or the file cannot be read.
        UnsupportedFlag: the build knows no flag of that name.
    """
    for key in top_level_keys(path):
        where, dashed = f"{path}: {key}", f"--{key.replace('_', '-')}"
        owner = _OWNER.get(dashed)
        if owner in given or owner in _NEVER_CONFIGURED:
            raise ProfileError(
                field="config",
                value=where,
                allowed=f"free of the key {key!r}, which belongs to the setting {owner!r}: drop one of the two",
            )
        require(dashed not in _UNREACHABLE, "config", where, f"free of this key: {_UNREACHABLE.get(dashed)}")
        if known is not None and f"--{key}" not in known:
            hint = dashed if dashed in known else f"--{key}"
            raise UnsupportedFlag(field="config", value=where, allowed=hint, binary=command)
