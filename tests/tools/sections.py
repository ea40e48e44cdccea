"""Generated parts of a page: what stands between `<!-- name:begin -->` and `<!-- name:end -->`."""

from __future__ import annotations


def section(page: str, name: str) -> str:
    """The lines between the markers.

    Raises:
        ValueError: the page lacks one of the markers.
    """
    return _split(page, name)[1]


def with_section(page: str, name: str, body: str) -> str:
    """The page with other lines between the markers.

    Raises:
        ValueError: the page lacks one of the markers.
    """
    before, _, after = _split(page, name)
    return f"{before}{body.rstrip()}\n{after}"


def _split(page: str, name: str) -> tuple[str, str, str]:
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    head, found, rest = page.partition(begin)
    body, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page has no {begin.strip()} ... {end}")
    return head + begin, body, end + tail
