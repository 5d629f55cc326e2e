"""Flags that change a model's input are those of its training, wherever its checkpoint is used."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils

from taskmoe_plugin.cli import extract_subnet
from taskmoe_plugin.errors import UsageError
from taskmoe_plugin.models import TaskMoETransformerModel
from tests.helpers.commands import USER_DIR, run
from tests.helpers.corpus import LANGS, PAIRS, Corpus
from tests.helpers.tasks import batches
from tests.helpers.training import CRITERION, MODEL, OPTIMIZER

# Nothing here is a default of fairseq's.
FLAGS = (
    "--encoder-langtok", "src", "--decoder-langtok", "--lang-tok-style", "mbart", "--left-pad-source", "False",
    "--left-pad-target", "True", "--langtoks-specs", "main,mined",
)  # fmt: skip


def task_flags(data: Path, *flags: Any) -> list[str]:
    """The task without its languages and language tokens."""
    return [str(each) for each in (data, "--user-dir", USER_DIR, "--task", "taskmoe_translation", "--cpu", *flags)]


def train(data: Path, save_dir: Path, *flags: Any, pairs: tuple[str, ...] = PAIRS) -> Path:
    """A model after one update, with the languages left out."""
    run(
        "train", *task_flags(data, *MODEL, *CRITERION, *OPTIMIZER), "--lang-pairs", ",".join(pairs),
        "--max-tokens", 300, "--max-update", 1, "--num-workers", 0, "--save-dir", save_dir, "--no-epoch-checkpoints",
        "--disable-validation", *flags,
    )  # fmt: skip
    return save_dir / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def trained(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(corpus.bin, tmp_path_factory.mktemp("flags"), *FLAGS)


def used(corpus: Corpus, path: Any, *flags: Any, tool: str = "generate", data: Path | None = None) -> Any:
    """A command of fairseq's with a trained model."""
    argv = task_flags(
        data or corpus.bin, "--path", path, "--num-workers", 0, "--log-format", "json", "--max-tokens", 300, *flags
    )
    if tool == "generate":
        argv += ["--source-lang", "en", "--target-lang", "de", "--max-len-b", "12"]
    return run(tool, *argv, stdin="ba do\n")


def test_what_is_left_out_is_what_was_trained(corpus: Corpus, trained: Path) -> None:
    short = used(corpus, trained).hypotheses
    full = used(corpus, trained, *FLAGS, "--langs", ",".join(sorted(LANGS)), "--lang-pairs", ",".join(PAIRS))
    assert short == full.hypotheses
    assert len(short) == 21


def test_a_checkpoint_with_a_suffix_is_one_too(corpus: Corpus, trained: Path, tmp_path: Path, capsys) -> None:
    shutil.copy(trained, tmp_path / "model-a.pt")
    suffixed = (tmp_path / "model.pt", "--checkpoint-suffix=-a")
    assert used(corpus, *suffixed).hypotheses == used(corpus, trained).hypotheses
    with pytest.raises(SystemExit):
        used(corpus, *suffixed, "--encoder-langtok", "tgt")
    assert "model-a.pt was trained with --encoder-langtok src" in capsys.readouterr().err


def test_flags_of_training_are_no_contradiction_of_it(corpus: Corpus, tmp_path: Path) -> None:
    """For fairseq --langtoks goes before --encoder-langtok."""
    flags = (
        "--encoder-langtok", "tgt", "--decoder-langtok", "--langtoks-specs", "main,mined",
        "--langtoks", "{'main': ('src.mined', 'tgt.mined')}",
    )  # fmt: skip
    path = train(corpus.bin, tmp_path, *flags)
    assert used(corpus, path, *flags).hypotheses == used(corpus, path).hypotheses


def test_the_input_of_a_loaded_model_is_that_of_its_training(corpus: Corpus, trained: Path) -> None:
    """fairseq takes padding that it reads from a checkpoint for False, whatever it was."""
    for path, left in ((trained, False), (train(corpus.bin, trained.parent / "left"), True)):
        _, _, task = checkpoint_utils.load_model_ensemble_and_task([str(path)], {"data": str(corpus.bin)})
        pad, rows = (
            task.source_dictionary.pad(),
            [row for each in batches(task, "valid") for row in each["net_input"]["src_tokens"]],
        )
        assert any(pad in row.tolist() for row in rows)
        assert all((row[0] == pad) == left for row in rows if pad in row.tolist())


