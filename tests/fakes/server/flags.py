"""The fake server's flags: those of llama-server that it knows, the faults, and how both are read."""

# ruff: noqa: PTH113

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # importing typing would cost more time than all the rest
if TYPE_CHECKING:
    from typing import NoReturn

STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}

# (names, value hint, environment variable, help), in the order of --help
LLAMA_FLAGS = [
    ("-h --help --usage", "", "", "print usage and exit"),
    ("--version", "", "", "show version and build info"),
    ("-t --threads", "N", "LLAMA_ARG_THREADS", "number of CPU threads to use during generation (default: -1)"),
    ("-c --ctx-size", "N", "LLAMA_ARG_CTX_SIZE", "size of the prompt context (default: 0, 0 = loaded from model)"),
    ("-b --batch-size", "N", "LLAMA_ARG_BATCH", "logical maximum batch size (default: 2048)"),
    ("-ub --ubatch-size", "N", "LLAMA_ARG_UBATCH", "physical maximum batch size (default: 512)"),
    ("-fa --flash-attn", "[on|off|auto]", "LLAMA_ARG_FLASH_ATTN", "set Flash Attention use (default: 'auto')"),
    ("-ctk --cache-type-k", "TYPE", "LLAMA_ARG_CACHE_TYPE_K", "KV cache data type for K (default: f16)"),
    ("-ctv --cache-type-v", "TYPE", "LLAMA_ARG_CACHE_TYPE_V", "KV cache data type for V (default: f16)"),
    ("--mmap --no-mmap", "", "LLAMA_ARG_MMAP", "whether to memory-map model (default: enabled)"),
    ("-lm --load-mode", "MODE", "LLAMA_ARG_LOAD_MODE", "how to load the model: none, mmap, mlock or dio"),
    ("-ngl --gpu-layers --n-gpu-layers", "N", "LLAMA_ARG_N_GPU_LAYERS", "max. number of layers to store in VRAM"),
    ("-m --model", "FNAME", "LLAMA_ARG_MODEL", "model path to load"),
    ("-cram --cache-ram", "N", "LLAMA_ARG_CACHE_RAM", "maximum cache size in MiB (default: 8192, 0 - disable)"),
    ("--warmup --no-warmup", "", "LLAMA_ARG_WARMUP", "whether to perform warmup with an empty run"),
    ("-np --parallel", "N", "LLAMA_ARG_N_PARALLEL", "number of server slots (default: 1, -1 = auto)"),
    ("-mm --mmproj", "FILE", "LLAMA_ARG_MMPROJ", "path to a multimodal projector file"),
    ("-a --alias", "STRING", "LLAMA_ARG_ALIAS", "set model name alias (to be used by API)"),
    ("--host", "HOST", "LLAMA_ARG_HOST", "ip address to listen on (default: 127.0.0.1)"),
    ("--port", "PORT", "LLAMA_ARG_PORT", "port to listen on (default: 8080)"),
    ("--webui --no-webui", "", "LLAMA_ARG_WEBUI", "whether to enable the Web UI (default: enabled)"),
    ("--api-key", "KEY", "LLAMA_API_KEY", "API key to use for authentication, several are comma-separated"),
    ("--threads-http", "N", "LLAMA_ARG_THREADS_HTTP", "number of threads used to process HTTP requests"),
    ("--metrics", "", "LLAMA_ARG_ENDPOINT_METRICS", "enable prometheus compatible metrics endpoint"),
    ("--slots --no-slots", "", "LLAMA_ARG_ENDPOINT_SLOTS", "expose slots monitoring endpoint (default: enabled)"),
    ("--sleep-idle-seconds", "SECONDS", "", "seconds of idleness after which the server will sleep (default: -1)"),
    ("--jinja --no-jinja", "", "LLAMA_ARG_JINJA", "whether to use jinja template engine for chat"),
    ("--chat-template-file", "FNAME", "LLAMA_ARG_CHAT_TEMPLATE_FILE", "set custom jinja chat template file"),
]


class LlamaOptions:
    """The llama-server flags that take effect. An annotation says how the flag's value is read."""

    host: str = "127.0.0.1"
    port: int = 8080
    model: str = ""
    alias: str = ""
    ctx_size: int = 4096
    parallel: int = 1
    metrics: bool = False
    sleep_idle_seconds: float = -1.0  # the real one takes whole seconds
    mmproj: str = ""
    chat_template_file: str = ""
    api_key: list[str]


