"""Flags out of help texts, in the layouts of llama.cpp and of argparse."""

from __future__ import annotations

import argparse

import pytest

from supervisor.engines.help_flags import capabilities, listed


def parser(width: int) -> argparse.ArgumentParser:
    """Options of all shapes; descriptions mention flags that do not exist, also at the beginning of a line."""
    made = argparse.ArgumentParser(
        prog="engine serve", formatter_class=lambda prog: argparse.RawTextHelpFormatter(prog, width=width)
    )
    made.add_argument("model")
    made.add_argument("--host", help="where to listen; not --bind, \n--listen or\n  --indented-mention")
    made.add_argument("--tensor-parallel-size", "-tp", type=int, default=1, help="GPUs (see -xx, --mentioned)")
    group = made.add_argument_group("loading", "A group, with --group-mention in its description.")
    group.add_argument("--load-format", "-lf", choices=["auto", "pt", "dummy"])
    group.add_argument("--api-key", nargs="*")
    group.add_argument("--lora-modules", nargs="+", metavar=("NAME", "PATH"))
    group.add_argument("--enable-a-feature-with-a-very-long-name", action=argparse.BooleanOptionalAction)
    group.add_argument("--disable-log-stats", action="store_true", help="the argument has been removed")
    return made


FLAGS = {
    *("-h", "--help", "--host", "--tensor-parallel-size", "-tp", "--load-format", "-lf", "--api-key"),
    *("--lora-modules", "--disable-log-stats"),
    *("--enable-a-feature-with-a-very-long-name", "--no-enable-a-feature-with-a-very-long-name"),
}


@pytest.mark.parametrize("width", [60, 80, 300])
def test_argparse(width: int) -> None:
    """Indented rows with a value after every spelling give every flag; usage and descriptions give none."""
    text = parser(width).format_help()
    assert listed(text) == FLAGS
    assert listed(text, removed="the argument has been removed") == FLAGS - {"--disable-log-stats"}


def test_words_of_a_removal_are_the_engines() -> None:
    """What one engine calls removed, another may only mention: the words count where they are given."""
    text = "--old N     the argument has been\n            removed. use --new\n--new N     a number\n"
    assert listed(text) == {"--old", "--new"}
    assert listed(text, removed="the argument has been removed") == {"--new"}


def test_help_behind_another_word(tmp_path: object) -> None:
    """An engine may show its flags only when it is asked in its own way."""
    script = 'if [ "$1" = --help=all ]; then echo "  --host HOST  x"; else echo usage; exit 2; fi'
    command = ("/bin/sh", "-c", script, str(tmp_path))
    assert capabilities(command, {}, ask=("--help=all",)) == {"--host"}


def test_no_rows() -> None:
    """A text without rows has no flags."""
    assert listed("usage: engine [--host HOST]\n\nuse --help\n") == frozenset()
