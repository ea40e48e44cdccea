"""Which model the server has, as its engine's dialect tells."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from supervisor import Daemon, Health, State
from supervisor.dialect import Reading
from supervisor.engines.llama_cpp import LLAMA_CPP
from supervisor.errors import WrongModel
from support import fake_profile, is_in

PROPS = Reading(path="/props", read=lambda body: ("wanted",) if "total_slots" in body else None)
HEALTH = Reading(path="/health", read=lambda body: ("wanted",) if "total_slots" in body else None)


def daemon(models: Reading[tuple[str, ...]] | None, *flags: str, **health: Any) -> Daemon:
    profile = fake_profile(*flags, health=Health(**health), dialect=replace(LLAMA_CPP, models=models))
    return Daemon(profile)


@pytest.mark.parametrize("models", [PROPS, None])
def test_the_dialect_says_where_models_are_listed(models: Reading[tuple[str, ...]] | None) -> None:
    """An engine may list its models on any route, or on none: then a name is for clients, and is not checked."""
    with daemon(models, "--serve-model-id", "other", model_id="wanted") as server:
        assert is_in(server, State.READY)


def test_an_answer_that_is_no_list() -> None:
    """A route that answers with something else is named in the error."""
    with pytest.raises(WrongModel, match="'wanted': /health answers with something that is no list of models"):
        daemon(HEALTH, model_id="wanted").__enter__()


def test_other_names_are_listed() -> None:
    """The error says which models there are."""
    with pytest.raises(WrongModel, match="'wanted': it lists 'other'"):
        daemon(LLAMA_CPP.models, "--serve-model-id", "other", model_id="wanted").__enter__()
