"""What a child is started with."""

from __future__ import annotations

import pytest

from supervisor import Child, Profile, Redactor
from supervisor.errors import ProfileError


@pytest.mark.parametrize(
    ("text", "port", "filled"),
    [
        ("{host}:{port}", 80, "127.0.0.1:80"),
        ("{{host}}:{{port}}", 80, "{host}:{port}"),
        ('{"a": {"port": {port}}}', 80, '{"a": {"port": 80}}'),
        ("{port} {{port}} {ports}", 80, "80 {port} {ports}"),
        ("{port}", 0, "{port}"),
    ],
)
def test_placeholders_and_their_literals(text: str, port: int, filled: str) -> None:
    """`{port}` and `{host}` are substituted, doubled braces give the words themselves, other braces stay."""
    profile = Profile(name="x", command=("x", text), port=port or 1)
    child = Child(profile=profile, port=port, pid=None, redact=Redactor(()))
    assert child.fill(text) == filled


def test_a_literal_is_no_place_for_the_port() -> None:
    """Port 0 needs a `{port}` that is substituted."""
    with pytest.raises(ProfileError):
        Profile(name="x", command=("x", "{{port}}"))
