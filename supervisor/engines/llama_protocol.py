"""What llama-server reads and says: flags, health bodies, log lines, counters, names of files. Pure."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

from supervisor.profile import plain_line

if TYPE_CHECKING:
    from pathlib import Path

    from supervisor.events import Level

# Flags that a setting stands for, the spelling that is emitted first: given twice, the later one would win unseen.
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
    "load": "--load-mode -lm --mmap --no-mmap --mlock -dio --direct-io -ndio --no-direct-io -lzm --lazy-mode "
    "--tensor-read-lazy",
    "api_key": "--api-key --api-key-file",
}
OWNER: Final = {flag: setting for setting, flags in OWNED.items() for flag in flags.split()}
# The probes ask http://host:port/health; these move the server away from there.
UNREACHABLE: Final = frozenset({"--api-prefix", "--ssl-key-file", "--ssl-cert-file"})

# A hint only: the wording differs between builds, and old ones say that they listen before they load.
READY: Final = r"listening on http|model loaded|all slots are idle"
COUNTERS: Final = r"(?m)^llamacpp:(?:prompt_tokens_total|tokens_predicted_total|n_decode_total) +\S+"

LETTERS: Final[dict[str, Level]] = {"T": "debug", "D": "debug", "I": "info", "W": "warning", "E": "error"}
_LOG_LINE: Final = re.compile(r"^\d+\.\d\d\.\d{3}\.\d{3} ([A-Z]) (.*)$", re.DOTALL)
_SHARD: Final = re.compile(r"^(.*)-\d{5}-of-(\d{5})\.gguf$")


def accept(status: int, body: str) -> str | None:
    """Judges `/health`: only 200 with `{"status": "ok"}` is up; otherwise the body's own message says why not."""
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


def parse_line(line: str) -> tuple[Level, str]:
    """Reads `0.00.005.647 I srv  init: ...`: the letter is the level, the time stamp goes; JSON lines as they are."""
    if match := _LOG_LINE.match(line):
        return LETTERS.get(match[1], "info"), match[2]
    if line.startswith("error"):  # what the argument parser complains of carries no prefix
        return "error", line
    level, text = plain_line(line)
    return level, text.rstrip("\n")  # --log-jsonl keeps the line break in its messages


def flag_of(argument: str) -> str | None:
    """The flag that an argument is, as llama-server reads it; None for a value."""
    name = argument.partition("=")[0]
    if not re.match(r"-{1,2}[A-Za-z]", name):
        return None
    return name.replace("_", "-") if name.startswith("--") else name  # it takes --ctx_size for --ctx-size


def shards(model: Path) -> tuple[Path, ...]:
    """All files of a model, by its name alone: `m-00001-of-00003.gguf` stands for three."""
    if not (match := _SHARD.match(model.name)):
        return (model,)
    return tuple(model.with_name(f"{match[1]}-{i:05}-of-{match[2]}.gguf") for i in range(1, int(match[2]) + 1))
