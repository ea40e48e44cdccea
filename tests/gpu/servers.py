"""The sections of `gpu_memory.py` in which supervised servers put their GPU memory aside."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio
import bare
import library
import other_engines
from cycles import Server, Way, play
from driver import used_mib
from prints import say, timed

from hooks.sleep import GpuMemory
from supervisor import Restart, Secret, Timeouts
from supervisor.engines.llama_cpp import LlamaServer
from supervisor.errors import SupervisorError

KEY: Final = Secret("sk-made-up-for-tests")
_TURNS: Final = 5
_LEAVE_MIB: Final = 2048
# Multicast stays off: it can put a host's GPUs out of service where several machines share them.
_NO_MULTICAST: Final = {
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "NVSHMEM_DISABLE_NVLS": "1",
    "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",
    "VLLM_USE_NCCL_SYMM_MEM": "0",
}

Put = Callable[[str, Any], None]


def section(name: str, args: argparse.Namespace) -> Callable[[Put], None]:
    """The section of this name."""
    sections: dict[str, Callable[[argparse.Namespace, Put], None]] = {
        "llama": llama_ways,
        "turns": turns,
        "full": too_full,
        "damage": damaged,
        "vllm": partial(engine_ways, "vllm"),
        "sglang": partial(engine_ways, "sglang"),
        "two": two_gpus,
    }
    return partial(sections[name], args)


@contextmanager
def built_library(args: argparse.Namespace) -> Iterator[Path]:
    """That of the command line, else one built for now."""
    if args.library:
        yield args.library.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="wb-gpu-library-") as folder:
        yield library.compiled(Path(folder))


def write_gemma(args: argparse.Namespace) -> tuple[Path, Path]:
    """The Gemma dummy and its projector of pictures, written unless they are there."""
    folder = args.root.resolve() / f"gemma-{args.shapes}"
    weights, mmproj = folder / "model.gguf", folder / "mmproj.gguf"
    if not mmproj.exists():
        import shapes

        from fakes import tiny_gemma4

        builder = shapes if args.shapes == "real" else tiny_gemma4
        say(f"Gemma: written in {timed(lambda: builder.build(weights))} s")
        width = shapes.REAL["WIDTH"] if args.shapes == "real" else tiny_gemma4.WIDTH
        shapes.build_mmproj(folder / "new", width=width)
        (folder / "new").rename(mmproj)
    return weights, mmproj


def gemma(args: argparse.Namespace) -> LlamaServer:
    """The settings of modal_entry/gemma.py."""
    weights, mmproj = write_gemma(args)
    return LlamaServer(
        binary=args.server.resolve(),
        model=weights,
        mmproj=None if args.no_mmproj else mmproj,
        alias="gemma-4-26b-a4b",
        ctx_size=65_536 if args.shapes == "real" else 4096,
        slots=4,
        gpu_layers=999,
        cache_type_k="q8_0",
        cache_type_v="q8_0",
        flash_attn="on",
        api_key=KEY,
        timeouts=Timeouts(start_s=180, step_s=60, resume_s=60),
        restart=Restart(policy="on-resume", max_restarts=1, jitter=0.0, backoff_s=0.01),
    )


def pairs(put: Put, args: argparse.Namespace, way: Way, built: Path) -> None:
    """Starts and tokens a second, without the library and with it, in turns."""
    rows: dict[str, list[Any]] = {"without": [], "with": []}
    for name, row in [*rows.items()] * args.pairs:
        seen = play(name, replace(way, offload=name == "with"), cycles=0, built=built, speeds=args.speeds)
        kept = ("start_s", "tokens_per_s", "gpu_mib", "error")
        row.append({key: seen[key] for key in kept if key in seen})
        put("cost", rows)


def ways(put: Put, args: argparse.Namespace, found: Mapping[str, Way], built: Path) -> None:
    """Each way's cold start and cycles."""
    for name, way in found.items():
        if name == "the driver alone" and args.driver_cycles is not None:
            way = replace(way, cycles=args.driver_cycles)  # noqa: PLW2901  the slowest
        if not args.way or name in args.way:
            play(name, way, cycles=args.cycles, built=built, speeds=args.speeds, put=put)


def llama_ways(args: argparse.Namespace, put: Put) -> None:
    """llama-server in the Gemma shapes: ours, the driver alone, and what the library costs while awake."""
    engine = gemma(args)
    with built_library(args) as built:
        found = {"our offload": Way(engine=engine, offload=True), "the driver alone": Way(engine=engine)}
        ways(put, args, found, built)
        pairs(put, args, Way(engine=engine), built)


def engine_ways(engine: str, args: argparse.Namespace, put: Put) -> None:
    """vLLM or SGLang: ours first, whose start compiles for all, and the slowest last."""
    settings, shapes = other_engines.ENGINES[engine]
    model, made_s = other_engines.made(args.root, shapes, args.python)
    put("made_s", made_s)
    found = settings(args.python, model)
    found.pop("sleep level 2", None)
    with built_library(args) as built:
        ways(put, args, found, built)
        pairs(put, args, found["the driver alone"], built)


