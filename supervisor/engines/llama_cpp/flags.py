"""llama-server's command line: which flags stand for which setting, and which a build knows."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from supervisor.engines import help_flags

if TYPE_CHECKING:
    from collections.abc import Mapping

    from supervisor.engines.help_flags import Binary

__all__ = ["OWNED", "OWNER", "REMOVED", "UNREACHABLE", "capabilities", "flag_of"]

REMOVED: Final = "the argument has been removed"
"""llama.cpp goes on listing some flags after their removal, to say with these words what took their place."""

# The flags that belong to a setting, first the spelling that is used. They are refused among the extra arguments,
# because of two equal flags llama-server silently takes the later one.
OWNED: Final = {
    "model": "--model -m -mu --model-url -dr --docker-repo -hf -hfr --hf-repo -hff --hf-file --models-dir --models-max "
    "--models-preset --models-preset-hf --models-autoload --no-models-autoload",
    "mmproj": "--mmproj -mm -mmu --mmproj-url --mmproj-auto --no-mmproj --no-mmproj-auto",
    "alias": "--alias -a",
    "host": "--host",
    "port": "--port --reuse-port",
    "ctx_size": "--ctx-size -c",
    "slots": "--parallel -np",
    "gpu_layers": "--n-gpu-layers --gpu-layers -ngl",
    "threads": "--threads -t",
    "batch_size": "--batch-size -b",
    "ubatch_size": "--ubatch-size -ub",
    "cache_type_k": "--cache-type-k -ctk",
    "cache_type_v": "--cache-type-v -ctv",
    "cache_ram_mib": "--cache-ram -cram",
    "flash_attn": "--flash-attn -fa",
    "chat_template_file": "--chat-template-file",
    "jinja": "--jinja --no-jinja",
    "metrics": "--metrics --no-metrics",
    "sleep_idle_s": "--sleep-idle-seconds",
    "load": "--load-mode -lm --mmap --no-mmap --mlock -dio --direct-io -ndio --no-direct-io -lzm --lazy-mode "
    "--tensor-read-lazy",
    "api_key": "--api-key --api-key-file",
}
OWNER: Final = {flag: setting for setting, flags in OWNED.items() for flag in flags.split()}
# The probes ask http://host:port/health; these move the server away from there.
UNREACHABLE: Final = frozenset({"--api-prefix", "--ssl-key-file", "--ssl-cert-file"})


def capabilities(binary: Binary, env: Mapping[str, str]) -> frozenset[str]:
    """Return the flags that a build of llama-server knows; see `help_flags.capabilities`."""
    return help_flags.capabilities(binary, env, removed=REMOVED)


def flag_of(argument: str) -> str | None:
    """The flag that an argument is, as llama-server reads it; None for a value."""
    name = argument.partition("=")[0]
    if not re.match(r"-{1,2}[A-Za-z]", name):
        return None
    return name.replace("_", "-") if name.startswith("--") else name  # it takes --ctx_size for --ctx-size
