"""The command line, as a subprocess: output, exit codes, signals, systemd."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from commandline import FAKE_ARGV, events_until, exec_json, run, supervise
from support import alive


def test_json_fields_and_a_clean_stop() -> None:
    """One JSON object a line with the documented fields; SIGTERM ends it with 0 and leaves no process."""
    with supervise(*exec_json("--load-s", "0.3", options=("--port", "0", "--warmup", "text"))) as process:
        seen = events_until(process, "child.ready")
        process.send_signal(signal.SIGTERM)
        seen += events_until(process, "supervise.exit")
        assert process.wait(20) == 0
    by_name = {event["event"]: event for event in seen}
    fields = {
        "child.spawned": {"pid", "argv"},
        "child.up": {"waited_s", "probes"},
        "warmup.passed": {"step", "took_s"},
        "child.ready": {"waited_s", "url"},
        "child.log": {"stream", "line"},
        "child.exited": {"exit_code", "signal", "uptime_s"},
        "teardown.finished": {"took_s", "escalated"},
    }
    for name, wanted in fields.items():
        assert wanted | {"event", "level", "timestamp", "elapsed_s"} <= by_name[name].keys()
    assert not alive(by_name["child.spawned"]["pid"])
    assert by_name["supervise.exit"]["exit_status"] == 0
    assert all({"event", "level", "timestamp", "elapsed_s"} <= event.keys() for event in seen)


@pytest.mark.parametrize(
    ("flags", "options", "status", "words"),
    [
        (("--die-while-loading",), ("--start-timeout-s", "3000"), 3, "exited with code 1 during loading"),
        (("--never-ready",), ("--start-timeout-s", "0.4"), 3, "not ready after"),
        (("--answer", "empty"), ("--warmup", "text"), 4, '"content": ""'),
        (("--die-after-s", "2"), ("--warmup", "text", "--start-timeout-s", "20"), 1, "exited with code 1"),
        ((), ("--grace-s", "-1"), 2, "grace_s"),
        ((), ("--env", "NOPE"), 2, "KEY=VALUE"),
        ((), ("--host", "nosuch.invalid"), 2, "host='nosuch.invalid'"),
        ((), ("--api-key-env", "NOT_SET_ANYWHERE"), 2, "NOT_SET_ANYWHERE"),
        ((), ("--warmup", "nope"), 2, "text, thinking, image, tools"),
        ((), ("--auth-check",), 4, "auth"),
    ],
)
def test_exit_codes(flags: tuple[str, ...], options: tuple[str, ...], status: int, words: str) -> None:
    """Each end has its exit code, and the last words say what happened."""
    code, _, err = run("exec", *options, "--", *FAKE_ARGV, *flags)
    assert code == status, err
    last = err.rpartition("supervise: ")[2]
    assert words in last


def test_death_while_loading_ends_it_at_once(tmp_path: Path) -> None:
    """However long the start timeout is, the end follows the child's death, not the deadline."""
    stamp = tmp_path / "stamp"
    options = ("--start-timeout-s", "3000", "--stall-s", "3000")
    code, _, _ = run(*exec_json("--die-while-loading", "--after-s", "1", "--stamp", str(stamp), options=options))
    ended = time.monotonic()
    assert code == 3
    assert ended - float(stamp.read_text().split("died ")[1]) < 10


def test_no_port_to_give_is_an_argument_error() -> None:
    """Without --port and without {port} in the command, nothing is started."""
    code, _, err = run("exec", "--", "/bin/true")
    assert code == 2
    assert "{port}" in err


def test_the_command_needs_no_dashes_before_it() -> None:
    """Options that follow the command's name are the command's, so that `--` may be left out."""
    program = ("-c", "import sys; sys.exit(f'was given {sys.argv[1:]}')", "--port", "{port}", "--health", "x", "-h")
    status, _, err = run("exec", sys.executable, *program)
    assert status == 3, err
    assert re.search(r"was given \['--port', '\d+', '--health', 'x', '-h'\]", err)


def test_any_http_server() -> None:
    """A server that knows nothing of us is supervised by its health path; the port may come through the environment."""
    code = (
        "import http.server, os\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200 if self.path == '/alive' else 404); self.end_headers()\n"
        "http.server.HTTPServer(('127.0.0.1', int(os.environ['PORT'])), H).serve_forever()\n"
    )
    with supervise(
        "exec", "--env", "PORT={port}", "--health", "/alive", "--log-format", "json", "--", sys.executable, "-c", code
    ) as process:
        url = events_until(process, "child.ready")[-1]["url"]
        assert httpx.get(f"{url}/alive", trust_env=False).status_code == 200
        process.send_signal(signal.SIGINT)
        events_until(process, "supervise.exit")
        # http.server dies of TERM, which is what a stop on request looks like for most servers
        assert process.wait(20) == 0


