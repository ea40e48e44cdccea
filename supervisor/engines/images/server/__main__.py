"""Starts the image server, from its path or as a module."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path


def _package() -> str:
    """Return the name of this package; run by its path it has none yet, and gets one."""
    if __package__:
        return __package__
    folder = Path(__file__).resolve().parent
    # Python put the folder first on the path, where the names of our modules would hide others.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != folder]
    name = "warmboot_images"
    spec = spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder} cannot be imported")
    sys.modules[name] = package = module_from_spec(spec)
    spec.loader.exec_module(package)
    return name


if __name__ == "__main__":
    import_module(f"{_package()}.run").main()
