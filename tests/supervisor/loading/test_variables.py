"""Variables that a user writes as `KEY=VALUE`."""

from __future__ import annotations

import pytest

from supervisor.errors import ProfileError
from supervisor.loading import variables
from supervisor.redact import MASK, Secret


def test_variables_that_are_named_like_secrets_are_secrets() -> None:
    """`--env HF_TOKEN=...` is not printed; a blank one is no secret."""
    found = variables(["HF_TOKEN=hf_12345", "API_KEY=", "MAX_TOKENS=5", "PATH=/a:/b", "X=a=b"])
    assert found == {"HF_TOKEN": Secret("hf_12345"), "API_KEY": "", "MAX_TOKENS": "5", "PATH": "/a:/b", "X": "a=b"}
    assert "hf_12345" not in repr(found) and MASK in repr(found)


def test_a_switch_is_no_secret() -> None:
    """What only its name calls a secret needs 8 characters: a `1` that is masked everywhere leaves no log to read."""
    assert variables(["USE_TOKEN=1", "A_TOKEN=1234567", "B_TOKEN=12345678"]) == {
        "USE_TOKEN": "1",
        "A_TOKEN": "1234567",
        "B_TOKEN": Secret("12345678"),
    }


@pytest.mark.parametrize("text", ["sk-value", "=value", ""])
def test_a_variable_needs_a_name_and_a_value(text: str) -> None:
    """And the message shows nothing of it: somebody may have given the secret alone."""
    with pytest.raises(ProfileError, match=r"--env=.* must be KEY=VALUE") as caught:
        variables([text])
    assert "value" not in str(caught.value)
