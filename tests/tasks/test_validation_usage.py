"""With --tensorboard-logdir, every validation writes which experts the tasks use; the log stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.logging import progress_bar

from taskmoe_plugin.report.content import find_out
from tests.helpers.corpus import PAIRS, Corpus
from tests.helpers.training import routing_flags, train


class Writer:
    """Takes the place of TensorBoard's writer."""

    histograms: dict[tuple[str, int], dict[str, Any]]
    directories: list[str]

    def __init__(self, directory: str) -> None:
        self.directory = Path(directory).name
        self.directories.append(self.directory)

    def add_histogram_raw(self, tag: str, global_step: int, **histogram: Any) -> None:
        assert self.directory == "experts"
        assert (tag, global_step) not in self.histograms
        self.histograms[tag, global_step] = histogram

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        assert self.directory != "experts"
        assert "usage" not in tag

    def add_text(self, *args: Any) -> None:
        pass

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> type[Writer]:
    Writer.histograms, Writer.directories = {}, []
    monkeypatch.setattr(progress_bar, "SummaryWriter", Writer)
    monkeypatch.setattr(progress_bar, "_tensorboard_writers", {})
    return Writer


def validating(directory: Path) -> tuple[Any, ...]:
    return ("--max-update", 4, "--save-interval-updates", 2, "--no-epoch-checkpoints",
            "--tensorboard-logdir", directory / "log")  # fmt: skip


@pytest.mark.parametrize("routing", [("token", "target"), ("sentence", "token"), ("pair", "source")], ids="/".join)
def test_what_is_written_is_what_a_report_on_the_checkpoint_says(
    corpus: Corpus, tmp_path: Path, writer: type[Writer], routing: tuple[str, str]
) -> None:
    train(corpus, tmp_path, *validating(tmp_path), *routing_flags(*routing, tmp_path))
    assert writer.directories.count("experts") == 1
    expected = {}
    for step in (2, 4):
        [path] = tmp_path.glob(f"checkpoint_*_{step}.pt")
        for usage in find_out(path, [corpus.bin], "valid", None).stacks:
            for layer, each in usage.layers.items():
                for task, weight in zip(usage.tasks, each.weight):
                    expected[f"{usage.stack}_layer_{layer}/{task}", step] = weight
    assert writer.histograms.keys() == expected.keys()
    for key, weight in expected.items():
        found = writer.histograms[key]
        assert torch.allclose(torch.tensor(found["bucket_counts"]), weight, atol=1e-4), key
        assert found["bucket_limits"] == [0.5, 1.5, 2.5, 3.5]
        assert found["num"] == pytest.approx(1)
        assert found["sum"] == pytest.approx(float(weight @ torch.arange(4.0)), abs=1e-4)


def test_neither_the_log_nor_the_checkpoint_has_more_in_it(
    corpus: Corpus, tmp_path: Path, writer: type[Writer]
) -> None:
    flags = ("--max-update", 2, "--encoder-moe-routing", "token")
    plain = train(corpus, tmp_path / "plain", *flags)
    watched = train(corpus, tmp_path / "watched", *flags, "--tensorboard-logdir", tmp_path / "log")
    assert writer.histograms
    meters = []
    for name in ("plain", "watched"):
        state = torch.load(tmp_path / name / "checkpoint_last.pt", weights_only=True)["extra_state"]["metrics"]
        meters.append({kind: [meter[1] for meter in each] for kind, each in state.items()})
    assert meters[0] == meters[1]
    for kind in ("train_inner", "train", "valid"):
        assert [stats.keys() for stats in plain.stats(kind)] == [stats.keys() for stats in watched.stats(kind)]
    assert [stats["valid_loss"] for stats in plain.stats("valid")] == [
        stats["valid_loss"] for stats in watched.stats("valid")
    ]


def test_of_several_validation_sets_the_first_counts(corpus: Corpus, tmp_path: Path, writer: type[Writer]) -> None:
    flags = ("--max-update", 2, "--encoder-moe-routing", "token", "--valid-subset", "valid,test")
    train(corpus, tmp_path, *flags, "--tensorboard-logdir", tmp_path / "log")
    [usage, _] = find_out(tmp_path / "checkpoint_last.pt", [corpus.bin], "valid", None).stacks
    for task, weight in zip(PAIRS, usage.layers[1].weight):
        found = writer.histograms[f"encoder_layer_1/{task}", 2]["bucket_counts"]
        assert torch.allclose(torch.tensor(found), weight, atol=1e-4)


def test_training_goes_on_where_tensorboard_is_not_installed(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_bar, "SummaryWriter", None)
    log = train(corpus, tmp_path, "--max-update", 2, "--tensorboard-logdir", tmp_path / "log")
    assert log.stats("valid")
    assert not (tmp_path / "log").exists()
