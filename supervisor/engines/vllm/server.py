"""`Vllm`: the settings of one `vllm serve`, from which its profile is made.

The command line is fitted to the binary's own `--help=all`. Written for vLLM 0.26 to 0.33.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

from supervisor.engines.settings import argv, check_inherited, check_key, check_model, yaml_file
from supervisor.engines.vllm import flags
from supervisor.engines.vllm.closed_routes import GUARD, GUARD_FOLDER, ClosedRoutes
from supervisor.engines.vllm.dialect import COUNTERS, READY, VITAL, VLLM, parse_line
from supervisor.engines.vllm.guard import warmboot_vllm_guard as guard
from supervisor.engines.vllm.sleep import Level, Sleep, Wake
from supervisor.engines.vllm.weights import cached, weight_files
from supervisor.errors import UnsupportedFlag, require
from supervisor.profile import Health, Liveness, LogLimits, Profile, Restart, Stop, Timeouts
from supervisor.redact import MASK, Secret
from supervisor.steps import Hooks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from supervisor.dialect import Dialect
    from supervisor.engines.help_flags import Binary

__all__ = ["GRACE_S", "SNAPSHOT_ENV", "TAIL_ERRORS", "TAIL_LINES", "Vllm"]

SNAPSHOT_ENV: Final[Mapping[str, str]] = MappingProxyType(
    {
        # As NVIDIA's and Modal's examples of snapshots set them: no pool of compiler processes, no memory mapped for
        # other hosts, no thread that minds the clock.
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "NCCL_CUMEM_ENABLE": "0",
        "NCCL_NVLS_ENABLE": "0",
        "NCCL_IB_DISABLE": "1",
        "NCCL_RAS_ENABLE": "0",
        "TORCH_NCCL_ENABLE_MONITORING": "0",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
        "VLLM_NO_USAGE_STATS": "1",  # a thread that reports to the network every 10 minutes
    }
)
"""Variables under which vLLM can be snapshotted; `Vllm.env` overrides them."""

TAIL_LINES: Final = 40
TAIL_ERRORS: Final = 20  # the last lines of a crash are noise of its interpreter's end; the error stands above
GRACE_S: Final = 20.0  # its processes wait for each other: seen 0.4 to 2.3 s, without requests in flight
LOOP_FOLDER: Final = Path(__file__).parent / "event_loop"
DEV_MODE: Final = "VLLM_SERVER_DEV_MODE"
_COUNTS: Final = ("tensor_parallel_size", "pipeline_parallel_size", "max_model_len", "max_num_seqs")
_OURS: Final = (guard.ADMIN_KEY, guard.OPEN_ACCESS)
_NEVER_INHERITED: Final = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", guard.API_KEY, DEV_MODE, *_OURS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vllm:
    """Settings of one `vllm serve`; `profile()` fits them to the binary. None leaves a setting to the build.

    With an `api_key` or `sleep`, a middleware of ours stands in vLLM's server: every route but health, metrics, ping
    and version wants the key, `/invocations` too, and the administration (sleep, wake, `/collective_rpc`) a key of
    its own, made anew for each profile.

    Attributes:
        model: a directory, or an id of a model hub.
        binary: vLLM's program, in an environment of its own, or the beginning of a command as a tuple; `serve` follows.
        served_name: the name that clients use and readiness checks; default: the last part of `model`.
        host, port: where to listen; port 0 chooses a free one.
        tensor_parallel_size, pipeline_parallel_size: over how many GPUs a layer, and the layers, are spread.
        max_model_len: tokens of the longest context.
        max_num_seqs: requests that are computed at once.
        gpu_memory_utilization: the part of a GPU's memory to take, over 0 and at most 1.
        dtype: of weights and activations, such as `bfloat16`.
        load_format: how weights are read; `dummy` reads none, and its answers mean nothing.
        enforce_eager: no CUDA graphs: starts sooner, answers slower.
        sleep: at which level the engine sleeps while it is sealed: 1 keeps the weights in host memory, 2 drops them
            and reads their files again. None: it stays awake.
        event_loop: `asyncio` keeps uvloop out, which sets up an io_uring on bare Linux, and no snapshot of processes
            holds one; it answers a little slower. None: vLLM's own choice, which is uvloop.
        config: a YAML file of vLLM's, `.yaml` or `.yml`; a key that belongs to a setting that is given is refused.
        shutdown_timeout_s: for how long a stop waits for the requests in flight; the grace period grows by it.
        api_key: travels in the environment, never in argv.
        open_access: serving without a key is meant.
        env: more variables of the child; they win over `SNAPSHOT_ENV`.
        inherit_env: names or shell patterns of the host's variables that the child gets.
        extra_args: other flags of vLLM, as separate arguments, spelled as its help does.
        timeouts, stop, restart, liveness: parts of the profile; liveness gets the server's counters unless it has some.
        name: the profile's; default: the served name.

    Raises:
        ProfileError: at construction; a setting is wrong.
    """

    model: str | Path
    binary: Binary = "vllm"
    served_name: str | None = None
    host: str = "127.0.0.1"
    port: int = 0
    tensor_parallel_size: int | None = None
    pipeline_parallel_size: int | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    gpu_memory_utilization: float | None = None
    dtype: str | None = None
    load_format: str | None = None
    enforce_eager: bool = False
    sleep: Level | None = None
    event_loop: Literal["asyncio"] | None = None
    config: Path | None = None
    shutdown_timeout_s: int | None = None
    api_key: Secret | None = None
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
        for part in _COUNTS:
            value = getattr(self, part)
            require(value is None or (type(value) is int and value >= 1), part, value, "a whole number, 1 or more")
        share = self.gpu_memory_utilization
        require(share is None or 0 < share <= 1, "gpu_memory_utilization", share, "over 0 and at most 1")
        for part in ("dtype", "load_format"):
            value = getattr(self, part)
            require(value is None or bool(value.strip()), part, value, "a name that vllm serve --help=all lists")
        require(self.sleep in (None, 1, 2), "sleep", self.sleep, "1, 2 or None")
        require(self.event_loop in (None, "asyncio"), "event_loop", self.event_loop, "'asyncio' or None")
        wait_s = self.shutdown_timeout_s
        require(wait_s is None or 0 <= wait_s <= 3000, "shutdown_timeout_s", wait_s, "seconds from 0 to 3000")
        if self.config is not None:
            object.__setattr__(self, "config", yaml_file(self.config))
        check_key(self.api_key, open_access=self.open_access)
        for argument in self.extra_args:
            flags.refuse_owned(argument)
        self._check_variables()

    def _check_variables(self) -> None:
        use = {guard.API_KEY: "given as api_key, which probes and Steps then send", DEV_MODE: "given as sleep"}
        for variable in self.env:
            require(variable not in use, "env", variable, use.get(variable, ""))
            require(variable not in _OURS, "env", variable, "left to the profile, which makes it")
        path = self.env.get("PYTHONPATH", "")
        entries = path.split(os.pathsep) if isinstance(path, str) else []
        ours = [entry for entry in entries if entry and (Path(entry) / "supervisor" / "engines").is_dir()]
        require(not ours, "env[PYTHONPATH]", path, "free of this package: vLLM brings another one named supervisor")
        check_inherited(self.inherit_env, _NEVER_INHERITED)

    @property
    def command(self) -> tuple[str, ...]:
        """The program with the arguments that come before `serve`."""
        return argv(self.binary)

    @property
    def model_id(self) -> str:
        """The name under which the model is served."""
        return Path(self.model).name if self.served_name is None else self.served_name

    @property
    def guarded(self) -> bool:
        """Whether our middleware stands in vLLM's server: there is a key to ask for, or an administration to close."""
        return self.api_key is not None or self.sleep is not None

    @property
    def dialect(self) -> Dialect:
        """How the server speaks; behind our guard fewer routes are open."""
        return VLLM

    def hooks(self) -> Hooks:
        """Return the Steps that sleep and wake, and the one that proves at the warmup that strangers cannot."""
        if not self.guarded:
            return Hooks()
        if self.sleep is None:
            return Hooks(warmup=(ClosedRoutes(),))
        closed = ClosedRoutes(sleeps=True)
        return Hooks(warmup=(closed,), sleep=(Sleep(level=self.sleep),), wake=(Wake(level=self.sleep),))

    def profile(self, known: frozenset[str] | None = None) -> Profile:
        """Fit the settings to the binary, and build the profile. Runs `serve --help=all` once, which takes seconds.

        Args:
            known: the flags that the binary has; None: its help is read.

        Raises:
            SpawnError: the binary cannot be run at all.
            UnsupportedFlag: the binary lacks a flag that a setting, an extra argument or a key of `config` needs.
            ProfileError: a part of the profile is wrong, `config` and a setting contradict each other, or the binary's
                help lists no flag.
        """
        inherited = {n: v for n, v in os.environ.items() if any(fnmatchcase(n, p) for p in self.inherit_env)}
        env = inherited | {n: v for n, v in self.env.items() if not isinstance(v, Secret)}  # help needs no secret
        if known is None:
            known = flags.capabilities(self.command, env)
        liveness = self.liveness or Liveness()
        if liveness.counters_path is None and "--disable-log-stats" not in self.extra_args:
            liveness = replace(liveness, counters_path="/metrics", counters_pattern=COUNTERS)
        return Profile(
            name=self.name or self.model_id,
            command=(*self.command, "serve", os.fspath(self.model), *self._arguments(known)),
            env=self._variables(),
            inherit_env=self.inherit_env,
            host=self.host,
            port=self.port,
            api_key=self.api_key,
            api_key_env=guard.API_KEY,
            open_access=self.open_access,
            weights=self._weights(env),
            vital=VITAL,
            health=Health(model_id=self.model_id, ready_pattern=READY),
            # Compiling and capturing graphs take minutes; level 2 reads the weights again before health is asked.
            timeouts=self.timeouts or Timeouts(start_s=1200.0, resume_s=300.0),
            stop=self.stop or Stop(grace_s=GRACE_S + (self.shutdown_timeout_s or 0)),
            restart=self.restart or Restart(),
            liveness=liveness,
            logs=LogLimits(parse=parse_line, tail_lines=TAIL_LINES, tail_errors=TAIL_ERRORS),
            dialect=self.dialect,
        )

    def _weights(self, env: Mapping[str, str]) -> tuple[Path, ...]:
        """The files that the load reads, as far as they are there."""
        if self.load_format == "dummy":
            return ()
        other_revision = any(flags.flag_of(argument) == "--revision" for argument in self.extra_args)
        hub = None if other_revision else cached(os.fspath(self.model), env)
        return weight_files(Path(self.model)) or (weight_files(hub) if hub else ())

    def _variables(self) -> dict[str, str | Secret]:
        own: dict[str, str | Secret] = {**SNAPSHOT_ENV, **self.env, DEV_MODE: "0" if self.sleep is None else "1"}
        if self.guarded:
            own[guard.OPEN_ACCESS] = "1" if self.api_key is None else "0"
        users = self.env.get("PYTHONPATH")
        path = (
            *((str(GUARD_FOLDER),) if self.guarded else ()),
            *((str(LOOP_FOLDER),) if self.event_loop else ()),
            *((users,) if isinstance(users, str) and users else ()),
        )
        if path:
            own["PYTHONPATH"] = os.pathsep.join(path)
        if self.sleep is not None:
            own[guard.ADMIN_KEY] = Secret(secrets.token_urlsafe(32))
        return own

    def _arguments(self, known: frozenset[str]) -> list[str]:
        program = " ".join(self.command)
        out: list[str] = []

        def flag(setting: str, name: str, *value: object) -> None:
            if name not in known:
                shown = MASK if setting == "api_key" else getattr(self, setting)
                raise UnsupportedFlag(field=setting, value=shown, allowed=name, binary=program)
            out.extend((name, *map(str, value)))

        given = {"host": "{host}", "port": "{port}", "served_name": self.model_id}
        for setting in flags.VALUED:
            value = given.get(setting, getattr(self, setting))
            if value is not None:
                flag(setting, flags.OWNED[setting].split()[0], value)
        if self.enforce_eager:
            flag("enforce_eager", "--enforce-eager")
        if self.sleep is not None:
            flag("sleep", "--enable-sleep-mode")
        if self.config is not None:
            set_ones = {s for s in flags.VALUED if getattr(self, s) is not None}
            set_ones |= {"enforce_eager"} if self.enforce_eager else set()
            flags.check_config(self.config, set_ones, known, program)
        flags.check_extra(self.extra_args, known, program)
        out.extend(self.extra_args)
        if self.guarded:  # last, so that it stands before every other middleware
            flag("api_key" if self.sleep is None else "sleep", "--middleware", GUARD)
        return out
