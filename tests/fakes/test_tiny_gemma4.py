"""The dummy Gemma 4: its files, and, marked `engine`, a real engine that serves it as it would the real one."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes import tiny_gemma4
from hooks.artifacts import gguf
from hooks.http import picture
from hooks.warmup.steps import Image, Text, Thinking, Tools
from supervisor import Daemon, Hooks
from supervisor.engines.llama_cpp import LlamaServer
from supervisor.events import WarmupPassed
from support import Recorder

pytestmark = [pytest.mark.network, pytest.mark.timeout(300)]  # the first run fetches the tokenizer

HELLO = [{"role": "user", "content": "Hello"}]
TAGS = ("<|channel>", "<channel|>", "<|turn>", "<turn|>", "<|think|>", "<|tool_call>")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dummy, and its projector beside it."""
    folder = tmp_path_factory.mktemp("gemma4")
    tiny_gemma4.build_mmproj(folder / "mmproj.gguf")
    return tiny_gemma4.build(folder / "tiny-gemma-4.gguf")


# ------------------------------------------------------------------------------------------------------ the files


def test_the_seed_decides_every_byte(model: Path, tmp_path: Path) -> None:
    """One seed, one file, however often it is built; another seed, another file of the same size."""
    again, other = (tiny_gemma4.build(tmp_path / str(seed), seed=seed).read_bytes() for seed in (0, 1))
    assert (again == model.read_bytes(), other == model.read_bytes()) == (True, False)
    assert len(other) == len(again) < 40_000_000
    pictures = [tiny_gemma4.build_mmproj(tmp_path / "p", seed=seed).read_bytes() for seed in (0, 1)]
    assert [data == model.with_name("mmproj.gguf").read_bytes() for data in pictures] == [True, False]
    assert len(pictures[0]) < 2_000_000


def test_both_files_are_whole(model: Path) -> None:
    """The reader that checks real downloads finds a Gemma 4 with a template, a projector, and no byte too many."""
    info = gguf.read(model)
    assert (info.architecture, info.quantisation, info.has_chat_template) == ("gemma4", "Q8_0", True)
    assert info.context_length == 262_144
    projector = gguf.read(model.with_name("mmproj.gguf"))
    assert (projector.architecture, projector.quantisation) == ("clip", "F32")
    for file in (info, projector):
        assert file.needed_bytes is not None
        assert 0 <= file.file_bytes - file.needed_bytes < file.alignment  # the last tensor is padded as well


def test_what_is_real(model: Path) -> None:
    """Next to the real model's key-values, only sizes, names and the file type differ, and the template is newer."""
    vocabulary, template = tiny_gemma4.material()
    real, dummy = (dict(tiny_gemma4._pairs(path.read_bytes())) for path in (vocabulary, model))
    assert list(dummy) == list(real)
    kept = {"context_length", "attention.sliding_window", "attention.shared_kv_layers", "final_logit_softcapping"}
    assert not kept & set(tiny_gemma4.SIZES)
    differ = {key for key in real if dummy[key] != real[key]}
    arrays = {"gemma4.attention.head_count_kv", "gemma4.attention.sliding_window_pattern"}
    named = {"general.name", "general.finetune", "general.file_type", "tokenizer.chat_template"}
    assert differ == {f"gemma4.{key}" for key in tiny_gemma4.SIZES} | arrays | named
    assert len(tiny_gemma4._strings(dummy["tokenizer.ggml.tokens"])) == 262_144
    assert dummy["tokenizer.chat_template"].endswith(template.read_bytes())
    pattern = real["gemma4.attention.sliding_window_pattern"][-30:]
    assert dummy["gemma4.attention.sliding_window_pattern"][-6:] == pattern[:6]


# ------------------------------------------------------------------------------------------------------ the engine


@pytest.fixture(scope="module")
def served(model: Path) -> Iterator[tuple[httpx.Client, Recorder]]:
    """The dummy behind the embedded engine, set up and warmed as the real one is; and what was seen on the way."""
    server = LlamaServer(
        binary=(sys.executable, "-m", "supervisor.engines.embedded"),
        model=model,
        mmproj=model.with_name("mmproj.gguf"),
        alias="gemma",
        ctx_size=8192,
        slots=2,
        threads=1,  # on a busy machine, several would mostly wait for each other
        cache_type_k="q8_0",
        cache_type_v="q8_0",
    )
    recorder = Recorder()
    fresh = httpx.Limits(max_keepalive_connections=0)  # the engine closes idle ones after 5 s, in the face of a request
    hooks = Hooks(warmup=(Text(), Thinking(), Image(), Tools()), observers=(recorder,))
    with (
        Daemon(server.profile(), hooks) as daemon,
        httpx.Client(base_url=daemon.supervised.url, trust_env=False, timeout=60, limits=fresh) as client,
    ):
        yield client, recorder