class Options(LlamaOptions):
    """The fault flags: the field load_s is the flag --load-s."""

    help_omit: list[str]
    stamp: str = ""
    load_s: float = 0.0
    bind_late: bool = False
    never_ready: bool = False
    no_ready_line: bool = False
    read_model: bool = False
    stall_at: float | None = None
    exit_while_loading: int | None = None
    die_while_loading: bool = False
    signal_while_loading: str = ""
    after_s: float = 0.05
    router: bool = False
    wrong_port: bool = False
    bind_fails: bool = False
    bind_fails_once: str = ""
    exit_after_requests: int = 0
    signal_after_requests: int = 0
    signal: str = "SIGKILL"
    exit_code: int = 1
    die_after_s: float | None = None
    hang: bool = False
    hang_after_ready: float | None = None
    hang_completions: bool = False
    hang_completions_after: int | None = None
    health_fails_after: float | None = None
    ignore_sigterm: bool = False
    slow_sigterm: float = 0.0
    grandchild: bool = False
    grandchild_pid_file: str = ""
    answer: str = ""
    answer_after: int = 0
    answer_drift_file: str = ""
    logprob_drift: float = 0.0
    random_answers: bool = False
    no_logprobs: bool = False
    reject_logprobs: bool = False
    slow_first_byte: float = 0.0
    gate: str = ""
    map: list[str]
    hold_open: list[str]
    unlink_open: bool = False
    io_uring: bool = False
    gpu_engine: str = ""
    let_go: str = ""
    open: bool = False
    public_models: bool = False
    reject_key: bool = False
    serve_model_id: str = ""
    flood_lines_per_s: float | None = None
    flood_bytes_total: int | None = None
    no_newline_mb: float = 0.0
    garbage: bool = False
    echo_secret: str = ""
    echo_secret_split: str = ""
    log_jsonl: bool = False
    ansi: bool = False
    close_stdio: bool = False

    def __init__(self) -> None:
        self.api_key = [key for key in os.environ.get("LLAMA_API_KEY", "").split(",") if key]
        self.map, self.hold_open = [], []
        self.help_omit = [flag for flag in os.environ.get("FAKE_HELP_OMIT", "").split(",") if flag]


ODD_CONTENT = {"empty": "", "whitespace": "  \n ", "degenerate": "G" * 64, "null": None}
ODD_ANSWERS = {*ODD_CONTENT, "error", "invalid-json", "cut", "no-choices", "html"}


def refuse(message: str) -> NoReturn:
    sys.stderr.write(message + "\n")
    sys.exit(1)


def read_value(kind: str, text: str) -> object:
    """One flag's value; a ValueError when it does not read."""
    if kind.startswith("int"):
        return int(text)
    return float(text) if kind.startswith("float") else text


def check_values(options: Options) -> None:
    """Spell the shorthands out; a ValueError for what makes no sense."""
    if options.die_while_loading:
        options.exit_while_loading = 1
    if options.hang_completions:
        options.hang_completions_after = 0
    if options.chat_template_file and not os.path.isfile(options.chat_template_file):
        raise ValueError(f"failed to open file '{options.chat_template_file}'")
    if options.answer and options.answer not in ODD_ANSWERS:
        raise ValueError(f"--answer must be one of {', '.join(sorted(ODD_ANSWERS))}")
    for name in (options.signal, options.signal_while_loading):
        if name and name not in signal.Signals.__members__:
            raise ValueError(f"no such signal: {name}")
    if options.stall_at is not None and not options.read_model:
        raise ValueError("--stall-at needs --read-model")


def help_text(rows: list[tuple[str, str, str, str]]) -> str:
    """The flags in llama-server's layout: the help starts in column 40, or on a line of its own."""
    lines = ["----- common params -----", ""]
    for names, hint, env, text in rows:
        first, *others = names.split()
        left = f"{first + ',':<7}{', '.join(others)}" if others else first
        left = left.replace(",--", ", --") + (f" {hint}" if hint else "")
        lines += [f"{left:<40}{text}"] if len(left) <= 40 else [left, " " * 40 + text]
        lines += [" " * 40 + f"(env: {env})"] if env else []
    return "\n".join(lines) + "\n"


def parse(argv: list[str]) -> Options:
    options = Options()
    omitted = {*options.help_omit, *(argv[i + 1] for i, flag in enumerate(argv[:-1]) if flag == "--help-omit")}
    rows = [row for row in LLAMA_FLAGS if not omitted & set(row[0].split())]
    llama = {name: row for row in rows for name in row[0].split()}
    faults = {"--" + field.replace("_", "-"): kind for field, kind in Options.__annotations__.items()}
    words = iter(argv)
    for flag in words:
        if flag in llama:
            names, hint = llama[flag][:2]
            field = names.split()[-1].strip("-").replace("-", "_")
            kind = LlamaOptions.__annotations__.get(field, "str" if hint else "bool")
        elif flag in faults:
            field, kind = flag[2:].replace("-", "_"), faults[flag]
        else:
            refuse(f"error: invalid argument: {flag}")
        if field == "usage":
            sys.stdout.write(help_text(rows))
            sys.exit(0)
        if field == "version":
            sys.stderr.write("version: 9940 (fake)\n")
            sys.exit(0)
        try:
            value = True if kind == "bool" else read_value(kind, next(words))
        except StopIteration:
            refuse(f'error while handling argument "{flag}": expected value for argument')
        except ValueError as error:
            refuse(f'error while handling argument "{flag}": {error}')
        if kind.startswith("list"):
            getattr(options, field).extend(str(value).split(","))
        else:
            setattr(options, field, value)
    try:
        check_values(options)
    except ValueError as error:
        refuse(f"error: {error}")
    return options
