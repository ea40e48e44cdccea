"""Deploys the entries to a local control plane with Modal's own CLI, and prints what Modal would receive."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from modal_proto import api_pb2 as pb
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fakes.modal_host import filled
from modal_entry import gemma, qwen3
from modal_entry.rehearsal.control_plane import ControlPlane
from modal_entry.rehearsal.programs import deploy
from support import ROOT

ENTRIES = {"gemma": gemma.SHEET, "qwen3": qwen3.SHEET}


def main() -> int:
    """Returns 0 when every entry was deployed."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    secrets = {"gemma4-api-key": {"API_KEY"}, "qwen3-api-key": {"API_KEY"}, "huggingface-secret": {"HF_TOKEN"}}
    for entry, sheet in ENTRIES.items():
        with TemporaryDirectory() as home, ControlPlane(secrets=secrets, folders=filled(Path(home), sheet)) as plane:
            cli = deploy(plane, f"modal_entry/{entry}.py", cwd=ROOT)
            if cli.returncode != 0:
                console.print(cli.output, markup=False)
                return 1
            console.print(table(plane, entry))
    return 0


def table(plane: ControlPlane, entry: str) -> Table:
    """One app: a row a fact, a section a function."""
    app = plane.app()
    shown = Table("function", "what", "as Modal receives it", title=f"modal deploy modal_entry/{entry}.py → {app.name}")
    for name, function in sorted(app.functions.items(), key=lambda item: (not item[1].is_server, item[0])):
        for index, (what, value) in enumerate(facts(plane, function)):
            shown.add_row("" if index else name, what, Text(value))  # Text: brackets are no markup
        shown.add_section()
    return shown


def facts(plane: ControlPlane, function: pb.Function) -> list[tuple[str, str]]:
    """What matters of a function, as text."""
    volumes = [f"{v.mount_path} = {plane.volumes[v.volume_id].deployment_name}" for v in function.volume_mounts]
    files = plane.sources(function)
    found = [
        ("image", "\n".join(plane.commands(function.image_id))),
        ("volumes", "\n".join(volumes)),
        ("secrets", ", ".join(filter(None, (plane.secrets[i].deployment_name for i in function.secret_ids)))),
        ("sources", f"{len(files)} files, {sum(map(len, files.values())) / 1000:.0f} kB"),
    ]
    if function.is_server:
        resources, memory = function.resources, f"{function.resources.memory_mb / 1024:.0f} GiB"
        http, scaling = function.http_config, function.autoscaler_settings
        limits = f"startup {http.startup_timeout} s, {http.exit_grace_period} s for requests in flight at a stop"
        containers = f"{scaling.min_containers} to {scaling.max_containers} containers"
        window = f"scaledown after {scaling.scaledown_window} s, {scaling.target_concurrency_float:g} requests each"
        found += [
            ("machine", f"{function.resources.gpu_config.gpu_type}, {resources.milli_cpu / 1000:g} cores, {memory}"),
            ("endpoint", f"port {http.port}, {'the server checks the key' if http.unauthenticated else 'proxy auth'}"),
            ("limits", limits),
            ("scaling", f"{containers}, {window}"),
            ("snapshot", f"memory: {function.checkpointing_enabled}, {dict(function.experimental_options)}"),
        ]
    else:
        found.append(("limits", f"{function.timeout_secs} s"))
    return [(what, value) for what, value in found if value]


if __name__ == "__main__":
    sys.exit(main())
