"""The router's preset, an INI file: written from typed settings, or the user's own with what must be loaded marked.

What llama.cpp makes of such a file was read in b11434 (common/preset.cpp): a key is a flag without its dashes; a value
ends at the first `;` or `#`; of two sections of one name the later wins without a word; an unknown key ends the server.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from supervisor.engines.llama_cpp.dialect import shards
from supervisor.errors import ProfileError, require

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from supervisor.child import Child

__all__ = ["Preset", "RouterModel", "WritePreset", "marked", "preset_path", "read_preset", "written"]

ON_STARTUP: Final = "load-on-startup"
# Keys of presets that are no flags.
_PRESET_ONLY: Final = frozenset({ON_STARTUP, "stop-timeout", "dedup-cache-models", "version"})
# What the router sets itself in each model's command: a preset's value would be dropped without a word.
_ROUTERS: Final = frozenset({"host", "port", "api-key", "api-key-file", "models-dir", "models-preset", "models-max"})
_COUNTS: Final = {"ctx_size": 1, "slots": 1, "gpu_layers": 0, "cache_ram_mib": 0, "stop_timeout_s": 1}  # lowest values
_SECTION: Final = re.compile(r"^[ \t]*\[[ \t]*([^]\n]*?)[ \t]*\][ \t]*(?:[;#].*)?$")
_PAIR: Final = re.compile(r"^[ \t]*([A-Za-z_][\w.-]*)[ \t]*=[ \t]*(.*?)[ \t]*(?:[;#].*)?$")
_TRUE: Final = frozenset({"1", "on", "true", "enabled"})

Preset = dict[str, dict[str, str]]
"""Section -> key -> value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterModel:
    """One model of a router, by a file. None leaves a setting to the build.

    Attributes:
        name: the name that clients use.
        model, mmproj: GGUF files. Of a split model, the first shard.
        ctx_size: tokens in all; each slot gets its share.
        slots: requests that are served at once.
        gpu_layers: layers in GPU memory.
        cache_ram_mib: host-side prompt cache, MiB; None leaves it at the build's own.
        load: `no-mmap` reads the weights into memory, `mmap` maps the file.
        chat_template_file: a Jinja template that replaces the model's own.
        stop_timeout_s: what an unload waits for before it kills.
        more: other flags of llama-server, without their dashes, and their values; `"true"` for a flag without one.

    Raises:
        ProfileError: at construction; a setting is wrong.
    """

    name: str
    model: Path
    mmproj: Path | None = None
    ctx_size: int = 4096
    slots: int = 1
    gpu_layers: int | None = None
    cache_ram_mib: int | None = 0
    load: Literal["no-mmap", "mmap"] = "no-mmap"
    chat_template_file: Path | None = None
    stop_timeout_s: int | None = None
    more: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        plain = re.fullmatch(r"[\w.+/-][\w.+/ -]*(?<! )", self.name) and self.name != "default"
        require(bool(plain), "model.name", self.name, "letters, digits, ._+/- and blanks inside, but not `default`")
        for part in ("model", "mmproj", "chat_template_file"):
            if (value := getattr(self, part)) is not None:
                object.__setattr__(self, part, Path(value).absolute())
        for part, low in _COUNTS.items():
            value = getattr(self, part)
            ok = (value is None and part not in ("ctx_size", "slots")) or (type(value) is int and value >= low)
            require(ok, f"{self.name}.{part}", value, f"a whole number, {low} or more")
        require(self.load in ("no-mmap", "mmap"), f"{self.name}.load", self.load, "no-mmap or mmap")
        own = _ROUTERS | _PRESET_ONLY | set(self._own())
        for key, value in self.more.items():
            require(bool(re.fullmatch(r"[A-Za-z][\w.-]*", key)), f"{self.name}.more", key, "a flag without its dashes")
            require(key not in own, f"{self.name}.more", key, "a flag for which there is no setting")
            require(isinstance(value, str), f"{self.name}.more[{key}]", value, "text")
        for key, value in self.section().items():
            # Such a value would reach the server cut short, without a word.
            require(not re.search(r"[;#\r\n]", value), f"{self.name}.{key}", value, "text without ; # and line breaks")
            require(value == value.strip() != "", f"{self.name}.{key}", value, "text that no blank begins or ends")

    @property
    def files(self) -> tuple[Path, ...]:
        """Return the files that a load reads."""
        return (*shards(self.model), *((self.mmproj,) if self.mmproj else ()))

    def section(self, known: frozenset[str] | None = None) -> dict[str, str]:
        """Return the keys and values of the model's section, for a build that knows these flags; None: a new one."""
        own = self._own()
        if known is not None and "--load-mode" not in known:
            own["no-mmap"] = "true" if own.pop("load-mode") == "none" else None
        if known is not None and "--cache-ram" not in known and not self.cache_ram_mib:
            own.pop("cache-ram")  # no such cache, hence nothing to turn off
        return {key: str(value) for key, value in own.items() if value is not None} | dict(self.more)

    def _own(self) -> dict[str, object]:
        return {
            "model": self.model,
            "mmproj": self.mmproj,
            "ctx-size": self.ctx_size,
            "parallel": self.slots,
            "n-gpu-layers": self.gpu_layers,
            "cache-ram": self.cache_ram_mib,
            "load-mode": "none" if self.load == "no-mmap" else "mmap",
            "chat-template-file": self.chat_template_file,
            "stop-timeout": self.stop_timeout_s,
        }


