"""Hooks that several rows share."""

from __future__ import annotations

from pathlib import Path

from hooks.artifacts import Artifact, ArtifactsPresent
from hooks.contract.step import SnapshotContract
from hooks.golden.step import Golden
from hooks.warmup.steps import Ping, Text
from supervisor import Hooks, step
from system.faults.steps import Broken, nothing


def artifacts_present(tmp: Path) -> Hooks:
    return Hooks(before_start=(ArtifactsPresent(root=tmp, artifacts=(Artifact(path="model.gguf", kind="gguf"),)),))


def warmed(_: Path) -> Hooks:
    return Hooks(warmup=(Text(),))


def warmed_in_a_hurry(_: Path) -> Hooks:
    return Hooks(warmup=(Text(deadline_s=0.4),))


def with_contract(_: Path) -> Hooks:
    return Hooks(warmup=(Text(),), before_seal=(SnapshotContract(),))


def with_golden(_: Path) -> Hooks:
    golden = Golden()
    return Hooks(warmup=(Text(),), before_seal=(golden.record,), after_resume=(golden.replay,))


def answer_after_resume(_: Path) -> Hooks:
    return Hooks(warmup=(Text(),), after_resume=(Text(deadline_s=0.4),))


def pinged(_: Path) -> Hooks:
    return Hooks(warmup=(Text(),), liveness=(Ping(deadline_s=0.3),))


def sleeps(_: Path) -> Hooks:
    """The engine sleeps while sealed; a `before_stop` Step would disturb it."""
    return Hooks(sleep=(step("sleep", nothing),), wake=(step("wake", nothing),), before_stop=(Broken(),))


def cannot_sleep(_: Path) -> Hooks:
    return Hooks(sleep=(Broken(),), wake=(step("wake", nothing),))


def cannot_wake(_: Path) -> Hooks:
    return Hooks(sleep=(step("sleep", nothing),), wake=(Broken(),))
