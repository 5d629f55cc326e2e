"""One process translates, validates and extracts with a checkpoint whose experts two processes have saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from taskmoe_plugin.cli.main import main
from tests.helpers.commands import run
from tests.helpers.corpus import Corpus
from tests.helpers.tasks import LANGTOKS, task_flags
from tests.helpers.training import CRITERION, generate, generate_flags, train
from tests.parallel.conftest import Launched
from tests.parallel.training import stage_directory
from tests.subnet.helpers import extract
from tests.subnet.stock import assert_equal, stock_generate_flags

PAIR = "en-de"


@pytest.fixture(scope="module")
def whole(launched: Launched, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint in one file."""
    path = tmp_path_factory.mktemp("whole") / "checkpoint.pt"
    main(["consolidate", str(launched.checkpoint), "--output", str(path)])
    return path


def test_generate_finds_the_experts_beside_the_checkpoint(corpus: Corpus, launched: Launched, whole: Path) -> None:
    found = generate(corpus, launched.checkpoint, PAIR).hypotheses
    assert len(found) == 21
    assert len({text for _, text in found.values()}) > 1
    assert found == generate(corpus, whole, PAIR).hypotheses


def test_a_student_learns_from_it(corpus: Corpus, launched: Launched, tmp_path: Path) -> None:
    flags = ("--criterion", "taskmoe_word_distillation", "--distill-from", launched.checkpoint, "--moe-freq", 0)
    train(corpus, tmp_path, *flags, "--max-update", 1, "--disable-validation")
    assert (tmp_path / "checkpoint_last.pt").exists()


def test_an_ensemble_of_spread_and_whole_checkpoints_translates(
    corpus: Corpus, launched: Launched, whole: Path
) -> None:
    assert_equal(
        generate(corpus, f"{whole}:{launched.checkpoint}", PAIR).hypotheses,
        generate(corpus, whole, PAIR).hypotheses,
    )


def test_interactive_gives_what_generate_gives(corpus: Corpus, launched: Launched) -> None:
    sources = corpus.lines("test", *PAIR.split("-"), "en")
    flags = generate_flags(corpus, launched.checkpoint, PAIR, "--buffer-size", len(sources), "--max-sentences", 8)
    found = run("interactive", *flags, stdin="\n".join(sources) + "\n").hypotheses
    assert_equal(found, generate(corpus, launched.checkpoint, PAIR).hypotheses)


def test_validate_gives_the_loss_of_the_whole_model(corpus: Corpus, launched: Launched, whole: Path) -> None:
    losses = []
    for path in (launched.checkpoint, whole):
        flags = task_flags(corpus, *LANGTOKS, *CRITERION, "--path", path, "--max-tokens", 1000, "--log-format", "json")
        losses.append(run("validate", *flags).stats("valid")[-1]["valid_loss"])
    assert losses[0] == losses[1]


def test_extraction_reads_only_the_files_of_the_experts_it_needs(
    corpus: Corpus, unbroken: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Four processes have one expert each, and the pair needs one in either stack.
    checkpoint = stage_directory(corpus, "adam", 2) / "checkpoint_last.pt"
    main(["consolidate", str(checkpoint), "--output", str(tmp_path / "whole.pt")])
    expected = extract(corpus, tmp_path / "whole.pt", tmp_path / "expected", PAIR)
    gates = json.loads((expected / "subnet.json").read_text())["gates"]
    needed = {expert for stack in gates.values() for layer in stack.values() for expert in layer[PAIR]["experts"]}
    assert len(needed) <= 2
    copied = shutil.copytree(checkpoint.parent, tmp_path / "copied")
    files = torch.load(checkpoint, weights_only=True)["model"]["expert_shards"]["files"]
    for process, file in enumerate(files):
        if process not in needed:
            (copied / file).unlink()
    found = extract(corpus, copied / checkpoint.name, tmp_path / "found", PAIR)
    models = [torch.load(path / "model.pt", weights_only=True)["model"] for path in (found, expected)]
    torch.testing.assert_close(*models, rtol=0, atol=0)
    described = [json.loads((path / "subnet.json").read_text())["full_model"] for path in (found, expected)]
    assert described[0] == described[1]
    missing = copied / files[needed.pop()]
    missing.unlink()
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        extract(corpus, copied / checkpoint.name, tmp_path / "none", PAIR)
    assert exit.value.code == 1
    assert f"{missing}: no such file" in capsys.readouterr().err
    assert not (tmp_path / "none" / PAIR).exists()


def test_a_subnet_of_spread_experts_is_verified_and_translates(
    corpus: Corpus, launched: Launched, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subnet = extract(corpus, launched.checkpoint, tmp_path, PAIR, "--verify", "all")
    assert f"{PAIR} verified: 21 of 21 hypotheses equal" in capsys.readouterr().out
    found = run("generate", *stock_generate_flags(corpus.bin, subnet / "model.pt", PAIR)).hypotheses
    assert_equal(found, generate(corpus, launched.checkpoint, PAIR).hypotheses)


def test_a_union_of_pairs_keeps_its_experts_and_is_verified(
    corpus: Corpus, launched: Launched, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extract(corpus, launched.checkpoint, tmp_path, f"{PAIR}+de-en", "--verify", "all")
    assert f"{PAIR} verified: 21 of 21 hypotheses equal" in capsys.readouterr().out
