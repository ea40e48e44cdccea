"""Deploys the entries to a local control plane with Modal's own CLI, and prints what Modal would receive."""

from __future__ import annotations

import sys

from modal_proto import api_pb2 as pb
from rich.console import Console
from rich.table import Table
from rich.text import Text

from modal_entry.rehearsal.control_plane import ControlPlane
from modal_entry.rehearsal.programs import deploy
from support import ROOT

ENTRIES = ("gemma", "qwen3")


def main() -> int:
    """Returns 0 when every entry was deployed."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    secrets = {"gemma4-api-key": {"API_KEY"}, "qwen3-api-key": {"API_KEY"}, "huggingface-secret": {"HF_TOKEN"}}
    for entry in ENTRIES:
        with ControlPlane(secrets=secrets) as plane:
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
        http, scaling = function.http_config, function.autoscaler_settings
        limits = f"startup {http.startup_timeout} s, exit grace {http.exit_grace_period} s"
        containers = f"{scaling.min_containers} to {scaling.max_containers} containers"
        window = f"scaledown after {scaling.scaledown_window} s, {scaling.target_concurrency_float:g} requests each"
        found += [
            ("GPU", function.resources.gpu_config.gpu_type),
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
