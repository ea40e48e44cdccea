"""The golden answer: a server's answer to a fixed question, recorded before a snapshot and compared after the restore.

    golden = Golden()
    Hooks(before_seal=(golden.record,), after_resume=(golden.replay,))

A restored server can be healthy and still compute nonsense, because its weights lie in memory that was saved and
brought back. So the same greedy, seeded question is asked before the seal and after the resume. Where the engine gives
log-probabilities, the tokens must be the same and their log-probabilities no further apart than the tolerance; where
it gives none, the texts must be the same. A mismatch means that the restored model is not the one that was sealed: the
replay raises `GoldenMismatch`, which fails `after_resume`, and the supervisor replaces the child by a cold start,
within its restart budget. `record` asks twice, so that an engine which does not repeat itself is found before the seal,
not taken for a broken one after it.

Where the tolerance of 0.01 comes from (Gemma 3 270M, llama.cpp on a CPU, the default question): on a server that does
nothing else, 50 answers were equal to the last bit, as they were after other requests, in a fresh process and with
another number of threads. With the other slot busy the tokens stayed the same in 50 of 50, and log-probabilities moved
by up to 0.03, because another batch rounds otherwise; around a seal nothing else runs. One page of zeros (4 KiB of
253 MB) in the weights of a layer moved them by 0.03 to 0.8 in 12 places of 12, shifted bytes changed the tokens.
On a GPU (H200, llama.cpp b9940 with CUDA 13.0, a Gemma 4 26B of random weights with pictures, q8_0 KV) it is the same:
equal to the last bit 30 times of 30, also after other requests and over a driver's checkpoint and restore. Beside other
requests the tokens themselves differ there (text: with three of them; a picture: with one), and two answers beside the
same ones may agree, so record when nothing else runs. Zeros over 1 MB in 128 of the GPU memory changed the first token.

An engine that only draws (its dialect has a route for images and none for chats) is asked for a picture instead, of
the same prompt and seed. Its pixels must be the same: FLUX.2-klein's pipeline gave equal ones each time, on a CPU
(diffusers 0.42.1, torch 2.13, random weights) as on an H200, there also over a driver's checkpoint and restore.

What 8 tokens cannot show: damage to weights that they hardly use (4 MB of zeros in the embeddings of other words moved
them by 0.0002; experts that were not chosen), and, on engines that cannot leave their prompt cache aside for one
request, a prefill that comes from that cache.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from hooks.golden.drawing import Drawing, draw
from hooks.golden.generation import Generation
from hooks.http import picture
from hooks.http.answer import BadAnswer
from hooks.http.chat import chat
from hooks.http.text import shorten
from supervisor.errors import require
from supervisor.steps import step

if TYPE_CHECKING:
    from supervisor.child import Child
    from supervisor.steps import Step

__all__ = ["Golden", "GoldenMismatch", "goldens"]

TOLERANCE: Final = 0.01
_PICTURE_SIDE_PX: Final = 96
_REMEDY: Final = {  # whether it draws -> what to do about answers that are not the same
    False: "Keep other requests away, use one slot, turn speculative decoding off, or raise the tolerance",
    True: "Keep other requests away, take deterministic kernels, or raise the pixel_tolerance",
}


@dataclass(eq=False)
class GoldenMismatch(Exception):
    """Two answers that must be the same are not.

    Attributes:
        reason: where they part, redacted.
        expected: the text of the first answer, redacted and shortened.
        seen: that of the second; the body, when it holds no text that a working model may have written.
    """

    reason: str
    expected: str
    seen: str

    def __post_init__(self) -> None:
        super().__init__(self.reason, self.expected, self.seen)  # pickle rebuilds an exception from its args

    def __str__(self) -> str:
        return f"{self.reason}. Expected: {self.expected!r}. Seen: {self.seen!r}"


@dataclass(slots=True)
class _Recording:
    """What was answered: plain values in this process, which a snapshot holds like any others.

    Attributes:
        answer: None until one was recorded.
        with_logprobs: whether log-probabilities were asked for.
    """

    answer: Generation | Drawing | None = None
    with_logprobs: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """A question whose answer must be the same before and after a snapshot.

    `record` and `replay` are two Steps that share one recording, in this process's memory. A child that replaces
    another one is compared with the same recording, because it must be the same model.

    Attributes:
        prompt: what the user says; choose one that is answered with several words.
        picture: a PNG that goes with it; None: text alone.
        max_tokens: to generate at most.
        tolerance: how far apart the log-probabilities of a token may be (natural logarithms); see above.
        seed: of the request.
        size: of the picture, where the engine only draws.
        pixel_tolerance: how far apart the pixels of such a picture may be in the mean, 0 to 255; 0: they are the same.
        model: the name to ask for, where the server has several; None: the profile's.
        name, deadline_s: see `Step`; " record" and " replay" are put after the name.

    Raises:
        ProfileError: at construction; a setting is wrong.
    """

    prompt: str = "What is the capital of France? Answer in one sentence."
    picture: bytes | None = field(default=None, repr=False)
    max_tokens: int = 8
    tolerance: float = TOLERANCE
    seed: int = 1
    size: str = "256x256"
    pixel_tolerance: float = 0.0
    model: str | None = None
    name: str = "golden text"
    deadline_s: float | None = None
    _recording: _Recording = field(default_factory=_Recording, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, ok, allowed in (
            ("prompt", bool(self.prompt.strip()), "not blank"),
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("tolerance", self.tolerance >= 0 and math.isfinite(self.tolerance), "0 or more"),
            ("pixel_tolerance", 0 <= self.pixel_tolerance <= 255, "from 0 to 255"),
            ("size", re.fullmatch(r"[1-9]\d*x[1-9]\d*", self.size) is not None, "such as 256x256"),
        ):
            require(ok, f"{self.name}.{name}", getattr(self, name), allowed)

    @classmethod
    def image(cls, **overrides: Any) -> Golden:
        """One that asks about a picture, and so needs the vision tower."""
        settings: dict[str, Any] = {
            "prompt": "What is in the middle of this picture? Answer in one sentence.",
            "picture": picture.scene(_PICTURE_SIDE_PX),
            "name": "golden image",
        }
        return cls(**(settings | overrides))

    @property
    def record(self) -> Step:
        """For `before_seal`: asks twice and keeps the answer, if it is one and came back the same.

        Raises, when called:
            BadAnswer: no answer, or one that no working model gives.
            GoldenMismatch: the server does not repeat itself.
        """
        return step(f"{self.name} record", self._record, deadline_s=self.deadline_s)

    @property
    def replay(self) -> Step:
        """For `after_resume`: asks again and compares.

        Raises, when called:
            BadAnswer: no answer, or one with another status than 200.
            GoldenMismatch: another answer than the recorded one.
            RuntimeError: nothing was recorded.
        """
        return step(f"{self.name} replay", self._replay, deadline_s=self.deadline_s)

    async def _record(self, child: Child) -> None:
        with_logprobs = True
        try:
            first = await self._answer(child, with_logprobs)
        except BadAnswer as refusal:
            if refusal.status not in (400, 422) or "logprob" not in refusal.body.lower():
                raise
            with_logprobs = False
            first = await self._answer(child, with_logprobs)
        second = await self._answer(child, with_logprobs)
        if wrong := self._difference(first, second):
            reason = (
                f"the server does not repeat itself, so an answer after the restore would prove nothing: {wrong}. "
                f"{_REMEDY[isinstance(first, Drawing)]}"
            )
            raise _mismatch(child, reason, first, second.text)
        self._recording.answer, self._recording.with_logprobs = second, with_logprobs

    async def _replay(self, child: Child) -> None:
        recorded = self._recording.answer
        if recorded is None:
            raise RuntimeError(f"nothing was recorded: put the `record` of the same {self.name!r} into `before_seal`")
        try:
            now = await self._answer(child, self._recording.with_logprobs)
        except BadAnswer as error:
            if error.status != 200:
                raise
            raise _mismatch(child, error.reason, recorded, error.body) from error
        if wrong := self._difference(recorded, now):
            raise _mismatch(child, f"the answer is not the recorded one: {wrong}", recorded, now.text)

    def _difference(self, old: Generation | Drawing, new: Generation | Drawing) -> str | None:
        if isinstance(old, Generation) and isinstance(new, Generation):
            return old.difference(new, self.tolerance)
        if isinstance(old, Drawing) and isinstance(new, Drawing):
            return old.difference(new, self.pixel_tolerance)
        return "one answer is a text, the other a picture"

    async def _answer(self, child: Child, with_logprobs: bool) -> Generation | Drawing:
        dialect = child.profile.dialect
        if dialect.chat_path is None and dialect.images_path is not None:
            return await draw(child, self.prompt, self.size, self.seed, self.deadline_s)
        return await self._ask(child, with_logprobs)

    async def _ask(self, child: Child, with_logprobs: bool) -> Generation:
        content = self.prompt if self.picture is None else picture.content(self.prompt, self.picture)
        more = dict(child.profile.dialect.repeatable(self.seed))
        if with_logprobs:
            more |= {"logprobs": True, "top_logprobs": 1}
        return Generation.read(await chat(child, content, self.max_tokens, self.deadline_s, model=self.model, **more))


def goldens(*, mmproj: bool) -> tuple[Golden, ...]:
    """The questions that cover a model: one in text, and one about a picture if it has a vision tower."""
    return (Golden(), Golden.image()) if mmproj else (Golden(),)


def _mismatch(child: Child, reason: str, expected: Generation | Drawing, seen: str) -> GoldenMismatch:
    texts = (shorten(child.redact(text)) for text in (expected.text, seen))
    return GoldenMismatch(shorten(child.redact(reason), 600), *texts)