@pytest.mark.parametrize(
    ("flags", "trained_with"),
    [
        (("--encoder-langtok", "tgt"), "with --encoder-langtok src"),
        (("--lang-tok-style", "multilingual"), "with --lang-tok-style mbart"),
        (("--left-pad-source", "True"), "with --left-pad-source False"),
        (("--left-pad-target", "False"), "with --left-pad-target True"),
        (("--langtoks-specs", "main"), "with --langtoks-specs main,mined"),
        (("--lang-tok-replacing-bos-eos",), "without it"),
        (("--langs", "en,de,fr"), "with --langs de,en,fr"),
        (("--langtoks", "{'main': ('tgt', 'tgt')}"), "with --langtoks {'main': ('src', 'tgt')}"),
    ],
)
@pytest.mark.parametrize("tool", ["generate", "interactive", "validate"])
def test_a_flag_that_contradicts_is_refused(
    corpus: Corpus, trained: Path, capsys: pytest.CaptureFixture[str], tool: str, flags: tuple, trained_with: str
) -> None:
    pair = ("--source-lang", "en", "--target-lang", "de") if tool == "interactive" else ()
    with pytest.raises(SystemExit) as stopped:
        used(corpus, trained, *flags, *pair, tool=tool)
    assert stopped.value.code == 2
    place = "the checkpoint" if tool == "validate" else trained
    shown = " ".join(flags)
    (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("taskmoe")]
    assert line == f"taskmoe: error: {shown}: {place} was trained {trained_with}; leave it out"


def test_a_token_that_was_not_trained_is_refused(corpus: Corpus, tmp_path: Path, capsys) -> None:
    path = train(corpus.bin, tmp_path)
    for flags in (("--decoder-langtok",), ("--encoder-langtok", "tgt")):
        with pytest.raises(SystemExit):
            used(corpus, path, *flags)
        assert f"error: {' '.join(flags)}: {path} was trained without it; leave it out" in capsys.readouterr().err
    assert len(used(corpus, path).hypotheses) == 21


def hub(corpus: Corpus, path: Path, **settings: Any) -> Any:
    return TaskMoETransformerModel.from_pretrained(
        str(path.parent), path.name, str(corpus.bin), source_lang="en", target_lang="de", **settings
    )


def test_the_hub_interface_takes_up_and_refuses_the_same(corpus: Corpus, trained: Path) -> None:
    assert hub(corpus, trained).task.args.langtoks["main"] == ("src", "tgt")
    with pytest.raises(
        UsageError, match="--encoder-langtok tgt: the checkpoint was trained with --encoder-langtok src"
    ):
        hub(corpus, trained, encoder_langtok="tgt")


def test_languages_left_out_at_training_work_everywhere_afterwards(corpus: Corpus, trained: Path, tmp_path) -> None:
    flags = ("--lang-pairs", "en-de", "--source-lang", "en", "--target-lang", "de")
    assert used(corpus, trained, *flags, tool="interactive").hypotheses
    assert used(corpus, trained, tool="validate").stats("valid")
    assert used(corpus, trained, "--lang-pairs", "en-de", tool="validate").stats("valid")
    out = tmp_path / "subnets"
    extract_subnet.main(
        [str(corpus.bin), "--path", str(trained), "--lang-pairs", "en-de", "--output-dir", str(out), "--verify", "5"]
    )
    assert (out / "en-de" / "model.pt").is_file()


def test_a_subnet_that_keeps_experts_remembers_too(corpus: Corpus, tmp_path: Path, capsys) -> None:
    path = train(
        corpus.bin, tmp_path, *FLAGS, "--encoder-moe-routing", "token", "--source-dict", corpus.bin / "dict.en.txt"
    )
    subnets = tmp_path / "subnets"
    extract_subnet.main([str(corpus.bin), "--path", str(path), "--lang-pairs", "en-de", "--output-dir", str(subnets)])
    subnet = subnets / "en-de" / "model.pt"
    own, full = used(corpus, subnet).hypotheses, used(corpus, path).hypotheses
    assert own.keys() == full.keys()
    assert [own[number][0] for number in full] == pytest.approx([score for score, _ in full.values()], abs=1e-4)
    with pytest.raises(SystemExit):
        used(corpus, subnet, "--encoder-langtok", "tgt")
    assert f"--encoder-langtok tgt: {subnet} was trained with --encoder-langtok src" in capsys.readouterr().err


