"""Where a subnet is written to, and what is there already."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.formats import DESCRIPTION
from taskmoe_plugin.subnet.report import Row, Size


def check_free(directory: Path, force: bool, skipping: bool = False) -> None:
    """Refuse to write where something is.

    Args:
        directory: where something is going to be written.
        force: whether a directory may be replaced.
        skipping: whether what is there has been found to be another subnet than the one to be made.

    Raises:
        TaskMoEError: it is a file, or holds files and may not be replaced.
    """
    if directory.is_dir():
        if not force and any(directory.iterdir()):
            if skipping:
                raise TaskMoEError(
                    f"{directory}: was not made by the same command of the same checkpoint; give --force to replace "
                    "it, or another --output-dir"
                )
            raise TaskMoEError(
                f"{directory}: exists and is not empty; give --force to replace it, --skip-existing to leave what the "
                "same command made, or another --output-dir"
            )
    elif directory.exists() or directory.is_symlink():
        raise TaskMoEError(f"{directory}: exists and is no directory; give another --output-dir")


def existing_row(directory: Path, name: str, made: Mapping[str, Any]) -> Row | None:
    """The line of a subnet that is there already; None if there is none, or another one.

    Args:
        directory: where it would be.
        name: what to call it.
        made: what ``subnet.json`` says of one that was made in the same way.
    """
    try:
        content = json.loads((directory / DESCRIPTION).read_text(encoding="utf-8"))
        whole = (directory / content["file"]).stat().st_size == content["subnet"]["bytes"]
        if not whole or any(content[each] != value for each, value in made.items()):
            return None
        full, subnet = (Size(content[each]["parameters"], content[each]["bytes"]) for each in ("full_model", "subnet"))
        return Row(name, content["form"], full, subnet, seconds=None, verified=content.get("verified", {}))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # it is of another version, or damaged