def turns(args: argparse.Namespace, put: Put) -> None:
    """Two servers on one GPU, one of which is awake: seconds from the wish to the other one's first token."""
    engine, rows = gemma(args), list[dict[str, Any]]()
    way = Way(engine=engine, offload=True, checkpoint=False)
    with built_library(args) as built, Server(way, built, proved=False) as one:
        one.record()
        put("gpu_mib_one", used_mib())
        one.daemon.seal()
        with Server(way, built, proved=False) as other:
            other.record()
            put("gpu_mib_other", used_mib())
            awake, asleep = other, one
            for _ in range(2 * _TURNS):
                row: dict[str, Any] = {"sleep_s": timed(awake.daemon.seal), "gpu_mib_both_asleep": used_mib()}
                row["wake_s"] = timed(asleep.daemon.resume)
                row["first_token_s"] = asleep.first_token()
                row["switch_s"] = round(row["sleep_s"] + row["wake_s"] + row["first_token_s"], 3)
                row |= {"gpu_mib": used_mib(), "same": asleep.same()}
                rows.append(row)
                say(f"turn: {row}")
                put("turns", rows)
                awake, asleep = asleep, awake


def too_full(args: argparse.Namespace, put: Put) -> None:
    """Another program takes the GPU's memory while a server sleeps: what the reload says, and that it works later."""
    argv = [args.torch, str(bare.CHILD), *(["--ctypes"] if args.ctypes else [])]
    way = Way(engine=gemma(args), offload=True, checkpoint=False)
    with built_library(args) as built, Server(way, built) as server:
        server.record()
        server.daemon.seal()
        row: dict[str, Any] = {"gpu_mib_asleep": used_mib()}
        with bare.folder() as folder, bare.Program(argv, None, folder, 8, 1, 0) as other:
            row["taken_bytes"] = other.do("take", _LEAVE_MIB)["found"]
            row["gpu_mib_full"] = used_mib()
            row["refused"] = [library.ask(path, op="reload") for path in library.sockets(server.pid)]
            row["kept"] = library.kept(server.pid)
            say(f"full: {row}")
            put("full", row)
        pid = server.pid
        row["resume_s"] = timed(server.daemon.resume)
        row |= {"same": server.same(), "same_child": pid == server.pid}
        put("full", row)


def damaged(args: argparse.Namespace, put: Put) -> None:
    """One byte of what a sleeping server keeps changes: it is found, and a cold start heals it."""
    way = Way(engine=gemma(args), offload=True, checkpoint=False)
    with built_library(args) as built, Server(way, built) as server:
        server.record()
        pid = server.pid
        server.daemon.seal()
        row: dict[str, Any] = {"flipped": library.flip(pid)}
        server.journal.told.clear()
        row["resume_s"] = timed(server.daemon.resume)
        row |= {"replaced": server.pid != pid, "state": str(server.daemon.state), "same": server.same()}
        row["told"] = list(server.journal.told)
        say(f"damage: {row}")
        put("damage", row)


def two_gpus(args: argparse.Namespace, put: Put) -> None:
    """A program on two GPUs; then vLLM with tensor parallelism 2, asleep and awake on its host."""
    wanted = args.way or ("program", "vllm")
    if "program" in wanted:
        argv = [args.torch, str(bare.CHILD), "--device", "0", "--device", "1"]
        with built_library(args) as built, bare.folder() as folder, bare.tried("program", put):
            two_at_once(put, bare.Program(argv, built, folder, args.unit_mib, 12, 4), args.cycles)
    if "vllm" not in wanted:
        return
    model, made_s = other_engines.made(args.root, "qwen3", args.python)
    put("made_s", made_s)
    engine = other_engines.vllm_engine(
        args.python,
        model,
        tensor_parallel_size=2,
        enforce_eager=args.eager,
        extra_args=("--disable-custom-all-reduce",),
        more_env=_NO_MULTICAST,
    )
    way = Way(engine=engine, offload=True, checkpoint=False)
    with built_library(args) as built:
        refused = partial(snapshot_refused, put)
        play("vLLM on two GPUs", way, cycles=args.cycles, built=built, put=put, after=refused)


def two_at_once(put: Put, program: bare.Program, cycles: int) -> None:
    """One process that uses two GPUs, with copies between them before and after."""
    rows: list[dict[str, Any]] = []
    with program:
        expected = program.do("hash")["found"]
        put("peer_before", program.do("peer"))
        put("status", program.library(op="status"))
        for _ in range(cycles):
            rows.append(bare.cycle(program, 8, expected))
            put("program", rows)
        put("peer_after", program.do("peer"))


def snapshot_refused(put: Put, server: Server) -> None:
    """What a seal for a snapshot says of processes on several GPUs."""
    steps = GpuMemory(for_snapshot=True).hooks().sleep
    try:
        anyio.run(steps[0].__call__, server.daemon.supervised.child)
        put("snapshot", "not refused")
    except SupervisorError as refusal:
        put("snapshot", f"{type(refusal).__name__}: {refusal}")
