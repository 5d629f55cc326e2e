"""``taskmoe translate``: raw text in and out, where neither fairseq nor PyTorch is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from packaging.requirements import Requirement

import taskmoe_plugin
from taskmoe_plugin.cli.translate import _one_line
from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.formats import subnet_name
from taskmoe_plugin.subnet.decoders import CTranslate2Decoder
from taskmoe_plugin.translate.subnets import find_subnet
from tests.helpers.corpus import Corpus
from tests.subnet.helpers import POSITIONS, extract, load

pytest.importorskip("ctranslate2")
ROOT = Path(taskmoe_plugin.__file__).parents[1]
# A machine that has neither.
MAIN = """
import sys
sys.modules.update(dict.fromkeys(("fairseq", "torch", "fairscale", "omegaconf", "sacrebleu")))
from taskmoe_plugin.cli.main import main
main(["translate", *sys.argv[1:]])
"""


def translate(*argv: object, stdin: str | bytes = "") -> subprocess.CompletedProcess[str]:
    finished = subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, argv)], capture_output=True, check=False, cwd="/",
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    return subprocess.CompletedProcess("", finished.returncode, finished.stdout.decode(), finished.stderr.decode())


def error(finished: subprocess.CompletedProcess[str], status: int = 1) -> str:
    """The one line that a command stops with."""
    assert finished.returncode == status
    assert "Traceback" not in finished.stderr
    *_, line = finished.stderr.splitlines()
    return line.removeprefix("taskmoe: error: ")


@pytest.fixture(scope="module")
def folder(numbers: Corpus, learned_numbers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Subnets of two directions, one of them trimmed and quantised."""
    directory = tmp_path_factory.mktemp("folder")
    options = ("--format", "ctranslate2", "--sentencepiece-model", numbers.raw / "pieces.model")
    extract(numbers, learned_numbers, directory, "en-de", *options)
    extract(numbers, learned_numbers, directory, "de-en", *options, "--trim-vocabulary",
            "--quantization", "int8")  # fmt: skip
    return directory


@pytest.fixture(scope="module")
def lines(numbers: Corpus) -> list[str]:
    return (numbers.raw / "test.en").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def expected(numbers: Corpus, learned_numbers: Path, folder: Path, lines: list[str]) -> list[str]:
    """What the model makes of the lines, by hand."""
    task = load(learned_numbers)["cfg"]["task"]
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(numbers.raw / "pieces.model"))
    decoder = CTranslate2Decoder(folder / "en-de", task, "en-de", POSITIONS)
    return [pieces.decode(each) for each in decoder.translate(pieces.encode(lines, out_type=str), beam=5)]


def test_text_becomes_the_text_that_the_model_makes_of_it(folder: Path, lines: list[str], expected: list[str]) -> None:
    finished = translate(folder / "en-de", stdin="".join(f"{line}\n" for line in lines))
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.splitlines() == expected
    assert len(set(expected)) > len(expected) / 4
    assert any("ä" in line or "ü" in line for line in expected)


def test_the_languages_choose_among_several_subnets(folder: Path, lines: list[str], expected: list[str]) -> None:
    text = lines[0] + "\n"
    for flags in (("--target", "de"), ("--source", "en"), ("--source", "en", "--target", "de")):
        assert translate(folder, *flags, stdin=text).stdout == expected[0] + "\n"
    back = translate(folder, "--target", "en", stdin=expected[0])
    assert back.returncode == 0
    assert back.stdout.strip() not in ("", expected[0])
    assert error(translate(folder, stdin=text), 2).endswith(
        "has several subnets (de-en, en-de); choose with --source and --target"
    )
    assert "translates de-en, en-de; give one of these" in error(translate(folder, "--target", "fr"), 2)
    assert "translates en-de" in error(translate(folder / "en-de", "--source", "de"), 2)


def test_a_union_of_many_pairs_is_found_by_its_short_name(folder: Path, lines: list[str], tmp_path: Path) -> None:
    pairs = ["en-de", *(f"x{number:03}-y{number:03}" for number in range(40))]
    for name in (subnet_name(pairs), "copy"):
        shutil.copytree(folder / "en-de", tmp_path / name)
        description = tmp_path / name / "subnet.json"
        content = json.loads(description.read_text(encoding="utf-8"))
        description.write_text(json.dumps({**content, "pairs": pairs}), encoding="utf-8")
    (tmp_path / "copy" / "model.bin").unlink()
    text = lines[0] + "\n"
    found = translate(tmp_path, "--source", "en", "--target", "de", stdin=text)
    assert (found.returncode, found.stdout) == (0, translate(folder / "en-de", stdin=text).stdout)


