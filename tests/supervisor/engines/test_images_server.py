"""The image server's answers: the real program, before a pipeline in plain Python."""

from __future__ import annotations

import ast
import base64
import json
import struct
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from supervisor.engines.images import PROGRAM
from tools.image_server import KEY, ROUTE, SMALL, Server, pipeline, running

BY_PROMPT = {"by_prompt": {"refuse me": "refuse", "too large": "memory", "fail": "fail"}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests that leave it as it was."""
    with running(pipeline(tmp_path_factory.mktemp("model"), **BY_PROMPT), max_images=3, steps=2, max_steps=9) as it:
        yield it


def pictures(answer: Any) -> list[bytes]:
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(row["b64_json"]) for row in answer.json()["data"]]


def size(png: bytes) -> tuple[int, int]:
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">2I", png[16:24])
    return width, height


def test_an_image(server: Server) -> None:
    """A prompt alone gets one PNG of the default size, and the seed that was taken."""
    answer = server.post({"prompt": "a lighthouse"})
    (picture,) = pictures(answer)
    said = answer.json()
    assert size(picture) == (32, 16)
    assert (said["model"], said["size"], said["output_format"]) == ("tiny", "32x16", "png")
    assert said["created"] > 1_700_000_000
    again = server.post({"prompt": "a lighthouse", "seed": said["data"][0]["seed"]})
    assert pictures(again) == [picture]


def test_the_same_seed_gives_the_same_image(server: Server) -> None:
    """Image number i of a request is that of the seed plus i; prompt, steps and guidance change it."""
    (one,), (other,) = (pictures(server.post({**SMALL, "seed": seed})) for seed in (7, 8))
    assert pictures(server.post({**SMALL, "seed": 7, "n": 2})) == [one, other]
    assert one != other
    for change in ({"prompt": "b"}, {"steps": 3}, {"guidance": 2.5}):
        assert pictures(server.post({**SMALL, "seed": 7, **change})) != [one]


@pytest.mark.parametrize("text", ["16x16", "48x32", "256x16", "auto"])
def test_sizes(server: Server, text: str) -> None:
    """The image is as large as asked; `auto` is the default."""
    (picture,) = pictures(server.post({**SMALL, "size": text}))
    assert "{}x{}".format(*size(picture)) == ("32x16" if text == "auto" else text)


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"prompt": None}, "prompt", "a text that is not blank"),
        ({"prompt": " \n"}, "prompt", "a text that is not blank"),
        ({"prompt": ["a"]}, "prompt", "a text that is not blank"),
        ({"prompt": "x" * 32_001}, "prompt", "32000 characters at most"),
        ({"prompt": "\ud800"}, "prompt", "half of a surrogate pair"),
        ({"n": 0}, "n", "from 1 to 3"),
        ({"n": 4}, "n", "from 1 to 3"),
        ({"n": True}, "n", "whole number"),
        ({"n": 1.0}, "n", "whole number"),
        ({"seed": -1}, "seed", "from 0 to"),
        ({"seed": 1 << 63}, "seed", "from 0 to"),
        ({"seed": "1"}, "seed", "whole number"),
        ({"size": "17x16"}, "size", "multiples of 16 up to 256"),
        ({"size": "272x16"}, "size", "multiples of 16 up to 256"),
        ({"size": "0x16"}, "size", "WIDTHxHEIGHT"),
        ({"size": "16X16"}, "size", "WIDTHxHEIGHT"),
        ({"size": 16}, "size", "WIDTHxHEIGHT"),
        ({"steps": 0}, "steps", "from 1 to 9"),
        ({"steps": 10}, "steps", "from 1 to 9"),
        ({"guidance": -0.1}, "guidance", "from 0 to 100"),
        ({"guidance": "3"}, "guidance", "from 0 to 100"),
        ({"guidance": True}, "guidance", "from 0 to 100"),
        ({"response_format": "url"}, "response_format", "can only be 'b64_json'"),
        ({"output_format": "webp"}, "output_format", "can only be 'png'"),
        ({"stream": True}, "stream", "can only be False"),
        ({"num_inference_steps": 4}, "num_inference_steps", "there are prompt, n, size"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_a_wrong_field_is_refused(server: Server, change: dict[str, Any], param: str, words: str) -> None:
    """HTTP 400 in OpenAI's form: the field, and what is allowed."""
    answer = server.post({**SMALL, **change})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert words in error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"a"', b'{"prompt": NaN}', b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_refused(server: Server, body: bytes) -> None:
    """HTTP 400, whatever it is."""
    answer = server.post(body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


def test_other_refusals_have_the_same_form(server: Server) -> None:
    """Another model, a body without end, a wrong method, a route that is not there."""
    other = server.post({**SMALL, "model": "gpt-image-1"})
    assert (other.status_code, other.json()["error"]["code"]) == (404, "model_not_found")
    assert server.post(b" " * (1 << 20) + b"{}").status_code == 413
    with server.client() as client:
        answers = [client.get(ROUTE), client.get("/nowhere"), client.delete("/health")]
    assert [answer.status_code for answer in answers] == [405, 404, 405]
    assert all(answer.json()["error"]["message"] for answer in answers)


def test_fields_of_openais_clients_are_taken(server: Server) -> None:
    """What an OpenAI client sends beside the prompt does no harm; null is as good as absent."""
    more = {"model": "tiny", "user": "u", "quality": "hd", "style": "vivid", "response_format": "b64_json", "n": None}
    assert len(pictures(server.post({**SMALL, **more}))) == 1


def test_what_the_pipeline_refuses_is_422(server: Server) -> None:
    """A ValueError of the pipeline is the client's matter."""
    answer = server.post({**SMALL, "prompt": "refuse me"})
    assert answer.status_code == 422
    assert "`prompt` is not for this pipeline" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("prompt", "code", "line"),
    [("too large", "out_of_memory", "CUDA out of memory. Tried to"), ("fail", "failed", "mat1 and mat2 shapes")],
)
def test_a_failure_of_the_pipeline_is_500_and_the_next_image_is_drawn(
    server: Server, prompt: str, code: str, line: str
) -> None:
    """The client gets the words, the log a line of level error, and the server goes on."""
    answer = server.post({**SMALL, "prompt": prompt})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"]) == (500, "server_error", code)
    assert line in error["message"]
    assert len(pictures(server.post(SMALL))) == 1
    assert any(said.startswith("ERROR ") and line in said for said in server.lines)


@pytest.mark.parametrize("header", ["", "Bearer wrong", KEY, f"Basic {KEY}", f"Bearer {KEY}x", "Bearer \xe4"])
def test_who_has_no_key_gets_no_further_than_health(server: Server, header: str) -> None:
    """Every route but `/health` answers 401 before it looks at the request."""
    headers = {"Authorization": header.encode("latin-1")}
    with server.client() as client:
        for method, path in (("GET", "/v1/models"), ("POST", ROUTE), ("GET", "/metrics"), ("GET", "/nowhere")):
            answer = client.request(method, path, headers=headers)  # type: ignore[arg-type]
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert client.get("/health", headers=headers).status_code == 200  # type: ignore[arg-type]


def test_the_list_of_models(server: Server) -> None:
    """The name that clients use, and the owner by which the engine is recognised."""
    dialect = server.profile.dialect
    with server.client() as client:
        answer = client.get("/v1/models")
    assert dialect.models
    assert dialect.models.read(answer.text) == ("tiny",)
    assert answer.json()["data"][0]["owned_by"] == dialect.owned_by


def test_counters_grow_with_each_image(server: Server) -> None:
    """Images and steps are counted, and what the counters' readers find changes."""
    reading = server.profile.dialect.token_counters
    assert reading
    with server.client() as client:
        before = client.get(reading.path).text
        pictures(server.post({**SMALL, "n": 2, "steps": 3}))
        after = client.get(reading.path).text
    found = [reading.read(page) for page in (before, after)]
    assert found[0]
    assert found[1]
    assert {name: found[1][name] - found[0][name] for name in found[1]} == {
        "images_generated_total": 2,
        "images_steps_total": 6,
    }
    assert server.profile.dialect.requests[0].read(after) == 0


def test_the_program_imports_nothing_of_ours() -> None:
    """It runs where this project is not installed: it needs the standard library, uvicorn and starlette."""
    allowed = set(sys.stdlib_module_names) | {"uvicorn", "starlette"}
    for path in PROGRAM.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            assert {name.partition(".")[0] for name in names} <= allowed, path.name
