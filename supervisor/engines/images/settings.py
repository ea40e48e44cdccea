"""`Images`: the settings of one image server, from which its profile is made."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from supervisor.engines.images.dialect import COUNTERS, IMAGES, READY, accept, parse_line, weight_files
from supervisor.engines.settings import argv, check_key
from supervisor.errors import require
from supervisor.profile import Health, Liveness, LogLimits, Profile, Restart, Stop, Timeouts
from supervisor.redact import Secret
from supervisor.steps import Hooks

if TYPE_CHECKING:
    from supervisor.dialect import Dialect
    from supervisor.engines.help_flags import Binary

__all__ = ["GRACE_S", "KEY_VARIABLE", "PROGRAM", "TAIL_LINES", "Images"]

PROGRAM: Final = Path(__file__).resolve().parent / "server"
"""The server's program, a folder that Python runs: `python PROGRAM --model DIR`."""

KEY_VARIABLE: Final = "IMAGES_API_KEY"
GRACE_S: Final = 30.0  # an image of 50 steps takes longer than the supervisor's own 10 s on a small GPU
TAIL_LINES: Final = 60  # a traceback through diffusers alone has 30 lines
_MULTIPLE_PX: Final = 16
_SENT_S: Final = 4.0  # of the grace is left for the last step and for answers that are still being sent
_COUNTS: Final = {"steps": 1, "max_steps": 1, "max_side": _MULTIPLE_PX, "max_images": 1, "max_queue": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Settings of one image server: a text-to-image pipeline of diffusers behind `POST /v1/images/generations`.

    Attributes:
        python: the interpreter of an environment with torch, diffusers, transformers, uvicorn and starlette, or the
            beginning of a command as a tuple. Our own package need not be there.
        model: the pipeline's folder (with its `model_index.json`); it need not exist yet.
        pipeline: a class of diffusers by name, or `module:Class`.
        served_name: what clients use and readiness checks; default: the folder's name.
        host, port: where to listen; port 0 chooses a free one.
        dtype: torch's name of the weights' type; `auto`: as they are stored.
        device: where it runs; `auto`: cuda where there is one, else cpu.
        steps, guidance: of a request that names none; None: the pipeline's own.
        size: width x height of a request that names none, in multiples of 16.
        max_side, max_steps, max_images: the most that a request may ask for.
        max_queue: requests that wait for their turn, one is drawn at a time; more are refused with 503.
        load: more arguments of `from_pretrained`, such as `{"variant": "fp16"}`.
        call: more arguments of each call of the pipeline.
        offline: never ask the model hub.
        api_key: travels in the environment, never in argv.
        open_access: serving without a key is meant.
        env: more variables of the child.
        inherit_env: names or shell patterns of the host's variables that the child gets; none of Python's, because the
            host's PYTHONPATH would put our packages before the engine's.
        timeouts, stop, restart, liveness: parts of the profile; liveness gets the server's counters unless it has
            some; the running image may use the grace of `stop` less 4 s.
        name: the profile's; default: the served name.

    Raises:
        ProfileError: at construction; a setting is wrong.
    """

    python: Binary
    model: Path
    pipeline: str = "Flux2KleinPipeline"
    served_name: str | None = None
    host: str = "127.0.0.1"
    port: int = 0
    dtype: str = "bfloat16"
    device: str = "auto"
    steps: int | None = 4
    guidance: float | None = 1.0
    size: str = "1024x1024"
    max_side: int = 2048
    max_steps: int = 100
    max_images: int = 4
    max_queue: int = 8
    load: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)
    offline: bool = True
    api_key: Secret | None = None
    open_access: bool = False
    env: Mapping[str, str | Secret] = field(default_factory=dict)
    inherit_env: tuple[str, ...] = (
        *("PATH", "HOME", "USER", "LANG", "LC_*", "TZ", "TMPDIR", "LD_LIBRARY_PATH"),
        *("CUDA_*", "NVIDIA_*", "OMP_*", "MKL_*", "TORCH_*", "PYTORCH_*", "HF_HOME"),
    )
    timeouts: Timeouts | None = None
    stop: Stop | None = None
    restart: Restart | None = None
    liveness: Liveness | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        require(bool(self.command) and all(self.command), "python", self.python, "a program, or a tuple of arguments")
        object.__setattr__(self, "model", Path(self.model))
        require(bool(self.model.name), "model", self.model, "the folder of a pipeline")
        named = re.fullmatch(r"([A-Za-z_][\w.]*:)?[A-Za-z_]\w*", self.pipeline)
        require(bool(named), "pipeline", self.pipeline, "a class of diffusers, or module:Class")
        require(bool(self.model_id.strip()), "served_name", self.model_id, "not blank")
        for part in ("dtype", "device"):
            value = getattr(self, part)
            require(bool(re.fullmatch(r"[\w:]+", value)), part, value, "a word, such as auto")
        for part, low in _COUNTS.items():
            value = getattr(self, part)
            ok = type(value) is int and low <= value <= 1_000_000
            require(ok or (value is None and part == "steps"), part, value, f"a whole number, {low} or more")
        guidance = self.guidance
        number = isinstance(guidance, int | float) and not isinstance(guidance, bool) and math.isfinite(guidance)
        require(guidance is None or (number and 0 <= guidance <= 100), "guidance", guidance, "from 0 to 100, or None")
        require(self.steps is None or self.steps <= self.max_steps, "steps", self.steps, f"<= {self.max_steps}")
        sides = [int(side) for side in self.size.split("x")] if re.fullmatch(r"[1-9]\d*x[1-9]\d*", self.size) else []
        fits = bool(sides) and all(side % _MULTIPLE_PX == 0 and side <= self.max_side for side in sides)
        require(fits, "size", self.size, f"such as 512x768, in multiples of {_MULTIPLE_PX} up to {self.max_side}")
        for part in ("load", "call"):
            object.__setattr__(self, part, _json_object(part, getattr(self, part)))
        check_key(self.api_key, open_access=self.open_access)
        hidden = f"given as api_key, which probes and Steps then send, not as {KEY_VARIABLE}"
        require(KEY_VARIABLE not in self.env, "env", KEY_VARIABLE, hidden)

    @property
    def command(self) -> tuple[str, ...]:
        """The interpreter with the arguments that come before the program."""
        return argv(self.python)

    @property
    def model_id(self) -> str:
        """The name under which the model is served."""
        return self.model.name if self.served_name is None else self.served_name

    @property
    def dialect(self) -> Dialect:
        """How the server speaks."""
        return IMAGES

    def hooks(self) -> Hooks:
        """Return no Steps: the server needs none."""
        return Hooks()

    def profile(self) -> Profile:
        """Build the profile; looks for the weights in the model's folder.

        Raises:
            ProfileError: a part of the profile is wrong.
        """
        liveness = self.liveness or Liveness()
        if liveness.counters_path is None:
            liveness = replace(liveness, counters_path="/metrics", counters_pattern=COUNTERS)
        stop = self.stop or Stop(grace_s=GRACE_S)
        return Profile(
            name=self.name or self.model_id,
            command=(*self.command, os.fspath(PROGRAM), *self._arguments(stop)),
            env={**({"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"} if self.offline else {}), **self.env},
            inherit_env=self.inherit_env,
            host=self.host,
            port=self.port,
            api_key=self.api_key,
            api_key_env=KEY_VARIABLE,
            open_access=self.open_access,
            weights=tuple(path for path in weight_files(self.model) if path.is_file()),
            health=Health(accept=accept, model_id=self.model_id, ready_pattern=READY),
            timeouts=self.timeouts or Timeouts(),
            stop=stop,
            restart=self.restart or Restart(),
            liveness=liveness,
            logs=LogLimits(parse=parse_line, tail_lines=TAIL_LINES),
            dialect=self.dialect,
        )

    def _arguments(self, stop: Stop) -> list[str]:
        out = ["--host", "{host}", "--port", "{port}", "--model", os.fspath(self.model)]
        given = {"pipeline": self.pipeline, "served-model-name": self.model_id, "dtype": self.dtype}
        given |= {"device": self.device, "size": self.size}
        counts = ("steps", "guidance", "max_side", "max_steps", "max_images", "max_queue")
        for name, value in (*given.items(), *((part.replace("_", "-"), getattr(self, part)) for part in counts)):
            if value is not None:
                out += [f"--{name}", str(value)]
        out += ["--grace-s", f"{max(stop.grace_s - _SENT_S, stop.grace_s / 2):g}"]
        for part in ("load", "call"):
            if value := getattr(self, part):
                out += [f"--{part}", _braces(json.dumps(value))]
        return out


def _json_object(name: str, value: object) -> dict[str, Any]:
    """A copy of the mapping, once it is sure that it can be written as JSON."""
    allowed = "a mapping that JSON can hold"
    require(isinstance(value, Mapping), name, value, allowed)
    assert isinstance(value, Mapping)
    try:
        out = json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError):
        require(False, name, value, allowed)
        raise
    assert isinstance(out, dict)
    return out


def _braces(text: str) -> str:
    """The text with what a profile would substitute written so that it stays."""
    return re.sub(r"\{(host|port)\}", r"{{\1}}", text)
