"""README and docs: each command is run, or parsed by the program that it names, and each example type-checks."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from commandline import events_until, supervise
from supervisor.cli import main
from support import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("tests/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[\w-]*)?\)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    language: str
    text: str


BLOCKS = [
    Block(page=page, language=match[1], text=match[2])
    for page in PAGES
    for match in FENCE.finditer(page.read_text(encoding="utf-8"))
]


def commands() -> list[tuple[Path, str]]:
    """Every command of a console block, continuation lines joined, comments and prompts gone."""
    found = []
    for block in BLOCKS:
        if block.language == "console":
            lines = block.text.replace("\\\n", " ").splitlines()
            found += [
                (block.page, part.strip())
                for line in lines
                if line.startswith(("$ ", "# "))
                for part in re.split(r"\s&&\s", re.split(r"\s{2,}#\s", line[2:])[0])
            ]
    return found


COMMANDS = commands()


def words(command: str) -> list[str]:
    """The words of a command, with variables that it sets for itself left out."""
    split = shlex.split(command)
    while split and re.fullmatch(r"[A-Z_]+=.*", split[0]):
        split = split[1:]
    return split


def parsed(group: click.Command, name: str, arguments: list[str]) -> None:
    """Fails unless the command line accepts these arguments; nothing is run."""
    context = click.Context(group, info_name=name)
    command: click.Command = group
    while isinstance(command, click.Group):
        found = command.get_command(context, arguments[0])
        assert found, f"{context.info_name} has no command {arguments[0]!r}"
        name, *arguments = arguments
        command, context = found, click.Context(found, info_name=name, parent=context)
    command.make_context(name, list(arguments), parent=context.parent)


def modal_accepts(arguments: list[str]) -> None:
    """Fails unless Modal's command line knows the command, and the entry that it names has the function."""
    from modal.cli.entry_point import entrypoint_cli

    if arguments[0] == "deploy":
        parsed(entrypoint_cli, "modal", arguments)
    if arguments[0] in ("run", "deploy"):
        target = next(word for word in arguments[1:] if ".py" in word)
        path, _, function = target.partition("::")
        text = (ROOT / path).read_text(encoding="utf-8")
        assert not function or re.search(rf"^def {function}\(", text, re.MULTILINE), target
        given = arguments[arguments.index(target) + 1 :]
        signature = re.search(rf"^def {function}\((.*?)\) ->", text, re.MULTILINE | re.DOTALL) if function else None
        for word in given:
            if word.startswith("--"):
                assert signature
                assert word[2:].replace("-", "_") in signature[1], word
        return
    parsed(entrypoint_cli, "modal", arguments)


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{p.name}: {c[:60]}" for p, c in COMMANDS])
def test_a_command_is_one_that_works(page: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program that a command names takes its arguments; a command of a program that is not known here fails."""
    for name in ("API_KEY", "LLAMA_API_KEY"):
        monkeypatch.setenv(name, "sk-made-up-for-tests")
    program, *arguments = words(command)
    match program:
        case "make":
            settings = [word for word in arguments if "=" in word]
            targets = [word for word in arguments if "=" not in word]
            argv = ["make", "-n", *targets, *settings]
            done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        case "supervise":
            parsed(main, "supervise", arguments)
        case "modal":
            modal_accepts(arguments)
        case "pip":
            extras = re.findall(r"\[([\w,]+)\]", " ".join(arguments))
            known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            assert set(",".join(extras).split(",")) - {""} <= set(known["optional-dependencies"])
        case "python" | "./my-server" | "./llama-server":
            assert program != "python" or (ROOT / arguments[0]).is_file() or arguments[0] == "-m"
        case "export" | "curl" | "apt-get":
            assert arguments
        case _:
            pytest.fail(f"{page.name}: nothing here knows {program!r}")


def test_every_page_has_its_commands() -> None:
    """The test above looks at something."""
    assert {"make", "supervise", "modal"} <= {words(command)[0] for _, command in COMMANDS}


def test_the_first_example_of_exec_runs() -> None:
    """The first server of the README is supervised for real, as written."""
    command = next(c for p, c in COMMANDS if p.name == "README.md" and c.startswith("supervise exec"))
    arguments = [sys.executable if word == "python3" else word for word in words(command)[1:]]
    with supervise("exec", "--log-format", "json", *arguments[1:]) as process:
        assert events_until(process, "child.ready")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_a_profile_of_the_docs_runs(tmp_path: Path) -> None:
    """A file from the docs that needs nothing but Python is served for real, as written."""
    block = next(b for b in BLOCKS if b.text.startswith("# files.py"))
    (tmp_path / "files.py").write_text(block.text, encoding="utf-8")
    with supervise("run", f"{tmp_path / 'files.py'}:profile", "--log-format", "json") as process:
        assert events_until(process, "child.ready")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


@pytest.mark.timeout(180)
def test_examples_pass_the_type_checker(tmp_path: Path) -> None:
    """Every Python example is checked by mypy --strict, as written."""
    examples = [block for block in BLOCKS if block.language == "python"]
    assert len(examples) >= 6
    for number, block in enumerate(examples):
        (tmp_path / f"{block.page.stem.lower()}_{number}.py").write_text(block.text, encoding="utf-8")
    cache = ROOT / ".mypy_cache" / "examples"
    argv = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(cache), str(tmp_path)]
    env = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file that is there."""
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_readme_is_one_page() -> None:
    """Who opens the README finds the two commands at once, and the rest within 150 lines."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert any(line.startswith("$ make up") for line in lines[:12])
    assert any(line.startswith("$ make test") for line in lines[:12])
