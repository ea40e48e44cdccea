"""Changes to llama.cpp's source that some tags need, as anchored insertions: a line number is true for one tag only.

There is one so far. `common_chat_params_init_gemma4` arrived (llama.cpp PR 21418) announcing that the model thinks, but
without the tags between which it does; the sampler that enforces a thinking budget is made only when there is an end
tag, so `thinking_budget_tokens` did nothing. PR 21697 added the tags upstream. In between, `GEMMA4_THINKING_TAGS` does:
b8672 is one of those tags, b9093 has the fix.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol

from supervisor.errors import SupervisorError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["GEMMA4_THINKING_TAGS", "Outcome", "Patch", "PatchDoesNotApply"]

Outcome = Literal["applied", "already upstream"]
"""What became of a patch: put in; or not needed, because the tag has the fix itself."""

_SHOWN: Final = 16  # lines of source in an error
_ANCHOR: Final = re.compile(r"^[ \t]*data\.supports_thinking[ \t]*=[ \t]*true;[ \t]*$", re.MULTILINE)


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
    """Gives a chat parser of llama.cpp the tags around the thoughts, where it only says that there are some.

    Attributes:
        name: of the patch.
        function: that fills in the parser's parameters.
        places: files that may define it, relative to the tree, the newest layout first.
        start, end: the tags, as C++ string literals without their quotes.
    """

    name: str
    function: str
    places: tuple[str, ...]
    start: str
    end: str

    def apply(self, tree: Path) -> Outcome:
        """Change the source tree, or find that nothing is to be changed.

        Raises:
            PatchDoesNotApply: the parser is nowhere, or of a shape that is not known. Nothing was written.
        """
        place, text, begin, end = self._find(tree)
        body = text[begin:end]
        if seen := re.findall(r"^.*\bthinking_(?:start_tag|end_tags?)\b.*$", body, re.MULTILINE):
            # Upstream's start tag ends before the line feed: its parser takes the line feed as optional.
            start = self.start.removesuffix(r"\n")
            if any(f'"{start}' in line for line in seen) and any(f'"{self.end}"' in line for line in seen):
                return "already upstream"
            raise self._refuse(place, "it sets thinking tags, but not both of them, or others", seen)
        anchors = list(_ANCHOR.finditer(body))
        if len(anchors) != 1:
            reason = f"the anchor `data.supports_thinking = true;` is there {len(anchors)} times, not once"
            raise self._refuse(place, reason, body.splitlines()[:_SHOWN])
        at = begin + anchors[0].end()
        inserted = "\n".join(["", *self._hunk])
        (tree / place).write_text(text[:at] + inserted + text[at:], encoding="utf-8", newline="")
        return "applied"

    @property
    def _hunk(self) -> tuple[str, ...]:
        # The tags of llama.cpp that need this know one end tag; the list of them came after the fix.
        return (
            "    // warmboot: the thinking tags that this tag of llama.cpp does not set",
            f'    data.thinking_start_tag = "{self.start}";',
            f'    data.thinking_end_tag   = "{self.end}";',
        )

    def _find(self, tree: Path) -> tuple[str, str, int, int]:
        """The file that defines the parser, its text, and where in it the function begins and ends."""
        definition = re.compile(rf"^[\w ]*\b{self.function}\([^;{{]*\)\s*\{{$(?:.*?)^\}}$", re.DOTALL | re.MULTILINE)
        mentions: list[str] = []
        for place in self.places:
            if not (tree / place).is_file():
                continue
            with (tree / place).open(encoding="utf-8", newline="") as file:  # line ends stay as they are
                text = file.read()
            if found := definition.search(text):
                return place, text, found.start(), found.end()
            mentions += [f"{place}: {line.strip()}" for line in text.splitlines() if "gemma4" in line.lower()]
        reason = f"neither defines {self.function}(): this tag has no Gemma 4 parser, or keeps it in a new place"
        raise self._refuse(" or ".join(self.places), reason, mentions[:_SHOWN])

    def _refuse(self, file: str, reason: str, found: list[str]) -> PatchDoesNotApply:
        return PatchDoesNotApply(patch=self.name, file=file, reason=reason, hunk=self._hunk, found=tuple(found))


GEMMA4_THINKING_TAGS: Final[Patch] = ThinkingTags(
    name="gemma4-thinking-tags",
    function="common_chat_params_init_gemma4",
    places=("common/parsers/gemma4.cpp", "common/chat.cpp"),
    # With the line feed: the parser of the tags that lack the fix demands one. A budget of 0 forces the end tag right
    # behind the start tag, and without it that parser would refuse the answer.
    start=r"<|channel>thought\n",
    end="<channel|>",
)
