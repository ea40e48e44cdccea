"""`LlamaServer`: the settings of one `llama-server`, from which its profile is made.

The command line is fitted to the binary's own `--help`, because flags come and go between builds: `--no-mmap` is plain
up to b9940, deprecated beside `--load-mode` in b10434 and b10698, and gone from b11040 on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from supervisor.engines import settings
from supervisor.engines.llama_cpp.dialect import COUNTERS, LLAMA_CPP, READY, accept, parse_line, shards
from supervisor.engines.llama_cpp.flags import OWNED, OWNER, UNREACHABLE, capabilities, flag_of
from supervisor.engines.settings import argv
from supervisor.errors import ProfileError, UnsupportedFlag, require
from supervisor.profile import Health, Liveness, LogLimits, Profile, Restart, Stop, Timeouts
from supervisor.redact import MASK, Secret
from supervisor.steps import Hooks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from supervisor.dialect import Dialect
    from supervisor.engines.help_flags import Binary

__all__ = ["INHERITED", "TAIL_LINES", "LlamaServer", "check_environment", "check_key", "rarer"]

_BARE: Final = ("jinja", "metrics", "load", "api_key")
_VALUED: Final = {setting: flags.split()[0] for setting, flags in OWNED.items() if setting not in _BARE}
_COUNTS: Final = {  # setting -> lowest value
    **dict.fromkeys(("ctx_size", "slots", "threads", "batch_size", "ubatch_size", "sleep_idle_s"), 1),
    **dict.fromkeys(("gpu_layers", "cache_ram_mib"), 0),
}
TAIL_LINES: Final = 60  # the backtrace of an abort in CUDA alone has more than 20
INHERITED: Final = (
    *("PATH", "HOME", "USER", "LANG", "LC_*", "TZ", "TMPDIR", "VIRTUAL_ENV", "PYTHON*"),
    *("LD_LIBRARY_PATH", "CUDA_*", "NVIDIA_*", "GGML_*", "OMP_*"),
)
"""The host's variables that a llama-server gets unless its settings say otherwise."""
_REQUIRED: Final = ("ctx_size", "slots")
_HIDDEN: Final = ("LLAMA_API_KEY", "LLAMA_ARG_MODEL", "LLAMA_ARG_LOAD_MODE")
_ARG_VARIABLES: Final = "free of LLAMA_ARG_* variables, which set flags that this command line does not show"


def check_key(api_key: Secret | None, *, open_access: bool) -> None:
    """Raise ProfileError for a key that llama-server would not take as it is."""
    settings.check_key(api_key, open_access=open_access)
    if api_key:
        # The server would read two keys out of one, and refuse the one that clients send.
        require("," not in api_key.reveal(), "api_key", api_key, "a key without commas")


def check_environment(env: Mapping[str, str | Secret], inherit_env: tuple[str, ...]) -> None:
    """Raise ProfileError for variables that would set flags or the key past the settings."""
    for variable in env:
        require(variable != "LLAMA_API_KEY", "env", variable, "given as api_key, which probes and Steps then send")
        sets_flag = variable.startswith("LLAMA_ARG_")
        require(not sets_flag, "env", variable, f"{_ARG_VARIABLES}; use the setting or extra_args")
    for pattern in inherit_env:
        hidden = pattern.startswith("LLAMA_ARG_") or any(fnmatchcase(name, pattern) for name in _HIDDEN)
        require(not hidden, "inherit_env", pattern, f"too narrow for LLAMA_API_KEY, and {_ARG_VARIABLES}")


