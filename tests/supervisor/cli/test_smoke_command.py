"""`supervise smoke`: its name, its older name, and the words of its errors."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from commandline import run
from supervisor.cli import main
from tools.serve import KEY, running_fake


def test_the_older_name_still_works() -> None:
    """`verify` is `smoke`, and is not listed any more."""
    shown = CliRunner().invoke(main, ["--help"]).output
    assert "smoke" in shown and "verify" not in shown
    with running_fake(key=KEY) as child:
        arguments = (child.url, "--api-key-env", "K", "--only", "auth")
        assert [run(name, *arguments, env={"K": KEY})[0] for name in ("smoke", "verify")] == [0, 0]


def test_a_missing_key_is_named_by_its_option() -> None:
    """A user of the command has no profile: the error says which option gives the key."""
    with running_fake(key=KEY) as child:
        status, out, _ = run("smoke", child.url, "--only", "auth")
    assert status == 4
    said = " ".join(out.split())
    assert "--api-key-env" in said and "--open" in said
    assert "profile" not in said and "api_key" not in said


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("http://h", "--timeout-s", "-1"), "--timeout-s"),
        (("http://h", "--model", " "), "--model"),
        (("ftp://h",), "URL"),
        (("http://h", "--open", "--api-key-env", "K"), "--open"),
        (("http://h", "--api-key-env", "NOT_SET_ANYWHERE"), "--api-key-env"),
        (("http://h", "--only", "nothing"), "--only"),
        (("http://h", "--deadline-s", "-1"), "--deadline-s"),
        (("http://h", "--wake-limit-s", "-1"), "--wake-limit-s"),
        (("http://h", "--slots", "-1"), "--slots"),
    ],
)
def test_a_wrong_argument_is_named_as_it_was_typed(arguments: tuple[str, ...], option: str) -> None:
    """What was typed is what the error names, not a field of something inside."""
    result = CliRunner().invoke(main, ["smoke", *arguments], env={"K": KEY})
    assert result.exit_code == 2
    assert f"ProfileError: {option}" in result.output
    assert "open_access" not in result.output and "api_key=" not in result.output
