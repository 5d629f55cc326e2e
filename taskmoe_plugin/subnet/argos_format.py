"""Packing a CTranslate2 subnet into a package for Argos Translate and LibreTranslate."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.models.task_table import split_pair
from taskmoe_plugin.subnet.sentencepiece_model import PieceModel

VERSION = "1.0"
ARGOS_VERSION = "1.9.0"  # the first that passes target_prefix on


def check_supported(pairs: Sequence[str]) -> None:
    """Refuse what does not go into a package, and to go on without what knows the names of languages.

    Raises:
        TaskMoEError: there are several pairs, or a package is missing.
    """
    if len(pairs) > 1:
        raise TaskMoEError(f"--format argos: a package has one pair, not {'+'.join(pairs)}; extract them one by one")
    if not (find_spec("langcodes") and find_spec("language_data")):
        raise TaskMoEError("--format argos: needs packages that are not here; pip install langcodes language_data")


def pack(directory: Path, pair: str, model: Path, pieces: PieceModel, target_prefix: Sequence[str], card: str) -> Path:
    """Write the package; returns its path.

    Argos joins the pieces that it gets, language token included, to text. The token is a control symbol of the
    package's SentencePiece model, so that nothing of it is left.

    Args:
        directory: where to; it exists.
        pair: the language pair.
        model: the directory of a CTranslate2 model that adds the source's language token itself.
        pieces: the SentencePiece model of the text.
        target_prefix: what targets begin with, at most one language token.
        card: the text of README.md.
    """
    source, target = (_code(lang) for lang in split_pair(pair))
    metadata = {
        "package_version": VERSION,
        "argos_version": ARGOS_VERSION,
        "from_code": source,
        "from_name": _name(source),
        "to_code": target,
        "to_name": _name(target),
        "target_prefix": "".join(target_prefix),
    }
    name = f"translate-{source}_{target}-{VERSION.replace('.', '_')}"
    path = directory / f"{name}.argosmodel"
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}/metadata.json", json.dumps(metadata, indent=2, ensure_ascii=False))
        archive.writestr(f"{name}/README.md", card)
        archive.writestr(f"{name}/sentencepiece.model", pieces.with_control(target_prefix).serialized())
        for file in sorted(model.iterdir()):
            archive.write(file, f"{name}/model/{file.name}")
    return path


def _code(lang: str) -> str:
    """The ISO 639 code of a language, e.g. en of eng_Latn, which is what Argos calls it."""
    from langcodes import Language
    from langcodes.tag_parser import LanguageTagError

    try:
        return Language.get(lang).language or lang
    except LanguageTagError:
        return re.split("[_-]", lang)[0]


def _name(code: str) -> str:
    from langcodes import Language
    from langcodes.tag_parser import LanguageTagError

    try:
        return Language.get(code).display_name()
    except LanguageTagError:
        return code
