"""Stands for `sgl_kernel` where there is no GPU: every name is there, and whatever is called raises."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import NoReturn


class _Absent(ModuleType):
    __path__: list[str] = []  # noqa: RUF012  what makes a module a package

    def __getattr__(self, name: str) -> _Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(f"{self.__name__}.{name}")

    def __call__(self, *_: object, **__: object) -> NoReturn:
        raise NotImplementedError(f"{self.__name__} needs a GPU")


for _part in ("", ".allreduce", ".flash_attn", ".kvcacheio", ".quantization", ".scalar_type"):
    _name = f"sgl_kernel{_part}"
    sys.modules[_name] = _Absent(_name)
