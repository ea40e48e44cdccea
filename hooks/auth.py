"""A Step that checks authentication: requests without the right key are refused, requests with it are served."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from hooks.http.answer import BadAnswer
from hooks.http.ask import ask
from hooks.http.chat import model_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from supervisor.child import Child
    from supervisor.dialect import Request

__all__ = ["COMMAND_LINE", "AuthCheck", "AuthError", "AuthWords"]

_REFUSED: Final = (401, 403)
_ABSENT: Final = (404, 405)  # no such route, or none that is asked like this
_NO_KEY: Final = "without a key"
_WRONG_KEY: Final = "with a wrong key"
_OUR_KEY: Final = "with the right key"


@dataclass(eq=False)
class AuthError(Exception):
    """The server lets in whom the profile keeps out, or the other way round.

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
class AuthWords:
    """What errors call the settings of whoever runs the check.

    Attributes:
        key: the key.
        give_key: how to give it, as the beginning of a sentence.
        is_open: the setting by which the server is meant to answer without a key.
        allow_admin: how to accept open routes of the administration, as the end of a sentence; empty: not at all.
    """

    key: str = "the profile's api_key"
    give_key: str = "Set api_key"
    is_open: str = "open_access=True"
    allow_admin: str = " and say so with AuthCheck(admin_paths=())"


