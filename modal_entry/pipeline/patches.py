"""Changes to llama.cpp's source that some tags need, as anchored insertions: a line number is true for one tag only.

There is one so far. `common_chat_params_init_gemma4` arrived (llama.cpp PR 21418) announcing that the model thinks, but
without the tags between which it does; the sampler that enforces a thinking budget is made only when there is an end
tag, so `thinking_budget_tokens` did nothing. PR 21697 added the tags upstream. In between, `GEMMA4_THINKING_TAGS` does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol

from supervisor.errors import SupervisorError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["GEMMA4_THINKING_TAGS", "Outcome", "Patch", "PatchDoesNotApply"]

Outcome = Literal["applied", "already present", "already upstream"]
"""What became of a patch: put in now; put in by an earlier run; not needed, because the tag has the fix itself."""


class Patch(Protocol):
    """One change. `name` stands in BUILD.json beside the outcome."""

    @property
    def name(self) -> str: ...

    def apply(self, tree: Path) -> Outcome:
        """Change the source tree, or find that there is no need to; PatchDoesNotApply is raised before any write."""


@dataclass(eq=False, repr=False, kw_only=True)
class PatchDoesNotApply(SupervisorError):
    """The source is of a shape that the patch does not know. Nothing was changed.

    Attributes:
        patch: its name.
        file: the place in the tree, relative; the places looked at when there is no single one.
        reason: what stands in the way.
        hunk: the lines that were to be inserted.
        found: the lines that are there instead.
    """

    cli_status = 2
    patch: str
    file: str
    reason: str
    hunk: tuple[str, ...]
    found: tuple[str, ...]

    @property
    def summary(self) -> str:
        hunk = "\n".join(f"    +{line}" for line in self.hunk)
        found = "\n".join(f"    |{line}" for line in self.found) or "    (nothing)"
        return (
            f"the patch {self.patch!r} does not apply to {self.file}: {self.reason}.\n"
            f"It would insert:\n{hunk}\nFound there:\n{found}\n"
            "Choose a tag that has the fix (b9093 and later), or build without this patch if no model needs it."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkingTags:
    """Tells a chat parser of llama.cpp the tags around the thoughts, where it only says that there are some.

    The parser is looked for in each place; the header tells whether this tree takes one end tag or a list of them.

    Attributes:
        name: of the patch.
        function: that fills in the parser's parameters.
        places: files that may define it, relative to the tree, the newest layout first.
        header: that declares the parameters.
        start, end: the tags, as C++ string literals without their quotes.
    """

    name: str
    function: str
    places: tuple[str, ...]
    header: str
    start: str
    end: str

    def apply(self, tree: Path) -> Outcome:
        """Change the source tree, or find that nothing is to be changed.

        Raises:
            PatchDoesNotApply: the parser is nowhere, or of a shape that is not known. Nothing was written.
        """
        place, text, begin, end = self._find(tree)
        body = text[begin:end]
        plural = self._takes_a_list(tree)
        hunk = self._hunk(plural=plural)

        if MARK in body:
            if "\n".join(hunk) in body:
                return "already present"
            raise self._refuse(place, "an earlier version of this patch is in it", hunk, _lines(body, MARK))
        seen = re.findall(r"^.*\bthinking_(?:start_tag|end_tags?)\b.*$", body, re.MULTILINE)
        if seen:
            if self._upstream(body, plural=plural):
                return "already upstream"
            raise self._refuse(place, "it sets thinking tags, but not both of them, or others", hunk, seen)
        anchors = list(_ANCHOR.finditer(body))
        if len(anchors) != 1:
            reason = f"the anchor `data.supports_thinking = true;` is there {len(anchors)} times, not once"
            raise self._refuse(place, reason, hunk, body.splitlines()[:SHOWN])

        at = begin + anchors[0].end()
        (tree / place).write_text(text[:at] + "\n" + "\n".join(hunk) + text[at:], encoding="utf-8", newline="")
        return "applied"

    def _find(self, tree: Path) -> tuple[str, str, int, int]:
        """The file that defines the parser, its text, and where in it the function begins and ends."""
        mentions = []
        for place in self.places:
            text = _read(tree / place)
            if found := re.search(
                rf"^[\w ]*\b{self.function}\([^;{{]*\)\s*\{{$(?:.*?)^\}}$", text, re.DOTALL | re.MULTILINE
            ):
                return place, text, found.start(), found.end()
            mentions += [f"{place}: {line.strip()}" for line in text.splitlines() if "gemma4" in line.lower()]
        raise self._refuse(
            " or ".join(self.places),
            f"neither defines {self.function}(): this tag has no Gemma 4 parser, or keeps it in a new place",
            self._hunk(plural=False),
            mentions[:SHOWN],
        )

    def _takes_a_list(self, tree: Path) -> bool:
        declared = re.findall(r"^.*\bthinking_(?:start_tag|end_tags?)\b.*$", _read(tree / self.header), re.MULTILINE)
        text = "\n".join(declared)
        if re.search(r"std::string\s+thinking_start_tag;", text):
            if re.search(r"std::string\s+thinking_end_tag;", text):
                return False
            if re.search(r"std::vector<std::string>\s+thinking_end_tags;", text):
                return True
        reason = "it declares no thinking_start_tag with thinking_end_tag or thinking_end_tags"
        raise self._refuse(self.header, reason, self._hunk(plural=False), declared)

    def _hunk(self, *, plural: bool) -> tuple[str, ...]:
        end = f'data.thinking_end_tags  = {{"{self.end}"}};' if plural else f'data.thinking_end_tag   = "{self.end}";'
        return f"    {MARK}", f'    data.thinking_start_tag = "{self.start}";', f"    {end}"

    def _upstream(self, body: str, *, plural: bool) -> bool:
        # Upstream's start tag ends before the line feed: its parser takes the line feed as optional.
        start = rf'data\.thinking_start_tag\s*=\s*"{re.escape(self.start.removesuffix(LF))}(?:{re.escape(LF)})?";'
        end = re.escape(f'"{self.end}"')
        end = rf"data\.thinking_end_tags\s*=\s*\{{\s*{end}" if plural else rf"data\.thinking_end_tag\s*=\s*{end};"
        return bool(re.search(start, body) and re.search(end, body))

    def _refuse(self, file: str, reason: str, hunk: tuple[str, ...], found: list[str]) -> PatchDoesNotApply:
        return PatchDoesNotApply(patch=self.name, file=file, reason=reason, hunk=hunk, found=tuple(found))


MARK: Final = "// warmboot: the thinking tags that this tag of llama.cpp lacks"
SHOWN: Final = 16  # lines of source in an error
LF: Final = r"\n"  # as C++ writes it
_ANCHOR: Final = re.compile(r"^[ \t]*data\.supports_thinking[ \t]*=[ \t]*true;[ \t]*$", re.MULTILINE)


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _lines(text: str, mark: str) -> list[str]:
    lines = text.splitlines()
    at = next(number for number, line in enumerate(lines) if mark in line)
    return lines[at : at + 4]


GEMMA4_THINKING_TAGS: Final[Patch] = ThinkingTags(
    name="gemma4-thinking-tags",
    function="common_chat_params_init_gemma4",
    places=("common/parsers/gemma4.cpp", "common/chat.cpp"),
    header="common/chat.h",
    # With the line feed: the parser of the tags that lack the fix demands one. A budget of 0 forces the end tag right
    # behind the start tag, and without it that parser would refuse the answer.
    start=r"<|channel>thought\n",
    end="<channel|>",
)
"""For the tags between the two pull requests, of April 2026; b8672 is one of them, b9093 has the fix."""
