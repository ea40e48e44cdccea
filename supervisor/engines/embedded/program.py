"""The program of the embedded engine: takes llama-server's arguments, and serves with `xllamacpp`.

xllamacpp is llama.cpp's own HTTP server inside a Python process. The key comes from the environment, `LLAMA_API_KEY`.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any, Final, NoReturn

__all__ = ["FLAGS", "INSTALL", "help_text", "main"]

INSTALL: Final = "pip install 'warmboot[local]'"
CACHE_TYPES: Final = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
SWITCHES: Final = {"on": "ENABLED", "off": "DISABLED", "auto": "AUTO"}

# names, value, help; `_params` knows a flag by its last name.
FLAGS: Final = (
    ("-h --help", "", "print usage and exit"),
    ("--version", "", "print the version of xllamacpp and exit"),
    ("-m --model", "FILE", "GGUF model to serve (required)"),
    ("-mm --mmproj", "FILE", "multimodal projector"),
    ("-a --alias", "NAME", "name of the model for clients (default: the path)"),
    ("--host", "HOST", "address to listen on (default: 127.0.0.1)"),
    ("--port", "PORT", "port to listen on, 0 for any (default: 8080)"),
    ("-c --ctx-size", "N", "context in tokens, shared by all slots (default: 4096)"),
    ("-np --parallel", "N", "slots, requests served at once (default: 1)"),
    ("-t --threads", "N", "threads for generation (default: -1, by the CPU)"),
    ("-b --batch-size", "N", "logical batch (default: 2048)"),
    ("-ub --ubatch-size", "N", "physical batch (default: 512)"),
    ("-ngl --n-gpu-layers", "N", "layers in GPU memory, for builds that can (default: -1, automatic)"),
    ("-fa --flash-attn", "on|off|auto", "flash attention (default: auto)"),
    ("-ctk --cache-type-k", "TYPE", f"type of the K cache: {', '.join(CACHE_TYPES)} (default: f16)"),
    ("-ctv --cache-type-v", "TYPE", "type of the V cache (default: f16)"),
    ("-cram --cache-ram", "MIB", "prompt cache in host memory, 0 for none (default: 0)"),
    ("-lm --load-mode", "MODE", "none reads the weights into memory, mmap maps the file (default: none)"),
    ("--chat-template-file", "FILE", "Jinja chat template instead of the model's own"),
    ("--jinja", "", "render chats with Jinja (default)"),
    ("--no-jinja", "", "render chats with the built-in templates"),
    ("--metrics", "", "serve Prometheus counters on /metrics"),
    ("--sleep-idle-seconds", "N", "unload the model after N idle seconds, until the next request (default: -1, never)"),
)


class UsageError(ValueError):
    """The command line is wrong."""


def help_text() -> str:
    """Return the flags, laid out as llama-server does."""
    rows = ((f"{', '.join(names.split())} {value}".rstrip(), text) for names, value, text in FLAGS)
    return "usage: python -m supervisor.engines.embedded --model FILE [flags]\n\n" + "".join(
        f"{left:<40}{text}\n" for left, text in rows
    )


def parse(argv: list[str]) -> dict[str, str]:
    """Return the command line as flag -> value, by the flag's long name; `""` for a flag without one."""
    known = {name: (names.split()[-1], bool(value)) for names, value, _ in FLAGS for name in names.split()}
    given: dict[str, str] = {}
    words = iter(argv)
    for word in words:
        if word not in known:
            raise UsageError(f"invalid argument: {word}")
        name, has_value = known[word]
        given[name] = next(words, "") if has_value else ""
        if has_value and not given[name]:
            raise UsageError(f"{word}: expected a value")
    return given


