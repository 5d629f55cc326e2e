"""What validation reports: the same in training and from fairseq-validate, for every direction."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sacrebleu import corpus_bleu, corpus_chrf

from tests.helpers.commands import run
from tests.helpers.corpus import PAIRS, Corpus
from tests.helpers.tasks import task_flags
from tests.helpers.training import CRITERION, LANGTOKS, WIDER, generate, routing_flags, train

GATES = [f"{stack}_{name}" for stack in ("encoder", "decoder") for name in ("balance_loss", "gate_entropy")]


@pytest.mark.parametrize("routing", [("source", "target"), ("token", "sentence")], ids="/".join)
def test_validate_reports_what_training_reported(corpus: Corpus, tmp_path: Path, routing: tuple[str, str]) -> None:
    flags = ("--max-update", 5, "--no-epoch-checkpoints", *routing_flags(*routing, tmp_path))
    (trained,) = train(corpus, tmp_path, *flags).stats("valid")
    log = run(
        "validate", *task_flags(corpus, *LANGTOKS, *CRITERION), "--path", tmp_path / "checkpoint_last.pt",
        "--max-tokens", 300, "--log-format", "json", "--required-batch-size-multiple", 8,
    )  # fmt: skip
    (validated,) = log.stats("valid")
    for name in ("loss", "nll_loss", *GATES, *(f"{pair}_nll_loss" for pair in PAIRS)):
        assert float(validated[f"valid_{name}"]) == pytest.approx(float(trained[f"valid_{name}"]), abs=2e-3), name


def test_bleu_of_validation_is_that_of_generate(corpus: Corpus, checkpoint: Path, tmp_path: Path) -> None:
    flags = (
        "--eval-bleu", "--eval-bleu-args", '{"beam": 2, "max_len_b": 12}', "--best-checkpoint-metric", "bleu",
        "--maximize-best-checkpoint-metric", "--max-epoch", 2, "--max-update", 0, "--keep-best-checkpoints", 1,
        "--no-epoch-checkpoints", "--finetune-from-model", checkpoint, *WIDER, "--lr", 0.002,
    )  # fmt: skip
    log = train(corpus, tmp_path, *flags)
    scores = [float(each["valid_bleu"]) for each in log.stats("valid")]
    assert len(scores) == 2
    assert max(scores) > 1
    best = log.stats("valid")[scores.index(max(scores))]
    kept = tmp_path / "checkpoint_best.pt"
    assert torch.load(kept, weights_only=True)["extra_state"]["best"] == pytest.approx(max(scores))
    for pair in PAIRS:
        output = generate(corpus, kept, pair, "--gen-subset", "valid")
        source, target = pair.split("-")
        references = corpus.lines("valid", source, target, target)
        hypotheses = [text for _, (_, text) in sorted(output.hypotheses.items())]
        assert len(hypotheses) == len(references)
        expected = corpus_bleu(hypotheses, [references]).score
        assert float(best[f"valid_{pair}_bleu"]) == pytest.approx(expected, abs=0.01)
        chrf = corpus_chrf(hypotheses, [references]).score
        assert float(best[f"valid_{pair}_chrf"]) == pytest.approx(chrf, abs=0.01)
    mean = sum(float(best[f"valid_{pair}_bleu"]) for pair in PAIRS) / len(PAIRS)
    assert max(scores) == pytest.approx(mean, abs=0.02)


def test_a_moving_average_is_kept_and_validated(corpus: Corpus, tmp_path: Path) -> None:
    train(corpus, tmp_path, "--store-ema", "--ema-decay", 0.5)
    saved = torch.load(tmp_path / "checkpoint_last.pt", weights_only=True)
    averaged = saved["extra_state"]["ema"]
    assert averaged.keys() == saved["model"].keys()
    name = "encoder.layers.1.moe.experts.fc1_weight"
    assert not torch.equal(averaged[name], saved["model"][name])
