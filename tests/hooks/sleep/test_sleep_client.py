"""Asking the library over its socket: typed answers, typed errors, and what a process may do instead of answering."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import anyio
import pytest

from fakes.gpu_library import GIB, FakeLibrary, device, listening
from hooks.sleep import moving
from hooks.sleep.offload import client, errors
from hooks.sleep.offload.errors import GpuMemoryError
from supervisor import SupervisorError

pytestmark = pytest.mark.anyio


async def test_a_status_tells_of_every_gpu(tmp_path: Path) -> None:
    """What the library says arrives as a type, null as None, and what a later version adds is left out."""
    one, two = device(0), device(1, 2 * GIB, process_bytes=None, added_later=[1])
    library = FakeLibrary(folder=tmp_path, devices=[one, two], answers={"status": {"ipc_refused": 2, "more": {}}})
    async with listening(library):
        status = await client.status(library.address)
    assert (status.pid, status.version, status.state, status.reason) == (7, 1, "awake", "")
    assert (status.allocations, status.bytes, status.ipc_refused) == (3, 6 * GIB, 2)
    assert [(it.device, it.bytes, it.process_bytes) for it in status.devices] == [
        (0, 4 * GIB, 5 * GIB),
        (1, 2 * GIB, None),
    ]


async def test_a_process_whose_context_is_ruined_cannot_say_what_it_uses(tmp_path: Path) -> None:
    """That is CUDA's failure, in its own words, and no library of another version."""
    ruined = device(used_bytes=None, total_bytes=None, code=700, name="CUDA_ERROR_ILLEGAL_ADDRESS")
    library = FakeLibrary(folder=tmp_path, devices=[ruined])
    async with listening(library):
        with pytest.raises(errors.CudaFailed, match=r"could not tell .* CUDA_ERROR_ILLEGAL_ADDRESS \(700\)"):
            await client.status(library.address)


async def test_memory_goes_and_comes_back(tmp_path: Path) -> None:
    """Only the choices that were made are asked for, and asking twice says that nothing was to do."""
    library = FakeLibrary(folder=tmp_path)
    async with listening(library):
        went = await client.offload(library.address, threads=4, verify=False, idle_s=2.5, zeros="host")
        again = await client.offload(library.address)
        came = await client.reload(library.address, threads=2)
    assert (went.pid, went.operation, went.already, went.bytes, went.gb_per_s) == (7, "offload", False, 4 * GIB, 8.0)
    assert went.seconds == {"copy": 0.25, "total": 0.5}
    assert (again.already, came.operation, came.already) == (True, "reload", False)
    assert library.asked == [
        {"op": "offload", "threads": 4, "verify": False, "idle_s": 2.5, "zeros": "host"},
        {"op": "offload", "threads": 0, "verify": True, "idle_s": 30.0},
        {"op": "reload", "threads": 2},
    ]


CHUNK = {"device": 1, "address": "0x7f00", "bytes": 2097152}
FAILURES: list[tuple[dict[str, Any], type[GpuMemoryError], str]] = [
    ({"error": "bad_request", "detail": "threads"}, errors.BadRequest, "refuses the request (threads). Build"),
    ({"error": "not_idle", "detail": "30 s over"}, errors.NotIdle, "the GPU is not idle (30 s over). Stop requests"),
    (
        {"error": "out_of_gpu_memory", "wanted_bytes": 46_400_000_000, "free_bytes": 11_240_000_000, "device": 1},
        errors.OutOfGpuMemory,
        "process 7 could not bring its GPU memory back: GPU 1 has 11.2 GB free, and it needs 46.4 GB.",
    ),
    ({"error": "out_of_host_memory", "wanted_bytes": 5_000_000_000}, errors.OutOfHostMemory, "a copy of 5.0 GB."),
    (
        {"error": "checksum", "damaged_chunks": 9, "damaged": [CHUNK]},
        errors.Damaged,
        "9 pieces of it came back damaged (2097152 bytes at 0x7f00 of GPU 1). Only a cold start heals this.",
    ),
    ({"error": "damaged", "detail": "chunk 3"}, errors.Damaged, "it came back damaged before (chunk 3). Only a cold"),
    (
        {"error": "cuda", "call": "cuMemMap", "code": 2, "name": "CUDA_ERROR_OUT_OF_MEMORY", "detail": "of 2"},
        errors.CudaFailed,
        "cuMemMap failed with CUDA_ERROR_OUT_OF_MEMORY (2) (of 2).",
    ),
    ({"error": "off", "detail": "no VMM"}, errors.NothingCaught, "the library is off there (no VMM)."),
]


