"""`Daemon`: the lifecycle for synchronous hosts."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import warnings
from concurrent.futures import Future
from pathlib import Path

import httpx
import pytest

from hooks.warmup.steps import Text
from supervisor import Child, Daemon, Hooks, Restart, State, Stop, Timeouts, step
from supervisor import events as ev
from supervisor.errors import ChildCrashed, DiedBeforeReady, IllegalState, StepFailed
from support import FAKE, TESTS, Recorder, alive, fake_profile, is_in, until


def test_start_blocks_until_ready_and_stop_leaves_nothing() -> None:
    """READY when `start` returns; after `stop` no thread, process or descriptor is left; stopping twice is fine."""
    before, threads = len(os.listdir("/dev/fd")), set(threading.enumerate())
    daemon = Daemon(fake_profile("--load-s", "0.2"), Hooks(warmup=(Text(),)))
    assert is_in(daemon, State.STARTING)
    daemon.start()
    server = daemon.supervised
    assert is_in(daemon, State.READY)
    assert httpx.get(f"{server.url}/health", trust_env=False).status_code == 200
    daemon.stop()
    daemon.stop()
    assert is_in(daemon, State.STOPPED)
    assert server.pid
    assert not alive(server.pid)
    assert (len(os.listdir("/dev/fd")), set(threading.enumerate()) - threads) == (before, set())


def test_context_manager_seal_and_resume() -> None:
    """Seal and resume are plain calls; the `with` block stops the server."""
    with Daemon(fake_profile()) as daemon:
        daemon.seal()
        assert is_in(daemon, State.SEALED)
        daemon.resume()
        assert is_in(daemon, State.READY)
    assert is_in(daemon, State.STOPPED)


def test_errors_cross_the_thread_unwrapped() -> None:
    """What went wrong on the daemon's thread is raised as it is, from `start`."""
    daemon = Daemon(fake_profile("--die-while-loading"))
    with pytest.raises(DiedBeforeReady) as caught:
        daemon.start()
    assert caught.value.exit_code == 1
    with pytest.raises(StepFailed):
        Daemon(fake_profile("--answer", "empty"), Hooks(warmup=(Text(),))).start()


def test_a_daemon_is_used_once() -> None:
    """A second start, and a start after stop, are refused; so is sealing what does not run."""
    daemon = Daemon(fake_profile())
    with pytest.raises(IllegalState, match="cannot seal"):
        daemon.seal()
    with daemon, pytest.raises(IllegalState, match="cannot start"):
        daemon.start()
    with pytest.raises(IllegalState, match="cannot start"):
        daemon.start()
    with pytest.raises(IllegalState, match="cannot resume while not running"):
        daemon.resume()


def test_stop_from_another_thread_ends_a_start() -> None:
    """A host that is told to stop while it loads is not kept until the deadline."""
    seen = Recorder()
    daemon = Daemon(fake_profile("--never-ready"), Hooks(observers=(seen,)))
    raised: list[BaseException] = []

    def start() -> None:
        try:
            daemon.start()
        except IllegalState as error:
            raised.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    until(lambda: bool(seen.of(ev.ChildSpawned)))
    daemon.stop()
    thread.join(10)
    assert raised
    assert not alive(seen.one(ev.ChildSpawned).pid)


def test_a_crash_is_raised_by_the_next_call() -> None:
    """After the server has failed, seal and resume raise why."""
    with Daemon(fake_profile()) as daemon:
        assert daemon.supervised.pid
        os.kill(daemon.supervised.pid, signal.SIGKILL)
        until(lambda: daemon.state is State.FAILED)
        until(daemon._ended.done)
        with pytest.raises(ChildCrashed):
            daemon.seal()