def test_a_key_from_the_environment_and_the_auth_check() -> None:
    """The key's name is given, never the key; it reaches the child, the probes and no log line."""
    key = "sk-made-up-for-tests"
    options = ("--api-key-env", "LLAMA_API_KEY", "--auth-check", "--warmup", "text")
    with supervise(*exec_json("--echo-secret", key, options=options), env={"LLAMA_API_KEY": key}) as process:
        seen = events_until(process, "child.ready")
        process.send_signal(signal.SIGTERM)
        seen += events_until(process, "supervise.exit")
        assert process.wait(20) == 0
    assert [event["step"] for event in seen if event["event"] == "warmup.passed"] == ["text", "auth"]
    assert key not in json.dumps(seen)


def test_an_open_server_fails_the_auth_check() -> None:
    """A server that was given a key and does not ask for it is refused."""
    code, _, err = run(
        "exec", "--api-key-env", "LLAMA_API_KEY", "--auth-check", "--", *FAKE_ARGV, "--open",
        env={"LLAMA_API_KEY": "sk-made-up-for-tests"},
    )  # fmt: skip
    assert code == 4, err
    assert "auth" in err


@pytest.mark.parametrize("closed", ["2>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams_are_no_obstacle(closed: str) -> None:
    """A service manager may give no stderr at all: the exit code is the same, and nothing is written anywhere else."""
    status, out, err = run(
        "exec", "--", *FAKE_ARGV, "--die-while-loading", under=("sh", "-c", f'exec "$@" {closed}', "sh")
    )
    assert (status, out, err) == (3, "", "")


def test_an_unexpected_error_ends_in_words(tmp_path: Path) -> None:
    """A defect ends with its traceback, then one paragraph, and exit code 1."""
    spec = tmp_path / "odd.py"
    spec.write_text(
        "from supervisor import Hooks, Profile\n"
        "class Odd(Profile):\n"
        "    @property\n"
        "    def secrets(self): raise LookupError('no \\x1b[31msuch thing')\n"
        "server = Odd(name='s', command=('s',), port=1)\n"
    )
    status, _, err = run("argv", f"{spec}:server")
    assert status == 1
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("supervise: LookupError: no such thing")
    assert "\x1b" not in err


def test_a_lack_of_our_own_is_no_defect(tmp_path: Path) -> None:
    """Wherever threads or descriptors run out, the paragraph says so, without a traceback, and the exit code is 3."""
    spec = tmp_path / "odd.py"
    spec.write_text(
        "from supervisor import Hooks, Profile\n"
        "class Odd(Profile):\n"
        "    @property\n"
        '    def secrets(self): raise RuntimeError("can\'t start new thread")\n'
        "server = Odd(name='s', command=('s',), port=1)\n"
    )
    status, _, err = run("argv", f"{spec}:server")
    assert status == 3
    assert err.startswith("supervise: OutOfResources: the supervisor is out of resources: can't start new thread. ")
    assert err.count("\n") == 1


ODD = (
    "from supervisor import Hooks, Profile\n"
    "class Odd(Profile):\n"
    "    @property\n"
    "    def secrets(self): raise LookupError('no such thing')\n"
    "server = Odd(name='s', command=('s',), port=1)\n"
)


def test_the_last_line_says_of_a_defect_too(tmp_path: Path) -> None:
    """With JSON logs a defect ends in `supervise.exit`, which holds its traceback."""
    spec = tmp_path / "odd.py"
    spec.write_text(ODD)
    with supervise("run", f"{spec}:server", "--log-format", "json") as process:
        last = events_until(process, "supervise.exit")[-1]
        assert process.stderr and process.stderr.read() == ""
        assert process.wait(20) == 1
    assert last["exit_status"] == 1 and last["error"] == "LookupError"
    assert last["detail"].startswith("Traceback") and "This is a defect" in last["detail"]


def test_an_unexpected_error_inside_of_supervision_is_named(tmp_path: Path) -> None:
    """What fails under the event loop is named in the paragraph, and not the groups around it."""
    spec = tmp_path / "odd.py"
    spec.write_text(ODD)
    status, _, err = run("run", f"{spec}:server")
    assert status == 1
    assert err.splitlines()[-1].startswith("supervise: LookupError: no such thing")


def test_a_module_that_exits_is_a_wrong_spec(tmp_path: Path) -> None:
    """`sys.exit(0)` in a SPEC does not pass for a clean stop."""
    spec = tmp_path / "leaves.py"
    spec.write_text("import sys; sys.exit(0)\n")
    status, _, err = run("run", f"{spec}:server")
    assert status == 2
    assert "SystemExit" in err and "Traceback" not in err


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_last_words_are_clean(log_format: str) -> None:
    """What the server answers to a health probe cannot steer the terminal that shows the last words."""
    code = (
        "import http.server, sys\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(503); self.end_headers(); self.wfile.write(b'bad\\x1b]0;title\\x07 \\x1b[2Jnews')\n"
        "http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), H).serve_forever()\n"
    )
    options = ("--start-timeout-s", "2", "--log-format", log_format)
    status, _, err = run("exec", *options, "--", sys.executable, "-c", code, "{port}")
    assert status == 3
    last = json.loads(err.splitlines()[-1])["detail"] if log_format == "json" else err.rpartition("supervise: ")[2]
    assert "bad news" in last and "title" not in last
    assert "\x1b" not in err + last


def test_stop_while_loading() -> None:
    """A stop request during the load is a clean stop."""
    with supervise(*exec_json("--never-ready")) as process:
        pid = events_until(process, "child.spawned")[-1]["pid"]
        process.send_signal(signal.SIGTERM)
        assert events_until(process, "supervise.exit")[-1]["exit_status"] == 0
        assert process.wait(20) == 0
    assert not alive(pid)


def test_crash_and_restart() -> None:
    """--restart on-failure replaces a killed child; the second READY has another pid on the same URL."""
    with supervise(*exec_json(options=("--restart", "on-failure"))) as process:
        first = events_until(process, "child.ready")[-1]
        os.kill(first["pid"], signal.SIGKILL)
        seen = events_until(process, "child.ready")
        again = seen[-1]
        assert again["url"] == first["url"]
        assert again["pid"] != first["pid"]
        restart = next(event for event in seen if event["event"] == "child.restarting")
        assert restart["attempt"] == 1
        assert restart["delay_s"] > 0
        process.send_signal(signal.SIGTERM)
        events_until(process, "supervise.exit")
        assert process.wait(20) == 0


def test_a_closed_stderr_does_not_end_the_service() -> None:
    """A reader of the log that goes away (`| head`) costs the log, not the server."""
    with supervise(*exec_json()) as process:
        ready = events_until(process, "child.ready")[-1]
        assert process.stderr
        process.stderr.close()
        for _ in range(20):
            httpx.post(f"{ready['url']}/v1/chat/completions", json={"messages": []}, trust_env=False)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_run_with_a_spec_and_overrides(tmp_path: Path) -> None:
    """`run path.py:attribute` serves a profile; options override it; `argv` prints its command, secrets masked."""
    spec = tmp_path / "mine.py"
    spec.write_text(
        "from supervisor import Profile, Secret\n"
        f"server = Profile(name='mine', command={(*FAKE_ARGV, '--api-key', 'sk-made-up-for-tests')!r},\n"
        "                 api_key=Secret('sk-made-up-for-tests'))\n"
    )
    code, out, err = run("argv", f"{spec}:server", "--port", "9123")
    assert code == 0, err
    assert "--port 9123" in out
    assert "sk-made-up" not in out
    with supervise("run", f"{spec}:server", "--name", "other", "--warmup", "text") as process:
        assert process.stderr
        seen = []
        for line in process.stderr:
            seen.append(line)
            if "Ctrl-C" in line:
                break
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(20) == 0
    text = "".join(seen)
    assert "(other, pid" in text
    assert "Bearer $API_KEY" in text
    assert "other stopped as asked" in rest
    assert "sk-made-up" not in text


def test_systemd_is_told(tmp_path: Path) -> None:
    """READY=1, STATUS, WATCHDOG=1 and STOPPING=1 reach NOTIFY_SOCKET; the child does not inherit it."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(path))
        notify.settimeout(20)
        code = "import os, sys; assert 'NOTIFY_SOCKET' not in os.environ; os.execv(sys.argv[1], sys.argv[1:])"
        env = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "100000"}
        argv = [sys.executable, "-c", code, *FAKE_ARGV]
        with supervise("exec", "--log-format", "json", "--", *argv, env=env) as process:
            heard = ""
            while "READY=1" not in heard:
                heard += notify.recv(1000).decode() + "\n"
            process.send_signal(signal.SIGTERM)
            while "STOPPING=1" not in heard:
                heard += notify.recv(1000).decode() + "\n"
            assert process.wait(20) == 0
    assert "WATCHDOG=1" in heard
    assert "STATUS=loading" in heard
    assert "EXTEND_TIMEOUT_USEC=" in heard
    assert "STATUS=serving at http://127.0.0.1:" in heard


def test_a_terminal_shows_a_live_line_and_a_summary(tmp_path: Path) -> None:
    """On a terminal the load shows as one line that is redrawn, and READY as a summary with a curl line."""
    weights = tmp_path / "weights.gguf"
    weights.write_bytes(b"\0" * 20_000_000)
    ours, theirs = pty.openpty()
    argv = ["exec", "--warmup", "text", "--weights", str(weights), "--", *FAKE_ARGV]
    flags = ["--model", str(weights), "--read-model", "--load-s", "1"]
    with subprocess.Popen([sys.executable, "-m", "supervisor", *argv, *flags], stderr=theirs) as process:
        os.close(theirs)
        screen = b""
        while b"Ctrl-C" not in screen:
            screen += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    os.close(ours)
    text = screen.decode()
    assert "\r\x1b[2Kloading " in text
    assert " of 20 MB at " in text
    assert "curl -s http://127.0.0.1:" in text
