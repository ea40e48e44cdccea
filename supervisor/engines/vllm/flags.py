"""vLLM's command line: which flag stands for which setting, and what a build knows."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from supervisor.engines import help_flags
from supervisor.engines.yaml_keys import top_level_keys
from supervisor.errors import ProfileError, UnsupportedFlag, require
from supervisor.redact import MASK

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from supervisor.engines.help_flags import Binary

__all__ = ["OWNED", "VALUED", "capabilities", "check_config", "check_extra", "flag_of"]

# The flags that belong to a setting, first the spelling that is used.
OWNED: Final = {
    "model": "--model",
    "host": "--host --uds",
    "port": "--port",
    "served_name": "--served-model-name",
    "tensor_parallel_size": "--tensor-parallel-size -tp",
    "pipeline_parallel_size": "--pipeline-parallel-size -pp",
    "max_model_len": "--max-model-len",
    "max_num_seqs": "--max-num-seqs",
    "gpu_memory_utilization": "--gpu-memory-utilization --device-memory-utilization",
    "dtype": "--dtype",
    "load_format": "--load-format",
    "enforce_eager": "--enforce-eager --no-enforce-eager",
    "config": "--config",
    "sleep": "--enable-sleep-mode --no-enable-sleep-mode",
    "api_key": "--api-key",
    "shutdown_timeout_s": "--shutdown-timeout",
}
VALUED: Final = tuple(  # settings whose flag is followed by their value
    setting for setting in OWNED if setting not in ("model", "enforce_eager", "sleep", "api_key")
)
_HELP_S: Final = 180.0  # the first help after an installation compiles torch's imports: 47 s on two busy cores
_OWNER: Final = {flag: setting for setting, flags in OWNED.items() for flag in flags.split()}
# These move the server away from where the probes ask, or leave it without a server.
_UNREACHABLE: Final = frozenset({"--ssl-keyfile", "--ssl-certfile", "--headless", "--grpc", "--root-path"})
_NEVER_CONFIGURED: Final = ("model", "host", "port", "served_name", "config", "sleep", "api_key")


def capabilities(command: Binary, env: Mapping[str, str]) -> frozenset[str]:
    """Return the flags that a build of vLLM knows; its help takes seconds, because it imports torch."""
    return help_flags.capabilities(command, env, ask=("serve", "--help=all"), limit_s=_HELP_S)


def flag_of(argument: str) -> str | None:
    """The flag that an argument is, as vLLM reads it; None for a value.

    `--max_model_len=4` is `--max-model-len`, `--hf-overrides.rope.factor` is `--hf-overrides`, and `-O3` is
    `--optimization-level`.
    """
    if not re.match(r"-{1,2}[A-Za-z]", argument):
        return None
    name = re.split(r"[=.]", argument, maxsplit=1)[0]
    if re.fullmatch(r"-O\d?", name):
        return "--optimization-level"
    return name.replace("_", "-") if name.startswith("--") else name


def check_extra(arguments: Collection[str], known: frozenset[str], command: str) -> None:
    """Refuse what belongs to a setting, what the build does not list, and what hides the server from the probes.

    Raises:
        ProfileError: the argument belongs to a setting.
        UnsupportedFlag: the build does not list it; abbreviations are not listed.
    """
    for argument in arguments:
        if name := flag_of(argument):
            refuse_owned(argument)
            if name not in known:
                raise UnsupportedFlag(
                    field="extra_args", value=name, allowed=name, binary=command
                )  # not what follows =


def refuse_owned(argument: str) -> None:
    """Refuse an extra argument that is a setting's."""
    name = flag_of(argument)
    if name in _OWNER:
        shown = MASK if _OWNER[name] == "api_key" else argument  # what stands behind its '=' may be the key
        allowed = f"free of {name}: use the setting {_OWNER[name]!r}"
        raise ProfileError(field="extra_args", value=shown, allowed=allowed)
    require(name not in _UNREACHABLE, "extra_args", argument, f"free of {name}: probes ask http://host:port/health")


def check_config(path: Path, given: Collection[str], known: frozenset[str], command: str) -> None:
    """Refuse a key of the YAML file that a setting owns or that the build does not know.

    vLLM lets the command line win over the file without a word; a setting that is left at None leaves its key free.

    Args:
        path: the file.
        given: the settings that have a value.
        known: the flags of the build.
        command: the program, for errors.

    Raises:
        ProfileError: a key belongs to a setting, or the file cannot be read.
        UnsupportedFlag: the build knows no flag of that name.
    """
    for key in top_level_keys(path):
        flag = flag_of(f"-{key}" if len(key) == 1 else f"--{key}") or key
        owner = _OWNER.get(flag)
        if owner in given or owner in _NEVER_CONFIGURED:
            raise ProfileError(
                field="config",
                value=f"{path}: {key}",
                allowed=f"free of the key {key!r}, which belongs to the setting {owner!r}: drop one of the two",
            )
        require(flag not in _UNREACHABLE, "config", f"{path}: {key}", "without it: probes ask http://host:port/health")
        if flag not in known:
            raise UnsupportedFlag(field="config", value=f"{path}: {key}", allowed=flag, binary=command)
