"""LlamaServer: settings and a binary's own --help in, a Profile out."""

from __future__ import annotations

import os
import re
import shlex
import signal
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from supervisor.engines import help_flags
from supervisor.engines.llama_cpp import LlamaServer, accept, capabilities, parse_line
from supervisor.engines.llama_cpp.dialect import COUNTERS, READY, shards
from supervisor.engines.llama_cpp.flags import OWNED
from supervisor.errors import ProfileError, SpawnError, UnsupportedFlag
from supervisor.profile import Liveness, Restart, Stop, Timeouts
from supervisor.redact import Redactor, Secret
from support import TESTS

TESTDATA = TESTS / "testdata" / "llama_cpp"
KEY = "sk-tests-only-1234"


def fake_binary(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def build(tmp_path: Path, tag: str) -> Path:
    text = shlex.quote(str(TESTDATA / f"help-{tag}.txt"))
    return fake_binary(tmp_path / f"llama-server-{tag}", f"cat {text}")


def settings(binary: Path | tuple[str, ...], **more: Any) -> LlamaServer:
    return LlamaServer(**{"binary": binary, "model": Path("/models/gemma.gguf"), **more})


@pytest.mark.parametrize(
    ("tag", "load", "wanted"),
    [
        ("b9940", "no-mmap", ["--no-mmap"]),
        ("b10434", "no-mmap", ["--load-mode", "none"]),
        ("b11434", "no-mmap", ["--load-mode", "none"]),
        ("b9940", "mmap", []),
        ("b10434", "mmap", ["--load-mode", "mmap"]),
        ("b11434", "mmap", ["--load-mode", "mmap"]),
    ],
)
def test_load_flag_follows_the_build(tmp_path: Path, tag: str, load: str, wanted: list[str]) -> None:
    """The way to load is told exactly once, in the spelling that the build knows, the newer one where both exist."""
    command = settings(build(tmp_path, tag), load=load).profile().command
    spoken = [word for word in command if word in ("--no-mmap", "--mmap", "--load-mode", "-lm")]
    assert spoken == wanted[:1]
    if wanted[1:]:
        assert command[command.index("--load-mode") + 1] == wanted[1]


@pytest.mark.parametrize("tag", ["b9940", "b10434", "b11434"])
def test_full_command_line(tmp_path: Path, tag: str) -> None:
    """Every setting reaches the command line once, after the binary and before the extra arguments."""
    binary = build(tmp_path, tag)
    server = settings(
        (str(binary),),
        mmproj=Path("/models/vision.gguf"),
        alias="gemma",
        ctx_size=8192,
        slots=2,
        gpu_layers=99,
        threads=4,
        batch_size=512,
        ubatch_size=256,
        cache_type_k="q8_0",
        cache_type_v="f16",
        flash_attn="on",
        chat_template_file=Path("/t.jinja"),
        extra_args=("--temp", "-0.5", "--threads-http", "4"),
    )
    load = {"b9940": "--no-mmap"}.get(tag, "--load-mode none")
    cache = "" if tag == "b9940" else "--cache-ram 0"
    wanted = (
        f"{binary} --model /models/gemma.gguf --mmproj /models/vision.gguf --alias gemma "
        "--host {host} --port {port} --ctx-size 8192 --parallel 2 --n-gpu-layers 99 --threads 4 --batch-size 512 "
        f"--ubatch-size 256 --cache-type-k q8_0 --cache-type-v f16 {cache} --flash-attn on "
        f"--chat-template-file /t.jinja {load} --jinja --metrics --temp -0.5 --threads-http 4"
    )
    assert server.profile().command == tuple(wanted.split())


def test_defaults_of_the_profile(tmp_path: Path) -> None:
    """The profile knows llama.cpp's health, identity, counters and logs, and the model file's stem names everything."""
    profile = settings(build(tmp_path, "b11434")).profile()
    assert (profile.name, profile.health.model_id) == ("gemma", "gemma")
    assert profile.command[profile.command.index("--alias") + 1] == "gemma"
    assert (profile.health.path, profile.health.accept, profile.health.ready_pattern) == ("/health", accept, READY)
    assert (profile.liveness.counters_path, profile.liveness.counters_pattern) == ("/metrics", COUNTERS)
    assert profile.logs.parse is parse_line
    assert profile.weights == (Path("/models/gemma.gguf"),)
    assert not any(pattern.startswith("LLAMA") for pattern in profile.inherit_env)


def test_parts_of_the_profile_can_be_given(tmp_path: Path) -> None:
    """Given parts are used as they are, except that liveness learns where the counters are."""
    parts: dict[str, Any] = {
        "timeouts": Timeouts(start_s=7),
        "stop": Stop(signal=signal.SIGINT),
        "restart": Restart(policy="on-failure"),
    }
    profile = settings(build(tmp_path, "b11434"), **parts, liveness=Liveness(misses=9), name="prod").profile()
    assert {name: getattr(profile, name) for name in parts} == parts
    assert (profile.liveness.misses, profile.liveness.counters_path, profile.name) == (9, "/metrics", "prod")


def test_metrics_off_means_no_counters(tmp_path: Path) -> None:
    """Without metrics the flag is not given, and the watchdog is not told of counters that do not exist."""
    profile = settings(build(tmp_path, "b11434"), metrics=False).profile()
    assert "--metrics" not in profile.command
    assert profile.liveness.counters_path is None


def test_jinja_off(tmp_path: Path) -> None:
    """Jinja is turned off where it is on by itself, and simply not asked for where it is not."""
    assert "--no-jinja" in settings(build(tmp_path, "b11434"), jinja=False).profile().command
    old = fake_binary(tmp_path / "old", f"grep -v -e --jinja {TESTDATA}/help-b9940.txt")
    assert not {"--jinja", "--no-jinja"} & set(settings(old, jinja=False).profile().command)
    with pytest.raises(UnsupportedFlag, match="jinja=True needs --jinja"):
        settings(old).profile()


def test_alias_follows_a_replaced_model(tmp_path: Path) -> None:
    """A default alias belongs to the model: settings copied for another model are not served under the first's name."""
    server = replace(settings(build(tmp_path, "b11434")), model=Path("/models/qwen.gguf"))
    assert server.profile().health.model_id == "qwen"


def test_cache_ram_on_a_build_without_it(tmp_path: Path) -> None:
    """No cache is what an old build has anyway; a cache that it cannot have is refused, and None leaves it alone."""
    old = build(tmp_path, "b9940")
    assert "--cache-ram" not in settings(old).profile().command
    assert "--cache-ram" not in settings(build(tmp_path, "b11434"), cache_ram_mib=None).profile().command
    with pytest.raises(UnsupportedFlag) as caught:
        settings(old, cache_ram_mib=512).profile()
    assert str(caught.value) == (
        f"cache_ram_mib=512 needs --cache-ram, which {old} does not list in its --help. "
        "Use a build that has the flag, or drop the setting."
    )


def test_build_without_any_load_flag(tmp_path: Path) -> None:
    """A build that cannot be told to read the weights into memory is refused, for they would not be in the snapshot."""
    odd = fake_binary(tmp_path / "odd", f"grep -v -e mmap -e load-mode {TESTDATA}/help-b9940.txt")
    with pytest.raises(UnsupportedFlag, match="load='no-mmap' needs --no-mmap or --load-mode, which"):
        settings(odd).profile()
    assert "--jinja" in settings(odd, load="mmap").profile().command


def test_mentions_are_not_definitions(tmp_path: Path) -> None:
    """Only a row's own names count: not flags that descriptions mention, nor those listed as removed."""
    known = capabilities(build(tmp_path, "b11434"), {})
    assert {"-c", "--ctx-size", "--gpu-layers", "-nocb", "--no-cont-batching", "--chat-template-file"} <= known
    assert {"--log-jsonl", "-lzm"} <= known
    removed = {"--draft", "--draft-n", "--draft-max", "--no-perf-of-old", "--another-long-name-of-an-old-flag"}
    assert not known & (removed | {"--not-a-definition", "--spec-draft-n-max", "--no-mmap"})
    assert all(re.fullmatch(r"-{1,2}[A-Za-z][\w-]*", flag) for flag in known)


OWNED_FLAGS = [(setting, flag) for setting, names in OWNED.items() for flag in names.split()]


@pytest.mark.parametrize(("setting", "flag"), OWNED_FLAGS)
def test_owned_flags_are_refused(setting: str, flag: str) -> None:
    """No spelling of a flag that a setting owns gets in by the side door; the error names both."""
    spellings = {flag, f"{flag}=1"}
    if flag.startswith("--"):
        spellings.add("--" + flag[2:].replace("-", "_"))  # llama-server takes these for the same
    for spelling in spellings:
        with pytest.raises(ProfileError) as caught:
            LlamaServer(binary="x", model=Path("m.gguf"), extra_args=("--temp", "1", spelling))
        assert f"free of {flag}: use the setting {setting!r}" in str(caught.value)


def test_a_refused_key_is_not_printed() -> None:
    """A key that is given the wrong way does not show up in the refusal."""
    with pytest.raises(ProfileError) as caught:
        LlamaServer(binary="x", model=Path("m.gguf"), extra_args=(f"--api-key={KEY}",))
    assert KEY not in str(caught.value)
    assert KEY not in repr(caught.value)


def test_unknown_extra_flag_is_found_before_the_spawn(tmp_path: Path) -> None:
    """An extra flag that the build lacks, or has removed, is refused by name."""
    binary = build(tmp_path, "b11434")
    for argument, flag in (("--frobnicate", "--frobnicate"), ("--draft-max", "--draft-max"), ("--foo=1", "--foo")):
        with pytest.raises(UnsupportedFlag) as caught:
            settings(binary, extra_args=(argument,)).profile()
        # What follows a = may be a key that went to a misspelt flag.
        assert f"extra_args={flag!r} needs {flag}, which {binary}" in str(caught.value)


def test_extra_flag_with_equals_sign(tmp_path: Path) -> None:
    """llama-server does not split at '=': told before it says so itself."""
    with pytest.raises(ProfileError, match="two arguments"):
        settings(build(tmp_path, "b11434"), extra_args=("--temp=0.5",)).profile()


@pytest.mark.parametrize("value", ["-1", "-0.5", "-", "--", "- item", "a=b", '{"-a": 1}', "", "-.5"])
def test_values_pass(tmp_path: Path, value: str) -> None:
    """What does not look like a flag is a value, and is passed on untouched."""
    command = settings(build(tmp_path, "b11434"), extra_args=("--temp", value)).profile().command
    assert command[-2:] == ("--temp", value)


@pytest.mark.parametrize("flag", ["--api-prefix", "--ssl-key-file", "--ssl-cert-file"])
def test_flags_that_hide_health_are_refused(flag: str) -> None:
    """A flag that moves /health from where probes ask is refused at once, not after the start timeout."""
    with pytest.raises(ProfileError, match=f"free of {flag}: probes ask"):
        LlamaServer(binary="x", model=Path("m.gguf"), extra_args=(flag, "v"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"binary": ""}, "binary=''"),
        ({"binary": ()}, "binary="),
        ({"model": Path()}, "model="),
        ({"alias": " "}, "alias=' '"),
        ({"alias": "a,b"}, "alias='a,b' is not valid: it must be a name without commas"),
        ({"model": Path("a,b.gguf")}, "alias='a,b'"),
        ({"ctx_size": 0}, "ctx_size=0 is not valid: it must be a whole number, 1 or more"),
        ({"ctx_size": None}, "ctx_size=None"),
        ({"slots": True}, "slots=True"),
        ({"slots": "2"}, "slots='2'"),
        ({"threads": 0}, "threads=0"),
        ({"gpu_layers": -1}, "gpu_layers=-1 is not valid: it must be a whole number, 0 or more"),
        ({"cache_ram_mib": -1}, "cache_ram_mib=-1"),
        ({"cache_type_k": "q8 0"}, "cache_type_k='q8 0'"),
        ({"flash_attn": "yes"}, "flash_attn='yes' is not valid: it must be on, off, auto or None"),
        ({"load": "dio"}, "load='dio' is not valid: it must be no-mmap or mmap"),
        ({"api_key": Secret("a,b")}, r"api_key=Secret\('\*\*\*'\) is not valid: it must be a key without commas"),
        ({"api_key": Secret("k"), "open_access": True}, "open_access=True"),
        ({"env": {"LLAMA_ARG_CTX_SIZE": "1"}}, "env='LLAMA_ARG_CTX_SIZE' is not valid: it must be free of LLAMA_ARG_"),
        ({"env": {"LLAMA_API_KEY": "k"}}, "env='LLAMA_API_KEY' is not valid: it must be given as api_key"),
        ({"inherit_env": ("*",)}, r"inherit_env='\*'"),
        ({"inherit_env": ("PATH", "LLAMA_*")}, r"inherit_env='LLAMA_\*'"),
        ({"inherit_env": ("LLAMA_ARG_NO_MMAP",)}, "inherit_env='LLAMA_ARG_NO_MMAP'"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    """A wrong setting is refused at construction; the error has the field, the value, and what is allowed."""
    with pytest.raises(ProfileError, match=f"^{message}"):
        LlamaServer(**{"binary": "llama-server", "model": Path("m.gguf"), **wrong})


@pytest.mark.parametrize("wrong", [KEY, KEY.encode(), 7, ""])
def test_a_key_that_is_no_secret(wrong: Any) -> None:
    """A key given as plain text is refused with words, and they do not hold it."""
    with pytest.raises(ProfileError, match=r"^api_key='\*\*\*' is not valid: it must be a Secret, or None") as caught:
        LlamaServer(binary="llama-server", model=Path("m.gguf"), api_key=wrong)
    assert KEY not in repr(caught.value)


def test_the_key_is_never_in_argv(tmp_path: Path) -> None:
    """The key travels in the environment as a Secret: not in argv, not in any repr, and --help does not get it."""
    log = tmp_path / "env"
    binary = fake_binary(tmp_path / "spy", f"env > {log}; cat {TESTDATA}/help-b11434.txt")
    env = {"LLAMA_CACHE": "/cache", "HF_TOKEN": Secret("hf-tests-only")}
    server = settings(binary, api_key=Secret(KEY), env=env)
    profile = server.profile()
    assert profile.api_key == Secret(KEY)
    assert profile.env == env
    assert (profile.api_key, profile.api_key_env) == (Secret(KEY), "LLAMA_API_KEY")
    assert KEY not in repr(server) + repr(profile) + " ".join(profile.command)
    assert Redactor(profile.secrets)(KEY) == "***"
    seen = log.read_text()
    assert "LLAMA_CACHE=/cache" in seen
    assert KEY not in seen
    assert "hf-tests-only" not in seen


def test_help_runs_in_the_childs_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe sees what the child will see: inherited names only, so none of the host's LLAMA_ARG_*."""
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    log = tmp_path / "env"
    settings(fake_binary(tmp_path / "spy", f"env > {log}; cat {TESTDATA}/help-b11434.txt")).profile()
    assert "CUDA_VISIBLE_DEVICES=3" in log.read_text()
    assert "LLAMA_ARG" not in log.read_text()


def test_a_name_is_looked_up_in_the_childs_path(tmp_path: Path) -> None:
    """A bare program name is found as the spawn will find it, in the PATH that the child gets."""
    build(tmp_path, "b9940").rename(tmp_path / "llama-server")
    env = {"PATH": f"{tmp_path}{os.pathsep}{os.defpath}"}
    assert "--no-mmap" in capabilities("llama-server", env)
    assert "--no-mmap" in settings(Path("llama-server"), env=env).profile().command


def test_help_is_read_once_per_binary(tmp_path: Path) -> None:
    """The same file is asked once; a replaced one is asked again, because a rebuilt server may know other flags."""
    count, binary = tmp_path / "count", tmp_path / "server"

    def install(tag: str) -> None:
        fresh = fake_binary(tmp_path / "fresh", f"echo {tag} >> {count}; cat {TESTDATA}/help-{tag}.txt")
        fresh.replace(binary)

    install("b9940")
    assert "--no-mmap" in settings(binary).profile().command
    assert "--no-mmap" in settings(binary, slots=3).profile().command
    assert count.read_text().split() == ["b9940"]
    install("b11434")
    assert "--load-mode" in settings(binary).profile().command
    assert count.read_text().split() == ["b9940", "b11434"]


def refused(binary: Path | tuple[str, ...]) -> SpawnError:
    with pytest.raises(SpawnError) as caught:
        capabilities(binary, {"PATH": os.defpath})
    return caught.value


def test_missing_binary(tmp_path: Path) -> None:
    """A binary that is not there is a SpawnError that says so."""
    error = refused(tmp_path / "nowhere")
    assert error.argv == (str(tmp_path / "nowhere"), "--help")
    assert str(error) == f"could not start '{tmp_path}/nowhere': No such file or directory."


def test_binary_that_is_not_executable(tmp_path: Path) -> None:
    """A file without the x bit, and one that is no program, are SpawnErrors with the kernel's reason."""
    (tmp_path / "plain").write_text("text")
    assert "Permission denied" in str(refused(tmp_path / "plain"))
    (tmp_path / "plain").chmod(0o755)
    assert "Exec format error" in str(refused(tmp_path / "plain"))


def test_binary_for_another_cpu(tmp_path: Path) -> None:
    """A build with instructions that this CPU lacks is told apart from every other failure."""
    error = refused(fake_binary(tmp_path / "amx", "kill -ILL $$"))
    assert error.reason.startswith("its --help was killed by SIGILL (it uses instructions that this CPU lacks")
    assert refused(fake_binary(tmp_path / "oom", "kill -KILL $$")).reason == "its --help was killed by SIGKILL"


def test_binary_with_missing_libraries(tmp_path: Path) -> None:
    """A binary that fails before it prints a flag is a SpawnError with its exit code and last line."""
    script = "echo first; echo 'error while loading shared libraries: libcuda.so.1' >&2; exit 127"
    assert refused(fake_binary(tmp_path / "cuda", script)).reason == (
        "its --help exited with code 127: error while loading shared libraries: libcuda.so.1"
    )
    assert refused(fake_binary(tmp_path / "mute", "exit 3")).reason.endswith("code 3: it printed nothing")


def test_failed_probes_are_not_remembered(tmp_path: Path) -> None:
    """A failure is asked again: the library that was missing may be there now."""
    binary = fake_binary(tmp_path / "server", f"test -e {tmp_path}/lib && cat {TESTDATA}/help-b9940.txt")
    refused(binary)
    (tmp_path / "lib").touch()
    assert "--no-mmap" in capabilities(binary, {"PATH": os.defpath})


def test_help_with_an_odd_exit_code(tmp_path: Path) -> None:
    """Flags count even when help exits 1, or comes on stderr."""
    binary = fake_binary(tmp_path / "server", f"cat {TESTDATA}/help-b9940.txt >&2; exit 1")
    assert "--no-mmap" in capabilities(binary, {"PATH": os.defpath})


def test_program_without_flags() -> None:
    """A program that is no engine at all is a wrong setting, not a failed start."""
    with pytest.raises(ProfileError, match="binary='/bin/echo hello' is not valid: it must be a program whose --help"):
        capabilities(("/bin/echo", "hello"), {})


def test_binary_that_ignores_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that takes --help for nothing and serves is ended with all that it started, and reported."""
    monkeypatch.setattr(help_flags, "HELP_S", 0.3)
    fifo = tmp_path / "held"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    binary = fake_binary(tmp_path / "server", f"exec 3> {fifo}; sleep 600 & wait")
    assert "it did not answer --help within 0.3 s" in str(refused(binary))
    os.set_blocking(reader, True)
    assert os.read(reader, 1) == b""  # every writer is gone, the grandchild as well
    os.close(reader)


def test_shards_are_all_weights() -> None:
    """The first shard's name stands for all shards, so that progress and the snapshot contract see every file."""
    model = Path("/m/big-00001-of-00003.gguf")
    assert shards(model) == tuple(Path(f"/m/big-0000{i}-of-00003.gguf") for i in (1, 2, 3))
    assert shards(Path("/m/plain.gguf")) == (Path("/m/plain.gguf"),)


def test_mmproj_is_a_weight(tmp_path: Path) -> None:
    """The projector is read at load as well, and must not stay mapped either."""
    profile = settings(build(tmp_path, "b11434"), mmproj=Path("/m/v.gguf")).profile()
    assert profile.weights == (Path("/models/gemma.gguf"), Path("/m/v.gguf"))