def test_languages_of_extra_pairs_are_among_those_that_were_left_out(corpus: Corpus, tmp_path: Path) -> None:
    extra = ("--extra-data", {"more": str(corpus.bin)}, "--extra-lang-pairs", {"more": "en-fr"})
    path = train(corpus.bin, tmp_path, *extra, pairs=("en-de", "de-en"))
    assert torch.load(path, weights_only=True)["cfg"]["task"].langs == ["de", "en", "fr"]


def test_a_file_of_languages_is_not_needed_afterwards(corpus: Corpus, tmp_path: Path, capsys) -> None:
    for name, langs in (("langs.txt", "fr en de"), ("others.txt", "en de fr")):
        (tmp_path / name).write_text("\n".join(langs.split()) + "\n")
    path = train(corpus.bin, tmp_path, "--lang-dict", tmp_path / "langs.txt")
    assert used(corpus, path).hypotheses == used(corpus, path, "--lang-dict", tmp_path / "langs.txt").hypotheses
    with pytest.raises(SystemExit):
        used(corpus, path, "--lang-dict", tmp_path / "others.txt")
    assert f"--langs en,de,fr: {path} was trained with --langs fr,en,de" in capsys.readouterr().err
    (tmp_path / "langs.txt").unlink()
    assert used(corpus, path).hypotheses


def data_without_dictionaries(corpus: Corpus, directory: Path) -> Path:
    directory.mkdir()
    for path in corpus.bin.iterdir():
        if not path.name.startswith("dict."):
            (directory / path.name).symlink_to(path)
    return directory


def test_relative_dictionaries_are_found_from_anywhere(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    data = data_without_dictionaries(corpus, tmp_path / "data")
    shutil.copy(corpus.bin / "dict.en.txt", tmp_path / "words.txt")
    monkeypatch.chdir(tmp_path)
    path = train(data, tmp_path, "--source-dict", "words.txt", "--target-dict", "words.txt")
    monkeypatch.chdir("/")
    assert used(corpus, path, data=data).hypotheses
    assert used(corpus, path, data=data, tool="validate").stats("valid")
    # Where the file is gone, the same one of the data will do, and one that is named.
    (tmp_path / "words.txt").rename(tmp_path / "moved.txt")
    assert used(corpus, path).hypotheses
    moved = ("--source-dict", tmp_path / "moved.txt", "--target-dict", tmp_path / "moved.txt")
    assert used(corpus, path, *moved, data=data).hypotheses


def test_another_dictionary_is_refused_and_named(corpus: Corpus, trained: Path, tmp_path: Path, capsys) -> None:
    data = data_without_dictionaries(corpus, tmp_path / "data")
    first, second, *rest = (corpus.bin / "dict.en.txt").read_text().splitlines(keepends=True)
    (data / "dict.en.txt").write_text("".join([second, first, *rest]))
    shutil.copy(corpus.bin / "dict.de.txt", data)
    for flags, named in (((), data / "dict.en.txt"), (("--source-dict", data / "dict.en.txt"), data / "dict.en.txt")):
        with pytest.raises(SystemExit) as stopped:
            used(corpus, trained, *flags, data=data)
        assert stopped.value.code == 2
        assert f"error: {named}: is not the dictionary that the checkpoint was trained with" in capsys.readouterr().err


def test_models_of_an_ensemble_must_agree(corpus: Corpus, trained: Path, tmp_path: Path, capsys) -> None:
    assert used(corpus, f"{trained}:{trained}").hypotheses == used(corpus, trained).hypotheses
    other = train(corpus.bin, tmp_path, *FLAGS, "--encoder-langtok", "tgt")
    with pytest.raises(SystemExit):
        used(corpus, f"{trained}:{other}")
    assert f"--encoder-langtok src: {other} was trained with --encoder-langtok tgt" in capsys.readouterr().err