def main(argv: list[str] | None = None) -> NoReturn:
    """Serve until SIGTERM or SIGINT, then exits 0; exits 1 after one line on stderr when it cannot serve."""
    try:
        given = parse(sys.argv[1:] if argv is None else argv)
        if "--help" in given:
            sys.stdout.write(help_text())
            sys.exit(0)
        try:
            import xllamacpp
        except ImportError as error:
            raise UsageError(f"xllamacpp cannot be imported ({error}): {INSTALL}") from error
        if "--version" in given:
            sys.stdout.write(f"version: {xllamacpp.__version__} (xllamacpp)\n")
            sys.exit(0)
        _serve(xllamacpp, given)
    except (UsageError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)


def _serve(engine: Any, given: dict[str, str]) -> NoReturn:
    params = _params(engine, given)
    # The load holds the interpreter's lock for seconds and no handler of ours could run: until then, signals kill.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        server = engine.Server(params)
    except RuntimeError as error:
        raise UsageError("the server did not start; the engine's log above says why") from error
    # A byte down a pipe, because the kernel may hand the signal to one of the engine's threads, and `signal.pause` in
    # this one would sleep on.
    awake, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    sys.stderr.write(f"serving on {server.listening_address}\n")
    sys.stderr.flush()
    os.read(awake, 1)
    os._exit(0)  # the server's destructor takes 0.1 s when idle, and never ends while an answer is under way


def _params(engine: Any, given: dict[str, str]) -> Any:
    if "--model" not in given:
        raise UsageError(
            "--model is required: without one the engine would be a router, which is up and serves no model"
        )
    params = engine.CommonParams()
    params.model.path = given["--model"]
    params.mmproj.path = given.get("--mmproj", "")
    params.model_alias = {given["--alias"]} if "--alias" in given else set()
    params.hostnames = [given.get("--host", "127.0.0.1")]
    params.port = _number(given, "--port", 8080, 0)
    if key := os.environ.get("LLAMA_API_KEY"):
        params.api_keys = [key]
    params.n_ctx = _number(given, "--ctx-size", 4096, 1)
    params.n_parallel = _number(given, "--parallel", 1, 1)
    params.cpuparams.n_threads = _number(given, "--threads", -1, -1)
    params.n_batch = _number(given, "--batch-size", 2048, 1)
    params.n_ubatch = _number(given, "--ubatch-size", 512, 1)
    params.n_gpu_layers = _number(given, "--n-gpu-layers", -1, -1)
    params.cache_ram_mib = _number(given, "--cache-ram", 0, -1)
    params.flash_attn_type = _named(
        engine.llama_flash_attn_type, "LLAMA_FLASH_ATTN_TYPE_", given, "--flash-attn", SWITCHES
    )
    types = {name: name.upper() for name in CACHE_TYPES}
    params.cache_type_k = _named(engine.ggml_type, "GGML_TYPE_", given, "--cache-type-k", types, "f16")
    params.cache_type_v = _named(engine.ggml_type, "GGML_TYPE_", given, "--cache-type-v", types, "f16")
    modes = {"none": "NONE", "mmap": "MMAP"}
    params.load_mode = _named(engine.llama_load_mode, "LLAMA_LOAD_MODE_", given, "--load-mode", modes, "none")
    if "--chat-template-file" in given:
        params.chat_template = Path(given["--chat-template-file"]).read_text(encoding="utf-8")
    params.use_jinja = "--no-jinja" not in given
    params.sleep_idle_seconds = _number(given, "--sleep-idle-seconds", -1, -1)
    params.endpoint_metrics = "--metrics" in given
    params.fit_params = False  # nothing is left to fit, and trying it doubles the time of the load
    return params


def _number(given: dict[str, str], name: str, default: int, low: int) -> int:
    try:
        value = int(given.get(name, default))
    except ValueError:
        value = low - 1
    if value < low:
        raise UsageError(f"{name} {given[name]}: expected a whole number, {low} or more")
    return value


def _named(
    kind: Any, prefix: str, given: dict[str, str], name: str, choices: dict[str, str], default: str = "auto"
) -> Any:
    value = given.get(name, default)
    if value not in choices:
        raise UsageError(f"{name} {value}: expected one of {', '.join(choices)}")
    return getattr(kind, prefix + choices[value])
