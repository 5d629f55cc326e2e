"""What training goes on from is looked at before it is loaded."""

from __future__ import annotations

import shutil
from argparse import Namespace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from taskmoe_plugin.errors import TaskMoEError, UsageError
from taskmoe_plugin.parallel.resuming import LAST, Start, check_start
from tests.helpers.corpus import Corpus
from tests.helpers.training import routing_flags, train
from tests.robustness import damages

SAVING = ("--max-update", 4, "--save-interval-updates", 2, "--no-epoch-checkpoints", "--disable-validation")


@pytest.fixture(scope="module")
def saved(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a short training with tasks that are pairs."""
    directory = tmp_path_factory.mktemp("saved")
    train(corpus, directory, *routing_flags("pair", "token", directory), *SAVING)
    return directory


def go_on(corpus: Corpus, saved: Path, directory: Path, *flags: str) -> dict[str, torch.Tensor]:
    """Train two more updates from a copy; returns the weights."""
    shutil.copytree(saved, directory, dirs_exist_ok=True)
    train(corpus, directory, *routing_flags("pair", "token", directory), *SAVING, "--max-update", 6, *flags)
    return torch.load(directory / LAST, weights_only=True)["model"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--langs", "en,fr,de"), "checkpoint_last.pt was trained with --langs en,de,fr; give the same"),
        (("--lang-pairs", "de-en,en-de,en-fr,fr-en,de-fr"), "and the encoder's gates know its tasks by their order"),
        (("--moe-top-k", "1"), "--moe-top-k 1: "),
    ],
)
def test_other_flags_and_another_order_of_tasks_are_refused(
    corpus: Corpus,
    saved: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as exit:
        go_on(corpus, saved, tmp_path, *flags)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


def cut(directory: Path, name: str = LAST, length: int = 5000) -> bytes:
    """Cut a checkpoint short; returns what is left."""
    left = (directory / name).read_bytes()[:length]
    (directory / name).unlink()
    (directory / name).write_bytes(left)
    return left


@pytest.mark.parametrize("length", [0, 5000])
def test_a_last_checkpoint_that_is_cut_short_is_replaced_by_what_it_was_copied_from_and_kept(
    corpus: Corpus, saved: Path, tmp_path: Path, length: int
) -> None:
    expected = go_on(corpus, saved, tmp_path / "whole")
    shutil.copytree(saved, tmp_path / "cut")
    shutil.copy(tmp_path / "cut" / LAST, tmp_path / "cut" / "checkpoint_1_4.pt")
    left = cut(tmp_path / "cut", length=length)
    found = go_on(corpus, tmp_path / "cut", tmp_path / "again")
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert (tmp_path / "again" / f"{LAST}.cut-1").read_bytes() == left


def start(directory: Path, **flags: Any) -> Start | None:
    """What training with these flags would start from."""
    unset = dict.fromkeys(("fp16", "no_save_optimizer_state", "reset_optimizer", "reset_dataloader"), False)
    defaults = {**unset, "finetune_from_model": None}
    return check_start(Namespace(**{"save_dir": str(directory), "restore_file": LAST, **defaults, **flags}))


def state(updates: int) -> dict[str, Any]:
    return {
        "cfg": {"model": Namespace(updates=updates)},
        "model": {"w": torch.zeros(1)},
        "optimizer_history": [{"num_updates": updates}],
        "extra_state": {"train_iterator": {"epoch": 1}},
        "last_optimizer_state": {"state": {}},
    }


def without(part: str) -> dict[str, Any]:
    return {name: value for name, value in state(9).items() if name != part}


@pytest.fixture
def short(tmp_path: Path) -> Path:
    """A directory whose last checkpoint is cut short, and whose newest whole one is of 6 updates."""
    torch.save(state(8), tmp_path / LAST)
    cut(tmp_path, length=500)
    torch.save(state(4), tmp_path / "checkpoint1.pt")
    torch.save(state(6), tmp_path / "checkpoint_2_6.pt")
    torch.save(state(5), tmp_path / "checkpoint_best.pt")
    return tmp_path


def test_training_goes_on_from_the_newest_that_training_wrote(short: Path, caplog: pytest.LogCaptureFixture) -> None:
    left = (short / LAST).read_bytes()
    torch.save(state(7), short / "checkpoint_best.pt")
    cut(short, "checkpoint_best.pt", 500)  # the copy before this one was cut short, too
    found = start(short)
    assert found is not None
    assert found.args.updates == 6
    assert torch.load(short / LAST, weights_only=True) == torch.load(short / "checkpoint_2_6.pt", weights_only=True)
    assert (short / f"{LAST}.cut-1").read_bytes() == left
    [record] = caplog.records
    said = f"{short / LAST} is cut short, and kept as {short / LAST}.cut-1; going on from {short}/checkpoint_2_6.pt"
    assert said in record.getMessage()
    cut(short, length=400)
    start(short)
    assert (short / f"{LAST}.cut-2").exists()


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("averaged.pt", state(9)),
        ("checkpoint_average.pt", state(9)),
        ("checkpoint_1_9.pt.bak", state(9)),
        ("checkpoint_2_5.pt", state(9)),
        ("checkpoint_best.pt", without("last_optimizer_state")),
        ("checkpoint_best.pt", without("extra_state")),
        ("checkpoint_best.pt", without("optimizer_history")),
        ("checkpoint_best.pt", {**state(9), "optimizer_history": []}),
        ("checkpoint_best.pt", {**state(9), "optimizer_history": [{"num_updates": "9"}]}),
        ("checkpoint_best.pt", [state(9)]),
    ],
)
def test_what_training_did_not_write_is_not_taken(short: Path, name: str, contents: Any) -> None:
    torch.save(contents, short / name)
    found = start(short)
    assert found is not None
    assert found.args.updates == 6


def test_without_another_checkpoint_nothing_is_touched(tmp_path: Path) -> None:
    torch.save(state(8), tmp_path / LAST)
    left = cut(tmp_path, length=500)
    torch.save(state(9), tmp_path / "averaged.pt")
    with pytest.raises(TaskMoEError, match=f"{LAST}: truncated: its end is missing, and beside it is no other"):
        start(tmp_path)
    assert (tmp_path / LAST).read_bytes() == left
    assert {path.name for path in tmp_path.iterdir()} == {LAST, "averaged.pt"}


SPOILT = {
    "Input/output error": damages.unreadable,
    "Is a directory": damages.directory,
    "holds Python objects that safe loading refuses": damages.foreign,
    "is no PyTorch checkpoint": damages.text,
}


@pytest.mark.parametrize("name", [LAST, "checkpoint_2_6.pt"])
@pytest.mark.parametrize("reason", SPOILT)
def test_whatever_else_is_wrong_stops_with_its_reason(short: Path, name: str, reason: str) -> None:
    torch.save(state(8), short / name)
    SPOILT[reason](short / name, Random(0))
    before = sorted(short.iterdir())
    with pytest.raises(TaskMoEError, match=f"{name}: .*{reason}"):
        start(short)
    assert sorted(short.iterdir()) == before


def test_a_last_checkpoint_that_training_did_not_write_stops(tmp_path: Path) -> None:
    torch.save({**state(3), "optimizer_history": []}, tmp_path / LAST)
    with pytest.raises(TaskMoEError, match=f"{LAST}: no checkpoint that training wrote, which has model, opt"):
        start(tmp_path)


@pytest.mark.parametrize("flag", ["restore_file", "finetune_from_model", "continue_once"])
def test_the_flag_that_names_a_checkpoint_is_named(tmp_path: Path, flag: str) -> None:
    path = tmp_path / "x.pt"
    option = f"--{flag.replace('_', '-')} {path}"
    with pytest.raises(UsageError, match=f"^{option}: no such file"):
        start(tmp_path, **{flag: str(path)})
    torch.save(state(3), path)
    found = start(tmp_path, **{flag: str(path)})
    assert found == Start(option, Namespace(updates=3))
    cut(tmp_path, "x.pt", 500)
    with pytest.raises(TaskMoEError, match=f"^{option}: truncated: its end is missing; copy it again"):
        start(tmp_path, **{flag: str(path)})
    torch.save({**state(3), "cfg": {}}, path)
    with pytest.raises(TaskMoEError, match=f"^{option}: does not say what flags its model has"):
        start(tmp_path, **{flag: str(path)})


def test_without_a_checkpoint_training_starts_anew(tmp_path: Path) -> None:
    assert start(tmp_path) is None


def test_a_link_that_leads_nowhere_is_no_new_start(tmp_path: Path) -> None:
    (tmp_path / LAST).symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=f"{LAST}: no such file"):
        start(tmp_path)


def test_averages_that_a_checkpoint_lacks_are_refused(
    corpus: Corpus, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags in (
        ("--finetune-from-model", str(saved / LAST)),
        ("--restore-file", str(saved / LAST), "--reset-optimizer"),
    ):
        with pytest.raises(SystemExit) as exit:
            train(corpus, tmp_path, *routing_flags("pair", "token", tmp_path), *SAVING, "--store-ema", *flags)
        assert exit.value.code == 2
        assert f"--store-ema: {flags[0]} {saved / LAST} has no averages of weights" in capsys.readouterr().err


def test_a_checkpoint_with_a_suffix_is_looked_at_as_well(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (*routing_flags("pair", "token", tmp_path), *SAVING, "--checkpoint-suffix", "_a")
    train(corpus, tmp_path, *flags)
    last = tmp_path / "checkpoint_last_a.pt"
    with pytest.raises(SystemExit):
        train(corpus, tmp_path, *flags, "--max-update", 6, "--moe-top-k", 1)
    assert f"{last} was trained with --moe-top-k 2" in capsys.readouterr().err
    shutil.copy(last, tmp_path / "checkpoint_1_4_a.pt")
    cut(tmp_path, last.name)
    train(corpus, tmp_path, *flags, "--max-update", 6)
    assert (tmp_path / f"{last.name}.cut-1").exists()


def test_an_epoch_that_has_fewer_batches_now_is_one_line(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = routing_flags("pair", "token", tmp_path)
    train(corpus, tmp_path, *flags, *SAVING)
    with pytest.raises(SystemExit) as exit:
        train(corpus, tmp_path, *flags, *SAVING, "--max-update", 6, "--max-tokens", 100_000)
    assert exit.value.code == 2
    assert "give --reset-dataloader to begin the epoch anew" in capsys.readouterr().err
    train(corpus, tmp_path, *flags, *SAVING, "--max-update", 6, "--max-tokens", 100_000, "--reset-dataloader")


def test_in_an_epoch_another_number_of_processes_is_told_of(
    corpus: Corpus, saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = torch.load(saved / LAST, weights_only=True)
    state["cfg"]["distributed_training"]["distributed_world_size"] = 2
    (tmp_path / "of two").mkdir()
    torch.save(state, tmp_path / "of two" / LAST)
    go_on(corpus, tmp_path / "of two", tmp_path / "of one")
    assert "was saved by 2 processes after 4 batches of an epoch, and 1 go on" in caplog.text
    assert "--reset-dataloader" in caplog.text


@pytest.mark.parametrize("start", ["--restore-file", "--finetune-from-model"])
def test_another_dictionary_of_the_same_size_is_refused(
    corpus: Corpus, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], start: str
) -> None:
    other = Corpus(corpus.raw, tmp_path / "bin")
    shutil.copytree(corpus.bin, other.bin)
    for path in other.bin.glob("dict.*.txt"):
        path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    flags = routing_flags("pair", "token", tmp_path)
    with pytest.raises(SystemExit) as exit:
        train(other, tmp_path / "out", *flags, *SAVING, start, saved / LAST)
    assert exit.value.code == 2
    message = f"is not the dictionary that {start} {saved / LAST} was trained with; give the data directory"
    assert message in capsys.readouterr().err


def test_other_language_tokens_are_refused_where_training_goes_on_and_told_of_where_it_begins(
    corpus: Corpus, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    message = f"--encoder-langtok src: {saved / LAST} was trained with --encoder-langtok tgt"
    with pytest.raises(SystemExit):
        go_on(corpus, saved, tmp_path / "on", "--encoder-langtok", "src")
    assert message.replace(str(saved), str(tmp_path / "on")) in capsys.readouterr().err
    flags = (*routing_flags("pair", "token", tmp_path), "--encoder-langtok", "src")
    train(corpus, tmp_path / "anew", *flags, *SAVING, "--finetune-from-model", saved / LAST)
    assert "--encoder-langtok src: --finetune-from-model" in caplog.text
