"""Engines have words of their own, and only `supervisor/engines` knows them: everybody else asks the dialect."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from support import ROOT

WORDS = re.compile(
    r"llama|vllm|sglang|cache_prompt|/props|/slots|thinking_budget_tokens|chat_template_kwargs|enable_thinking",
    re.IGNORECASE,
)
# Lines that name an engine because they cite it: a source, a measurement, the name of an embedded model.
CITED = {
    "hooks/artifacts/ggml.py": ("From llama.cpp b11434: `enum ggml_type`",),
    "hooks/artifacts/gguf.py": ("Layout and limits are those of llama.cpp b11434",),
    "hooks/golden/step.py": ("(Gemma 3 270M, llama.cpp on a CPU", "(H200, llama.cpp b9940 with CUDA 13.0"),
    "hooks/sleep/accounting.py": ("What a process may hold on a GPU beside what was caught. vLLM 0.26.0",),
    "supervisor/cli/local.py": ('"""Gemma 3 270M on llama.cpp; registered under its name',),
    "supervisor/dialect.py": ("The switch that llama.cpp, SGLang and vLLM hand", '"chat_template_kwargs": {"enable_'),
    "supervisor/readiness/watchdog.py": ("A hang does: llama.cpp, vLLM and", "SGLang have all answered `/health`"),
}


def named() -> Iterator[tuple[str, int, str]]:
    """Every line outside of the engines that holds a word of an engine: file, number, text."""
    for package in ("hooks", "supervisor"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if name.startswith("supervisor/engines/"):
                continue
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if WORDS.search(line):
                    yield name, number, line.strip()


def test_no_module_outside_of_the_engines_knows_an_engine() -> None:
    """Hooks, core, rehearsal and command line name no engine's routes, fields or flags; citations are listed here."""
    strange = [
        f"{name}:{number}: {line}"
        for name, number, line in named()
        if not any(cited in line for cited in CITED.get(name, ()))
    ]
    assert not strange, "\n".join(["belongs into the engine's dialect:", *strange])


@pytest.mark.parametrize("name", sorted(CITED))
def test_the_list_of_citations_is_not_longer_than_needed(name: str) -> None:
    """A citation that is gone leaves the list."""
    lines = [line for where, _, line in named() if where == name]
    assert [cited for cited in CITED[name] if not any(cited in line for line in lines)] == []
