"""Where a subnet is written to, and what is there already."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.formats import DESCRIPTION
from taskmoe_plugin.subnet.report import Row, Size


def check_free(directory: Path, force: bool) -> None:
    """Refuse to write where something is.

    Args:
        directory: where something is going to be written.
        force: whether a directory may be replaced.

    Raises:
        TaskMoEError: it is a file, or holds files and may not be replaced.
    """
    if directory.is_dir():
        if not force and any(directory.iterdir()):
            raise TaskMoEError(
                f"{directory}: exists and is not empty; give --force to replace it, --skip-existing to leave what the "
                "same command made, or another --output-dir"
            )
    elif directory.exists() or directory.is_symlink():
        raise TaskMoEError(f"{directory}: exists and is no directory; give another --output-dir")


def existing_row(directory: Path, name: str, made: Mapping[str, Any], verified: bool) -> Row | None:
    """The line of a subnet that is there already; None if there is none, or another one.

    Args:
        directory: where it would be.
        name: what to call it.
        made: what ``subnet.json`` says of one that was made in the same way.
        verified: whether it must have been verified.
    """
    try:
        content = json.loads((directory / DESCRIPTION).read_text(encoding="utf-8"))
        same = all(content[each] == value for each, value in made.items())
        if not same or (verified and "verified" not in content):
            return None
        full, subnet = (Size(content[each]["parameters"], content[each]["bytes"]) for each in ("full_model", "subnet"))
        return Row(name, content["form"], full, subnet, seconds=0.0, verified=content.get("verified", {}))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # it is of another version, or damaged
