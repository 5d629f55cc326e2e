"""Subnets on disk, as ``subnet.json`` describes them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskmoe_plugin.errors import TaskMoEError, UsageError, listed
from taskmoe_plugin.formats import DESCRIPTION, subnet_name

EXTRACT_AGAIN = "extract it again with --format ctranslate2 --sentencepiece-model"


@dataclass(frozen=True)
class Subnet:
    """A subnet in CTranslate2 with its SentencePiece model.

    Attributes:
        directory: where it is.
        source, target: its languages.
        source_prefix, target_prefix: the language tokens to put before source and target.
        pieces: the file of its SentencePiece model.
        max_positions: how many tokens a source and a target may have, each with its end and language token.
    """

    directory: Path
    source: str
    target: str
    source_prefix: tuple[str, ...]
    target_prefix: tuple[str, ...]
    pieces: Path
    max_positions: tuple[int, int]


def find_subnet(path: Path, source: str | None, target: str | None) -> Subnet:
    """The subnet in a directory, or the one for some languages among those in its subdirectories.

    Args:
        path: a subnet's directory, or that of several.
        source, target: the languages; None: there is only one choice.

    Raises:
        UsageError: there are several, or none, for these languages.
        TaskMoEError: there is no subnet, or one that cannot be used.
    """
    if not path.is_dir():
        raise TaskMoEError(f"{path}: no such directory; give one that taskmoe extract wrote")
    # Names with a dot are of subnets that are being written.
    directories = (
        [path] if (path / DESCRIPTION).exists() else [file.parent for file in path.glob(f"[!.]*/{DESCRIPTION}")]
    )
    if not directories:
        raise TaskMoEError(f"{path}: no {DESCRIPTION} in it or its subdirectories; give what taskmoe extract wrote")
    pairs = {directory: _read(directory)["pairs"] for directory in sorted(directories)}
    known = listed(pair for each in pairs.values() for pair in each)
    found = [
        (directory, pair)
        for directory, each in pairs.items()
        for pair in each
        if all(wanted in (None, lang) for wanted, lang in zip((source, target), pair.split("-")))
    ]
    if not found:
        raise UsageError(f"{path}: translates {known}; give one of these as --source and --target")
    # Copies under other names, such as those of subnets that were replaced, give way.
    found = [(directory, pair) for directory, pair in found if directory.name == subnet_name(pairs[directory])] or found
    if len({pair for _, pair in found}) > 1:
        choice = listed(pair for _, pair in found)
        raise UsageError(f"{path}: has several subnets ({choice}); choose with --source and --target")
    if len(found) > 1:
        choice = listed(directory.name for directory, _ in found)
        raise UsageError(f"{path}: has several subnets of {found[0][1]}, in {choice}; name the directory of one")
    return _open(*found[0])


def _read(directory: Path) -> dict[str, Any]:
    path = directory / DESCRIPTION
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TaskMoEError(f"{path}: cannot be read ({error}); extract the subnet again") from None
    pairs = content.get("pairs") if isinstance(content, dict) else None
    if not pairs or not _are_texts(pairs) or not all(pair.count("-") == 1 for pair in pairs):
        raise TaskMoEError(f"{path}: says nothing of a subnet; extract it again")
    return content  # type: ignore[no-any-return]


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _sides(content: Any) -> list[Any]:
    """What is said of the source, and of the target; of a damaged description None."""
    return [content.get(side) if isinstance(content, dict) else None for side in ("source", "target")]


def _open(directory: Path, pair: str) -> Subnet:
    content = _read(directory)
    if content.get("format") != "ctranslate2":
        raise TaskMoEError(f"{directory}: is in the format {content.get('format')}; {EXTRACT_AGAIN}")
    pieces = content.get("sentencepiece_model")
    if not isinstance(pieces, str):
        raise TaskMoEError(f"{directory}: has no SentencePiece model; {EXTRACT_AGAIN}")
    prefixes, positions = content.get("prefixes"), _sides(content.get("max_positions"))
    prefix = _sides(prefixes.get(pair) if isinstance(prefixes, dict) else None)
    if not all(map(_are_texts, prefix)) or not all(type(each) is int for each in positions):
        raise TaskMoEError(f"{directory / DESCRIPTION}: is damaged; extract the subnet again")
    source, target = pair.split("-")
    return Subnet(
        directory=directory,
        source=source,
        target=target,
        source_prefix=tuple(prefix[0]),
        target_prefix=tuple(prefix[1]),
        pieces=directory / pieces,
        max_positions=(positions[0], positions[1]),
    )