@pytest.mark.parametrize("operation", ["seal", "resume"])
def test_a_call_in_the_moment_of_the_end_raises_why_it_ended(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that finds the loop closed, and the reason not known yet, waits for the reason and raises it."""
    daemon, may_end = Daemon(fake_profile()), threading.Event()
    enumerate_threads = threading.enumerate

    def late() -> list[threading.Thread]:  # what the daemon's thread calls between its loop's end and the report
        if threading.current_thread() is daemon._thread:
            may_end.wait(30)
        return enumerate_threads()

    def let_it_end() -> None:
        until(lambda: bool(daemon._waiting))
        may_end.set()

    with daemon:
        monkeypatch.setattr(threading, "enumerate", late)
        assert daemon._portal and daemon.supervised.pid
        os.kill(daemon.supervised.pid, signal.SIGKILL)
        until(lambda: daemon._loop is not None and daemon._loop.is_closed())
        helper = threading.Thread(target=let_it_end)
        helper.start()
        with pytest.raises(ChildCrashed):
            getattr(daemon, operation)()
        helper.join()
        monkeypatch.undo()


def test_a_call_that_the_loop_never_ran_raises_why_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that arrives in the loop's last moment, and that nobody answers any more, does not wait for ever."""
    with Daemon(fake_profile()) as daemon:
        assert daemon._portal and daemon.supervised.pid
        monkeypatch.setattr(daemon._portal, "start_task_soon", lambda *_: Future())
        os.kill(daemon.supervised.pid, signal.SIGKILL)
        with pytest.raises(ChildCrashed):
            daemon.seal()
        monkeypatch.undo()


def test_a_call_after_a_stop_is_refused_in_words() -> None:
    """There is no portal any more, and the error does not speak of one."""
    daemon = Daemon(fake_profile())
    with daemon:
        pass
    for call in (daemon.seal, daemon.resume):
        with pytest.raises(IllegalState, match="while not running"):
            call()


def test_a_hook_cannot_seal_its_own_daemon() -> None:
    """A call from the daemon's own thread would wait for itself: it is refused in words."""

    async def seal(_: Child) -> None:
        daemon.seal()

    daemon = Daemon(fake_profile(), Hooks(warmup=(step("seal", seal),)))
    with pytest.raises(StepFailed, match="cannot seal while running a hook"):
        daemon.start()


def test_logs_flow_while_the_hosts_loop_is_parked() -> None:
    """A host whose own event loop is parked between two hooks has its child's output drained to the last line."""
    seen = Recorder()
    loop = asyncio.new_event_loop()
    profile = fake_profile("--flood-lines-per-s", "0", "--flood-bytes-total", "20000000")

    async def enter() -> Daemon:
        daemon = Daemon(profile, Hooks(observers=(seen,)))
        daemon.start()
        return daemon

    try:
        daemon = loop.run_until_complete(enter())
        until(lambda: "FLOOD DONE" in seen.lines())  # no loop of ours runs here
        loop.run_until_complete(asyncio.to_thread(daemon.stop))
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()
    kept = sum(line.startswith("flood line") for line in seen.lines()) * 80
    assert kept + sum(d.bytes for d in seen.of(ev.LogDropped)) == pytest.approx(20_000_000, rel=0.001)


HOST = """
import sys, threading
from supervisor import Child, Daemon, Profile, Restart

profile = Profile(name="x", command=tuple(sys.argv[1:]), restart=Restart(host_exit_code=23))
daemon = Daemon(profile)
daemon.start()
print(daemon.supervised.pid, flush=True)
threading.Event().wait()
"""


def test_the_host_exits_when_nothing_more_is_tried() -> None:
    """With `host_exit_code`, a host that is parked elsewhere ends with that code once its server has crashed."""
    argv = [sys.executable, "-c", HOST, sys.executable, "-I", "-S", str(FAKE), "--port", "{port}"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as host:
        assert host.stdout
        pid = int(host.stdout.readline())
        os.kill(pid, signal.SIGKILL)
        assert host.wait(20) == 23


WAITING_HOST = HOST.replace(
    "threading.Event().wait()",
    """
import os, signal
daemon.seal()
os.kill(daemon.supervised.pid, signal.SIGKILL)
try:
    daemon.resume()
except Exception as error:
    daemon._thread.join()
    print(type(error).__name__, flush=True)
    sys.exit(7)
""",
)


def test_a_failure_that_a_call_raises_is_the_hosts_matter() -> None:
    """A host that waits in `resume` is told of the failure, and not ended before it can do anything about it."""
    argv = [sys.executable, "-c", WAITING_HOST, sys.executable, "-I", "-S", str(FAKE), "--port", "{port}"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout.split()[1:]) == (7, ["ChildCrashed"]), done.stderr


BLOCKED_HOST = HOST.replace("import sys", "import os, sys").replace(
    "threading.Event().wait()",
    """
os.set_blocking(1, True)
threading.Thread(target=lambda: [sys.stdout.write("x" * 65536) for _ in range(64)], daemon=True).start()
threading.Event().wait()
""",
)


def test_the_host_exits_though_its_stdout_is_blocked() -> None:
    """A stdout that nobody reads delays the exit of the host by a moment, and no more."""
    argv = [sys.executable, "-c", BLOCKED_HOST, sys.executable, "-I", "-S", str(FAKE), "--port", "{port}"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as host:
        assert host.stdout
        pid = int(host.stdout.readline())
        os.kill(pid, signal.SIGKILL)
        assert host.wait(20) == 23


CRAMPED = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from system.faults.prepare import without_threads
from pathlib import Path
from supervisor import Daemon, Profile
from supervisor.errors import OutOfResources

daemon = Daemon(Profile(name="x", command=("/bin/true", "{port}")))
without_threads(Path())
try:
    daemon.start()
except OutOfResources as error:
    print(error.cli_status, error)
daemon.stop()
"""


def test_a_daemon_without_a_thread_says_so() -> None:
    """A user who may start no thread learns that, and what to look at; stopping afterwards is fine."""
    argv = [sys.executable, "-c", CRAMPED, str(TESTS)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.stderr == ""
    assert done.stdout.startswith("3 the supervisor is out of resources: can't start new thread. Look at `ulimit -u`")


def test_an_interrupted_stop_can_be_finished() -> None:
    """A stop that was interrupted while it waited is not taken for done: the next call waits on."""
    daemon = Daemon(fake_profile("--slow-sigterm", "0.5"))
    daemon.start()
    pid = daemon.supervised.pid
    assert daemon._thread
    join = daemon._thread.join
    daemon._thread.join = _interrupted  # type: ignore[assignment, method-assign]
    with pytest.raises(KeyboardInterrupt):
        daemon.stop()
    daemon._thread.join = join  # type: ignore[method-assign]
    daemon.stop()
    assert not alive(pid)
    assert is_in(daemon, State.STOPPED)


def _interrupted() -> None:
    raise KeyboardInterrupt


def test_a_hook_cannot_stop_its_own_daemon() -> None:
    """`stop` from the daemon's own thread would wait for itself: it is refused, and nothing has changed."""
    daemon = Daemon(fake_profile(), Hooks(warmup=(_Stops(),)))
    _Stops.daemon = daemon
    with pytest.raises(StepFailed, match="cannot stop while running a hook"):
        daemon.start()


class _Stops:
    name = "stops"
    deadline_s: float | None = None
    daemon: Daemon

    async def __call__(self, child: Child) -> None:
        assert child.pid
        self.daemon.stop()


def test_a_fork_of_the_host_leaves_the_server_alone() -> None:
    """A fork that unwinds the `with` block neither hangs nor stops the parent's server."""
    with Daemon(fake_profile()) as daemon:
        code = subprocess.run([sys.executable, "-c", "pass"], check=True).returncode
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is what this is about
            pid = os.fork()
        if pid == 0:
            try:
                daemon.stop()
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        assert httpx.get(f"{daemon.supervised.url}/health", trust_env=False).status_code == 200


def test_an_interrupt_during_start_stops_the_child(tmp_path: Path) -> None:
    """KeyboardInterrupt in a blocked `start` tears the half-started server down before it goes on."""
    code = HOST.replace("daemon.start()", "print('starting', flush=True); daemon.start()")
    marker = tmp_path / "stamp"
    argv = [sys.executable, "-c", code, sys.executable, "-I", "-S", str(FAKE), "--port", "{port}", "--never-ready"]
    wrapper = ["/bin/sh", "-c", f"echo $$ > {marker}; exec " + " ".join(argv[3:])]
    with subprocess.Popen([*argv[:3], *wrapper, "{port}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as host:
        assert host.stdout and host.stderr
        host.stdout.readline()
        until(lambda: marker.exists() and marker.read_text().strip() != "")
        pid = int(marker.read_text())
        host.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in host.stderr.read()
        assert host.wait(20) != 0
    assert not alive(pid)


def test_restart_policy_works_under_the_daemon() -> None:
    """A crash within the budget is healed without the host's doing."""
    seen = Recorder()
    profile = fake_profile(
        restart=Restart(policy="on-failure", backoff_s=0.01), timeouts=Timeouts(start_s=20), stop=Stop(grace_s=2)
    )
    with Daemon(profile, Hooks(observers=(seen,))) as daemon:
        first = daemon.supervised.pid
        assert first
        os.kill(first, signal.SIGKILL)
        until(lambda: len(seen.of(ev.ChildReady)) == 2)
        assert daemon.supervised.pid != first


STOPS_TWICE = """
import os, signal, sys, threading
sys.path.insert(0, sys.argv[1])
from support import fake_profile
from supervisor import Daemon
from supervisor import events

class Again:
    def __call__(self, event):
        if isinstance(event, events.Stopping):
            os.kill(os.getpid(), signal.SIGTERM)

from supervisor import Hooks
daemon = Daemon(fake_profile("--slow-sigterm", "1"), Hooks(observers=(Again(),)))
signal.signal(signal.SIGTERM, lambda *_: daemon.stop())
daemon.start()
os.kill(os.getpid(), signal.SIGTERM)
print("stopped")
"""


def test_a_second_signal_may_stop_again() -> None:
    """A handler that stops the daemon may be interrupted by itself, as when a platform signals twice."""
    argv = [sys.executable, "-c", STOPS_TWICE, str(TESTS)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=40, check=False)
    assert (done.returncode, done.stdout) == (0, "stopped\n"), done.stderr
