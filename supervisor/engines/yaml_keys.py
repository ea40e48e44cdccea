"""The keys of an engine's YAML file, read without a YAML library: engines read the file, we look who owns it.

Config files of engines are one mapping, a key a line (`tensor-parallel-size: 2`), with values of any shape below it.
What is written in another way is refused, so that no key can hide.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from supervisor.errors import ProfileError

__all__ = ["top_level_keys"]

_KEY: Final = re.compile(r"""(?:(?P<plain>[A-Za-z_][\w.+-]*)|"(?P<double>[^"\\]*)"|'(?P<single>[^']*)')\s*:(?:\s|$)""")
_FIELD: Final = "config"
_SHAPE: Final = "a YAML mapping with one `key: value` a line, without anchors, tags and braces around the whole"


def top_level_keys(path: Path) -> tuple[str, ...]:
    """Return the keys of the file's one mapping, as they stand there.

    Raises:
        ProfileError: the file cannot be read, or is written in a way that could hide a key.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise ProfileError(field=_FIELD, value=str(path), allowed=f"a readable YAML file ({error})") from error
    keys: list[str] = []
    indent: int | None = None
    for number, line in enumerate(re.split(r"\r\n|[\n\r\x85\u2028\u2029]", text), 1):
        content = line.strip(" \t")
        if not content or content.startswith("#") or (line.rstrip() == "---" and not keys):
            continue
        depth = len(line) - len(line.lstrip(" "))
        indent = depth if indent is None else indent
        if depth > indent or (depth == indent and keys and re.match(r"-(?:\s|$)", content)):
            continue  # belongs to the value of the key above
        found = _KEY.match(content) if depth == indent else None
        if found is None:
            raise ProfileError(field=_FIELD, value=f"{path}:{number}", allowed=_SHAPE)
        key = next(name for name in found.groups() if name is not None)
        if key in keys:
            raise ProfileError(
                field=_FIELD, value=f"{path}:{number}", allowed=f"each key once; {key} stands there twice"
            )
        keys.append(key)
    return tuple(keys)