def test_of_copies_the_one_that_is_named_as_its_pair_is_taken(folder: Path, lines: list[str], tmp_path: Path) -> None:
    text = lines[0] + "\n"
    names = ("en-de", ".en-de.0123abcd.tmp", "en-de.old-0123abcd")
    for name in names:
        shutil.copytree(folder / "en-de", tmp_path / name)
    # Neither of the others is whole.
    for name in names[1:]:
        (tmp_path / name / "model.bin").unlink()
    found = translate(tmp_path, "--source", "en", "--target", "de", stdin=text)
    assert (found.returncode, found.stdout) == (0, translate(folder / "en-de", stdin=text).stdout)
    (tmp_path / "en-de").rename(tmp_path / "another")
    message = error(translate(tmp_path, "--source", "en", stdin=text), 2)
    assert message.endswith("has several subnets of en-de, in another, en-de.old-0123abcd; name the directory of one")


def test_files_are_translated_one_after_the_other(
    folder: Path, lines: list[str], expected: list[str], tmp_path: Path
) -> None:
    (tmp_path / "one").write_bytes("\r\n".join(lines[:2]).encode())
    (tmp_path / "two").write_text("\n".join(lines[2:4]) + "\n")
    finished = translate(folder / "en-de", tmp_path / "one", tmp_path / "two", "--batch-size", 3, "--threads", 1)
    assert finished.stdout == "".join(f"{line}\n" for line in expected[:4])
    assert "nowhere: cannot be read (No such file or directory)" in error(translate(folder / "en-de", "nowhere"))


def test_files_may_follow_flags(folder: Path, lines: list[str], expected: list[str], tmp_path: Path) -> None:
    for name, line in zip(("one", "two"), lines):
        (tmp_path / name).write_text(line + "\n")
    finished = translate(folder, tmp_path / "one", "--source", "en", "--target", "de", tmp_path / "two")
    assert finished.stdout == "".join(f"{line}\n" for line in expected[:2])
    assert error(translate(folder, "--target", "de", tmp_path / "one", "--nonsense"), 2).startswith("unrecognized")


@pytest.mark.parametrize(("closed", "name"), [(0, "input"), (1, "output")])
def test_a_stream_that_is_closed_is_named(folder: Path, closed: int, name: str) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", MAIN, str(folder / "en-de")], stderr=subprocess.PIPE, text=True, check=False,
        preexec_fn=lambda: os.close(closed), env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert error(finished).startswith(f"standard {name}: is closed")


def test_what_is_white_space_to_fairseq_is_white_space(folder: Path, lines: list[str], expected: list[str]) -> None:
    # SentencePiece makes a piece of this one.
    found = translate(folder / "en-de", stdin="\n".join(f"{line}\u0085" for line in lines[:4]))
    assert found.stdout.splitlines() == expected[:4]


def test_line_breaks_that_a_model_spells_are_blanks() -> None:
    assert _one_line("one\ntwo\r\nthree") == "one two  three"


def test_empty_lines_stay_in_place(folder: Path, lines: list[str], expected: list[str]) -> None:
    finished = translate(folder / "en-de", stdin=f"\n{lines[0]}\n  \n\n{lines[1]}\n")
    assert finished.stdout == f"\n{expected[0]}\n\n\n{expected[1]}\n"
    assert translate(folder / "en-de").stdout == ""


def test_greedy_search_is_a_beam_of_one(numbers: Corpus, learned_numbers: Path, folder: Path, lines: list[str]) -> None:
    task = load(learned_numbers)["cfg"]["task"]
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(numbers.raw / "pieces.model"))
    decoder = CTranslate2Decoder(folder / "en-de", task, "en-de", POSITIONS)
    expected = [pieces.decode(each) for each in decoder.translate(pieces.encode(lines, out_type=str), beam=1)]
    found = translate(folder / "en-de", "--beam-size", 1, stdin="\n".join(lines)).stdout.splitlines()
    assert found == expected


def test_a_line_that_is_too_long_is_named_and_the_others_are_translated(
    folder: Path, lines: list[str], expected: list[str]
) -> None:
    # The model has 1,024 positions; one is the language token's and one the sentence end's.
    finished = translate(folder / "en-de", stdin=f"{lines[0]}\n{'x ' * 2000}\n{lines[1]}\n")
    assert finished.stdout == f"{expected[0]}\n\n{expected[1]}\n"
    first, *_ = finished.stderr.splitlines()
    assert first.startswith("taskmoe: standard input, line 2: has ")
    assert first.endswith(" pieces, the model takes 1022; not translated")
    assert error(finished).startswith("1 of the lines were too long")


def test_a_sentence_as_long_as_the_model_takes_is_translated(folder: Path) -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "en-de" / "sentencepiece.bpe.model"))
    text = next(" ".join(["x"] * n) for n in range(1, 1100) if len(pieces.encode(" ".join(["x"] * n))) >= 1022)
    assert len(pieces.encode(text)) == 1022
    finished = translate(folder / "en-de", "--beam-size", 1, stdin=text + "\n")
    assert finished.returncode == 0
    assert finished.stdout.strip()


