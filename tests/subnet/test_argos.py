"""A package for Argos Translate translates as CTranslate2 does, with nothing of language tokens left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from taskmoe_plugin.subnet.argos_format import _code, _name
from taskmoe_plugin.translate.subnets import find_subnet
from taskmoe_plugin.translate.translator import Translator
from tests.helpers.corpus import Corpus
from tests.subnet.helpers import extract
from tests.subnet.peers import require, run_peer

pytest.importorskip("ctranslate2")
# Sentences are lines here: what splits text into sentences would be downloaded.
SCRIPT = """
import json, sys, types
for name in ("stanza", "minisbd"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["minisbd"].SBDetect, sys.modules["minisbd"].models = None, types.SimpleNamespace(cache_dir=None)
from argostranslate import package, sbd, translate

class Lines:
    def __init__(self, pkg):
        pass

    def split_sentences(self, text):
        return text.split("|")

translate.MiniSBDSentencizer = Lines
question = json.load(sys.stdin)
package.install_from_path(question["path"])
[installed] = package.get_installed_packages()
names = [str(language) for language in translate.get_installed_languages()]
translation = translate.get_translation_from_codes(installed.from_code, installed.to_code)
found = [translation.translate(line) for line in question["lines"]]
print(json.dumps({"codes": [installed.from_code, installed.to_code], "names": names, "text": found}))
"""


def lines_of(numbers: Corpus) -> list[str]:
    return (numbers.raw / "test.en").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("flags", [(), ("--trim-vocabulary", "--quantization", "int8")], ids=["whole", "trimmed int8"])
def test_argos_translates_as_ctranslate2_does(
    numbers: Corpus, learned_numbers: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    require("argostranslate")
    options = ("--sentencepiece-model", numbers.raw / "pieces.model", *flags)
    path = learned_numbers
    subnet = extract(numbers, path, tmp_path / "argos", "en-de", "--format", "argos", *options)
    assert sorted(each.name for each in subnet.iterdir()) == [
        "README.md",
        "subnet.json",
        "translate-en_de-1_0.argosmodel",
    ]
    model = extract(numbers, path, tmp_path / "model", "en-de", "--format", "ctranslate2", *options)
    lines = lines_of(numbers)
    question = {"path": str(subnet / "translate-en_de-1_0.argosmodel"), "lines": [*lines, "|".join(lines[:2])]}
    home = {name: str(tmp_path / "home") for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")}
    answer = run_peer(SCRIPT, question, **home, ARGOS_BATCH_SIZE="32", ARGOS_COMPUTE_TYPE="default")
    assert answer["codes"] == ["en", "de"]
    assert sorted(answer["names"]) == ["English", "German"]
    # Argos penalises length in another way and searches four beams.
    translator = Translator(find_subnet(model, None, None), beam_size=4)
    result = translator._model.translate_batch(
        translator._pieces.encode(lines, out_type=str), target_prefix=[["__de__"]] * len(lines), beam_size=4,
        length_penalty=0.2, replace_unknowns=True,
    )  # fmt: skip
    expected = [translator._pieces.decode(each.hypotheses[0][1:]) for each in result]
    *found, two = answer["text"]
    assert found == expected
    assert two == " ".join(expected[:2])
    assert len(set(expected)) > len(expected) / 4


def test_the_package_holds_what_argos_reads(numbers: Corpus, of_numbers: Callable[..., Path], tmp_path: Path) -> None:
    options = ("--format", "argos", "--sentencepiece-model", numbers.raw / "pieces.model", "--verify", "all")
    subnet = extract(numbers, of_numbers(), tmp_path, "de-en", *options)
    content = json.loads((subnet / "subnet.json").read_text())
    path = subnet / content["file"]
    assert content["subnet"]["bytes"] == path.stat().st_size
    assert content["verified"]["de-en"].startswith("20 of 20 hypotheses equal")
    with ZipFile(path) as archive:
        names = {name.removeprefix("translate-de_en-1_0/") for name in archive.namelist()}
        metadata: Any = json.loads(archive.read("translate-de_en-1_0/metadata.json"))
    assert {"metadata.json", "README.md", "sentencepiece.model", "model/model.bin", "model/config.json"} <= names
    assert metadata == {
        "package_version": "1.0", "argos_version": "1.9.0", "from_code": "de", "from_name": "German", "to_code": "en",
        "to_name": "English", "target_prefix": "__en__",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("lang", "code", "name"),
    [("de", "de", "German"), ("eng_Latn", "en", "English"), ("zho_Hans", "zh", "Chinese"),
     ("xx", "xx", "Unknown language [xx]"),
     ("made up", "made up", "made up")],
)  # fmt: skip
def test_argos_is_told_codes_and_names_that_it_knows(lang: str, code: str, name: str) -> None:
    assert (_code(lang), _name(code)) == (code, name)
