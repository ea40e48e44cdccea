"""A `Secret`: a value that prints as a mask, and what is no secret."""

from __future__ import annotations

import dataclasses
import logging
import pickle
from typing import Any

import pytest

from supervisor.errors import ProfileError
from supervisor.redact import (
    MASK,
    Secret,
)

KEY = "sk-0123456789abcdef"


@dataclasses.dataclass(frozen=True)
class Settings:
    key: Secret
    keys: dict[str, Secret]


def test_a_secret_prints_as_a_mask_everywhere(caplog: pytest.LogCaptureFixture) -> None:
    """No usual way of making text of a secret, alone or inside of other things, shows it."""
    secret = Secret(KEY)
    settings = Settings(secret, {"a": secret})
    logging.getLogger("t").warning("%s %r %s", secret, secret, settings)
    texts = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret!r}",
        format(secret),
        "{}".format(secret),  # noqa: UP032  this very spelling is under test
        "%s" % secret,  # noqa: UP031  this one as well
        repr(settings),
        str(dataclasses.asdict(settings)),
        str(vars(settings)),
        str([secret]),
        caplog.text,
    ]
    assert all(MASK in text for text in texts)
    assert not any(KEY[:4] in text for text in texts)


def test_a_secret_is_a_value() -> None:
    """Equal secrets are equal and hash alike; they survive pickling; other types are never equal."""
    assert Secret(KEY) == Secret(KEY)
    assert hash(Secret(KEY)) == hash(Secret(KEY))
    assert Secret(KEY) != Secret(KEY + "x")
    assert Secret(KEY) != KEY
    assert pickle.loads(pickle.dumps(Secret(KEY))).reveal() == KEY  # noqa: S301  our own bytes


@pytest.mark.parametrize("value", ["", " ", "\t", "\n", " \u2003 "])
def test_a_blank_secret_is_refused(value: str) -> None:
    """A blank key opens a server instead of closing it."""
    with pytest.raises(ProfileError, match=r"API_KEY=.* a non-blank string"):
        Secret(value, name="API_KEY")


@pytest.mark.parametrize("value", [5, None, b"bytes-bytes"])
def test_a_secret_is_text(value: Any) -> None:
    """Another type is refused like a wrong setting, and is not shown."""
    with pytest.raises(ProfileError, match=r"API_KEY='\(\w+\)' .* text") as caught:
        Secret(value, name="API_KEY")
    assert "bytes-bytes" not in str(caught.value)


@pytest.mark.parametrize("odd", ["\n", "\r", "\0", "\t", "\x1b", "\x7f", "\x9b", "\u200b", "\udcff"])
def test_an_unprintable_secret_is_refused_without_showing_it(odd: str) -> None:
    """What a log would show in another form than it was given could not be masked there."""
    with pytest.raises(ProfileError) as caught:
        Secret(f"{KEY}{odd}x", name="API_KEY")
    assert str(caught.value) == f"API_KEY={MASK!r} is not valid: it must be one line of printable text."
    assert KEY not in repr(caught.value)
