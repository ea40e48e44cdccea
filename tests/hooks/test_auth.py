"""The key opens the server, and nothing else does."""

from __future__ import annotations

import pickle
import re
from dataclasses import replace

import pytest

from hooks.auth import AuthCheck, AuthError
from hooks.http.answer import BadAnswer
from supervisor.child import Child
from supervisor.engines.llama_cpp import LLAMA_CPP
from tools.serve import KEY, child_at, running_fake, running_raw

pytestmark = pytest.mark.anyio

MODELS, CHAT, COMPLETIONS = "GET /v1/models", "POST /v1/chat/completions", "POST /v1/completions"
REFUSED = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\n{}"
TWO = tuple(one for one in LLAMA_CPP.generating if one.path in ("/v1/chat/completions", "/v1/completions"))
TAKEN = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


async def test_a_closed_server_passes() -> None:
    """No key and a wrong one are refused on both routes, the right one is taken."""
    with running_fake() as child:
        await AuthCheck()(child)


async def test_403_is_a_refusal_as_well() -> None:
    """Some servers forbid instead of asking for authorisation."""
    with running_raw(lambda head: TAKEN if KEY in head else REFUSED) as child:
        await AuthCheck()(child)


async def test_an_open_server_fails() -> None:
    """A server that asks nobody fails, and every request that got through is listed."""
    with running_fake("--open") as child, pytest.raises(AuthError) as caught:
        await AuthCheck(generating=TWO)(child)
    assert caught.value.reason == (
        "the server is open to everybody. "
        "Start it with the profile's api_key on every route, or set open_access=True if that is meant."
    )
    assert str(caught.value).splitlines() == [
        f"{caught.value.reason} Seen:",
        f"    {MODELS} without a key: HTTP 200 instead of 401 or 403",
        f"    {CHAT} without a key: HTTP 200 instead of 401 or 403",
        f"    {COMPLETIONS} without a key: HTTP 200 instead of 401 or 403",
        f"    {MODELS} with a wrong key: HTTP 200 instead of 401 or 403",
        f"    {CHAT} with a wrong key: HTTP 200 instead of 401 or 403",
        f"    {COMPLETIONS} with a wrong key: HTTP 200 instead of 401 or 403",
        f"    {MODELS} with the right key: HTTP 200, as it should be",
    ]


async def test_a_half_open_server_fails() -> None:
    """A server that protects its list of models but not its completions fails, and the route is named."""
    with running_raw(lambda head: TAKEN if KEY in head or head.startswith("POST") else REFUSED) as child:
        with pytest.raises(AuthError, match=r"^the server protects only a part of its routes\.") as caught:
            await AuthCheck()(child)
        assert f"{MODELS} without a key: HTTP 403, as it should be" in caught.value.seen
        assert f"{CHAT} without a key: HTTP 200 instead of 401 or 403" in caught.value.seen
        await AuthCheck(generating=())(child)


@pytest.mark.parametrize("path", [request.path for request in LLAMA_CPP.generating])
async def test_every_request_that_generates_is_tried(path: str) -> None:
    """Whichever generating route of the dialect is open, the check fails and names it; the others are reported too."""

    def answer(head: str) -> bytes:
        return TAKEN if KEY in head or head.startswith(f"POST {path} ") else REFUSED

    with running_raw(answer) as child, pytest.raises(AuthError, match="protects only a part") as caught:
        await AuthCheck()(child)
    holes = [line for line in caught.value.seen if "instead of" in line]
    assert holes == [
        f"POST {path} {key}: HTTP 200 instead of 401 or 403" for key in ("without a key", "with a wrong key")
    ]
    paths = {request.path for request in LLAMA_CPP.generating}
    assert {line.split()[1] for line in caught.value.seen} == {"/v1/models", *paths}


async def test_a_generating_route_that_is_not_there_is_no_hole() -> None:
    """404 for one generating request passes while another one is refused; the right key is tried on what is there."""

    def answer(head: str) -> bytes:
        if head.startswith("POST /v1/chat/"):
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnope"
        return TAKEN if KEY in head or head.startswith("GET") else REFUSED

    with running_raw(answer) as child:
        await AuthCheck()(child)


