"""Lines of /proc/PID/maps are read, whatever paths they hold."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.linux.files import holds_any, maps, parse_maps

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("line", "path", "inode"),
    [
        ("7ffe0000-7ffe1000 rw-p 00000000 00:00 0 ", "", 0),
        ("7ffe0000-7ffe1000 rw-p 00000000 00:00 0", "", 0),
        ("7ffe0000-7ffe1000 rw-p 00000000 00:00 0                          [stack]", "[stack]", 0),
        ("08048000-08049000 r-xp 00001000 fe:01 42                         /bin/x", "/bin/x", 42),
        ("08048000-08049000 r--s 00001000 103:02 42     /m/a b (deleted)", "/m/a b (deleted)", 42),
        ("08048000-08049000 r--s 00001000 00:2a 18446744073709551615 /m/  two", "/m/  two", 18446744073709551615),
        ("08048000-08049000 r--s 00001000 00:2a 7 /m/line\\012break", "/m/line\nbreak", 7),
        ("08048000-08049000 r--s 00001000 00:2a 7 /m/carriage\rreturn\x85", "/m/carriage\rreturn\x85", 7),
        ("ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]", "[vsyscall]", 0),
    ],
)
def test_maps_lines(line: str, path: str, inode: int) -> None:
    """Lines as kernels write them, with and without a path, whatever the path holds."""
    (found,) = parse_maps(f"{line}\n")
    assert (found.path, found.file.inode, found.text, found.number) == (path, inode, line, 1)


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0\\")), min_size=1, max_size=4))
def test_maps_of_any_path(names: list[str]) -> None:
    """Every path comes back as it was written, and every line has its number."""
    lines = [f"{i:08x}-{i + 1:08x} r--p 00000000 fe:00 {i:<26} /{name}" for i, name in enumerate(names)]
    found = parse_maps("".join(line.replace("\n", "\\012") + "\n" for line in lines))
    assert [line.path for line in found] == [f"/{name}" for name in names]
    assert [line.number for line in found] == list(range(1, len(names) + 1))
    assert {line.file.device for line in found} == {os.makedev(0xFE, 0)}


def test_lines_that_do_not_read_are_left_out() -> None:
    """An odd line hides no other."""
    found = parse_maps("odd\n\n08048000-08049000 r-xp 0 fe:01 42 /bin/x\n")
    assert [(line.number, line.path) for line in found] == [(3, "/bin/x")]


def test_our_own_maps(tmp_path: Path) -> None:
    """The kernel's own words are understood: a file with an odd name is found under it, and is the file on the disk."""
    path = tmp_path / "a b\tc\n\\d é (deleted)"
    path.write_bytes(b"x" * 5000)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        lines = maps(os.getpid())
        assert lines is not None
        (line,) = [line for line in lines if line.path == str(path)]
        assert line.file.inode == path.stat().st_ino
        assert len(lines) == lines[-1].number


def test_a_file_that_is_held_is_found_by_its_name(tmp_path: Path) -> None:
    """Open or mapped, whatever its name holds; a file that is neither is not found, nor one whose name ends alike."""
    path = tmp_path / "a b\nc"
    path.write_bytes(b"x" * 5000)
    (tmp_path / "x a b").write_bytes(b"x" * 5000)
    wanted = {os.path.realpath(path)}
    assert not holds_any(os.getpid(), wanted)
    with path.open("rb") as file, Path(os.devnull).open("rb") as null:
        assert holds_any(os.getpid(), wanted)
        # Python keeps a descriptor for each mapping, under the lowest free number; an engine has the mapping alone.
        own = os.dup(file.fileno())
        os.close(own)
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        os.dup2(null.fileno(), own)
    with mapping:
        target = f"{tmp_path}/a b\\012c\n"
        assert target in Path("/proc/self/maps").read_text()
        assert holds_any(os.getpid(), wanted)
    with (tmp_path / "x a b").open("rb"):
        assert not holds_any(os.getpid(), {"a b", f"{tmp_path}/b"})
    assert not holds_any(1 << 22, wanted)
