"""What verification accepts, refuses, and says of it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.subnet import verify
from taskmoe_plugin.subnet.checkpoint import Checkpoint
from taskmoe_plugin.subnet.references import References
from taskmoe_plugin.subnet.verify import Agreement, Sentences, compare
from tests.helpers.corpus import Corpus, binarize
from tests.subnet.helpers import DEFAULT, UNSHARED, extract, write_model

SENTENCES = Sentences([["a"], ["b"]], [["A"], ["B"]])


@dataclass
class Fixed:
    """A decoder that translates as it is told, and gives every piece the score it is told."""

    translations: list[list[str]]
    scores: dict[str, float] = field(default_factory=dict)

    def translate(self, sources: Sequence[list[str]], beam: int) -> list[list[str]]:
        return self.translations

    def score(self, sources: Sequence[list[str]], targets: Sequence[list[str]]) -> list[list[float]]:
        return [[self.scores.get(piece, -1.0) for piece in [*target, "end"]] for target in targets]


def found(scores: dict[str, float], beam: int | None, other: list[str]) -> Agreement:
    full = Fixed([["A", "x"], ["B"]], scores)
    return compare("en-de", full, Fixed([other, ["B"]], scores), SENTENCES, SENTENCES, beam)


def test_equal_translations_are_counted() -> None:
    agreement = found({}, 5, ["A", "x"])
    assert str(agreement).startswith("2 of 2 hypotheses equal, scores of 2 references differ by at most 0.0e+00")


def test_translations_that_are_equally_good_are_a_tie() -> None:
    agreement = found({"x": -1.000002}, 5, ["A", "y"])
    assert (agreement.tied, agreement.different) == (1, [])
    assert str(agreement).startswith("1 of 2 hypotheses equal, 1 equally good, scores of 2")


def test_translations_of_other_scores_are_different() -> None:
    agreement = found({"x": -1.1}, 5, ["A", "y"])
    assert (agreement.tied, agreement.different) == (0, [(0, "A x", "A y")])


@pytest.mark.parametrize(("score", "ties"), [(-1.000002, 1), (-1.1, 0)])
def test_without_a_beam_the_first_piece_that_differs_decides(score: float, ties: int) -> None:
    assert found({"x": score, "z": -5.0}, 1, ["A", "y", "z"]).tied == ties
    assert found({"x": score}, 1, ["A"]).tied == ties


@pytest.mark.parametrize("score", [math.nan, -math.inf])
@pytest.mark.parametrize(("full", "subnet", "blamed"), [(1, 0, "the full model"), (0, 1, "the subnet")])
def test_scores_that_are_no_numbers_are_no_agreement(score: float, full: int, subnet: int, blamed: str) -> None:
    decoders = [Fixed([["A"], ["B"]], {"B": score} if wrong else {}) for wrong in (full, subnet)]
    with pytest.raises(TaskMoEError, match=f"--verify en-de: {blamed} gives references scores that are no finite"):
        compare("en-de", *decoders, SENTENCES, SENTENCES, None)


@pytest.mark.parametrize(
    ("different", "largest", "mean", "rounded", "accepted"),
    [
        ([], 0.9e-4, 0.9e-4, False, True),
        ([], 1.1e-4, 0.0, False, False),
        ([(0, "A", "B")], 0.0, 0.0, False, False),
        ([(0, "A", "B")], 5.0, 0.09, True, True),
        ([], 0.2, 0.2, True, False),
    ],
)
def test_what_agreement_is_enough(
    different: list[tuple[int, str, str]], largest: float, mean: float, rounded: bool, accepted: bool
) -> None:
    agreement = Agreement(2, 0, different, 2, 0, largest, mean)
    if accepted:
        verify._check("en-de", agreement, rounded)
    else:
        with pytest.raises(TaskMoEError, match="--verify en-de: the subnet is not the full model"):
            verify._check("en-de", agreement, rounded)


def test_nothing_compared_is_no_agreement() -> None:
    nothing = compare("en-de", Fixed([]), Fixed([]), SENTENCES, Sentences([], []), None)
    with pytest.raises(TaskMoEError, match="--verify en-de: nothing was compared, because all 2 sentences"):
        verify._check("en-de", nothing, rounded=False)


def test_sentences_that_were_left_out_are_counted() -> None:
    some = compare("en-de", Fixed([]), Fixed([]), SENTENCES, Sentences([["a"]], [["A"]]), None)
    assert str(some).endswith("on average (1 more have pieces that were trimmed)")


def test_a_trimmed_subnet_that_cannot_be_compared_is_not_kept(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Corpus(tmp_path / "raw", tmp_path / "bin")
    data.raw.mkdir()
    for split, word in (("train", "ba"), ("valid", "ba"), ("test", "wi")):
        for lang in ("en", "de"):
            (data.raw / f"{split}.en-de.{lang}").write_text(f"{word}{'en' if lang == 'de' else ''}\n")
    binarize(data, "en-de", corpus.bin / "dict.en.txt")
    (data.bin / "dict.fr.txt").write_bytes((data.bin / "dict.en.txt").read_bytes())
    with pytest.raises(SystemExit) as stopped:
        extract(data, full, tmp_path / "out", "en-de", "--trim-vocabulary", "--verify")
    assert stopped.value.code == 1
    assert "nothing was compared" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_where_the_source_alone_is_trimmed_scores_are_compared(corpus: Corpus, trained: Path, tmp_path: Path) -> None:
    full = write_model(corpus, trained / "checkpoint_last.pt", tmp_path / "full.pt", *DEFAULT, UNSHARED)
    data = Corpus(tmp_path / "raw", tmp_path / "bin")
    data.raw.mkdir()
    everything = " ".join(line.split()[0] for line in (corpus.bin / "dict.en.txt").read_text().splitlines())
    for split, text in (("train", "ba do\n"), ("valid", "ba\n"), ("test", "wi\nba do\n")):
        (data.raw / f"{split}.en-de.en").write_text(text)
        (data.raw / f"{split}.en-de.de").write_text(f"{everything}\n" * text.count("\n"))
    binarize(data, "en-de", corpus.bin / "dict.en.txt")
    (data.bin / "dict.fr.txt").write_bytes((data.bin / "dict.en.txt").read_bytes())
    subnet = extract(data, full, tmp_path / "out", "en-de", "--trim-vocabulary", "--verify", "all")
    content = json.loads((subnet / "subnet.json").read_text())
    assert content["verified"]["en-de"].startswith("scores of 1 references")
    assert content["verified"]["en-de"].endswith("(1 more have pieces that were trimmed)")
    assert (subnet / "dict.en.txt").read_text().count("\n") < (subnet / "dict.de.txt").read_text().count("\n")


@pytest.mark.parametrize("text", ["ba <pad> do", "<pad> ba do", "ba do <pad>", "<pad> <pad>", "ba <pad> <pad> do fi"])
def test_padding_symbols_in_the_text_change_nothing(corpus: Corpus, full: Path, tmp_path: Path, text: str) -> None:
    data = Corpus(tmp_path / "raw", tmp_path / "bin")
    data.raw.mkdir()
    for lang in ("en", "de"):
        for split in ("train", "valid", "test"):
            # The second sentence is longer, so that the first is padded as well.
            lines = f"{text}\nba do fi gu ka lo mi nu\nba <pad>\n"
            (data.raw / f"{split}.en-de.{lang}").write_text(lines)
    binarize(data, "en-de", corpus.bin / "dict.en.txt")
    extract(data, full, tmp_path / "out", "en-de", "--verify", "all")


SHORT = ("--max-source-positions", 7, "--max-target-positions", 7)


@pytest.mark.parametrize("learned", [(), ("--encoder-learned-pos", "--decoder-learned-pos")], ids=["sines", "learned"])
@pytest.mark.parametrize("format", ["fairseq", "ctranslate2"])
def test_sentences_longer_than_the_model_takes_are_left_out(
    corpus: Corpus,
    trained: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    learned: tuple[str, ...],
    format: str,
) -> None:
    full = write_model(corpus, trained / "checkpoint_last.pt", tmp_path / "full.pt", *DEFAULT, *SHORT, *learned)
    subnet = extract(corpus, full, tmp_path / "subnets", "en-de", "--format", format, "--verify", "all")
    # Besides words, a language token and an end.
    lengths = [len(line.split()) + 2 for line in corpus.lines("test", "en", "de", "en")]
    too_long = sum(length > 7 for length in lengths)
    assert 0 < too_long < len(lengths)
    assert f"test.en-de.*: {too_long} sentences are longer than the model takes, and left out" in caplog.text
    verified = json.loads((subnet / "subnet.json").read_text())["verified"]["en-de"]
    assert f"of {len(lengths) - too_long} hypotheses" in verified
    # What runs the whole model over sentences leaves out the same.
    caplog.clear()
    References(Checkpoint.open(full), [corpus.bin], ["en-de"], "test", None).run("en-de")
    assert f"{too_long} sentences are longer" in caplog.text


def test_a_set_of_nothing_but_long_sentences_is_refused(
    corpus: Corpus, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--max-source-positions", 2, "--max-target-positions", 9)
    full = write_model(corpus, trained / "checkpoint_last.pt", tmp_path / "full.pt", *DEFAULT, *flags)
    with pytest.raises(SystemExit):
        extract(corpus, full, tmp_path / "subnets", "en-de", "--verify", "all")
    expected = "all sentences are longer than the model takes, 0 pieces of source and 7 of target; name another set"
    assert expected in capsys.readouterr().err
