"""Training goes on from a dense model of stock fairseq, with experts."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from taskmoe_plugin.cli.main import main
from tests.convert.checkpoints import load
from tests.helpers.commands import run
from tests.helpers.corpus import LANGS, PAIRS, Corpus
from tests.helpers.tasks import LANGTOKS, task_flags
from tests.helpers.training import CRITERION, LOGGING, OPTIMIZER, SIZES, generate, train
from tests.subnet.helpers import extract

STOCK = ("--task", "translation_multi_simple_epoch", "--langs", ",".join(LANGS), "--cpu", "--num-workers", 0, *LANGTOKS)
# Two slices of the networks.
SPARSE = ("--moe-freq", 1, "--moe-expert-ffn-dim", 12)


@pytest.fixture(scope="module")
def dense(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model of stock fairseq's own task and criterion, two updates old."""
    directory = tmp_path_factory.mktemp("dense")
    run(
        "train", corpus.bin, *STOCK, "--lang-pairs", ",".join(PAIRS), "--arch", "transformer", *SIZES, *OPTIMIZER,
        "--share-all-embeddings", "--criterion", "label_smoothed_cross_entropy", "--max-tokens", 300, *LOGGING,
        "--max-update", 2, "--disable-validation", "--save-dir", directory,
    )  # fmt: skip
    return directory / "checkpoint_last.pt"


def upcycle(dense: Path, output: Path, *flags: Any) -> Path:
    main(
        ["convert", "upcycle", *map(str, (dense, "--output", output, "--moe-expert-count", 4, "--moe-freq", 1, *flags))]
    )
    return output


def test_it_translates_as_the_dense_model(corpus: Corpus, dense: Path, tmp_path: Path) -> None:
    path = upcycle(dense, tmp_path / "sparse.pt", "--encoder-moe-routing", "token")
    expected = run(
        "generate", corpus.bin, *STOCK, "--lang-pairs", "en-de", "--source-lang", "en", "--target-lang", "de", "--path",
        dense, "--max-len-b", 12, "--beam", 2, "--required-batch-size-multiple", 1,
    ).hypotheses  # fmt: skip
    found = generate(corpus, path, "en-de").hypotheses
    assert {number: text for number, (_, text) in found.items()} == {n: text for n, (_, text) in expected.items()}
    assert [found[each][0] for each in expected] == pytest.approx([score for score, _ in expected.values()], abs=1e-4)


def test_whatever_reads_a_model_reads_one_made_of_stock_fairseqs(corpus: Corpus, dense: Path, tmp_path: Path) -> None:
    sparse = upcycle(dense, tmp_path / "sparse.pt")
    flags = task_flags(corpus, *LANGTOKS, *CRITERION, "--path", sparse, "--max-tokens", 300, "--log-format", "json")
    assert run("validate", *flags).stats("valid")
    extract(corpus, sparse, tmp_path / "subnets", "en-de", "--verify", 5)
    moefied, pruned = tmp_path / "moefied.pt", tmp_path / "pruned.pt"
    flags = ("--output", moefied, "--experts", 4, "--keep", 2, "--data", corpus.bin)
    main(["convert", "moefy", *map(str, (dense, *flags))])
    by_token = upcycle(dense, tmp_path / "by_token.pt", "--encoder-moe-routing", "token")
    main(["report", *map(str, (by_token, "--data", corpus.bin, "--output-dir", tmp_path / "report", "--no-plots"))])
    main(["convert", "prune", *map(str, (by_token, "--output", pruned, "--experts", 2, "--data", corpus.bin))])
    for each in (moefied, pruned):
        assert generate(corpus, each, "en-de").hypotheses


def test_training_starts_from_a_dense_model_and_says_so(
    corpus: Corpus, dense: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "taskmoe_plugin")
    train(
        corpus, tmp_path, *SPARSE, "--finetune-from-model", dense, "--lr", 0, "--max-update", 1, "--disable-validation"
    )
    lines = [text for text in caplog.messages if text.startswith("the checkpoint is dense: ")]
    assert len(lines) == 1
    assert "2 feed-forward networks of the decoder became 4 experts each" in lines[0]
    # With a learning rate of 0, what is saved is what was made, and what the command makes.
    model = load(tmp_path / "checkpoint_last.pt")["model"]
    expected = load(upcycle(dense, tmp_path / "sparse.pt"))["model"]
    for name in (each for each in expected if not each.endswith((".embedding", ".share"))):
        assert torch.equal(model[name], expected[name]), name


def test_the_optimizer_goes_on(corpus: Corpus, dense: Path, tmp_path: Path) -> None:
    path = upcycle(dense, tmp_path / "sparse.pt", "--optimizer")
    before, after = load(dense), load(path)
    flags = ("--restore-file", path, "--max-update", 3, "--disable-validation", *LOGGING)
    output = train(corpus, tmp_path / "on", *SPARSE, *flags)
    assert [each["num_updates"] for each in output.stats("train_inner")] == ["3"]
    dense_state, state = before["last_optimizer_state"]["state"], after["last_optimizer_state"]["state"]
    # Parameters are numbered; the first are the same in both, up to the first network.
    first = next(number for number, each in dense_state.items() if each["exp_avg"].shape == (24, 16))
    for number in range(first):
        torch.testing.assert_close(state[number], dense_state[number], rtol=0, atol=0)
    stacked = [each for each in state.values() if each["exp_avg"].shape == (4, 12, 16)]
    assert torch.equal(stacked[0]["exp_avg"][[0, 2]].flatten(0, 1), dense_state[first]["exp_avg"])
    assert torch.equal(stacked[0]["exp_avg_sq"][[1, 3]].flatten(0, 1), dense_state[first]["exp_avg_sq"])
    assert {each["step"] for each in state.values()} == {2}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--restore-file", "DENSE"], "--restore-file DENSE: is a dense model, which has no "
         "experts to go on with; give one of taskmoe_transformer, or, to make experts of its networks, --finetune"),
        (["--finetune-from-model", "DENSE", "--langs", "de,en,fr"], "--langs de,en,fr: --finetune-from-model DENSE "
         "was trained with --langs en,de,fr; give the same"),
        (["--finetune-from-model", "DENSE", "--moe-expert-ffn-dim", 7], "--moe-expert-ffn-dim 7: the encoder has"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(
    corpus: Corpus, dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[Any], message: str
) -> None:
    with pytest.raises(SystemExit) as exit:
        train(corpus, tmp_path, *SPARSE, *(str(each).replace("DENSE", str(dense)) for each in flags))
    assert exit.value.code == 2
    assert message.replace("DENSE", str(dense)) in capsys.readouterr().err


def test_a_save_directory_of_a_dense_model_is_refused(
    corpus: Corpus, dense: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train(corpus, dense.parent, *SPARSE)
    assert f"{dense}: is a dense model, which has no experts to go on" in capsys.readouterr().err
