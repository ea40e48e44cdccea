"""Whether the server asks for its key, and takes it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from hooks.http.answer import BadAnswer, ask
from hooks.warmup.request_file import CHAT

if TYPE_CHECKING:
    from supervisor.child import Child

__all__ = ["AuthCheck", "AuthError"]

_REFUSED: Final = (401, 403)
_NO_KEY: Final = "without a key"
_WRONG_KEY: Final = "with a wrong key"
_OUR_KEY: Final = "with the profile's key"


@dataclass(eq=False)
class AuthError(Exception):
    """The server's door is not as the profile says.

    Attributes:
        reason: what is wrong, and what to do.
        seen: each request that was made, and what it got, redacted.
    """

    reason: str
    seen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__init__(self.reason, self.seen)  # pickle rebuilds an exception from its args

    def __str__(self) -> str:
        return "\n    ".join([f"{self.reason}{' Seen:' if self.seen else ''}", *self.seen])


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthCheck:
    """The key opens the server, and nothing else does.

    A profile with an `api_key`: `path` and `completion_path` answer 401 or 403 without a key and with a wrong one,
    and `path` answers 200 to the right one. Both are tried, because some servers protect only a part of their routes.
    A `path` that is public is no hole while `completion_path` is closed (llama-server lists its models to everybody up
    to b9940 at least, and not in b11434); the right key is then tried there.
    A profile with `open_access`: `path` answers 200 without a key. A profile with neither fails.
    Keys travel as `Authorization: Bearer`.

    Attributes:
        path: a route that wants the key and answers GET; not a health route, which are open.
        completion_path: a route that generates, asked with POST; it must refuse before it generates. None: not asked.
        name, deadline_s: see `Step`.
    """

    path: str = "/v1/models"
    completion_path: str | None = CHAT
    name: str = "auth"
    deadline_s: float | None = None

    async def __call__(self, child: Child) -> None:
        """Knock at every door.

        Raises:
            AuthError: a request got something else than it should; it lists all that were made.
        """
        profile = child.profile
        if profile.open_access:
            knocks = [await self._knock(child, self.path, _NO_KEY)]
        elif profile.api_key is None:
            raise AuthError(
                "the profile has no api_key, so nothing protects the server. "
                "Set api_key, or open_access=True if everybody who reaches the port may use it."
            )
        else:
            doors = [(path, key) for key in (_NO_KEY, _WRONG_KEY) for path in (self.path, self.completion_path) if path]
            knocks = [await self._knock(child, path, key) for path, key in doors]
            public = self._public(knocks)
            knocks = [replace(knock, wanted=(200,)) if knock.path == public else knock for knock in knocks]
            knocks.append(await self._knock(child, self.completion_path if public else self.path, _OUR_KEY))
        if not all(knock.good for knock in knocks):
            raise AuthError(_reason(knocks), tuple(map(str, knocks)))

    def _public(self, knocks: list[_Knock]) -> str | None:
        """`path`, if strangers may see it although they may not generate."""
        generating = [knock.good for knock in knocks if knock.path == self.completion_path]
        seen = [knock.status == 200 for knock in knocks if knock.path == self.path]
        return self.path if generating and all(generating) and all(seen) else None

    async def _knock(self, child: Child, path: str | None, key: str) -> _Knock:
        assert path
        prompt = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        body = {"model": child.profile.health.model_id or "default", **prompt} if path == self.completion_path else None
        # Made up anew each time: a fixed one might be somebody's key.
        headers = {"Authorization": f"Bearer {secrets.token_urlsafe(24)}"} if key == _WRONG_KEY else None
        what = f"{'POST' if body else 'GET'} {path} {key}"
        try:
            answer = await ask(child, path, body, with_key=key == _OUR_KEY, headers=headers, timeout_s=self.deadline_s)
        except BadAnswer as error:
            raise AuthError("whether the server asks for its key cannot be told.", (f"{what}: {error}",)) from error
        wanted = (200,) if key == _OUR_KEY or child.profile.open_access else _REFUSED
        return _Knock(what=what, path=path, key=key, status=answer.status or 0, wanted=wanted, body=answer.excerpt)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Knock:
    """One request and what it got."""

    what: str
    path: str
    key: str
    status: int
    wanted: tuple[int, ...]
    body: str

    @property
    def good(self) -> bool:
        return self.status in self.wanted

    def __str__(self) -> str:
        if self.good:
            return f"{self.what}: HTTP {self.status}, as it should be"
        body = f": {self.body}" if self.body and self.status != 200 else ""
        return f"{self.what}: HTTP {self.status} instead of {' or '.join(map(str, self.wanted))}{body}"


def _reason(knocks: list[_Knock]) -> str:
    """What the failed knocks mean together, and what to do."""
    entered = [knock.key for knock in knocks if not knock.good and knock.status == 200]
    failed = [knock for knock in knocks if not knock.good]
    if _NO_KEY in entered:
        closed = any(knock.key == _NO_KEY and knock.good for knock in knocks)
        what = "the server protects only a part of its routes" if closed else "the server is open to everybody"
        return f"{what}. Start it with the profile's api_key on every route, or set open_access=True if that is meant."
    if entered:
        return "the server asks for a key but takes a wrong one. Look at how it compares keys, or at a proxy before it."
    if any(knock.status in _REFUSED for knock in failed):
        if failed[0].key == _NO_KEY:
            return (
                "the profile says open_access=True, but the server wants a key. "
                "Give the profile its api_key, or start the server without one."
            )
        return "the server refuses the profile's api_key. It was started with another one, or without seeing it."
    return "the server neither lets in nor refuses. Name routes that it has: path answers GET, completion_path POST."
