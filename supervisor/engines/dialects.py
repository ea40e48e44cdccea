"""The dialects of the engines that a list of models can tell apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from supervisor.engines.llama_cpp import LLAMA_CPP

if TYPE_CHECKING:
    from supervisor.dialect import Dialect

__all__ = ["DIALECTS"]

DIALECTS: Final[tuple[Dialect, ...]] = (LLAMA_CPP,)
"""Each with the `owned_by` by which it is recognised."""