def read_preset(path: Path) -> tuple[str, Preset]:
    """Return the text of a preset and its sections.

    Raises:
        ProfileError: it is missing, is no such INI, or names a section twice; the line is told.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        allowed = f"a file that can be read ({error.strerror})"
        raise ProfileError(field="preset", value=str(path), allowed=allowed) from error
    except ValueError as error:
        raise ProfileError(field="preset", value=str(path), allowed="a file in UTF-8") from error
    sections: Preset = {}
    name = "default"
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{path}, line {number}"
        if not line.strip() or line.lstrip()[0] in ";#":
            continue
        if head := _SECTION.match(line):
            name = head[1]
            require(name not in sections, where, name, "a section that is there once: of two, the later wins silently")
            sections[name] = {}
        elif pair := _PAIR.match(line):
            sections.setdefault(name, {})[pair[1]] = pair[2]
        else:
            raise ProfileError(field=where, value=line.strip()[:80], allowed="[a name], a key = value, or a comment")
    return text, sections


def check_keys(where: str, sections: Preset, known: frozenset[str]) -> None:
    """Raises ProfileError for a key that this build of llama-server does not know: it would end the server."""
    flags = {flag.lstrip("-") for flag in known}
    for name, keys in sections.items():
        for key in keys:
            if key not in _PRESET_ONLY and not key.startswith("LLAMA_"):
                require(key in flags, f"{where} [{name}]", key, "a flag of this llama-server, without its dashes")


def written(sections: Preset, must_load: Sequence[str]) -> str:
    """Return a preset of these models; what must be loaded is loaded when the router starts."""
    sections = sections | {name: {**sections.get(name, {}), ON_STARTUP: "true"} for name in must_load}
    lines = ["version = 1"]
    for name, keys in sections.items():
        lines += ["", f"[{name}]", *(f"{key} = {value}" for key, value in keys.items())]
    return "\n".join(lines) + "\n"


def marked(text: str, sections: Preset, must_load: Sequence[str]) -> str:
    """Return the user's preset with the models that must be loaded marked so, and nothing else changed.

    Raises:
        ProfileError: it says itself that such a model is not to be loaded at the start.
    """
    lines = text.splitlines()
    for name in must_load:
        require(name not in ("*", "default"), "must_load", name, "the name of a model")
        if name not in sections:
            lines += ["", f"[{name}]", f"{ON_STARTUP} = true"]
        elif (value := sections[name].get(ON_STARTUP)) is None:
            at = next(i for i, line in enumerate(lines) if (head := _SECTION.match(line)) and head[1] == name)
            lines.insert(at + 1, f"{ON_STARTUP} = true")
        else:
            require(value.lower() in _TRUE, f"preset [{name}] {ON_STARTUP}", value, "true, because it is in must_load")
    return "\n".join(lines) + "\n"


def preset_path(text: str) -> Path:
    """Where a preset of this text is written: `${XDG_CACHE_HOME:-~/.cache}/warmboot/presets/<hash>.ini`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "warmboot" / "presets" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.ini"


@dataclass(frozen=True, slots=True, kw_only=True)
class WritePreset:
    """A Step for `before_start`: writes the preset, once every file that its settings name is there.

    Attributes:
        path, text: of the preset.
        files: (what for, file) of all that must exist. Put Steps that fetch models before this one.
        deadline_s: see `Step`.
    """

    path: Path
    text: str
    files: tuple[tuple[str, Path], ...] = ()
    deadline_s: float | None = 30.0

    @property
    def name(self) -> str:
        """For events and errors."""
        return "write-preset"

    async def __call__(self, child: Child) -> None:  # noqa: ARG002  there is no child yet
        """Raises FileNotFoundError for a model's file that is missing, OSError when the folder cannot be written to."""
        import anyio.to_thread

        await anyio.to_thread.run_sync(self._write)

    def _write(self) -> None:
        for what, path in self.files:
            if not path.is_file():
                raise FileNotFoundError(f"{what}: there is no file {path}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Under another name first: another supervisor's router may be reading it.
        new = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}.new")
        # Ours alone: a preset of the user's may hold tokens, and his own file may be private.
        with open(new, "w", encoding="utf-8", opener=partial(os.open, mode=0o600)) as file:
            file.write(self.text)
        new.replace(self.path)
