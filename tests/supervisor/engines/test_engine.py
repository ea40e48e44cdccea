"""The whole lifecycle on a real engine and a real model, through the command line."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import httpx
import pytest

from commandline import events_until, supervise
from support import DATA, alive

pytestmark = pytest.mark.engine

ONE_THREAD = f"{DATA / 'rehearsed.py'}:one_thread"
KEY = "sk-made-up-for-tests"


@pytest.mark.timeout(180)
def test_the_lifecycle_on_a_real_engine() -> None:
    """Progress seen, warmup verified, auth checked, chat answered, crash restarted, SIGTERM clean; no key logged."""
    options = ("--auth-check", "--warmup", "text", "--api-key-env", "MY_KEY", "--restart", "on-failure")
    with supervise("run", ONE_THREAD, "--log-format", "json", *options, env={"MY_KEY": KEY}) as process:
        seen = events_until(process, "child.ready")
        ready = seen[-1]
        progress = [event for event in seen if event["event"] == "load.progress"]
        assert progress
        assert progress[-1]["total_bytes"] == 253_113_024
        assert progress[-1]["bytes"] > 0.3 * 253_113_024
        assert [event["step"] for event in seen if event["event"] == "warmup.passed"] == ["text", "auth"]

        question = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4}
        url = f"{ready['url']}/v1/chat/completions"
        assert httpx.post(url, json=question, trust_env=False).status_code == 401
        headers = {"Authorization": f"Bearer {KEY}"}
        answer = httpx.post(url, json=question, headers=headers, trust_env=False, timeout=60).json()
        assert answer["model"] == "gemma-3-270m"
        assert answer["choices"][0]["message"]["content"]

        os.kill(ready["pid"], signal.SIGKILL)
        seen += events_until(process, "child.ready")
        again = seen[-1]
        assert (again["url"], again["pid"] != ready["pid"]) == (ready["url"], True)
        exited = next(event for event in seen if event["event"] == "child.exited")
        assert (exited["exit_code"], exited["signal"]) == (None, "SIGKILL")

        process.send_signal(signal.SIGTERM)
        seen += events_until(process, "supervise.exit")
        assert process.wait(30) == 0
    last = [event for event in seen if event["event"] == "child.exited"][-1]
    assert (last["exit_code"], last["signal"]) == (0, None)
    assert not alive(again["pid"])
    assert KEY not in repr(seen)


@pytest.mark.timeout(120)
def test_a_damaged_model_never_becomes_ready(tmp_path: Path) -> None:
    """A file that is no model ends the load at once, with the engine's own words."""
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF" + b"\0" * 4096)
    spec = tmp_path / "spec.py"
    spec.write_text(
        f"from supervisor.engines import embedded\ndef server(): return embedded.profile(model={str(damaged)!r})\n"
    )
    with supervise("run", f"{spec}:server", "--log-format", "json") as process:
        last = events_until(process, "supervise.exit")[-1]
        assert process.wait(30) == 3
    assert last["error"] == "DiedBeforeReady"
    assert "damaged.gguf" in last["detail"]
