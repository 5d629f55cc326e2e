"""What a user can get wrong ends in one line on standard error and status 2, before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers.commands import run
from tests.helpers.corpus import Corpus
from tests.helpers.tasks import LANGTOKS, task_flags
from tests.helpers.training import WIDER, generate, generate_flags, train


def error_of(capsys: pytest.CaptureFixture[str], command, *args) -> str:
    """The one line that is printed by a command that stops with status 2."""
    with pytest.raises(SystemExit) as stopped:
        command(*args)
    assert stopped.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(lines) == 1
    return lines[0]


TRAINING = [
    (("--moe-top-k", 5), "--moe-top-k 5: give between 1 and --moe-expert-count, which is 4"),
    (("--encoder-moe-routing", "language"), "argument --encoder-moe-routing: invalid choice: 'language'"),
    (("--moe-expert-count", 0), "--moe-expert-count 0: give at least 1"),
    (("--moe-capacity-factor", 1.0), "--moe-capacity-factor 1: only token routing has a capacity"),
    (("--offload-activations",), "--offload-activations: not supported"),
    (("--encoder-moe-routing", "group"), "--moe-task-groups: group routing needs this file"),
    (
        ("--encoder-moe-routing", "group", "--moe-task-groups", "nowhere.tsv"),
        "--moe-task-groups nowhere.tsv: cannot be read",
    ),
    (("--task", "translation_multi_simple_epoch"), "--task: taskmoe_transformer needs language ids"),
    (("--lang-pairs", "en-de,en-cs"), "en-cs contains languages that are not in the language dictionary"),
    (("--lang-pairs", "en-de,fr-de,en-en"), "no valid data for en-en"),
    (("--eval-bleu", "--eval-bleu-args", "beam=4"), "--eval-bleu-args beam=4: not JSON"),
    (("--eval-bleu", "--eval-bleu-args", '{"lenpen": NaN}'), "NaN is no number"),
    (("--eval-bleu", "--eval-bleu-detok", "mosse"), "--eval-bleu-detok mosse: no such detokenizer; give one of moses,"),
    (("--moe-gate-loss-wt", "nan"), "--moe-gate-loss-wt nan: give a finite number"),
    (("--moe-task-gate-loss-wt", "inf"), "--moe-task-gate-loss-wt inf: give a finite number"),
    (("--moe-z-loss-wt=-inf",), "--moe-z-loss-wt -inf: give a finite number"),
    (("--label-smoothing", "nan"), "--label-smoothing nan: give a finite number"),
    (("--encoder-moe-routing", "token", "--moe-capacity-factor", "inf"), "--moe-capacity-factor inf: give a finite"),
    (("--encoder-moe-routing", "token", "--moe-eval-capacity-factor", "nan"), "--moe-eval-capacity-factor nan: give"),
    (("--moe-router-jitter", "nan"), "--moe-router-jitter nan: give a finite number"),
    (("--moe-expert-dropout", 1.5), "--moe-expert-dropout 1.5: give a value from 0 up to 1"),
    (("--moe-expert-dropout", -0.5), "--moe-expert-dropout -0.5: give a value from 0 up to 1"),
    (("--langs", "en,de,en"), "--langs en,de,en: has en more than once"),
    (("--langs", "en,de,pt-BR"), "--langs pt-BR: a language code cannot contain a hyphen"),
    (("--lang-pairs", "en"), "--lang-pairs en: is no pair of languages; write it as in en-de,de-en"),
    (("--lang-pairs", "en-de,en_fr"), "--lang-pairs en_fr: is no pair of languages"),
    (("--lang-pairs", "en-de,en-pt-BR"), "--lang-pairs en-pt-BR: a language code cannot contain a hyphen"),
    (("--extra-data", "{oops"), "--extra-data {oops: cannot be read ("),
    (("--langtoks", "{oops"), "--langtoks {oops: cannot be read ("),
    (("--sampling-weights", "[1"), "--sampling-weights [1: cannot be read ("),
    (("--max-tokens", 1), "no sentence is as short as --max-tokens, --max-source-positions and"),
    (("--max-tokens", 0), "--max-tokens 0: give at least 1"),
    (("--num-workers", -1), "--num-workers -1: give at least 0"),
    (("--dropout", 2), "--dropout 2: give a value from 0 to 1"),
    (("--decoder-attention-heads", 3), "--decoder-attention-heads 3: is no divisor of --decoder-embed-dim 16"),
    (("--best-checkpoint-metric", "bleu"), "--best-checkpoint-metric bleu: validation has it with --eval-bleu"),
    (("--criterion", "taskmoe_word_distillation"), "--distill-from: --criterion taskmoe_word_distillation needs"),
    (("--store-ema", "--moe-task-gate", "static"), "--store-ema: gates that do not learn have whole numbers"),
    (("--lr-scheduler", "polynomial_decay"), "--total-num-update: needs a value with these flags"),
    (("--restore-file", "nowhere.pt"), "--restore-file nowhere.pt: no such file; give a checkpoint"),
]


@pytest.mark.parametrize(
    ("flags", "expected"), TRAINING, ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else ""
)
def test_training_stops_before_it_starts(corpus: Corpus, tmp_path: Path, capsys, flags: tuple, expected: str) -> None:
    assert expected in error_of(capsys, train, corpus, tmp_path, *flags)
    assert not list(tmp_path.glob("*.pt"))


@pytest.mark.parametrize(
    "flags",
    [
        ("--save-dir", "a_file"),
        ("--sampling-weights-from-file", "nowhere.json"),
        ("--log-file", "a_file/log"),
        ("--source-dict", "nowhere.txt"),
    ],
    ids=lambda flags: flags[0],
)
def test_a_path_that_cannot_be_used_is_named(
    corpus: Corpus, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, flags: tuple
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a_file").touch()
    with pytest.raises(SystemExit) as stopped:
        train(corpus, tmp_path / "save", *flags)
    assert stopped.value.code in (1, 2)
    [line] = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert flags[1] in line


@pytest.mark.parametrize(
    "flags", [("--adam-betas", "oops"), ("--lr-scheduler", "inverse_sqrt", "--warmup-updates", "-1")]
)
def test_a_checkpoint_is_not_blamed_for_a_flag(corpus: Corpus, checkpoint: Path, tmp_path: Path, capsys, flags) -> None:
    with pytest.raises((SystemExit, Exception)):
        train(corpus, tmp_path, *WIDER, "--restore-file", checkpoint, *flags)
    assert str(checkpoint) not in capsys.readouterr().err


def test_a_training_that_diverges_says_so_in_one_line(corpus: Corpus, checkpoint: Path, tmp_path: Path, capsys) -> None:
    state = torch.load(checkpoint, weights_only=True)
    state["model"]["decoder.layers.0.fc1.weight"][0, 0] = float("nan")
    torch.save(state, tmp_path / "damaged.pt")
    with pytest.raises(SystemExit) as stopped:
        train(corpus, tmp_path / "save", *WIDER, "--max-update", 125, "--restore-file", tmp_path / "damaged.pt")
    assert stopped.value.code == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert "error: gradients are Nan/Inf: training has diverged; give a lower --lr, or another checkpoint" in line
    assert "damaged.pt" in line


def test_a_metric_that_there_is_not_is_refused(corpus: Corpus, tmp_path: Path, capsys) -> None:
    message = error_of(capsys, train, corpus, tmp_path, "--best-checkpoint-metric", "meteor", "--max-update", 1)
    assert "--best-checkpoint-metric meteor: validation has no such metric; give one of " in message
    assert "nll_loss" in message


def test_a_stock_architecture_is_refused(corpus: Corpus, tmp_path: Path, capsys) -> None:
    flags = (*LANGTOKS, "--arch", "transformer_tiny", "--max-tokens", 300, "--save-dir", tmp_path)
    message = error_of(capsys, run, "train", *task_flags(corpus, *flags))
    assert "--arch transformer_tiny: does not take the language ids" in message


def test_a_file_of_pairs_may_have_lines(corpus: Corpus, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("en-de,\nde-en\nen-fr fr-en\n")
    train(corpus, tmp_path / "save", "--lang-pairs", pairs, "--max-update", 1)
    state = torch.load(tmp_path / "save" / "checkpoint_last.pt", weights_only=True)
    assert state["cfg"]["model"].taskmoe_lang_pairs == "en-de,de-en,en-fr,fr-en"


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ((), "--extra-lang-pairs: names pairs of mined, of which --extra-data names no directory"),
        (("--extra-data",), "no train data for en-de; run fairseq-preprocess for it, or leave the pair out of --extra"),
    ],
)
def test_extra_data_that_is_missing_is_named(corpus: Corpus, tmp_path: Path, capsys, extra, expected: str) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    values = [f"{{'mined': '{empty}'}}"] if extra else []
    flags = ("--extra-lang-pairs", "{'mined': 'en-de'}", *extra, *values)
    message = error_of(capsys, train, corpus, tmp_path / "save", *flags)
    assert expected in message
    assert (str(empty) in message) == bool(extra)


def test_a_data_directory_that_is_missing_is_named(tmp_path: Path, capsys) -> None:
    nowhere = Corpus(tmp_path, tmp_path / "nowhere")
    assert f"{tmp_path / 'nowhere'}" in error_of(capsys, train, nowhere, tmp_path)


def test_a_pair_without_a_group_is_named(corpus: Corpus, tmp_path: Path, capsys) -> None:
    path = tmp_path / "groups.tsv"
    path.write_text("en-de\tone\nde-en\tone\nen-fr\ttwo\nde-fr\ttwo\n")
    flags = ("--decoder-moe-routing", "group", "--moe-task-groups", path)
    assert f"{path}: no group for fr-en" in error_of(capsys, train, corpus, tmp_path, *flags)


def test_a_pair_in_two_groups_is_refused(corpus: Corpus, tmp_path: Path, capsys) -> None:
    path = tmp_path / "groups.tsv"
    path.write_text(
        "".join(f"{pair}\tone\n" for pair in ("en-de", "de-en", "en-fr", "fr-en", "de-fr")) + "en-de\ttwo\n"
    )
    flags = ("--decoder-moe-routing", "group", "--moe-task-groups", path)
    message = error_of(capsys, train, corpus, tmp_path, *flags)
    assert f"--moe-task-groups {path}: line 6 puts en-de into two, an earlier one into one" in message


def test_a_mistyped_checkpoint_trains_nothing(corpus: Corpus, checkpoint: Path, tmp_path: Path, capsys) -> None:
    error_of(capsys, train, corpus, tmp_path / "wrong", "--restore-file", f"{checkpoint}x")
    assert not list((tmp_path / "wrong").glob("*.pt"))


def test_an_unseen_pair_is_refused_under_pair_routing_and_the_known_ones_are_named(
    corpus: Corpus, checkpoints: dict, capsys
) -> None:
    message = error_of(capsys, generate, corpus, checkpoints["pair/group"], "fr-de")
    assert "--source-lang fr --target-lang de" in message
    assert "en-de, de-en, en-fr, fr-en, de-fr" in message


def test_an_unseen_pair_is_translated_under_source_and_target_routing(corpus: Corpus, checkpoint: Path) -> None:
    assert len(generate(corpus, checkpoint, "fr-de").hypotheses) == 9


def test_other_tasks_than_those_of_the_model_to_finetune_are_refused(
    corpus: Corpus, checkpoint: Path, tmp_path: Path, capsys
) -> None:
    flags = ("--finetune-from-model", checkpoint, "--langs", "en,fr,de")
    message = error_of(capsys, train, corpus, tmp_path, *flags)
    assert "--langs en,fr,de: --finetune-from-model " in message
    assert "was trained with --langs en,de,fr; give the same" in message


def test_a_model_to_finetune_that_cannot_be_read_is_named(corpus: Corpus, tmp_path: Path, capsys) -> None:
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"PK")
    with pytest.raises(SystemExit) as stopped:
        train(corpus, tmp_path, "--finetune-from-model", broken)
    assert stopped.value.code == 1
    assert f"--finetune-from-model {broken}: truncated: its end is missing; copy it again" in capsys.readouterr().err


def test_a_model_to_finetune_that_is_missing_is_named(corpus: Corpus, tmp_path: Path, capsys) -> None:
    message = error_of(capsys, train, corpus, tmp_path, "--finetune-from-model", tmp_path / "none.pt")
    assert f"--finetune-from-model {tmp_path / 'none.pt'}: no such file" in message


@pytest.mark.parametrize("tool", ["generate", "interactive"])
@pytest.mark.parametrize("langs", ["de,en,fr", "en,de,fr,cs", "en,de"])
def test_other_languages_than_the_checkpoints_are_refused(corpus, checkpoint, capsys, tool: str, langs: str) -> None:
    flags = generate_flags(corpus, checkpoint, "en-de", "--langs", langs, "--lang-pairs", "en-de")
    expected = f"--langs {langs}: {checkpoint} was trained with --langs en,de,fr; leave it out"
    assert expected in error_of(capsys, run, tool, *flags)


def test_languages_from_another_directory_of_data_are_named(corpus: Corpus, checkpoint: Path, capsys, tmp_path) -> None:
    elsewhere = Corpus(corpus.raw, tmp_path)
    assert str(tmp_path) in error_of(capsys, generate, elsewhere, checkpoint, "en-de")


def test_the_groups_file_is_not_needed_to_translate(corpus: Corpus, checkpoints: dict) -> None:
    path = checkpoints["pair/group"]
    (path.parent / "groups.tsv").unlink(missing_ok=True)
    assert len(generate(corpus, path, "en-de").hypotheses) == 21
    assert "moe_task_groups" in vars(torch.load(path, weights_only=True)["cfg"]["model"])


@pytest.mark.parametrize("flag", ["--restore-file", "--finetune-from-model"])
def test_training_does_not_go_on_from_a_checkpoint_of_another_format(
    corpus: Corpus, checkpoint: Path, tmp_path: Path, capsys, flag: str
) -> None:
    state = torch.load(checkpoint, weights_only=True)
    del state["cfg"]["model"].taskmoe_format
    path = tmp_path / "older.pt"
    torch.save(state, path)
    with pytest.raises(SystemExit) as stopped:
        train(corpus, tmp_path / "new", flag, path)
    assert stopped.value.code == 1
    assert "older.pt: has format 1, of an older version of taskmoe_plugin" in capsys.readouterr().err
