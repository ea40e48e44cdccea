"""`LlamaRouter`: the settings of a `llama-server` in router mode, from which its profile is made."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Final

from supervisor.engines.llama_cpp import preset as presets
from supervisor.engines.llama_cpp.dialect import READY, accept, parse_line, shards
from supervisor.engines.llama_cpp.flags import OWNED, capabilities, flag_of
from supervisor.engines.llama_cpp.preset import RouterModel, WritePreset
from supervisor.engines.llama_cpp.router_dialect import dialect_of
from supervisor.engines.llama_cpp.server import INHERITED, TAIL_LINES, check_environment, check_key, rarer
from supervisor.engines.settings import argv
from supervisor.errors import UnsupportedFlag, require
from supervisor.profile import Health, Liveness, LogLimits, Profile, Restart, Stop, Timeouts
from supervisor.redact import Secret
from supervisor.steps import Hooks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from supervisor.dialect import Dialect
    from supervisor.engines.help_flags import Binary

__all__ = ["LlamaRouter"]

# Flags of one model: on the router's command line they would stand above every model's own setting.
_A_MODELS: Final = ("model", "mmproj", "alias")
_OWN: Final = ("host", "port", "metrics", "sleep_idle_s", "api_key")
_OWNER: Final = {
    flag: "models" if setting in _A_MODELS else setting
    for setting in (*_A_MODELS, *_OWN)
    for flag in OWNED[setting].split()
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaRouter:
    """Settings of llama.cpp's router: `models`, or a `preset` of the user's, or a folder, or a folder with one of both.

    A model that crashes after READY is loaded again by the router itself at the next request for it. If it is one of
    `must_load` and no request comes, the checks of the watchdog fail with its exit code, and after `Liveness.misses` of
    them the router is replaced. A model that sleeps, or that another one has evicted, is no failure.

    Attributes:
        binary: the program, or the beginning of a command as a tuple.
        models: what is served, each with settings of its own.
        models_dir: a folder of GGUF files, each a model by its name; one of several files in a folder of its name.
        preset: an INI of the user's; a copy is used, in which the models of `must_load` are marked `load-on-startup`.
        must_load: names of models that are loaded before READY; the first is the one that Steps ask by default.
        models_max: so many models at a time; one more evicts the one that was asked longest ago. 0: no limit, which
            b11434 refuses together with models to load at the start.
        autoload: a request loads the model that it names.
        host, port: where to listen; port 0 chooses a free one. The models listen on ports of the router's choice.
        metrics: count requests and tokens, of each model.
        sleep_idle_s: see `LlamaServer`; each model sleeps for itself.
        api_key: travels in the environment, to the models too.
        open_access: serving without a key is meant.
        env, inherit_env: see `LlamaServer`.
        extra_args: other flags of llama-server, for every model, above what its own settings say.
        timeouts, stop, restart, liveness: parts of the profile.
        name: the profile's.

    Raises:
        ProfileError: at construction; a setting is wrong.
    """

    binary: Binary
    models: tuple[RouterModel, ...] = ()
    models_dir: Path | None = None
    preset: Path | None = None
    must_load: tuple[str, ...] = ()
    models_max: int = 4
    autoload: bool = True
    host: str = "127.0.0.1"
    port: int = 0
    metrics: bool = True
    sleep_idle_s: int | None = None
    api_key: Secret | None = None
    open_access: bool = False
    env: Mapping[str, str | Secret] = field(default_factory=dict)
    inherit_env: tuple[str, ...] = INHERITED
    extra_args: tuple[str, ...] = ()
    timeouts: Timeouts | None = None
    stop: Stop | None = None
    restart: Restart | None = None
    liveness: Liveness | None = None
    name: str = "llama.cpp router"

    def __post_init__(self) -> None:
        require(bool(self.command) and all(self.command), "binary", self.binary, "a program, or a tuple of arguments")
        for part in ("models_dir", "preset"):
            if (value := getattr(self, part)) is not None:
                object.__setattr__(self, part, Path(value).absolute())
        some = bool(self.models or self.models_dir or self.preset)
        require(some, "models", self.models, "at least one, unless models_dir or preset is given")
        require(not (self.models and self.preset), "preset", self.preset, "None when models are given")
        names = [model.name for model in self.models]
        for name in names:
            require(names.count(name) == 1, "models", name, "a name that one model has")
        for name in self.must_load:
            require(self.must_load.count(name) == 1, "must_load", name, "a name that is there once")
            # Of other sources it is looked up in `profile()`, where the files are.
            known = not self.models or self.models_dir is not None or name in names
            require(known, "must_load", name, f"one of {', '.join(names)}")
        enough = type(self.models_max) is int and self.models_max >= len(self.must_load)
        require(enough, "models_max", self.models_max, f"at least {len(self.must_load)}, for all of must_load")
        idle = self.sleep_idle_s
        require(idle is None or (type(idle) is int and idle > 0), "sleep_idle_s", idle, "a whole number, 1 or more")
        require(self.metrics or not idle, "metrics", self.metrics, "True when sleep_idle_s is set")
        check_key(self.api_key, open_access=self.open_access)
        check_environment(self.env, self.inherit_env)
        for argument in self.extra_args:
            flag = flag_of(argument)
            require(flag not in _OWNER, "extra_args", argument.partition("=")[0], f"free of {flag}: use the settings")

    @property
    def command(self) -> tuple[str, ...]:
        """The program with the arguments that come before llama-server's own."""
        return argv(self.binary)

    @property
    def asked_first(self) -> str | None:
        """The model that Steps ask for unless they name one."""
        names = (*self.must_load, *(model.name for model in self.models))
        return names[0] if names else None

    @property
    def dialect(self) -> Dialect:
        """How the server speaks; what one model tells is that of `asked_first`."""
        return dialect_of([self.asked_first] if self.asked_first else [], autoload=self.autoload)

    def hooks(self, known: frozenset[str] | None = None) -> Hooks:
        """Return the Step that writes the preset; put Steps that fetch models before it. Asks and raises as `profile`.

        Args:
            known: see `profile`; the same there and here.
        """
        if (text := self._preset_text(known or self._known())) is None:
            return Hooks()
        files = tuple((f"the model {model.name!r}", path) for model in self.models for path in model.files)
        return Hooks(before_start=(WritePreset(path=presets.preset_path(text), text=text, files=files),))

    def profile(self, known: frozenset[str] | None = None) -> Profile:
        """Fit the settings to the binary, and build the profile. Runs `--help` once, so call it where the binary is.

        Args:
            known: the flags that the binary has; None: its `--help` is read.

        Raises:
            SpawnError: the binary cannot be run at all.
            UnsupportedFlag: the binary lacks a flag that a setting or an extra argument needs.
            ProfileError: a part of the profile is wrong: a missing folder or preset, a preset with a key that the
                binary does not know, a model of `must_load` that there is not.
        """
        known = known or self._known()
        text = self._preset_text(known)
        self._check_models(known)
        return Profile(
            name=self.name,
            command=(*self.command, *self._arguments(known, text)),
            env=self.env,
            inherit_env=self.inherit_env,
            host=self.host,
            port=self.port,
            api_key=self.api_key,
            api_key_env="LLAMA_API_KEY",
            open_access=self.open_access,
            weights=self._weights(known),
            health=Health(accept=accept, model_id=self.asked_first, must_load=self.must_load, ready_pattern=READY),
            timeouts=self.timeouts or Timeouts(),
            # An unload may take 10 s before the router kills; its own end waits for all of them.
            stop=self.stop or Stop(grace_s=15.0),
            restart=self.restart or Restart(),
            liveness=self.liveness or rarer(Liveness(), self.sleep_idle_s),
            logs=LogLimits(parse=parse_line, tail_lines=TAIL_LINES),
            dialect=self.dialect,
        )

    def _known(self) -> frozenset[str]:
        inherited = {n: v for n, v in os.environ.items() if any(fnmatchcase(n, p) for p in self.inherit_env)}
        return capabilities(self.command, inherited | {n: v for n, v in self.env.items() if not isinstance(v, Secret)})

    def _arguments(self, known: frozenset[str], text: str | None) -> list[str]:
        given: dict[str, tuple[str, ...]] = {"host": ("--host", "{host}"), "port": ("--port", "{port}")}
        if text is not None:
            given["models"] = ("--models-preset", str(presets.preset_path(text)))
        if self.models_dir is not None:
            given["models_dir"] = ("--models-dir", str(self.models_dir))
        given["models_max"] = ("--models-max", str(self.models_max))
        if not self.autoload:
            given["autoload"] = ("--no-models-autoload",)
        if self.metrics:
            given["metrics"] = ("--metrics",)
        if self.sleep_idle_s is not None:
            given["sleep_idle_s"] = ("--sleep-idle-seconds", str(self.sleep_idle_s))
        out: list[str] = []
        for setting, (flag, *value) in given.items():
            if flag not in known:
                binary = " ".join(self.command)
                raise UnsupportedFlag(field=setting, value=getattr(self, setting), allowed=flag, binary=binary)
            out += (flag, *value)
        for argument in self.extra_args:
            if (name := flag_of(argument)) and name not in known:
                binary = " ".join(self.command)
                raise UnsupportedFlag(field="extra_args", value=name, allowed=name, binary=binary)
        return [*out, *self.extra_args]

    def _preset_text(self, known: frozenset[str]) -> str | None:
        """The text of the preset that the router gets; None: it needs none."""
        if self.preset is not None:
            text, sections = presets.read_preset(self.preset)
            return presets.marked(text, sections, self.must_load)
        sections = self._sections(known)
        return presets.written(sections, self.must_load) if sections or self.must_load else None

    def _sections(self, known: frozenset[str]) -> presets.Preset:
        if self.preset is not None:
            return presets.read_preset(self.preset)[1]
        return {model.name: model.section(known) for model in self.models}

    def _check_models(self, known: frozenset[str]) -> None:
        folder = self.models_dir
        require(folder is None or folder.is_dir(), "models_dir", str(folder), "a folder that is there")
        sections = self._sections(known)
        presets.check_keys(str(self.preset or "models"), sections, known)
        names = (set(sections) - {"*", "default"}) | set(self._in_folder())
        for name in self.must_load:
            # A name of Hugging Face's may be in llama.cpp's own cache, of which nothing is known here.
            require(name in names or "/" in name, "must_load", name, f"one of {', '.join(sorted(names)) or 'no model'}")

    def _in_folder(self) -> dict[str, tuple[Path, ...]]:
        """The models of the folder, and their files, as llama.cpp names them."""
        found: dict[str, tuple[Path, ...]] = {}
        for entry in sorted(self.models_dir.iterdir()) if self.models_dir and self.models_dir.is_dir() else ():
            if entry.is_dir():
                if files := tuple(sorted(entry.glob("*.gguf"))):
                    found[entry.name] = files
            elif entry.suffix == ".gguf" and "mmproj" not in entry.name:
                found[entry.name.replace(".gguf", "")] = (entry,)
        return found

    def _weights(self, known: frozenset[str]) -> tuple[Path, ...]:
        """The files that are read before READY, as far as they are known."""
        files: list[Path] = []
        folder, sections = self._in_folder(), self._sections(known)
        for name in self.must_load:
            keys = sections.get(name, {})
            if own := keys.get("model", keys.get("m")):
                files += shards(Path(own))
                files += [Path(mmproj)] if (mmproj := keys.get("mmproj", keys.get("mm"))) else []
            else:
                files += folder.get(name, ())
        return tuple(files)
