#!/usr/bin/env python3
"""A stand-in for llama-server that starts in a few milliseconds and misbehaves on demand.

It takes the llama-server flags in LLAMA_FLAGS (--help lists them). --host, --port, --model, --alias, --api-key,
--ctx-size, --parallel, --metrics, --mmproj and --chat-template-file take effect; the others do nothing. Any other
flag is an error, except the faults below. Times are seconds and may be fractions; logs go to stderr, noise to stdout.

About the fake itself
  --help-omit FLAG              FLAG is unknown to this "build" (repeatable; or FAKE_HELP_OMIT=--a,--b)
  --stamp FILE                  append "ready <monotonic>" once healthy and "died <monotonic>" before a planned death
Loading
  --load-s S                    health says 503 for S seconds      --bind-late       no socket until loaded
  --never-ready                 loading never ends                 --no-ready-line   no "server is listening" line
  --read-model                  read the model file, spread over --load-s
  --stall-at FRACTION           with --read-model: stop reading there, for ever
  --exit-while-loading CODE     exit during loading, --after-s S (0.05) in; --die-while-loading means CODE 1
  --signal-while-loading NAME   the same, but raise the signal NAME on itself
  --router                      healthy at once, without a model: /v1/models is empty, completions are refused
  --wrong-port                  listen on a port of the kernel's choice instead of --port
  --bind-fails, --bind-fails-once FILE     fail to bind: always, or only as long as FILE does not exist
Dying and hanging
  --exit-after-requests N       exit with --exit-code C (1) once N completions were answered
  --signal-after-requests N     the same, by --signal NAME (SIGKILL)
  --die-after-s S               exit with --exit-code C (1) S seconds after ready
  --hang                        accept connections and answer nothing; --hang-after-ready S: from S after ready on
  --hang-completions            only completions hang; --hang-completions-after N: the first N still work
  --health-fails-after S        health says 500 from S seconds after ready on
  --ignore-sigterm, --slow-sigterm S       never exit on SIGTERM, or exit S seconds after it
  --grandchild                  fork a process that holds stdout and stderr for 300 s and ignores SIGTERM;
                                --grandchild-pid-file FILE tells its pid
Answers
  --answer KIND                 empty, whitespace, degenerate, null, error, invalid-json, cut, no-choices or html;
                                --answer-after N: only after N good answers
  --answer-drift-file FILE      completions say something else while FILE exists, unless it was there at the start;
                                --logprob-drift X: they say the same, with log-probabilities lower by X
  --random-answers              no two completions are the same
  --no-logprobs, --reject-logprobs         leave log-probabilities out, or refuse requests for them with a 400
  --slow-first-byte S           every completion waits S seconds
  --open, --reject-key          do not ask for the key that was given, or refuse every key
  --public-models               /v1/models asks for no key, as llama-server had it up to b9940
  --serve-model-id NAME         the model id to claim, whatever --alias says
  --gate FILE                   every completion waits until FILE exists
Holding what no snapshot can carry, from the start until FILE of --let-go FILE exists
  --map FILE                    map it (repeatable)                --hold-open FILE  open it (repeatable)
  --unlink-open                 delete what --hold-open names, once it is open
  --io-uring                    set up an io_uring
Output
  --flood-lines-per-s R         80-byte lines (0: as fast as possible); --flood-bytes-total N: then "FLOOD DONE"
  --no-newline-mb M             M MiB in one line, then "NO NEWLINE DONE"
  --garbage                     NULs, broken UTF-8, colour codes and CRs, then "GARBAGE DONE"
  --echo-secret TEXT, --echo-secret-split TEXT     log TEXT, in one write or cut in two
  --log-jsonl, --ansi           log JSON objects, or in colour
  --close-stdio                 close stdout and stderr once ready
"""

# Importing pathlib would nearly double the start-up time.
# ruff: noqa: PTH105, PTH108, PTH110, PTH113, PTH123

from __future__ import annotations

import binascii
import contextlib
import json
import os
import resource
import signal
import socket
import sys
import threading
import time

TYPE_CHECKING = False  # importing typing would cost more time than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, NoReturn

    Json = dict[str, Any]

STARTED = time.monotonic()
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


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def wait_forever() -> NoReturn:
    while True:
        threading.Event().wait()


