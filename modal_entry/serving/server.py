"""The class that serves a deployment in a Modal container: start, snapshot, resume, stop.

Lifecycle methods are synchronous: Modal runs each async one under its own `run_until_complete` and parks the loop in
between, so the supervision lives on a `Daemon`'s thread.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import modal

from modal_entry.serving.volumes import builds_volume, models_volume

if TYPE_CHECKING:
    from pathlib import Path

    from modal_entry.serving.deployment import Deployment
    from supervisor import Daemon, Hooks, Profile, Secret
    from supervisor.child import Child
    from supervisor.errors import SupervisorError
    from supervisor.logs.sink import Sink

__all__ = ["Server"]


class Server:
    """The three lifecycle methods. An entry's class inherits them and sets `deployment`.

    Order in a container: `start`, snapshot, `resume`, then Modal registers the port, then SIGTERM, `stop`. After a
    restore only `resume` and `stop` run. The server listens all the while; what keeps requests from one that is not
    verified is that Modal registers the port, and so sends them, only once `resume` has returned.

    Modal makes more than one snapshot of a deploy, and makes new ones when it sees fit. Each begins with `start`, which
    uses the build and the weights that `modal deploy` fixed, and refuses others.
    """

    deployment: Deployment
    _daemon: Daemon | None = None
    _sink: Sink | None = None
    _key: Secret | None = None
    _prepared: bool = False

    @modal.enter(snap=True)
    def start(self) -> None:
        """Build and weights checked, server loaded and warm, strangers refused, sealed: what the snapshot keeps.

        Raises:
            SupervisorError: whatever kept it from that; nothing of the server is left then.
        """
        self._start()

    def _start(self) -> None:
        from supervisor.errors import SupervisorError
        from supervisor.logs.sink import Sink

        self._key = self.api_key()
        build = self.prepare()
        self._prepared = True
        as_json = os.environ.get("WARMBOOT_LOG_FORMAT") == "json"  # set by a rehearsal, or in the image
        self._sink = Sink(sys.stderr, "json" if as_json else "console")
        try:
            plain = self.profile(build, self._key)
            hooks = self.hooks()
            offloading = self._offloading(build, plain, hooks)
            try:
                self._start_and_seal(*(offloading or (plain, hooks)))
            except SupervisorError as failure:
                if offloading is None or not _may_come_of_offloading(failure):
                    raise
                self._left_to_the_platform(f"{failure.summary} A cold start without the library takes its place")
                if self._daemon is not None:
                    self._daemon.stop()
                self._start_and_seal(plain, self.hooks())
        except BaseException:
            self.close()  # Modal runs no exit hook after a failed enter hook
            raise

    def _start_and_seal(self, profile: Profile, hooks: Hooks) -> None:
        from supervisor import Daemon

        assert self._sink
        self._daemon = Daemon(profile, replace(hooks, observers=(*hooks.observers, self._sink)))
        self._daemon.start()
        self._daemon.seal()

    def _offloading(self, build: Path, profile: Profile, hooks: Hooks) -> tuple[Profile, Hooks] | None:
        """The same with GPU memory put aside while the server is sealed; None: it is left to the platform."""
        from hooks.sleep import GpuMemory
        from hooks.sleep.offload.build import LIBRARY
        from supervisor.errors import ProfileError

        if self.deployment.gpu_memory == "driver":
            return None
        library = build / LIBRARY
        if not library.is_file():
            self._left_to_the_platform(f"the build {build.name} has no {LIBRARY}; a tag built anew has it")
            return None
        memory = GpuMemory(library=library, proof=hooks.after_resume)
        try:
            return memory.profile(profile), hooks + memory.hooks()
        except ProfileError as refusal:
            self._left_to_the_platform(refusal.summary)
            return None

    def _left_to_the_platform(self, why: str) -> None:
        from supervisor.emitter import Emitter
        from supervisor.events import Notice

        assert self._sink
        Emitter((self._sink,))(Notice(detail=f"GPU memory is left to the platform: {why}"))

    @modal.enter(snap=False)
    def resume(self) -> None:
        """Verifies the restored server and arms the watchdog; a dead or wrong one is replaced by a cold start.

        So is one whose key is not the environment's any more: the secret was changed after the snapshot.

        Raises:
            SupervisorError: that failed too; Modal discards the container.
        """
        assert self._daemon
        try:
            if self._key is None or self.api_key().reveal() != self._key.reveal():
                sys.stderr.write(
                    "API_KEY is another one than in the snapshot: cold start with the new one. Each restore pays for "
                    "that until new snapshots are made: run `promote`, then `modal deploy`.\n"
                )
                self.close()
                self._start()
            self._daemon.resume()
        except BaseException:
            self.close()
            raise

    @modal.exit()
    def stop(self) -> None:
        """Stops the server within its grace period."""
        self.close()

    def close(self) -> None:
        """Ends the server and every thread of ours: Modal would wait 30 s for one that lingers. Idempotent."""
        if self._daemon is not None:
            self._daemon.stop()
        if self._sink is not None:
            self._sink.close()

    # What a test or another engine replaces.

    def api_key(self) -> Secret:
        """The key of the environment.

        Raises:
            ProfileError: `API_KEY` is missing or blank. An endpoint is never opened by accident.
        """
        from supervisor import Secret
        from supervisor.errors import require

        key = os.environ.get("API_KEY", "")
        require(bool(key.strip()), "API_KEY", key, f"non-blank, in the secret {self.deployment.api_key_secret!r}")
        return Secret(key, name="API_KEY")

    def prepare(self) -> Path:
        """The deployed build, on the container's own disk, once the volumes hold what was deployed.

        Raises:
            NotAsDeployed: they hold something else.
        """
        from modal_entry.serving.pinned import Pinned, local_build

        self.reload()
        return local_build(Pinned.from_environment().check_volumes(self.deployment))

    def reload(self) -> None:
        """Sees what was committed since the volumes were mounted; before the first look at a path."""
        models_volume.reload()
        builds_volume.reload()

    def profile(self, build: Path, key: Secret) -> Profile:
        """The server to supervise, closed by the key."""
        return self.deployment.profile(build, key)

    def hooks(self) -> Hooks:
        """The Steps of the deployment; what the contract finds goes to the log, warnings too."""
        from hooks.contract.findings import telling
        from supervisor.steps import step

        findings = telling(self._sink.say) if self._sink else None
        return self.deployment.hooks(refresh=step("volumes", self._refresh), on_findings=findings)

    async def _refresh(self, _child: Child) -> None:
        """Prepares once more before every start but the first, which did so to know the binary's flags."""
        import anyio.to_thread

        if self._prepared:
            self._prepared = False
        else:
            await anyio.to_thread.run_sync(self.prepare)


def _may_come_of_offloading(failure: SupervisorError) -> bool:
    """Whether a server failed in a way in which the library may have part: it died, or could not sleep and wake."""
    from supervisor.errors import ChildCrashed, DiedBeforeReady, StepFailed

    if isinstance(failure, StepFailed):
        return failure.point in ("sleep", "wake")
    return isinstance(failure, DiedBeforeReady | ChildCrashed)
