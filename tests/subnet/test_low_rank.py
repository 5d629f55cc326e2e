"""Low-rank language matrices of one pair are folded into a stock transformer of the dense model's size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from taskmoe_plugin.report import files
from taskmoe_plugin.report.content import find_out
from taskmoe_plugin.report.table import summary
from tests.helpers.corpus import PAIRS, Corpus
from tests.helpers.training import WIDER, generate, train
from tests.subnet.helpers import DEFAULT, extract, load, rewrite, write_model
from tests.subnet.stock import assert_equal, stock_fairseq, stock_generate_flags

LOW_RANK = ("--task-low-rank", 3)
DENSE = ("--moe-freq", 0, *LOW_RANK)


@pytest.fixture(scope="module")
def learned_low_rank(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without experts whose low-rank matrices training has moved away from zero."""
    directory = tmp_path_factory.mktemp("low_rank")
    train(corpus, directory, *WIDER, *DENSE, "--max-update", 60, "--no-epoch-checkpoints", "--disable-validation")
    return directory / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def dense(corpus: Corpus, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without experts, of random weights."""
    path = tmp_path_factory.mktemp("dense") / "checkpoint.pt"
    return write_model(corpus, trained / "checkpoint_last.pt", path, *DEFAULT, *DENSE)


def test_what_was_trained_is_translated_alike_by_stock_fairseq(
    corpus: Corpus, learned_low_rank: Path, tmp_path: Path
) -> None:
    state = load(learned_low_rank)["model"]
    assert all(value.any() for name, value in state.items() if name.endswith("low_rank_target"))
    subnet = extract(corpus, learned_low_rank, tmp_path, "en-de", "--verify", "all")
    content = json.loads((subnet / "subnet.json").read_text())
    assert (content["arch"], content["form"]) == ("transformer", "folded")
    folded = load(subnet / "model.pt")
    assert folded["model"].keys() == {name for name in state if ".low_rank_" not in name}
    assert {name: value.shape for name, value in folded["model"].items()} == {
        name: value.shape for name, value in state.items() if ".low_rank_" not in name
    }
    assert not [name for name in folded["cfg"]["model"] if "low_rank" in name]
    [found] = stock_fairseq([("generate", stock_generate_flags(corpus.bin, subnet / "model.pt", "en-de"))])
    assert_equal(found, generate(corpus, learned_low_rank, "en-de").hypotheses)


@pytest.mark.parametrize(
    ("flags", "form", "extraction"),
    [
        (DENSE, "folded", ("--format", "ctranslate2", "--quantization", "float32")),
        (DENSE, "folded", ("--trim-vocabulary",)),
        (LOW_RANK, "folded", ()),
        (LOW_RANK, "folded", ("--unpadded",)),
        ((*DENSE, "--task-low-rank-by", "language"), "folded", ()),
        ((*LOW_RANK, "--encoder-moe-routing", "token"), "partial, encoder whole", ()),
        (
            (*LOW_RANK, "--task-low-rank-by", "language", "--encoder-moe-routing", "token"),
            "partial, encoder whole",
            (),
        ),
        (
            (*LOW_RANK, "--encoder-moe-routing", "token", "--decoder-moe-routing", "token"),
            "partial, encoder and decoder whole",
            (),
        ),
    ],
    ids=["ctranslate2", "trimmed", "experts", "unpadded", "by language", "partial", "partial, by language", "token"],
)
def test_every_form_of_subnet_is_the_full_model(
    corpus: Corpus, trained: Path, tmp_path: Path, flags: Any, form: str, extraction: Any
) -> None:
    path = write_model(corpus, trained / "checkpoint_last.pt", tmp_path / "full.pt", *DEFAULT, *flags)
    subnet = extract(corpus, path, tmp_path, "de-fr", "--verify", "all", *extraction)
    content = json.loads((subnet / "subnet.json").read_text())
    assert content["form"] == form
    if (subnet / "model.pt").exists():
        state = load(subnet / "model.pt")
        assert not [name for name in state["model"] if "low_rank" in name]
    if not extraction:
        report = find_out(path, [corpus.bin] if "token" in flags else [], "valid", 1)
        size = report.subnets[PAIRS.index("de-fr")]
        assert content["subnet"]["parameters"] == (size.padded or size.parameters)
        assert content["full_model"]["parameters"] == report.parameters
        assert "low-rank language matrices of rank 3: " in summary(report)


def test_a_report_on_a_model_without_experts_has_sizes_alone(dense: Path, tmp_path: Path) -> None:
    report = find_out(dense, [], "valid", None)
    files.write(report, tmp_path / "report", plots=False)
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"report.json", "sizes.csv"}
    written = json.loads((tmp_path / "report" / "report.json").read_text())
    matrices = sum(value.numel() for name, value in load(dense)["model"].items() if "low_rank" in name)
    assert written["low_rank"] == {"rank": 3, "parameters": matrices}
    assert {size.parameters for size in report.subnets} == {report.parameters - matrices}


def test_a_union_with_experts_keeps_all_matrices(corpus: Corpus, trained: Path, tmp_path: Path) -> None:
    path = write_model(corpus, trained / "checkpoint_last.pt", tmp_path / "full.pt", *LOW_RANK)
    subnet = extract(corpus, path, tmp_path, "en-de+fr-en", "--verify", "all")
    full, kept = load(path)["model"], load(subnet / "model.pt")["model"]
    matrices = [name for name in full if "low_rank" in name]
    assert matrices
    assert all(torch.equal(kept[name], full[name]) for name in matrices)


def test_a_union_of_one_task_keeps_experts_and_matrices(corpus: Corpus, trained: Path, tmp_path: Path) -> None:
    by_target = ("--encoder-moe-routing", "target", "--decoder-moe-routing", "target")
    path = write_model(corpus, trained / "checkpoint_last.pt", tmp_path / "full.pt", *LOW_RANK, *by_target)
    subnet = extract(corpus, path, tmp_path, "de-en+fr-en", "--verify", 5)
    content = json.loads((subnet / "subnet.json").read_text())
    assert (content["form"], content["arch"]) == ("union", "taskmoe_transformer")


def test_a_direction_that_was_not_trained_folds_where_both_languages_were_trained_on_their_sides(
    corpus: Corpus, dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extract(corpus, dense, tmp_path, "fr-de")

    def forget(state: Any) -> None:
        state["cfg"]["model"].taskmoe_lang_pairs = "en-de,de-fr"

    path = rewrite(dense, tmp_path / "fewer.pt", forget)
    extract(corpus, path, tmp_path, "en-fr")
    with pytest.raises(SystemExit):
        extract(corpus, path, tmp_path, "fr-en")
    assert "no low-rank matrices for the source fr; it was trained on en-de, de-fr" in capsys.readouterr().err


def test_a_union_without_experts_is_refused(
    corpus: Corpus, dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        extract(corpus, dense, tmp_path, "en-de+fr-en")
    assert stopped.value.code == 1
    assert "--lang-pairs en-de+fr-en: low-rank matrices fold for one pair" in capsys.readouterr().err