def wait_for_file(path: str) -> None:
    while path and not os.path.exists(path):
        time.sleep(0.005)


class Output:
    """The log on stderr, the stamp file, and the ways to die."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def format(self, text: str, level: str = "I") -> bytes:
        if self.options.log_jsonl:
            names = {"I": "info", "W": "warn", "E": "error"}
            return json.dumps({"level": names[level], "msg": text}).encode() + b"\n"
        us = int((time.monotonic() - STARTED) * 1_000_000)
        clock = f"{us // 60_000_000}.{us // 1_000_000 % 60:02}.{us // 1000 % 1000:03}.{us % 1000:03}"
        if self.options.ansi:
            clock, level = f"\x1b[34m{clock}\x1b[0m", f"\x1b[32m{level}\x1b[0m"
        return f"{clock} {level} {text}\n".encode(errors="surrogateescape")

    def log(self, text: str, level: str = "I") -> None:
        with contextlib.suppress(OSError):  # nobody reads the log any more: no reason to stop serving
            write_all(2, self.format(text, level))

    def srv(self, function: str, text: str, level: str = "I") -> None:
        self.log(f"srv  {function:>12}: {text}", level)

    def log_in_two_writes(self, secret: str) -> None:
        line = self.format(f"the second secret is {secret} as you see")
        cut = max(line.find(secret.encode(errors="surrogateescape")), 0) + len(secret) // 2
        write_all(2, line[:cut])
        time.sleep(0.05)
        write_all(2, line[cut:])

    def stamp(self, event: str) -> None:
        if self.options.stamp:
            with open(self.options.stamp, "ab", buffering=0) as file:
                file.write(f"{event} {time.monotonic()}\n".encode())

    def die(self, code: int) -> NoReturn:
        self.stamp("died")
        os._exit(code)

    def die_by(self, name: str) -> NoReturn:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a planned SIGSEGV leaves no core file behind
        self.stamp("died")
        number = signal.Signals[name]
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        signal.raise_signal(number)
        wait_forever()

    def close_stdio(self) -> None:
        """Let go of stdout and stderr, but keep their numbers taken, or the next client would get our log."""
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1)
        os.dup2(null, 2)


def make_noise(options: Options) -> None:
    """The planned output on stdout, one kind after the other."""
    try:
        if options.garbage:
            junk = bytes(range(256)) + b"\0\0\xff\xfe\xc3\x28\xed\xa0\x80\x1b[31mred\x1b[0m\x1b[2Jtick\rtock\r\n"
            write_all(1, junk * 16 + b"\nGARBAGE DONE\n")
        if options.no_newline_mb:
            for _ in range(round(options.no_newline_mb * 16)):
                write_all(1, b"x" * 65536)
            write_all(1, b"\nNO NEWLINE DONE\n")
        if options.flood_lines_per_s is not None or options.flood_bytes_total is not None:
            flood(options.flood_lines_per_s or 0.0, options.flood_bytes_total)
    except OSError:
        pass  # the reader went away


def flood(rate: float, total: int | None) -> None:
    """Numbered lines of 80 bytes at `rate` per second, until `total` bytes are reached."""
    written, start = 0, time.monotonic()
    last = sys.maxsize if total is None else -(-total // 80)
    while written < last:
        due = int((time.monotonic() - start) * rate) + 1 if rate else last
        due = min(due, written + 512, last)
        write_all(1, b"".join(b"%-79s\n" % (b"flood line %012d" % i) for i in range(written, due)))
        written = max(due, written)
        if rate:
            time.sleep(max(start + written / rate - time.monotonic(), 0.002))
    write_all(1, b"FLOOD DONE\n")


class Request:
    def __init__(self, method: str, path: str, headers: dict[str, str], body: bytes, keep_alive: bool) -> None:
        self.method, self.path, self.headers, self.body, self.keep_alive = method, path, headers, body, keep_alive


class Reply:
    """An answer. A chunked one is sent part by part; a cut one breaks off in the middle."""

    def __init__(self, status: int, parts: list[bytes], kind: str, chunked: bool = False, cut: bool = False) -> None:
        self.status, self.parts, self.kind, self.chunked, self.cut = status, parts, kind, chunked, cut


REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 411: "Length Required",
           500: "Internal Server Error", 501: "Not Implemented", 503: "Service Unavailable"}  # fmt: skip
JSON = "application/json; charset=utf-8"


def json_reply(body: object, status: int = 200) -> Reply:
    return Reply(status, [json.dumps(body).encode()], JSON)


def error_body(status: int, kind: str, message: str) -> Json:
    return {"error": {"message": message, "type": kind, "code": status}}


def error_reply(status: int, kind: str, message: str) -> Reply:
    return json_reply(error_body(status, kind, message), status)


def read_requests(client: socket.socket) -> Iterator[Request]:
    """The requests of one connection, until the client has enough. A ValueError when they do not read."""
    with client.makefile("rb") as reader:
        while line := reader.readline(65536):
            method, target, version = line.decode("latin-1").split()
            headers = {}
            while (line := reader.readline(65536)).strip():
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.strip().lower()] = value.strip()
            if "transfer-encoding" in headers:
                send(client, error_reply(411, "invalid_request_error", "the fake reads no chunked requests"), False)
                return
            if headers.get("expect", "").lower() == "100-continue":
                client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = reader.read(int(headers.get("content-length", "0")))
            wish = headers.get("connection", "").lower()
            keep_alive = wish == "keep-alive" or (version == "HTTP/1.1" and wish != "close")
            yield Request(method, target.partition("?")[0], headers, body, keep_alive)


def send(client: socket.socket, reply: Reply, keep_alive: bool) -> None:
    body = b"".join(reply.parts)
    length = "Transfer-Encoding: chunked" if reply.chunked else f"Content-Length: {len(body)}"
    connection = "keep-alive" if keep_alive else "close"
    head = f"HTTP/1.1 {reply.status} {REASONS[reply.status]}\r\nServer: llama.cpp\r\nContent-Type: {reply.kind}\r\n"
    start = f"{head}{length}\r\nConnection: {connection}\r\n\r\n".encode()
    if not reply.chunked:
        client.sendall(start + (body[: len(body) // 2] if reply.cut else body))
        return
    client.sendall(start)
    for part in reply.parts[: len(reply.parts) // 2] if reply.cut else reply.parts:
        client.sendall(b"%x\r\n%s\r\n" % (len(part), part))
    if not reply.cut:
        client.sendall(b"0\r\n\r\n")


def thoughts(request: Json, template: Json) -> str:
    """One word for every token of the budget, many when it is unlimited; without a budget, a single sentence."""
    budget: int = {"thinking_budget_tokens": 3, **template, **request}["thinking_budget_tokens"]
    words = ["Let", "me", "think."]
    return " ".join(words[i % 3] for i in range(96 if budget < 0 else min(budget, 100_000)))


def check_image(url: str) -> None:
    """A ValueError unless it is a data URL that holds at least the head of a PNG."""
    head, _, data = url.partition(";base64,")
    png = binascii.a2b_base64(data, strict_mode=True) if head.startswith("data:image/") else b""
    if png[:8] != b"\x89PNG\r\n\x1a\n" or png[8:16] != b"\0\0\0\x0dIHDR" or len(png) < 33:
        raise ValueError("failed to decode the image")
    if not (any(png[16:20]) and any(png[20:24])):
        raise ValueError("the image has no pixels")


def compose(request: Json) -> Json:
    """The good answer's message. A ValueError when the request holds a broken image."""
    message: Json = {"role": "assistant", "content": "OK"}
    for turn in request.get("messages", []):
        parts = turn.get("content")
        for part in parts if isinstance(parts, list) else []:
            if part.get("type") == "image_url":
                check_image(part["image_url"]["url"])
                message["content"] = "A red square."
    template = request.get("chat_template_kwargs", {})
    if template.get("enable_thinking") is True:
        message["reasoning_content"] = thoughts(request, template)
    if request.get("tools"):
        function = {"name": request["tools"][0]["function"]["name"], "arguments": "{}"}
        message.update(content=None, tool_calls=[{"id": "call_0", "type": "function", "function": function}])
    return message