async def test_a_route_that_is_open_by_design_is_not_a_hole() -> None:
    """A list of models that the dialect calls open is not asked as a stranger; what generates is."""
    asked: list[str] = []

    def answer(head: str) -> bytes:
        asked.append(head.split()[1])
        return TAKEN if KEY in head else REFUSED

    with running_raw(answer) as child:
        dialect = replace(child.profile.dialect, open_paths=("/health", "/v1/models"))
        await AuthCheck(generating=TWO)(replace(child, profile=replace(child.profile, dialect=dialect)))
    assert asked == ["/v1/chat/completions", "/v1/completions"] * 2 + ["/v1/chat/completions"]


async def test_a_route_that_judges_a_strangers_request_is_open() -> None:
    """Where other routes refuse, one that answers 422 has asked for no key."""
    fault = b"HTTP/1.1 422 Unprocessable Entity\r\nContent-Length: 2\r\n\r\n{}"

    def answer(head: str) -> bytes:
        return fault if head.startswith("POST /v1/completions ") else TAKEN if KEY in head else REFUSED

    with running_raw(answer) as child, pytest.raises(AuthError, match="protects only a part") as caught:
        await AuthCheck(generating=TWO)(child)
    assert f"{COMPLETIONS} without a key: HTTP 422 instead of 401 or 403: {{}}" in caught.value.seen


ADMIN = ("/is_sleeping", "/is_paused")


def with_admin(child: Child, *paths: str) -> Child:
    """The same child of an engine that has these routes of administration."""
    return replace(child, profile=replace(child.profile, dialect=replace(child.profile.dialect, admin_paths=paths)))


async def test_open_administration_fails() -> None:
    """A route that lets strangers put the engine to sleep is a hole, though every other route is closed."""

    def answer(head: str) -> bytes:
        return TAKEN if KEY in head or head.startswith("GET /is_sleeping ") else REFUSED

    with running_raw(answer) as child, pytest.raises(AuthError, match="sleep, unload its model") as caught:
        await AuthCheck()(with_admin(child, *ADMIN))
    assert "administration (/is_sleeping)" in caught.value.reason
    assert [line for line in caught.value.seen if "instead of" in line] == [
        f"GET /is_sleeping {key}: HTTP 200 instead of 401 or 403" for key in ("without a key", "with a wrong key")
    ]
    assert "GET /is_paused without a key: HTTP 403, as it should be" in caught.value.seen


async def test_open_administration_that_only_the_host_reaches_is_allowed() -> None:
    """Whoever runs the check may say that nobody else reaches the port."""
    with running_raw(lambda head: TAKEN if KEY in head or "GET /is_sleeping" in head else REFUSED) as child:
        await AuthCheck(admin_paths=())(with_admin(child, *ADMIN))


async def test_administration_that_is_guarded_or_not_there_passes() -> None:
    """401 or 403 is a guard; 404 and 405 mean that the engine was started without these routes."""

    def answer(head: str) -> bytes:
        if head.startswith("GET /is_sleeping "):
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}"
        return TAKEN if KEY in head and "/is_" not in head else REFUSED

    with running_raw(answer) as child:
        await AuthCheck()(with_admin(child, *ADMIN))


async def test_administration_that_fails_for_strangers_is_no_guard() -> None:
    """An answer that neither refuses nor denies the route got past the key: it is a hole as well."""
    broken = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\n{}"

    def answer(head: str) -> bytes:
        return broken if "/is_sleeping" in head else TAKEN if KEY in head else REFUSED

    with running_raw(answer) as child, pytest.raises(AuthError, match="administration"):
        await AuthCheck()(with_admin(child, "/is_sleeping"))


async def test_a_server_that_is_open_altogether_is_called_so() -> None:
    """Where what generates is open too, that is the reason; the administration is listed with the rest."""
    with running_raw(lambda _: TAKEN) as child, pytest.raises(AuthError, match="open to everybody") as caught:
        await AuthCheck()(with_admin(child, "/is_sleeping"))
    assert "GET /is_sleeping without a key: HTTP 200 instead of 401 or 403" in caught.value.seen


async def test_an_engine_without_routes_needs_some() -> None:
    """Where neither the dialect nor the Step names a route, the check fails with words; it does not guess."""
    with running_raw(lambda _: REFUSED) as child:
        dialect = replace(child.profile.dialect, models=None, generating=())
        with pytest.raises(AuthError, match=r"^the engine \(llama\.cpp\) names no route to try"):
            await AuthCheck()(replace(child, profile=replace(child.profile, dialect=dialect)))


