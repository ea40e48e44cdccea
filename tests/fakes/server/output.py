"""What the fake server writes: its log, the stamp file, noise on stdout; how it waits, and the ways to die."""

# ruff: noqa: PTH110, PTH123

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import threading
import time

TYPE_CHECKING = False  # importing typing would cost more time than all the rest
if TYPE_CHECKING:
    from typing import NoReturn

    from fakes.server.flags import Options

STARTED = time.monotonic()


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
