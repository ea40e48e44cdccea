"""The GPU table of the docs is that of the committed results."""

from __future__ import annotations

from tools.gpu_table import PAGE, SECTION, rendered
from tools.sections import section


def test_the_page_shows_the_committed_results() -> None:
    """`PYTHONPATH=tests python -m tools.gpu_table` brings the page in line."""
    assert section(PAGE.read_text(encoding="utf-8"), SECTION).strip() == rendered()