async def test_a_public_list_of_models_is_no_hole() -> None:
    """llama-server up to b9940 lists its models to everybody: who may generate counts, and our key is tried there."""
    with running_fake("--public-models") as child:
        await AuthCheck()(child)
    with (
        running_raw(lambda head: TAKEN if head.startswith("GET") else REFUSED) as child,
        pytest.raises(AuthError, match=r"^the server refuses the profile's api_key\.") as caught,
    ):
        await AuthCheck()(child)
    assert caught.value.seen[-1].startswith(f"{CHAT} with the right key: HTTP 403 instead of 200")


async def test_a_server_that_takes_any_key_fails() -> None:
    """Asking for a key is not enough when every key will do."""
    with (
        running_raw(lambda head: TAKEN if "authorization" in head.lower() else REFUSED) as child,
        pytest.raises(AuthError, match=r"^the server asks for a key but takes a wrong one\."),
    ):
        await AuthCheck()(child)


async def test_a_server_with_another_key_fails() -> None:
    """A server that refuses the profile's key fails, in its own words, and no key shows."""
    with running_fake("--reject-key") as child, pytest.raises(AuthError) as caught:
        await AuthCheck()(child)
    assert caught.value.reason.startswith("the server refuses the profile's api_key.")
    assert caught.value.seen[-1].startswith(f"{MODELS} with the right key: HTTP 401 instead of 200: ")
    assert "Invalid API Key" in caught.value.seen[-1]
    assert KEY not in str(caught.value)


async def test_a_route_that_is_not_there_fails() -> None:
    """404 proves nothing about keys: the message asks for routes that exist."""
    with (
        running_raw(lambda _: b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnope") as child,
        pytest.raises(AuthError, match=r"^the server neither lets in nor refuses\. Name routes") as caught,
    ):
        await AuthCheck()(child)
    assert caught.value.seen[0] == f"{MODELS} without a key: HTTP 404 instead of 401 or 403: nope"


async def test_a_profile_must_say_who_may_enter() -> None:
    """Neither a key nor open access: refused before any request, with what to set."""
    with pytest.raises(AuthError) as caught:
        await AuthCheck()(child_at(1, key=None))
    assert str(caught.value) == (
        "the profile's api_key is not set, so nothing protects the server. "
        "Set api_key, or open_access=True if everybody who reaches the port may use it."
    )


async def test_an_open_profile_needs_an_open_server() -> None:
    """With open access, a server without a key passes and one that wants a key fails."""
    with running_fake(server_key=None, key=None, open_access=True) as child:
        await AuthCheck()(child)
    with (
        running_fake(key=None, open_access=True) as child,
        pytest.raises(AuthError, match=r"^open_access=True is set, but the server wants a key\.") as caught,
    ):
        await AuthCheck()(child)
    assert caught.value.seen[0].startswith(f"{MODELS} without a key: HTTP 401 instead of 200: ")


async def test_the_wrong_key_is_never_the_same() -> None:
    """Wrong keys are made up anew, long enough never to be right."""
    seen: list[str] = []

    def note(head: str) -> bytes:
        seen.extend(re.findall(r"(?i)authorization: Bearer (\S+)", head))
        return TAKEN if KEY in head else REFUSED

    with running_raw(note) as child:
        await AuthCheck(generating=TWO)(child)
        await AuthCheck(generating=TWO)(child)
    wrong = [key for key in seen if key != KEY]
    assert len(wrong) == len(set(wrong)) == 6
    assert min(map(len, wrong)) >= 32


async def test_a_dead_server_is_not_a_closed_one() -> None:
    """When no answer comes the check fails, names the request, and keeps the cause."""
    with running_raw(lambda _: b"") as child, pytest.raises(AuthError) as caught:
        await AuthCheck()(child)
    assert caught.value.reason == "whether the server asks for its key cannot be told."
    assert caught.value.seen[0].startswith(f"{MODELS} without a key: the request failed: Server disconnected")
    assert isinstance(caught.value.__cause__, BadAnswer)


async def test_an_error_survives_pickling() -> None:
    """Hosts pickle what a hook raises; the words stay."""
    error = AuthError("closed.", ("GET / without a key: HTTP 200",))
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301 - our own bytes