@pytest.mark.parametrize(("answer", "kind", "words"), FAILURES, ids=[kind.__name__ for _, kind, _ in FAILURES])
async def test_a_failure_is_an_error_of_its_kind(
    tmp_path: Path, answer: dict[str, Any], kind: type[GpuMemoryError], words: str
) -> None:
    """Each code becomes a class with the numbers and addresses in its fields, in words with GB and a remedy."""
    library = FakeLibrary(folder=tmp_path, answers={"reload": {"ok": False, **answer}})
    async with listening(library):
        with pytest.raises(kind) as caught:
            await client.reload(library.address)
    assert words in str(caught.value)
    assert isinstance(caught.value, SupervisorError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301  hosts hand errors on so


UNREADABLE: list[bytes] = [
    b"not JSON\n",
    b"[]\n",
    b"null\n",
    b'{"ok": 1}\n',
    b'{"ok": false, "error": "another"}\n',
    b'{"ok": false, "error": "out_of_gpu_memory", "wanted_bytes": -1, "free_bytes": 0, "device": 0}\n',
    b'{"ok": false, "error": "checksum", "damaged_chunks": 1, "damaged": [7]}\n',
    b'{"ok": false, "error": "cuda", "call": "x", "code": "2"}\n',
    b'{"ok": true}\n',
    b'{"ok": true, "already": false, "allocations": true}\n',
    b'{"ok": true, "already": fal',
    b"[" * 100_000 + b"\n",
    b"\xff\xfe\n",
]


@pytest.mark.parametrize("data", UNREADABLE, ids=range(len(UNREADABLE)))
async def test_an_answer_of_another_kind_is_shown(tmp_path: Path, data: bytes) -> None:
    """What the library never says, half a line included, is an error that shows how it begins."""
    library = FakeLibrary(folder=tmp_path, answers={"offload": data})
    async with listening(library):
        with pytest.raises(errors.Unreadable) as caught:
            await client.offload(library.address)
    assert caught.value.seen == data.partition(b"\n")[0].decode(errors="replace")[:200]


async def test_an_answer_without_end_is_not_read_for_ever(tmp_path: Path) -> None:
    """After a megabyte without an end of line it is given up."""
    library = FakeLibrary(folder=tmp_path, answers={"status": b"x" * (3 << 20)})
    async with listening(library):
        with pytest.raises(errors.Unreadable):
            await client.status(library.address)


async def test_a_process_that_dies_in_the_middle(tmp_path: Path) -> None:
    """Its socket closes without an answer: that is said, at once."""
    library = FakeLibrary(folder=tmp_path, answers={"offload": None})
    async with listening(library):
        with pytest.raises(
            errors.Unreachable, match="process 7 could not put its GPU memory aside: it ended"
        ) as caught:
            await client.offload(library.address)
    assert caught.value.connected


async def test_nobody_listens(tmp_path: Path) -> None:
    """A socket that a killed process left behind, and one that is not there, are told from a silent process."""
    library = FakeLibrary(folder=tmp_path)
    async with listening(library):
        pass
    assert library.address.exists()
    for path in (library.address, tmp_path / "8.sock"):
        with pytest.raises(errors.Unreachable, match="nobody listens") as caught:
            await client.status(path)
        assert not caught.value.connected


async def test_a_supervisor_without_descriptors_takes_nobody_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who cannot be asked may hold memory that is away: only one that nobody listens for has ended."""

    async def without_descriptors(path: str) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)

    monkeypatch.setattr(anyio, "connect_unix", without_descriptors)
    with pytest.raises(errors.Unreachable, match="open files") as caught:
        await client.status(tmp_path / "7.sock")
    assert caught.value.connected
    (tmp_path / "7.sock").touch()
    for ask in (moving.look(tmp_path), moving.reload_all(tmp_path, threads=0)):
        with pytest.raises(errors.Unreachable):
            await ask


async def test_what_is_no_socket(tmp_path: Path) -> None:
    """A plain file in its place refuses the connection, as nobody does."""
    (tmp_path / "9.sock").touch()
    with pytest.raises(errors.Unreachable):
        await client.status(tmp_path / "9.sock")


async def test_a_wait_can_be_cancelled(tmp_path: Path) -> None:
    """Cancelling closes the connection, while the process is still busy; no descriptor is left."""
    library = FakeLibrary(folder=tmp_path, begun={"offload": anyio.Event()}, go_on={"offload": anyio.Event()})
    async with listening(library):
        before = len(os.listdir("/dev/fd"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.offload, library.address)
            await library.begun["offload"].wait()
            tasks.cancel_scope.cancel()
        library.go_on["offload"].set()
        assert (await client.status(library.address)).pid == 7
        assert len(os.listdir("/dev/fd")) <= before + 1  # the fake's own end may still be closing


async def test_a_folder_with_a_long_path(tmp_path: Path) -> None:
    """A socket's address has 107 bytes; a longer path is reached all the same."""
    folder = tmp_path / ("long" * 30) / ("longer" * 10)
    folder.mkdir(parents=True)
    (tmp_path / "short").symlink_to(folder)
    library = FakeLibrary(folder=tmp_path / "short")
    async with listening(library):
        assert len(os.fsencode(folder / "7.sock")) > 107
        assert (await client.status(folder / "7.sock")).bytes == 4 * GIB