def logprobs_of(message: Json, top: int, drift: float) -> Json:
    """Log-probabilities in llama.cpp's shape, one word a token; the first runner-up is always the same."""
    rows = []
    for i, word in enumerate((message["content"] or "").split()):
        token = f" {word}" if i else word
        row = {"id": 100 + i, "token": token, "bytes": list(token.encode()), "logprob": -0.01 * (i + 1) - drift}
        other = {"id": 7, "token": " the", "bytes": list(b" the"), "logprob": -5.0}
        rows.append({**row, "top_logprobs": [row, other][:top]})
    return {"content": rows}


def deltas(message: Json) -> list[Json]:
    """A message cut into the pieces in which a stream brings it."""
    pieces: list[Json] = [{"role": "assistant", "content": None}]
    if message.get("reasoning_content"):
        pieces.append({"reasoning_content": message["reasoning_content"]})
    if "tool_calls" in message:
        pieces.append({"tool_calls": [{"index": i, **call} for i, call in enumerate(message["tool_calls"])]})
    else:
        pieces.append({"content": message["content"]})
    return pieces


class Completion:
    """One answer to /v1/chat/completions or /v1/completions, in whatever form was asked or planned."""

    logprob_drift = 0.0

    def __init__(self, request: Json, chat: bool, message: Json, head: Json, odd: str) -> None:
        self.request, self.chat, self.message, self.head, self.odd = request, chat, message, head, odd
        if odd in ODD_CONTENT:
            message["content"] = ODD_CONTENT[odd]
            message.pop("tool_calls", None)
        self.finish = "tool_calls" if "tool_calls" in message else "stop"
        said = f"{message.get('reasoning_content', '')} {message['content'] or self.finish}".split()
        asked = 1 + len(json.dumps(request.get("messages") or request.get("prompt") or request.get("input"))) // 4
        counts = {"prompt_tokens": asked, "completion_tokens": len(said)}
        self.usage = {**counts, "total_tokens": asked + len(said)}

    def reply(self) -> Reply:
        if self.odd == "html":
            return Reply(200, [b"<html><body><h1>Welcome to nginx!</h1></body></html>"], "text/html")
        if self.request.get("stream") is True:
            parts = [b"data: %s\n\n" % event for event in self.events()]
            return Reply(200, parts, "text/event-stream", chunked=True, cut=self.odd == "cut")
        body = json.dumps(self.whole()).encode()
        body = body[: len(body) // 2] if self.odd == "invalid-json" else body
        return Reply(200, [body], JSON, cut=self.odd == "cut")

    def choice(self, key: str, value: Json, finish: str | None) -> Json:
        content: Json = {key: value} if self.chat else {"text": value.get("content", "")}
        if self.request.get("logprobs") and value.get("content"):
            content["logprobs"] = logprobs_of(value, self.request.get("top_logprobs", 20), self.logprob_drift)
        return {"index": 0, **content, "finish_reason": finish}

    def whole(self) -> Json:
        if self.odd == "error":
            return error_body(500, "server_error", "the planned error")
        if self.odd == "no-choices":
            return {"choices": []}
        kind = "chat.completion" if self.chat else "text_completion"
        choice = self.choice("message", self.message, self.finish)
        return {**self.head, "object": kind, "choices": [choice], "usage": self.usage}

    def events(self) -> Iterator[bytes]:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        pieces = deltas(self.message)[0 if self.chat else 1 :]
        choices = [[self.choice("delta", piece, None)] for piece in pieces]
        choices.append([self.choice("delta", {}, self.finish)])
        chunks = [{**self.head, "object": kind, "choices": choice} for choice in choices]
        if self.request.get("stream_options", {}).get("include_usage"):
            chunks.append({**self.head, "object": kind, "choices": [], "usage": self.usage})
        if self.odd in ("error", "no-choices"):
            chunks = [self.whole()]
        for chunk in chunks:
            event = json.dumps(chunk).encode()
            yield event[: len(event) // 2] if self.odd == "invalid-json" else event
        yield b"[DONE]"


class Response(Completion):
    """One answer to /v1/responses. The fake streams none, and calls no tools there."""

    def whole(self) -> Json:
        if self.odd == "error":
            return super().whole()
        content = [{"type": "output_text", "text": self.message["content"], "annotations": []}]
        item = {"type": "message", "role": "assistant", "status": "completed", "content": content}
        used = {"input_tokens": self.usage["prompt_tokens"], "output_tokens": self.usage["completion_tokens"]}
        output = [] if self.odd == "no-choices" else [item]
        head = {**self.head, "object": "response", "status": "completed", "error": None}
        return {**head, "output": output, "usage": used}


def form_of(path: str, request: Json) -> type[Completion]:
    """The shape of the answer; a ValueError for what the fake cannot do."""
    if path != "/v1/responses":
        return Completion
    if request.get("stream") or not request["input"]:
        raise ValueError("the fake takes an input, and streams no responses")
    return Response


class Server:
    def __init__(self, options: Options, out: Output) -> None:
        self.options, self.out = options, out
        self.model_id = options.serve_model_id or options.alias or options.model
        self.slots = options.parallel if options.parallel > 0 else 4
        self.ready_at: float | None = None
        self.url = ""
        self.drift_file = "" if os.path.exists(options.answer_drift_file) else options.answer_drift_file
        self.lock = threading.Lock()
        self.routes: dict[tuple[str, str], Callable[[Request], Reply]] = {
            ("GET", "/props"): self.props,
            ("GET", "/v1/models"): self.models,
            ("GET", "/slots"): self.slot_list,
            ("GET", "/metrics"): self.metrics,
            ("POST", "/v1/chat/completions"): self.complete,
            ("POST", "/v1/completions"): self.complete,
            ("POST", "/v1/responses"): self.complete,
        }
        self.tickets = self.answered = self.processing = self.prompt_tokens = self.tokens = 0

    # binding, loading, dying

    def bind(self, listener: socket.socket) -> bool:
        """Whether that worked, which it may be planned not to."""
        o = self.options
        if o.bind_fails_once and not os.path.exists(o.bind_fails_once):
            open(o.bind_fails_once, "w").close()
            return False
        if o.bind_fails:
            return False
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError, OverflowError):
            listener.bind((o.host, 0 if o.wrong_port else o.port))
            listener.listen(512)
            return True
        return False

    def listen(self) -> None:
        listener, o = socket.socket(), self.options
        if not self.bind(listener):
            self.out.srv("start", f"couldn't bind HTTP server socket, hostname: {o.host}, port: {o.port}", "E")
            self.out.die(1)
        port = listener.getsockname()[1]
        self.url = f"http://{o.host}:{port}"
        self.out.srv("start", f"bound the HTTP server socket, hostname: {o.host}, port: {port}")
        threading.Thread(target=self.accept, args=(listener,), daemon=True).start()

    def load(self) -> None:
        """Loading as planned, and then whatever is planned for afterwards."""
        o = self.options
        if not o.router:
            self.out.srv("load_model", f"loading model '{o.model}'")
            self.die_while_loading()
            if o.read_model:
                self.read_model()
            else:
                time.sleep(o.load_s)
            if o.never_ready:
                wait_forever()
        if o.bind_late:
            self.listen()
        self.become_ready()
        if o.die_after_s is not None:
            time.sleep(o.die_after_s)
            self.out.die(o.exit_code)

    def die_while_loading(self) -> None:
        o = self.options
        if o.exit_while_loading is None and not o.signal_while_loading:
            return
        time.sleep(o.after_s)
        self.out.srv("load_model", "failed to load model, as planned", "E")
        if o.signal_while_loading:
            self.out.die_by(o.signal_while_loading)
        self.out.die(o.exit_while_loading or 0)

    def read_model(self) -> None:
        """Read the whole model at an even pace, so that it takes --load-s."""
        o, start, done = self.options, time.monotonic(), 0
        try:
            with open(o.model, "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                stop = size if o.stall_at is None else int(size * o.stall_at)
                step = max(min(size // 50, 1 << 20), 1)
                while done < stop and (data := file.read(min(step, stop - done))):
                    done += len(data)
                    time.sleep(max(start + o.load_s * done / size - time.monotonic(), 0))
                if o.stall_at is not None:
                    wait_forever()
        except OSError as error:
            self.out.srv("load_model", f"failed to load model, '{o.model}': {error.strerror}", "E")
            self.out.die(1)

    def become_ready(self) -> None:
        o = self.options
        self.ready_at = time.monotonic()
        if not o.hang:
            self.out.stamp("ready")
        self.out.log("main: model loaded")
        self.out.srv("init", f"listening on {self.url}")
        if not o.no_ready_line:
            self.out.log(f"main: server is listening on {self.url} - starting the main loop")
        self.out.srv("update_slots", "all slots are idle")
        if o.close_stdio:
            self.out.close_stdio()

    def ready_for(self, seconds: float | None) -> bool:
        """Whether that much time has passed since ready; never when no time is given."""
        ready = self.ready_at
        return seconds is not None and ready is not None and time.monotonic() >= ready + seconds

    # connections

    def accept(self, listener: socket.socket) -> None:
        while True:
            client, _ = listener.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client: socket.socket) -> None:
        with client:
            try:
                for request in read_requests(client):
                    reply = self.route(request)
                    send(client, reply, request.keep_alive)
                    if request.path.endswith(("/completions", "/responses")) and reply.status == 200:
                        self.count_answer()
                    if reply.cut or not request.keep_alive:
                        break
            except (OSError, ValueError):
                pass  # the client went away or talks no HTTP

    def count_answer(self) -> None:
        o = self.options
        with self.lock:
            self.answered += 1
            if self.answered == o.exit_after_requests:
                self.out.die(o.exit_code)
            if self.answered == o.signal_after_requests:
                self.out.die_by(o.signal)

    # routes

    def route(self, request: Request) -> Reply:
        if self.options.hang or self.ready_for(self.options.hang_after_ready):
            wait_forever()
        healthy = request.path in ("/health", "/v1/health")
        if not healthy and not self.authorised(request):
            return error_reply(401, "authentication_error", "Invalid API Key")
        if self.ready_at is None:
            return error_reply(503, "unavailable_error", "Loading model")
        if healthy and self.ready_for(self.options.health_fails_after):
            return error_reply(500, "server_error", "the planned failure")
        if healthy:
            return json_reply({"status": "ok"})
        handler = self.routes.get((request.method, request.path))
        return handler(request) if handler else error_reply(404, "not_found_error", "File Not Found")

    def authorised(self, request: Request) -> bool:
        o, headers = self.options, request.headers
        if o.reject_key or o.open or not o.api_key:
            return not o.reject_key
        if o.public_models and request.path == "/v1/models":
            return True
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        return headers.get("x-api-key") in o.api_key or (kind == "Bearer" and bearer in o.api_key)

    def props(self, _: Request) -> Reply:
        template = "{% for message in messages %}{{ message.content }}{% endfor %}"
        if self.options.chat_template_file:
            with open(self.options.chat_template_file, encoding="utf-8") as file:
                template = file.read()
        body = {"total_slots": self.slots, "model_alias": self.model_id, "model_path": self.options.model}
        body["default_generation_settings"] = {"n_ctx": self.options.ctx_size // self.slots}
        body["modalities"] = {"vision": bool(self.options.mmproj), "audio": False}
        return json_reply({**body, "chat_template": template, "build_info": "b9940-fake"})

    def models(self, _: Request) -> Reply:
        name = self.model_id
        card = {"name": name, "model": name, "type": "model", "capabilities": ["completion"]}
        entry = {"id": name, "object": "model", "created": 0, "owned_by": "llamacpp", "meta": {}}
        lists = ([], []) if self.options.router else ([card], [entry])
        return json_reply({"models": lists[0], "object": "list", "data": lists[1]})

    def slot_list(self, _: Request) -> Reply:
        return json_reply([{"id": i, "is_processing": i < self.processing} for i in range(self.slots)])

    def metrics(self, _: Request) -> Reply:
        if not self.options.metrics:
            return error_reply(501, "not_supported_error", "This server does not support metrics endpoint.")
        rows = [
            ("prompt_tokens_total", "counter", "Number of prompt tokens processed.", self.prompt_tokens),
            ("tokens_predicted_total", "counter", "Number of generation tokens processed.", self.tokens),
            ("n_decode_total", "counter", "Total number of llama_decode() calls", self.tokens),
            ("requests_processing", "gauge", "Number of requests processing.", self.processing),
        ]
        text = "".join(f"# HELP llamacpp:{n} {h}\n# TYPE llamacpp:{n} {k}\nllamacpp:{n} {v}\n" for n, k, h, v in rows)
        return Reply(200, [text.encode()], "text/plain; version=0.0.4")

    def complete(self, request: Request) -> Reply:
        o = self.options
        if o.router:
            return error_reply(400, "invalid_request_error", "a router without models")
        try:
            asked = json.loads(request.body)
            message = compose(asked)
            form = form_of(request.path, asked)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            return error_reply(400, "invalid_request_error", f"bad request: {error}")
        if o.reject_logprobs and asked.get("logprobs"):
            return error_reply(400, "invalid_request_error", "logprobs is not supported")
        if o.no_logprobs:
            asked.pop("logprobs", None)
        with self.lock:
            self.tickets += 1
            self.processing += 1
            ticket = self.tickets
        if o.hang_completions_after is not None and ticket > o.hang_completions_after:
            wait_forever()
        time.sleep(o.slow_first_byte)
        wait_for_file(o.gate)
        head = {"id": f"chatcmpl-{ticket}", "created": 0, "model": asked.get("model") or self.model_id}
        odd = o.answer if ticket > o.answer_after else ""
        drifts = bool(self.drift_file) and os.path.exists(self.drift_file)
        if o.random_answers:
            message["content"] = f"Answer number {ticket}."
        elif drifts and not o.logprob_drift:
            message["content"] = "Well, something else."
        completion = form(asked, "/chat/" in request.path, message, head, odd)
        completion.logprob_drift = o.logprob_drift if drifts else 0.0
        with self.lock:
            self.processing -= 1
            self.prompt_tokens += completion.usage["prompt_tokens"]
            self.tokens += completion.usage["completion_tokens"]
        return completion.reply()


def fork_grandchild(pid_file: str) -> None:
    """A process that outlives us and holds our stdout and stderr."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        time.sleep(300)
        os._exit(0)
    if pid_file:
        with open(pid_file + ".new", "w") as file:
            file.write(f"{pid}\n")
        os.replace(pid_file + ".new", pid_file)  # whoever waits for the file never sees it empty


def hold(options: Options) -> list[Any]:
    """Take what no snapshot can carry: it is held as long as the answer is, or until a thread lets go of it."""
    held: list[Any] = []
    for name in options.map:
        import mmap  # here, because almost no start needs it

        with open(name, "rb") as file, open(os.devnull, "rb") as null:
            # Python keeps a descriptor for each mapping, under the lowest free number; an engine has the mapping alone.
            own = os.dup(file.fileno())
            os.close(own)
            held.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            os.dup2(null.fileno(), own)
    for name in options.hold_open:
        held.append(open(name, "rb"))  # noqa: SIM115
        if options.unlink_open:
            os.unlink(name)
    if options.io_uring:
        import ctypes

        # io_uring_setup(2), which has no wrapper in libc: the number is the same on all machines.
        ring = ctypes.CDLL(None, use_errno=True).syscall(425, 4, ctypes.create_string_buffer(256))
        if ring < 0:
            refuse(f"error: io_uring_setup: {os.strerror(ctypes.get_errno())}")
        held.append(os.fdopen(ring, "rb"))

    def let_go() -> None:
        wait_for_file(options.let_go)
        for thing in held:
            thing.close()

    if held and options.let_go:
        threading.Thread(target=let_go, daemon=True).start()
    return held


def run(options: Options, out: Output) -> None:
    if options.echo_secret:
        out.log(f"the secret is {options.echo_secret} as you see")
    if options.echo_secret_split:
        out.log_in_two_writes(options.echo_secret_split)
    threading.Thread(target=make_noise, args=(options,), daemon=True).start()
    server = Server(options, out)
    if not options.bind_late:
        server.listen()
    server.load()


def main() -> NoReturn:
    options = parse(sys.argv[1:])
    out = Output(options)
    # Every thread inherits the mask, so a signal stays pending until sigwait() takes it. A handler could miss one
    # that arrives just before the main thread goes to sleep, and a write to a full pipe cannot delay this wait.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if options.grandchild:
        fork_grandchild(options.grandchild_pid_file)
    _held = hold(options)
    threading.Thread(target=run, args=(options, out), daemon=True).start()
    got = signal.sigwait(STOP_SIGNALS)
    while got == signal.SIGTERM and options.ignore_sigterm:
        got = signal.sigwait(STOP_SIGNALS)
    if got == signal.SIGTERM and options.slow_sigterm:
        time.sleep(options.slow_sigterm)
        out.stamp("died")
    os._exit(0)


if __name__ == "__main__":
    main()
