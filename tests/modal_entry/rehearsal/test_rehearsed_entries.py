"""What a rehearsal reads: the reports of hooks, secrets, an entry and its weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from fakes.modal_host import APP, Host
from modal_entry.rehearsal.container import HookFailed
from modal_entry.rehearsal.control_plane import ControlPlane
from modal_entry.rehearsal.entry import weights_of
from modal_entry.rehearsal.programs import Cli, ProgramFailed
from supervisor.errors import ProfileError
from supervisor.loading import ProfileCodeFailed


def test_a_program_that_ends_early_says_what_it_said(tmp_path: Path) -> None:
    """Waiting for what cannot come any more is an error with the exit code and the last lines, not a timeout."""
    with (
        ControlPlane() as plane,
        Cli(plane, "no-such-command", cwd=tmp_path) as cli,
        pytest.raises(ProgramFailed) as caught,
    ):
        cli.line("never said", 40)
    assert caught.value.exit_code == 2
    assert "No such command" in str(caught.value)


@pytest.mark.parametrize(
    ("said", "error", "detail"),
    [
        ("StepFailed(\"warmup step 'text' failed\")", "StepFailed", "warmup step 'text' failed"),
        ("OSError(2, 'No such file')", "OSError", "(2, 'No such file')"),
        ("ValueError()", "ValueError", ""),
        ("module.Odd(x=<object>)", "module.Odd", "x=<object>"),
        ("no repr of an exception", "Exception", "no repr of an exception"),
    ],
)
def test_the_report_of_a_hook_is_read(said: str, error: str, detail: str) -> None:
    """Class and text come out of the repr that a container reports, whatever it looks like."""
    from modal_proto import api_pb2 as pb

    failure = HookFailed.of(pb.GenericResult(exception=said))
    assert (failure.error, failure.detail) == (error, detail)


def test_any_secret_exists_when_told_so(tmp_path: Path) -> None:
    """A plane with `any_secret` takes a deploy that asks for secrets it was never told of, and keeps their keys."""
    from modal_entry.rehearsal.programs import deploy

    with ControlPlane(any_secret=True, folders=Host.of_fake(tmp_path / "volumes").folders) as plane:
        cli = deploy(plane, str(APP), cwd=tmp_path)
        assert cli.returncode == 0, cli.output
        (function,) = [function for function in plane.app().functions.values() if function.is_server]
        (secret_id,) = function.secret_ids
    assert plane.secrets[secret_id].deployment_name == "entry-key"
    assert list(plane.secrets[secret_id].required_keys) == ["API_KEY"]


def test_weights_of_an_entry() -> None:
    """An entry's file is enough to know where its containers have the weights; it may be asked twice."""
    from modal_entry import gemma

    for _ in range(2):
        assert weights_of(Path(gemma.__file__)) == (
            Path("/models/gemma-4-26b-a4b/main/gemma-4-26B-A4B-it-UD-Q4_K_XL.gguf"),
            Path("/models/gemma-4-26b-a4b/main/mmproj-F32.gguf"),
        )


SERVER = "from modal_entry.serving.server import Server\n\n\nclass A(Server):\n    pass\n"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (None, "a Python file that exists"),
        ("x = 1\n", "one subclass of modal_entry.serving.Server (it has: none)"),
        (SERVER + "\n\nclass B(Server):\n    pass\n", "(it has: A, B)"),
        (SERVER, "A.deployment is a Deployment of modal_entry.serving, not None"),
        ("raise RuntimeError('broken on purpose')\n", "odd.py, line 1: raise RuntimeError"),
        ("import sys\nsys.exit('enough')\n", "cannot be loaded: SystemExit: enough"),
    ],
)
def test_what_is_no_entry_is_refused(tmp_path: Path, source: str | None, words: str) -> None:
    """A file without a server, with several, without a model, or that fails to import: each in its own words."""
    path = tmp_path / "odd.py"
    if source is not None:
        path.write_text(source)
    with pytest.raises((ProfileError, ProfileCodeFailed)) as caught:
        weights_of(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_base_class_in_the_entry_is_no_second_server(tmp_path: Path) -> None:
    """Only the last of a chain of classes is the entry's server."""
    path = tmp_path / "chain.py"
    text = APP.read_text().replace("@app.server(", "class Base(Server):\n    pass\n\n\n@app.server(")
    path.write_text(text.replace("class Entry(Server)", "class Entry(Base)"))
    assert [file.name for file in weights_of(path)] == ["model.gguf"]
