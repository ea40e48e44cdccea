"""`Sglang`: the settings of one SGLang server, from which its profile is made.

The command line is fitted to the binary's own `--help`. Written for SGLang 0.5.16 to 0.5.23.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from supervisor.engines.settings import argv, check_inherited, check_model, yaml_file
from supervisor.engines.sglang import flags
from supervisor.engines.sglang.dialect import (
    COUNTERS,
    QUICK_CRASH,
    QUIET_HEALTH,
    READY,
    SGLANG,
    VITAL,
    parse_line,
    weight_files,
)
from supervisor.engines.sglang.private import ADMIN_KEY, PrivateConfig
from supervisor.engines.sglang.sleep import MemorySaver
from supervisor.errors import UnsupportedFlag, require
from supervisor.profile import Health, Liveness, LogLimits, Profile, Restart, Stop, Timeouts
from supervisor.redact import MASK, Secret
from supervisor.steps import Hooks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from supervisor.dialect import Dialect
    from supervisor.engines.help_flags import Binary

__all__ = ["STOP", "TAIL_ERRORS", "TAIL_LINES", "Sglang"]

LOOP_FOLDER: Final = Path(__file__).parent / "event_loop"
TAIL_LINES: Final = 60
TAIL_ERRORS: Final = 20  # a scheduler's traceback stands above what the main process says of its end
# The main process notices TERM by a poll every 5 s, waits for requests in flight without a limit of its own, then up to
# 15 s for its schedulers: 25 s and 15 s for requests. A TERM to the schedulers would look like a crash to it.
STOP: Final = Stop(to="leader", grace_s=40.0)
_VALUED: Final = (
    "model",
    "served_name",
    "host",
    "port",
    "tp_size",
    "dp_size",
    "context_length",
    "mem_fraction_static",
    "dtype",
    "load_format",
)
_SWITCHES: Final = ("metrics", "memory_saver")
_COUNTS: Final = ("tp_size", "dp_size", "context_length")
_NEVER_INHERITED: Final = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", ADMIN_KEY, *QUIET_HEALTH)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sglang:
    """Settings of one SGLang server; `profile()` fits them to the binary. None leaves a setting to the build.

    Keys travel in a private YAML file, which the Steps of `hooks()` write before each start and remove once the server
    is up: a profile without these hooks does not start.

    Attributes:
        model: a directory, or an id of a model hub.
        binary: the beginning of the command: the interpreter of SGLang's own environment with `-m
            sglang.launch_server`, or `("sglang", "serve")`.
        served_name: the name that clients use and readiness checks; default: the last part of `model`.
        host, port: where to listen; port 0 chooses a free one.
        tp_size, dp_size: over how many GPUs each layer is spread, and how many copies of the model serve.
        context_length: tokens of the longest context.
        mem_fraction_static: the part of a GPU's memory for weights and KV cache, over 0 and less than 1.
        dtype: of weights and activations, such as `bfloat16`.
        load_format: how weights are read; `dummy` reads none, and its answers mean nothing.
        metrics: serve `/metrics`, by which the watchdog sees traffic.
        memory_saver: release the GPU's memory at the seal and resume it afterwards. The weights are kept in host memory
            meanwhile, without which they would be garbage.
        event_loop: `asyncio` keeps libuv out (uvloop, and the store of torch's process groups), which sets up an
            io_uring on bare Linux, and no snapshot of processes holds one; it answers a little slower. None: SGLang's
            own choice, which is uvloop.
        config: a YAML file of SGLang's (`tool-call-parser: qwen25`); a key that belongs to a setting that is given is
            refused, because the command line would silently win.
        api_key: what clients send. Never in argv or the environment.
        admin_key: what the administration wants (release, flush, weights); default: one made anew for each profile.
            SGLang shows it on `/server_info` to whoever has the `api_key` (seen in 0.5.23), so that it keeps strangers
            and mistakes out, not clients who look for it.
        open_access: serving without a key is meant.
        env: more variables of the child; those of `dialect.QUICK_CRASH` are overridden here.
        inherit_env: names or shell patterns of the host's variables that the child gets.
        extra_args: other flags of SGLang, as separate arguments, spelled as its help does.
        timeouts, stop, restart, liveness: parts of the profile; liveness gets the server's counters unless it has some.
        name: the profile's; default: the served name.

    Raises:
        ProfileError: at construction; a setting is wrong.
    """

    model: str | Path
    binary: Binary = ("python", "-m", "sglang.launch_server")
    served_name: str | None = None
    host: str = "127.0.0.1"
    port: int = 0
    tp_size: int | None = None
    dp_size: int | None = None
    context_length: int | None = None
    mem_fraction_static: float | None = None
    dtype: str | None = None
    load_format: str | None = None
    metrics: bool = True
    memory_saver: bool = False
    event_loop: Literal["asyncio"] | None = None
    config: Path | None = None
    api_key: Secret | None = None
    admin_key: Secret | None = None
    open_access: bool = False
    env: Mapping[str, str | Secret] = field(default_factory=dict)
    inherit_env: tuple[str, ...] = (
        *("PATH", "HOME", "USER", "LANG", "LC_*", "TZ", "TMPDIR", "LD_LIBRARY_PATH"),
        *("CUDA_*", "NVIDIA_*", "NCCL_*", "OMP_*", "TORCH*", "TRITON_*", "HF_HOME", "HF_HUB_*", "XDG_CACHE_HOME"),
    )
    extra_args: tuple[str, ...] = ()
    timeouts: Timeouts | None = None
    stop: Stop | None = None
    restart: Restart | None = None
    liveness: Liveness | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        require(bool(self.command) and all(self.command), "binary", self.binary, "a program, or a tuple of arguments")
        check_model(self.model, self.model_id)
        # SGLang reads what follows a colon as the name of an adapter.
        require(":" not in self.model_id, "served_name", self.model_id, "a name without a colon")
        for part in _COUNTS:
            value = getattr(self, part)
            require(value is None or (type(value) is int and value >= 1), part, value, "a whole number, 1 or more")
        share = self.mem_fraction_static
        require(share is None or 0 < share < 1, "mem_fraction_static", share, "over 0 and less than 1")
        for part in ("dtype", "load_format"):
            value = getattr(self, part)
            require(value is None or bool(value.strip()), part, value, "a name that SGLang's --help lists")
        require(self.event_loop in (None, "asyncio"), "event_loop", self.event_loop, "'asyncio' or None")
        if self.config is not None:
            object.__setattr__(self, "config", yaml_file(self.config))
        self._check_access()
        for argument in self.extra_args:
            flags.refuse_owned(argument)
        for variable in self.env:
            require(variable not in (ADMIN_KEY, *QUIET_HEALTH), "env", variable, "left to the profile, which sets it")
        check_inherited(self.inherit_env, _NEVER_INHERITED)

    def _check_access(self) -> None:
        for part in ("api_key", "admin_key"):
            value = getattr(self, part)
            # The value stays out of the message.
            require(value is None or isinstance(value, Secret), part, MASK, "a Secret, or None")
            # Seen in 0.5.16: it makes arguments of its YAML, and takes such a key for a flag.
            flag = value is not None and value.reveal().startswith("-")
            require(not flag, part, MASK, "a key that does not begin with a dash")
        require(not (self.api_key and self.open_access), "open_access", True, "False when an api_key is set")
        same = self.api_key and self.admin_key and self.api_key.reveal() == self.admin_key.reveal()
        require(not same, "admin_key", MASK, "another key than api_key")
        # Seen in 0.5.23: /server_info shows both keys to whoever may ask it.
        guarded = self.api_key is not None or not self.memory_saver
        why = "given with memory_saver: without one SGLang's /server_info shows the admin key to everybody"
        require(guarded, "api_key", None, why)

    @property
    def command(self) -> tuple[str, ...]:
        """The program with the arguments that come before SGLang's own."""
        return argv(self.binary)

    @property
    def model_id(self) -> str:
        """The name under which the model is served."""
        return Path(self.model).name if self.served_name is None else self.served_name

    @property
    def dialect(self) -> Dialect:
        """How the server speaks."""
        return SGLANG

    def hooks(self) -> Hooks:
        """Return the Steps that hand the keys over, and those that release and resume the GPU's memory.

        With `memory_saver`, a warmup Step proves that nobody but the holder of the admin key may release it.
        """
        config = PrivateConfig(users=self.config, given=self._given())
        hooks = Hooks(before_start=(config.write,), warmup=(config.forget,), observers=(config.observe,))
        if self.memory_saver:
            saver = MemorySaver()
            hooks += Hooks(warmup=(saver.closed,), sleep=(saver.release,), wake=(saver.resume,))
        return hooks

    def profile(self, known: frozenset[str] | None = None) -> Profile:
        """Fit the settings to the binary, and build the profile. Runs `--help` once, which takes seconds.

        Args:
            known: the flags that the binary has; None: its help is read.

        Raises:
            SpawnError: the binary cannot be run at all.
            UnsupportedFlag: the binary lacks a flag that a setting, an extra argument or a key of `config` needs.
            ProfileError: a part of the profile is wrong, `config` and a setting contradict each other, or the binary's
                help lists no flag.
        """
        if known is None:
            inherited = {n: v for n, v in os.environ.items() if any(fnmatchcase(n, p) for p in self.inherit_env)}
            plain = {n: v for n, v in self.env.items() if not isinstance(v, Secret)}  # help needs no secret
            known = flags.capabilities(self.command, inherited | plain)
        liveness = self.liveness or Liveness()
        if self.metrics and liveness.counters_path is None:
            liveness = replace(liveness, counters_path="/metrics", counters_pattern=COUNTERS)
        admin_key = self.admin_key or Secret(secrets.token_hex(32))  # never with a dash in front
        return Profile(
            name=self.name or self.model_id,
            command=(*self.command, *self._arguments(known)),
            env={**self._variables(), ADMIN_KEY: admin_key},
            inherit_env=self.inherit_env,
            host=self.host,
            port=self.port,
            api_key=self.api_key,
            open_access=self.open_access,
            weights=() if self.load_format == "dummy" else weight_files(Path(self.model)),
            vital=VITAL,
            health=Health(model_id=self.model_id, ready_pattern=READY),
            timeouts=self.timeouts or Timeouts(start_s=1200.0),  # captures of CUDA graphs take minutes
            stop=self.stop or STOP,
            restart=self.restart or Restart(),
            liveness=liveness,
            logs=LogLimits(parse=parse_line, tail_lines=TAIL_LINES, tail_errors=TAIL_ERRORS),
            dialect=self.dialect,
        )

    def _variables(self) -> dict[str, str | Secret]:
        own: dict[str, str | Secret] = {**QUICK_CRASH, **self.env, **QUIET_HEALTH}
        if self.event_loop is not None:
            users = self.env.get("PYTHONPATH")
            more = (users,) if isinstance(users, str) and users else ()
            own["PYTHONPATH"] = os.pathsep.join((str(LOOP_FOLDER), *more))
            own.setdefault("USE_LIBUV", "0")  # torch's TCP store is built on libuv too, and opens an io_uring (seen)
        return own

    def _given(self) -> frozenset[str]:
        """The settings that a user's YAML must not contradict."""
        valued = {setting for setting in _VALUED if getattr(self, setting) is not None}
        return frozenset(valued | {setting for setting in _SWITCHES if getattr(self, setting)})

    def _arguments(self, known: frozenset[str]) -> list[str]:
        program = " ".join(self.command)
        out: list[str] = []

        def flag(setting: str, name: str, *value: object) -> None:
            if name not in known:
                raise UnsupportedFlag(field=setting, value=getattr(self, setting), allowed=name, binary=program)
            out.extend((name, *map(str, value)))

        given = {"host": "{host}", "port": "{port}", "served_name": self.model_id}
        for setting in _VALUED:
            value = given.get(setting, getattr(self, setting))
            if value is not None:
                flag(setting, flags.OWNED[setting].split()[0], value)
        if self.metrics:
            flag("metrics", "--enable-metrics")
        if self.memory_saver:
            flag("memory_saver", "--enable-memory-saver")
            flag("memory_saver", "--enable-weights-cpu-backup")
        if self.config is not None:
            flags.check_config(self.config, self._given(), known, program)
        flags.check_extra(self.extra_args, known, program)
        out.extend(self.extra_args)
        for setting, name in (("api_key", "--api-key"), ("admin_key", "--admin-api-key")):
            if name not in known:
                raise UnsupportedFlag(field=setting, value=MASK, allowed=name, binary=program)
        folder = Path(tempfile.gettempdir()) / f"warmboot-sglang-{secrets.token_hex(16)}"
        flag("config", "--config", folder / "keys.yaml")
        return out
