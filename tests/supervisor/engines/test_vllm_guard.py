"""The middleware that stands in vLLM's server: who may ask which route. It is run as vLLM runs it, as an ASGI class."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import anyio
import pytest

from supervisor.engines.vllm.closed_routes import ADMINISTRATION, GUARD, GUARD_FOLDER
from supervisor.engines.vllm.dialect import VLLM
from supervisor.engines.vllm.guard.warmboot_vllm_guard import ADMIN_KEY, API_KEY, OPEN, OPEN_ACCESS, Guard

KEY, ADMIN = "sk-clients", "sk-administration"
KEYED = {API_KEY: KEY, OPEN_ACCESS: "0"}
SLEEPING = {**KEYED, ADMIN_KEY: ADMIN}
OPEN_AND_SLEEPING = {OPEN_ACCESS: "1", ADMIN_KEY: ADMIN}

OTHERS = (
    "/sleep",
    "/wake_up",
    "/collective_rpc",
    "/update_weights",
    "/pause",
    "/docs",
    "/v1",
    "//v1/models",
    "",
    "/Health",
)


def asked(
    monkeypatch: pytest.MonkeyPatch,
    env: dict[str, str],
    path: str,
    *authorization: str,
    kind: str = "http",
    method: str = "POST",
) -> list[dict[str, Any]]:
    """What a client gets: the messages of the guard, or one that says that the application was asked."""
    for name in (API_KEY, ADMIN_KEY, OPEN_ACCESS):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    messages: list[dict[str, Any]] = []

    async def application(*_: object) -> None:
        messages.append({"type": "passed"})

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)

    headers = [(b"Authorization", value.encode()) for value in authorization]
    scope = {"type": kind, "path": path, "headers": headers, **({"method": method} if kind == "http" else {})}
    anyio.run(Guard(application), scope, None, send)
    return messages


def passes(monkeypatch: pytest.MonkeyPatch, env: dict[str, str], path: str, *authorization: str, **more: str) -> bool:
    return asked(monkeypatch, env, path, *authorization, **more) == [{"type": "passed"}]


@pytest.mark.parametrize("env", [KEYED, SLEEPING, OPEN_AND_SLEEPING, {}])
def test_probes_need_no_key(monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> None:
    """Health and metrics answer everybody, and what the server tells itself (lifespan) passes."""
    assert all(passes(monkeypatch, env, path, method="GET") for path in OPEN)
    assert passes(monkeypatch, env, "", kind="lifespan")


@pytest.mark.parametrize("request_path", [request.path for request in VLLM.generating])
def test_generating_routes_take_the_clients_key(monkeypatch: pytest.MonkeyPatch, request_path: str) -> None:
    """Every generating route, /invocations among them, takes the clients' key and no other."""
    for env in (KEYED, SLEEPING):
        assert passes(monkeypatch, env, request_path, f"Bearer {KEY}")
        assert passes(monkeypatch, env, request_path, f"bearer  {KEY}")
        for wrong in ((), ("",), ("Bearer",), ("Bearer ",), (f"Bearer {KEY}x",), (f"Basic {KEY}",), (KEY,)):
            assert not passes(monkeypatch, env, request_path, *wrong)
        assert not passes(monkeypatch, env, request_path, f"Bearer {KEY}", "Bearer other")
    assert not passes(monkeypatch, SLEEPING, request_path, f"Bearer {ADMIN}")
    assert passes(monkeypatch, OPEN_AND_SLEEPING, request_path)


@pytest.mark.parametrize("path", [*ADMINISTRATION, *OTHERS])
def test_whatever_is_not_listed_is_administration(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Routes that later versions add are closed to clients, too; also where serving is open to everybody."""
    for env in (SLEEPING, OPEN_AND_SLEEPING):
        assert passes(monkeypatch, env, path, f"Bearer {ADMIN}")
        for wrong in ((), ("Bearer ",), (f"Bearer {KEY}",)):
            assert not passes(monkeypatch, env, path, *wrong)
        assert not passes(monkeypatch, env, path, method="OPTIONS")
    assert passes(monkeypatch, KEYED, path, f"Bearer {KEY}")
    assert not passes(monkeypatch, KEYED, path)


def test_without_any_key_nobody_gets_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that got lost closes the server: an empty key is nobody's."""
    for path in ("/v1/models", "/sleep", "/invocations"):
        for authorization in ((), ("Bearer ",), ("Bearer",)):
            assert not passes(monkeypatch, {}, path, *authorization)
            assert not passes(monkeypatch, {API_KEY: "", ADMIN_KEY: ""}, path, *authorization)


def test_browsers_may_ask_what_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """A preflight request carries no key; vLLM's CORS middleware answers it."""
    assert passes(monkeypatch, KEYED, "/v1/chat/completions", method="OPTIONS")


def test_a_refusal_is_vllms_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Status and body of a refusal are those of vLLM; a websocket is closed before it is accepted."""
    start, body = asked(monkeypatch, KEYED, "/invocations")
    assert (start["status"], body["body"]) == (401, b'{"error": "Unauthorized"}')
    assert dict(start["headers"])[b"content-length"] == str(len(body["body"])).encode()
    assert asked(monkeypatch, KEYED, "/v1/realtime", kind="websocket") == [{"type": "websocket.close", "code": 1008}]
    assert passes(monkeypatch, KEYED, "/v1/realtime", f"Bearer {KEY}", kind="websocket")


def test_the_guard_is_all_that_its_folder_offers() -> None:
    """vLLM's interpreter finds the middleware by its name, and no package of ours beside it."""
    module, _, name = GUARD.rpartition(".")
    program = (
        "import importlib, importlib.util; "
        f"print(getattr(importlib.import_module({module!r}), {name!r}).__name__, "
        "[name for name in ('supervisor', 'hooks', 'modal_entry') if importlib.util.find_spec(name)])"
    )
    env = {**os.environ, "PYTHONPATH": str(GUARD_FOLDER), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run((sys.executable, "-S", "-c", program), env=env, cwd="/", check=True, capture_output=True)
    assert done.stdout.decode().split() == ["Guard", "[]"]