def test_lines_are_translated_as_they_come(folder: Path, lines: list[str], expected: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, str(folder / "en-de"), "--batch-size", "1"], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True, encoding="utf-8", env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    for line, translation in zip(lines[:3], expected):
        print(line, file=process.stdin, flush=True)
        assert process.stdout.readline() == translation + "\n"
    process.stdin.close()
    assert process.wait() == 0
    process.stdout.close()


def test_a_reader_that_has_enough_ends_it_quietly(folder: Path, lines: list[str], tmp_path: Path) -> None:
    (tmp_path / "text").write_text("".join(f"{line}\n" for line in lines * 5))
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, str(folder / "en-de"), str(tmp_path / "text"), "--batch-size", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


def test_text_that_is_no_utf_8_is_named(folder: Path, lines: list[str]) -> None:
    finished = translate(folder / "en-de", stdin=f"{lines[0]}\n".encode() + b"\xff\xfe\n")
    assert error(finished) == "standard input, line 2: is no UTF-8; convert the text, e.g. with iconv"


def test_what_is_no_subnet_to_translate_with_is_refused(
    numbers: Corpus, learned_numbers: Path, folder: Path, tmp_path: Path
) -> None:
    assert "no such directory" in error(translate(tmp_path / "nowhere"))
    assert "no subnet.json in it" in error(translate(tmp_path))
    fairseq = extract(numbers, learned_numbers, tmp_path / "fairseq", "en-de")
    assert "is in the format fairseq; extract it again with --format ctranslate2" in error(translate(fairseq))
    without = extract(numbers, learned_numbers, tmp_path / "without", "en-de", "--format", "ctranslate2")
    assert "has no SentencePiece model; extract it again" in error(translate(without))
    broken = tmp_path / "broken"
    shutil.copytree(folder / "en-de", broken)
    (broken / "model.bin").write_bytes(b"")
    assert f"{broken}: cannot be loaded" in error(translate(broken))
    for text in ("{", "[" * 100_000):
        (broken / "subnet.json").write_text(text)
        assert "subnet.json: cannot be read" in error(translate(broken))


@pytest.mark.parametrize(
    "values",
    [
        {"pairs": "en-de"}, {"pairs": [1]}, {"pairs": []}, {"pairs": ["en"]}, {"pairs": None}, {"prefixes": None},
        {"prefixes": {}}, {"prefixes": {"en-de": []}}, {"prefixes": {"en-de": {"source": [], "target": "__de__"}}},
        {"prefixes": {"en-de": {"source": [0], "target": []}}}, {"prefixes": {"en-de": {"source": []}}},
        {"max_positions": 5}, {"max_positions": {"source": 1024}}, {"max_positions": {"source": 9, "target": "9"}},
    ],
    ids=str,
)  # fmt: skip
def test_a_description_that_is_damaged_is_named(folder: Path, tmp_path: Path, values: dict[str, Any]) -> None:
    content = json.loads((folder / "en-de" / "subnet.json").read_text())
    (tmp_path / "subnet.json").write_text(json.dumps({**content, **values}))
    with pytest.raises(TaskMoEError, match=r"extract (it|the subnet) again"):
        find_subnet(tmp_path, None, None)


def test_a_package_that_is_missing_is_named(folder: Path) -> None:
    script = "import sys; sys.modules['ctranslate2'] = None\n" + MAIN
    finished = subprocess.run(
        [sys.executable, "-c", script, str(folder / "en-de")], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert error(finished) == "ctranslate2: not installed; pip install 'taskmoe-plugin[translate]'"


@pytest.mark.parametrize(
    ("system", "machine", "python", "training"),
    [("linux", "x86_64", "3.11", True), ("linux", "x86_64", "3.12", True), ("linux", "x86_64", "3.13", False),
     ("linux", "aarch64", "3.12", False), ("darwin", "arm64", "3.12", False), ("win32", "AMD64", "3.12", False)],
)  # fmt: skip
def test_the_extra_needs_fairseq_only_where_it_has_wheels(
    system: str, machine: str, python: str, training: bool
) -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    options = config["options"]["install_requires"], config["options.extras_require"]["translate"]
    wanted = [Requirement(line) for text in options for line in text.split("\n") if line and not line.startswith("#")]
    where = {"sys_platform": system, "platform_machine": machine, "python_version": python}
    needed = {each.name for each in wanted if each.marker is None or each.marker.evaluate(where)}
    assert {"ctranslate2", "sentencepiece", "tqdm"} <= needed
    assert needed.isdisjoint({"fairseq", "ve-fairseq", "torch", "fairscale"}) is not training