COMMAND_LINE: Final = AuthWords(
    key="the key of --api-key-env",
    give_key="Name the variable that holds it (--api-key-env NAME)",
    is_open="--open",
    allow_admin="",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthCheck:
    """The key opens the server, and nothing else does.

    A profile with an `api_key`: `path` and every request that makes the engine generate answer 401 or 403 without a
    key and with a wrong one, and `path` answers 200 to the right one. Each is tried, because some servers protect only
    a part of their routes. A `path` that is public is no hole while every generating request is refused; the right key
    is then tried on the first of those. A generating route that the server does not have (404 or 405) is no hole
    either, as long as another one is refused.
    The routes of the engine's administration answer 401 or 403 to strangers as well, or are not there (404, 405): a
    route that answers lets whoever reaches the port put the engine to sleep, or unload its model.
    A profile with `open_access`: `path` answers 200 without a key. A profile with neither fails.
    Keys travel as `Authorization: Bearer`.

    Attributes:
        path: a route that wants the key and answers GET; None: the route that lists the models, by the engine's
            dialect; a route that the dialect calls open is not asked as a stranger.
        generating: requests that generate, asked with POST; they must be refused before anything is generated. None:
            those of the engine's dialect.
        admin_paths: routes of the administration, asked with GET as strangers; None: those of the engine's dialect; ()
            where nobody but the host's own processes reaches the port.
        words: what errors call the settings.
        name, deadline_s: see `Step`.
    """

    path: str | None = None
    generating: tuple[Request, ...] | None = None
    admin_paths: tuple[str, ...] | None = None
    words: AuthWords = AuthWords()
    name: str = "auth"
    deadline_s: float | None = None

    async def __call__(self, child: Child) -> None:
        """Send each request with each kind of key.

        Raises:
            AuthError: a request got something else than it should; it lists all that were made.
        """
        profile, doors = child.profile, self._doors(child)
        if profile.open_access:
            knocks = [await self._knock(child, doors[0], _NO_KEY)]
        elif profile.api_key is None:
            raise AuthError(
                f"{self.words.key} is not set, so nothing protects the server. "
                f"{self.words.give_key}, or {self.words.is_open} if everybody who reaches the port may use it."
            )
        else:
            closed = [door for door in doors if door.path not in profile.dialect.open_paths]
            knocks = [await self._knock(child, door, key) for key in (_NO_KEY, _WRONG_KEY) for door in closed]
            knocks, entrance = _judged(knocks, doors)
            paths = profile.dialect.admin_paths if self.admin_paths is None else self.admin_paths
            admin = [_Door(path=path, admin=True) for path in paths]
            knocks += [await self._knock(child, door, key) for key in (_NO_KEY, _WRONG_KEY) for door in admin]
            knocks.append(await self._knock(child, entrance, _OUR_KEY))
        if not all(knock.good for knock in knocks):
            raise AuthError(_reason(knocks, self.words), tuple(map(str, knocks)))

    def _doors(self, child: Child) -> list[_Door]:
        """What is asked: `path` first, then every request that generates."""
        dialect = child.profile.dialect
        path = self.path or (dialect.models.path if dialect.models else None)
        generating = dialect.generating if self.generating is None else self.generating
        doors = [_Door(path=request.path, body={"model": model_of(child), **request.body}) for request in generating]
        doors = [_Door(path=path), *doors] if path else doors
        if not doors:
            raise AuthError(f"the engine ({dialect.engine}) names no route to try. Name routes of the server.")
        return doors

    async def _knock(self, child: Child, door: _Door, key: str) -> _Knock:
        # Made up anew each time: a fixed one might be somebody's key.
        headers = {"Authorization": f"Bearer {secrets.token_urlsafe(24)}"} if key == _WRONG_KEY else None
        what = f"{'POST' if door.body else 'GET'} {door.path} {key}"
        ours = key == _OUR_KEY
        try:
            answer = await ask(child, door.path, door.body, with_key=ours, headers=headers, timeout_s=self.deadline_s)
        except BadAnswer as error:
            raise AuthError("whether the server asks for its key cannot be told.", (f"{what}: {error}",)) from error
        wanted = (200,) if ours or child.profile.open_access else _REFUSED
        if door.admin and answer.status in _ABSENT:
            wanted = _ABSENT
        return _Knock(what=what, door=door, key=key, status=answer.status or 0, wanted=wanted, body=answer.excerpt)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Door:
    """A route, and the body of the request that makes the engine generate there; no body: GET.

    `admin`: it stands for the engine's administration.
    """

    path: str
    body: Mapping[str, Any] | None = None
    admin: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Knock:
    """One request and what it got."""

    what: str
    door: _Door
    key: str
    status: int
    wanted: tuple[int, ...]
    body: str

    @property
    def good(self) -> bool:
        return self.status in self.wanted

    def __str__(self) -> str:
        if self.good:
            absent = self.status in _ABSENT
            return f"{self.what}: HTTP {self.status}, {'a route that is not there' if absent else 'as it should be'}"
        body = f": {self.body}" if self.body and self.status != 200 else ""
        return f"{self.what}: HTTP {self.status} instead of {' or '.join(map(str, self.wanted))}{body}"


def _judged(knocks: list[_Knock], doors: list[_Door]) -> tuple[list[_Knock], _Door]:
    """What strangers got, with what is no hole counted as good; and the request to try with the right key.

    No hole is a route that is not there, and one that strangers may read, while every other generating request is
    refused.
    """
    inside = [door for door in doors if door.body]
    refused = [knock for knock in knocks if knock.door.body and knock.good]
    absent = [knock for knock in knocks if knock.door.body and knock.status in _ABSENT] if refused else []
    closed = bool(refused) and len(refused) + len(absent) == sum(knock.door.body is not None for knock in knocks)
    readers = [knock for knock in knocks if not knock.door.body]
    public = closed and all(knock.status == 200 for knock in readers)
    judged = [
        replace(knock, wanted=_ABSENT)
        if knock in absent
        else replace(knock, wanted=(200,))
        if public and knock in readers
        else knock
        for knock in knocks
    ]
    lost = {knock.door.path for knock in absent}
    guarded = next((door for door in inside if door.path not in lost), doors[0])
    return judged, guarded if public else doors[0]


def _reason(knocks: list[_Knock], words: AuthWords) -> str:
    """What the failed requests mean together, and what to do."""
    failed = [knock for knock in knocks if not knock.good]
    if failed and all(knock.door.admin for knock in failed):
        paths = ", ".join(dict.fromkeys(knock.door.path for knock in failed))
        return (
            f"strangers are not kept from the engine's administration ({paths}): whoever reaches the port may put it "
            "to sleep, unload its model or change how it runs. Switch these routes off, guard them as the others are, "
            f"or let only this host's processes reach the port{words.allow_admin}."
        )
    closed = any(knock.key == _NO_KEY and knock.good for knock in knocks)
    # Where others refuse, a route that finds fault with the request (422) has let the stranger in.
    passed = [knock for knock in failed if closed and knock.key != _OUR_KEY and knock.status not in _ABSENT]
    entered = [knock.key for knock in failed if knock.status == 200 or knock in passed]
    if _NO_KEY in entered:
        what = "the server protects only a part of its routes" if closed else "the server is open to everybody"
        return f"{what}. Start it with {words.key} on every route, or set {words.is_open} if that is meant."
    if entered:
        return "the server asks for a key but takes a wrong one. Look at how it compares keys, or at a proxy before it."
    if any(knock.status in _REFUSED for knock in failed):
        if failed[0].key == _NO_KEY:
            return (
                f"{words.is_open} is set, but the server wants a key. "
                f"{words.give_key} instead, or start the server without one."
            )
        return f"the server refuses {words.key}. It was started with another one, or without seeing it."
    return (
        "the server neither lets in nor refuses. "
        "Name routes that it has: path answers GET, those in generating answer POST."
    )