def rarer(liveness: Liveness, sleep_idle_s: int | None) -> Liveness:
    """Return the liveness with inferences so far apart that a server which sleeps when idle falls asleep in between."""
    if not sleep_idle_s or liveness.inference_every_s > sleep_idle_s:
        return liveness
    return replace(liveness, inference_every_s=min(2.0 * sleep_idle_s, 86_400.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaServer:
    """Settings of one `llama-server`; `profile()` fits them to the binary. None leaves a setting to the build.

    Attributes:
        binary: the program, or the beginning of a command as a tuple.
        model, mmproj: GGUF files; they need not exist yet. Of a split model, the first shard.
        alias: the name that clients use and readiness checks; default: the model file's stem.
        host, port: where to listen; port 0 chooses a free one.
        ctx_size: tokens in all; each slot gets its share.
        slots: requests that are served at once.
        gpu_layers: layers in GPU memory.
        cache_type_k, cache_type_v: types of the KV cache, such as `q8_0`.
        cache_ram_mib: host-side prompt cache, MiB. 0, the default, keeps memory before a seal known; builds without
            the cache need no flag for that. None leaves it at the build's own, up to 8 GiB filled by traffic.
        chat_template_file: a Jinja template that replaces the model's own.
        sleep_idle_s: after so many seconds without a request the server unloads the model, until the next request. The
            watchdog's inference, a request too, then comes at twice that time by default, and never while it sleeps.
        load: `no-mmap` reads the weights into memory, so that a snapshot holds them; `mmap` maps the file.
        api_key: travels in the environment, never in argv.
        open_access: serving without a key is meant.
        env: more variables of the child, though none of the `LLAMA_ARG_*`, which set flags: use the settings.
        inherit_env: names or shell patterns of the host's variables that the child gets.
        extra_args: other flags of llama-server, as separate arguments.
        timeouts, stop, restart, liveness: parts of the profile; liveness gets the server's counters unless it has some.
        name: the profile's; default: the alias.

    Raises:
        ProfileError: at construction; a setting is wrong.
    """

    binary: Binary
    model: Path
    mmproj: Path | None = None
    alias: str | None = None
    host: str = "127.0.0.1"
    port: int = 0
    ctx_size: int = 4096
    slots: int = 1
    gpu_layers: int | None = None
    threads: int | None = None
    batch_size: int | None = None
    ubatch_size: int | None = None
    cache_type_k: str | None = None
    cache_type_v: str | None = None
    cache_ram_mib: int | None = 0
    flash_attn: Literal["on", "off", "auto"] | None = None
    chat_template_file: Path | None = None
    jinja: bool = True
    metrics: bool = True
    sleep_idle_s: int | None = None
    load: Literal["no-mmap", "mmap"] = "no-mmap"
    api_key: Secret | None = None
    open_access: bool = False
    env: Mapping[str, str | Secret] = field(default_factory=dict)
    inherit_env: tuple[str, ...] = INHERITED
    extra_args: tuple[str, ...] = ()
    timeouts: Timeouts | None = None
    stop: Stop | None = None
    restart: Restart | None = None
    liveness: Liveness | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        require(bool(self.command) and all(self.command), "binary", self.binary, "a program, or a tuple of arguments")
        for part in ("model", "mmproj", "chat_template_file"):
            if (value := getattr(self, part)) is not None:
                object.__setattr__(self, part, Path(value))
        require(bool(self.model.name), "model", self.model, "the path of a GGUF file")
        named = bool(self.model_id.strip()) and "," not in self.model_id  # a comma would part two aliases
        require(named, "alias", self.model_id, "a name without commas")
        for part, low in _COUNTS.items():
            value = getattr(self, part)
            ok = type(value) is int and low <= value <= 1 << 30
            require(ok or (value is None and part not in _REQUIRED), part, value, f"a whole number, {low} or more")
        for part in ("cache_type_k", "cache_type_v"):
            value = getattr(self, part)
            require(value is None or value.isidentifier(), part, value, "the name of a type, such as q8_0")
        require(self.flash_attn in (None, "on", "off", "auto"), "flash_attn", self.flash_attn, "on, off, auto or None")
        require(self.load in ("no-mmap", "mmap"), "load", self.load, "no-mmap or mmap")
        check_key(self.api_key, open_access=self.open_access)
        check_environment(self.env, self.inherit_env)
        for argument in self.extra_args:
            self._refuse_owned(argument)
        # Only /metrics counts requests without waking the server.
        require(self.metrics or not self.sleep_idle_s, "metrics", self.metrics, "True when sleep_idle_s is set")
        if self.liveness and self.sleep_idle_s:
            rare = self.liveness.inference_every_s > self.sleep_idle_s
            allowed = f"more than sleep_idle_s={self.sleep_idle_s}: the watchdog's own requests would keep it awake"
            require(rare, "liveness.inference_every_s", self.liveness.inference_every_s, allowed)

    @property
    def command(self) -> tuple[str, ...]:
        """The program with the arguments that come before llama-server's own."""
        return argv(self.binary)

    @property
    def model_id(self) -> str:
        """The name under which the model is served."""
        return self.model.stem if self.alias is None else self.alias

    @property
    def dialect(self) -> Dialect:
        """How the server speaks."""
        return LLAMA_CPP

    def hooks(self) -> Hooks:
        """Return no Steps: the server needs none."""
        return Hooks()

    def profile(self, known: frozenset[str] | None = None) -> Profile:
        """Fit the settings to the binary, and build the profile. Runs `--help` once, so call it where the binary is.

        Args:
            known: the flags that the binary has; None: its `--help` is read.

        Raises:
            SpawnError: the binary cannot be run at all.
            UnsupportedFlag: the binary lacks a flag that a setting or an extra argument needs.
            ProfileError: a part of the profile is wrong, or the binary's help lists no flag.
        """
        if known is None:
            inherited = {n: v for n, v in os.environ.items() if any(fnmatchcase(n, p) for p in self.inherit_env)}
            plain = {n: v for n, v in self.env.items() if not isinstance(v, Secret)}  # help needs no secret
            known = capabilities(self.command, inherited | plain)
        liveness = self.liveness or rarer(Liveness(), self.sleep_idle_s)
        if self.metrics and liveness.counters_path is None:
            liveness = replace(liveness, counters_path="/metrics", counters_pattern=COUNTERS)
        return Profile(
            name=self.name or self.model_id,
            command=(*self.command, *self._arguments(known), *self._extra(known)),
            env=self.env,
            inherit_env=self.inherit_env,
            host=self.host,
            port=self.port,
            api_key=self.api_key,
            api_key_env="LLAMA_API_KEY",
            open_access=self.open_access,
            weights=(*shards(self.model), *((self.mmproj,) if self.mmproj else ())),
            health=Health(accept=accept, model_id=self.model_id, ready_pattern=READY),
            timeouts=self.timeouts or Timeouts(),
            stop=self.stop or Stop(),
            restart=self.restart or Restart(),
            liveness=liveness,
            logs=LogLimits(parse=parse_line, tail_lines=TAIL_LINES),
            dialect=self.dialect,
        )

    def _arguments(self, known: frozenset[str]) -> list[str]:
        out: list[str] = []

        def flag(setting: str, name: str, *value: object) -> None:
            self._need(known, setting, getattr(self, setting), name)
            out.extend((name, *map(str, value)))

        given = {"host": "{host}", "port": "{port}", "alias": self.model_id}
        for setting, name in _VALUED.items():
            if (value := given.get(setting, getattr(self, setting))) is None:
                continue
            if setting == "cache_ram_mib" and value == 0 and name not in known:
                continue  # no such cache, hence nothing to turn off
            flag(setting, name, value)
        # Where both exist, the old spelling is the deprecated one.
        if "--load-mode" in known:
            flag("load", "--load-mode", "none" if self.load == "no-mmap" else "mmap")
        elif self.load == "no-mmap":
            flag("load", "--no-mmap")
        if self.jinja:
            flag("jinja", "--jinja")
        elif "--no-jinja" in known:  # where it is missing, Jinja is off unless asked for
            out.append("--no-jinja")
        if self.metrics:
            flag("metrics", "--metrics")
        return out

    def _extra(self, known: frozenset[str]) -> tuple[str, ...]:
        for argument in self.extra_args:
            if name := flag_of(argument):
                self._need(known, "extra_args", name, name)
                require("=" not in argument, "extra_args", name, "two arguments: llama-server splits none at '='")
        return self.extra_args

    def _need(self, known: frozenset[str], setting: str, value: object, name: str) -> None:
        if name not in known:
            needed = "--no-mmap or --load-mode" if setting == "load" else name
            raise UnsupportedFlag(field=setting, value=value, allowed=needed, binary=" ".join(self.command))

    @staticmethod
    def _refuse_owned(argument: str) -> None:
        name = flag_of(argument)
        if name in OWNER:
            shown = MASK if OWNER[name] == "api_key" else argument  # what stands behind its '=' may be the key
            use = f"free of {name}: use the setting {OWNER[name]!r}"
            raise ProfileError(field="extra_args", value=shown, allowed=use)
        require(name not in UNREACHABLE, "extra_args", argument, f"free of {name}: probes ask http://host:port/health")
