"""Failures of this process, out of descriptors, threads or memory, and those of the child."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from supervisor.errors import OutOfResources
from supervisor.linux.exhaustion import detect, translated


def no_descriptor() -> OSError:
    return OSError(errno.EMFILE, "Too many open files")


def caused(error: Exception, cause: BaseException | None) -> Exception:
    error.__cause__ = cause
    return error


def group_that_caused_its_part() -> BaseException:
    """What `raise group.exceptions[0] from group` leaves."""
    part = ValueError("on purpose")
    part.__cause__ = ExceptionGroup("both", [part])
    return part


def two_that_caused_each_other() -> BaseException:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    return first


def a_context_of_its_own() -> BaseException:
    error = ValueError("on purpose")
    error.__cause__ = error
    return error


@pytest.mark.parametrize("make", [group_that_caused_its_part, two_that_caused_each_other, a_context_of_its_own])
def test_a_cyclic_chain_has_an_end(make: Callable[[], BaseException]) -> None:
    """Each exception of a chain is looked at once, so that a cycle neither recurses nor spins."""
    assert detect(make()) is None


def test_a_cycle_hides_nothing() -> None:
    """What ran out is found behind a cycle too."""
    part = ValueError("on purpose")
    part.__cause__ = ExceptionGroup("both", [part, no_descriptor()])
    found = detect(part)
    assert found is not None
    assert found.reason == "Too many open files"


def test_a_deep_chain_needs_no_stack() -> None:
    """Ten thousand exceptions, each the cause of the next, are looked through."""
    error: Exception = no_descriptor()
    for _ in range(10_000):
        error = caused(RuntimeError("retried"), error)
    assert detect(error) is not None
    while error.__cause__ is not None:  # taken apart here: freed at once, the chain would need a deep stack of its own
        error, error.__cause__ = error.__cause__, None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (no_descriptor(), "Too many open files"),
        (RuntimeError("can't start new thread"), "can't start new thread"),
        (caused(ValueError("x"), no_descriptor()), "Too many open files"),
        (ExceptionGroup("both", [ValueError("x"), no_descriptor()]), "Too many open files"),
        (OutOfResources(reason="said before", look_at="there"), "said before"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), None),
        (BlockingIOError(errno.EAGAIN, "again"), None),
        (RuntimeError("another"), None),
        (None, None),
    ],
)
def test_what_ran_out_is_named(error: BaseException | None, reason: str | None) -> None:
    """Descriptors, threads and memory are this process's own matter; whatever else fails is not."""
    found = detect(error)
    assert (None if found is None else found.reason) == reason


def test_a_translation_keeps_its_cause() -> None:
    """The error that becomes OutOfResources is its cause; others, and OutOfResources itself, stay as they are."""
    lack, other = no_descriptor(), ValueError("x")
    result = translated(lack)
    assert isinstance(result, OutOfResources)
    assert result.__cause__ is lack
    assert translated(result) is result
    assert translated(other) is other
