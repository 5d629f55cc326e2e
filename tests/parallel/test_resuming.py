"""What training goes on from is looked at before it is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.helpers.corpus import Corpus
from tests.helpers.training import routing_flags, train

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
    return torch.load(directory / "checkpoint_last.pt", weights_only=True)["model"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--langs", "en,fr,de"), "--langs en,fr,de: the checkpoint was trained with --langs en,de,fr; give the same"),
        (("--lang-pairs", "de-en,en-de,en-fr,fr-en,de-fr"), "and the encoder's gates know its tasks by their order"),
    ],
)
def test_languages_and_tasks_in_another_order_are_refused(
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


def test_a_last_checkpoint_that_is_cut_short_is_replaced_by_what_it_was_copied_from(
    corpus: Corpus, saved: Path, tmp_path: Path
) -> None:
    expected = go_on(corpus, saved, tmp_path / "whole")
    shutil.copytree(saved, tmp_path / "cut")
    last = tmp_path / "cut" / "checkpoint_last.pt"
    shutil.copy(last, tmp_path / "cut" / "checkpoint_1_4.pt")
    last.write_bytes(last.read_bytes()[:5000])
    found = go_on(corpus, tmp_path / "cut", tmp_path / "again")
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_broken_restore_file_is_named(
    corpus: Corpus, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.pt"
    broken.write_bytes((saved / "checkpoint_last.pt").read_bytes()[:5000])
    with pytest.raises(SystemExit) as exit:
        go_on(corpus, saved, tmp_path / "new", "--restore-file", str(broken))
    assert exit.value.code == 1
    assert f"{broken}: truncated or corrupted; give another --restore-file" in capsys.readouterr().err