def post(client: httpx.Client, path: str, **body: Any) -> Any:
    """The answer to a greedy request that shares no cache with others."""
    answer = client.post(path, json={"temperature": 0, "cache_prompt": False, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def chat(client: httpx.Client, *, thinking: bool, **body: Any) -> Any:
    body = {"messages": HELLO, "chat_template_kwargs": {"enable_thinking": thinking}, **body}
    return post(client, "/v1/chat/completions", **body)


@pytest.mark.engine
def test_every_warmup_passes(served: tuple[httpx.Client, Recorder]) -> None:
    """Text, thoughts, a picture and a forced tool call come back as from a model that works."""
    assert [event.step for event in served[1].of(WarmupPassed)] == ["text", "thinking", "image", "tools"]


@pytest.mark.engine
def test_the_template_is_gemma_4s(served: tuple[httpx.Client, Recorder]) -> None:
    """The engine serves the template of the file, sees nothing outdated in it, and takes pictures."""
    client, recorder = served
    props = client.get("/props").json()
    assert props["chat_template"].strip() == tiny_gemma4.material()[1].read_text().strip()
    assert props["modalities"]["vision"] is True
    assert not [line for line in recorder.lines() if "outdated" in line]


@pytest.mark.engine
def test_thinking_changes_the_prompt(served: tuple[httpx.Client, Recorder]) -> None:
    """With thinking on, the prompt asks for it and leaves the model's turn open; off, an empty thought closes it."""
    client, _ = served
    prompts = {}
    for thinking in (True, False):
        body = {"messages": HELLO, "chat_template_kwargs": {"enable_thinking": thinking}}
        prompt = post(client, "/apply-template", **body)["prompt"]
        prompts[thinking] = prompt.removeprefix("<bos>")
        tokens = post(client, "/tokenize", content=prompts[thinking], add_special=True, parse_special=True)["tokens"]
        assert chat(client, thinking=thinking)["usage"]["prompt_tokens"] == len(tokens)
    asked = "<|turn>user\nHello<turn|>\n<|turn>model\n"
    assert prompts == {
        True: f"<|turn>system\n<|think|>\n<turn|>\n{asked}",
        False: f"{asked}<|channel>thought\n<channel|>",
    }


@pytest.mark.engine
def test_thoughts_and_answer_are_told_apart(served: tuple[httpx.Client, Recorder]) -> None:
    """Ten thoughts go to reasoning_content, ten words to content, no tag to either; off, there are no thoughts."""
    client, _ = served
    choice = chat(client, thinking=True)["choices"][0]
    message = choice["message"]
    assert choice["finish_reason"] == "stop"
    assert (len(message["reasoning_content"].split()), len(message["content"].split())) == (10, 10)
    assert message["content"].endswith(".")
    off = chat(client, thinking=False)["choices"][0]
    assert (off["finish_reason"], off["message"].get("reasoning_content")) == ("stop", None)
    assert len(off["message"]["content"].split()) == 10
    assert not [tag for tag in TAGS if tag in json.dumps([message, off["message"]])]


@pytest.mark.engine
def test_thoughts_stream_first(served: tuple[httpx.Client, Recorder]) -> None:
    """In a stream, all thoughts come before the answer, and add up to what comes in one piece."""
    client, _ = served
    whole = chat(client, thinking=True)["choices"][0]["message"]
    body = {"messages": HELLO, "temperature": 0, "cache_prompt": False, "stream": True}
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line not in ("", "data: [DONE]")]
    deltas = [choice["delta"] for line in lines for choice in json.loads(line)["choices"]]
    parts = [(key, delta[key]) for delta in deltas for key in ("reasoning_content", "content") if delta.get(key)]
    seen = [(key, "".join(text for _, text in group)) for key, group in groupby(parts, key=lambda part: part[0])]
    assert seen == [(key, whole[key]) for key in ("reasoning_content", "content")]


@pytest.mark.engine
def test_greedy_answers_repeat(served: tuple[httpx.Client, Recorder]) -> None:
    """The same question gives the same tokens with the same probabilities; another question gives others."""
    client, _ = served

    def asked(words: str) -> list[tuple[str, float]]:
        messages = [{"role": "user", "content": words}]
        answer = chat(client, thinking=True, messages=messages, logprobs=True)
        return [(token["token"], token["logprob"]) for token in answer["choices"][0]["logprobs"]["content"]]

    first = asked("Which is larger, 9.11 or 9.9?")
    assert len(first) == 25
    assert asked("Which is larger, 9.11 or 9.9?") == first
    assert [token for token, _ in asked("Which is larger, 9.11 or 9.8?")] != [token for token, _ in first]


@pytest.mark.engine
def test_a_picture_is_seen(served: tuple[httpx.Client, Recorder]) -> None:
    """What the picture shows reaches the answer: the same words about another picture are answered otherwise."""
    client, _ = served
    answers = set()
    for png in (picture.red_square(64), picture.scene(64)):
        messages = [{"role": "user", "content": picture.content("What is it?", png)}]
        answers.add(chat(client, thinking=False, messages=messages)["choices"][0]["message"]["content"])
    assert len(answers) == 2
