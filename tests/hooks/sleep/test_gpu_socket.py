"""The library's control socket: what it refuses, whom it answers, and clients that do not behave."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.cuda.build import Built
from fakes.cuda.program import MIB, Engine, engine

BAD = {
    "no JSON": b"offload\n",
    "an empty line": b"\n",
    "a list": b"[1]\n",
    "half an object": b'{"op": "status"\n',
    "more than an object": b'{"op": "status"} {}\n',
    "no op": b"{}\n",
    "unknown op": b'{"op": "explode"}\n',
    "a nested value": b'{"op": {"status": 1}}\n',
    "null": b'{"op": null}\n',
    "a NUL byte": b'{"op": "status"\0}\n',
    "no line's end": b'{"op": "status"}',
    "nothing": b"",
    "fewer threads than none": b'{"op": "offload", "threads": -1}\n',
    "too many threads": b'{"op": "offload", "threads": 65}\n',
    "threads in words": b'{"op": "offload", "threads": "eight"}\n',
    "odd chunks": b'{"op": "offload", "chunk_bytes": 100000}\n',
    "huge chunks": b'{"op": "offload", "chunk_bytes": 1e12}\n',
    "unknown zeros": b'{"op": "offload", "zeros": "maybe"}\n',
    "negative wait": b'{"op": "offload", "idle_s": -1}\n',
    "infinite wait": b'{"op": "offload", "idle_s": ' + b"9" * 400 + b"}\n",
    "too many members": b"{" + b",".join(b'"m%d": 1' % number for number in range(60)) + b"}\n",
    "a long name": b'{"' + b"n" * 200 + b'": 1}\n',
    "not UTF-8": b"\xff\xfe\n",
}


@pytest.fixture
def program(any_cuda: Built, tmp_path: Path) -> Iterator[Engine]:
    """A program with memory that must be whole at the end."""
    with engine(any_cuda, tmp_path / "gpu") as started:
        started(f"alloc a {3 * MIB}")
        started("fill a random 1")
        yield started
        started("check a")


def test_bad_requests_are_answered_and_change_nothing(program: Engine) -> None:
    """Each is a `bad_request` with words."""
    for name, request in BAD.items():
        answer = json.loads(program.send(request))
        assert (name, answer["ok"], answer["error"]) == (name, False, "bad_request")
        assert answer["detail"]
    assert program.done("status")["state"] == "awake"


def test_a_line_that_is_too_long_is_refused(program: Engine) -> None:
    """As soon as it has too many bytes, whatever may follow."""
    with program.connect() as connection:
        connection.sendall(b'{"op": "' + b"x" * 100_000)
        assert json.loads(connection.recv(4096))["error"] == "bad_request"
    assert program.done("status")["state"] == "awake"


def test_spaces_unknown_members_and_order_do_not_matter(program: Engine) -> None:
    """A newer client may say more than the library knows."""
    answer = json.loads(program.send(b' { "later" : "x", "threads":2 ,\t"op":"offload"}  \n'))
    assert (answer["ok"], answer["threads"]) == (True, 2)
    program.done("reload")


def test_half_a_line_and_silence_hold_others_up_for_a_while_only(cuda: Built, tmp_path: Path) -> None:
    """The silent one is refused after its time, and the next one is answered."""
    with engine(cuda, tmp_path / "gpu") as program:
        program(f"alloc a {MIB}")
        with program.connect() as silent:
            silent.sendall(b'{"op": "off')
            assert program.done("status")["state"] == "awake"
            assert json.loads(silent.recv(4096))["error"] == "bad_request"


def test_a_client_that_goes_away_gets_its_work_done(program: Engine) -> None:
    """Nobody reads the answer: memory is away all the same, and the library goes on."""
    with program.connect() as gone:
        gone.sendall(b'{"op": "offload"}\n')
    assert program.done("status")["state"] == "asleep"
    with program.connect() as gone, contextlib.suppress(OSError):
        gone.shutdown(socket.SHUT_RDWR)
    program.done("reload")


@pytest.mark.root
def test_another_user_is_not_answered(cuda: Built, tmp_path: Path) -> None:
    """Even where folder and socket are open to all; the process's own user and root are."""
    with engine(cuda, tmp_path / "gpu") as program:
        program(f"alloc a {MIB}")
        program.folder.chmod(0o711)
        program.address.chmod(0o666)
        ask = f"stranger {program.folder} {program.address.name}"
        assert program(f"{ask} 65534") == "0"
        assert program(f"{ask} 0") == "1"
