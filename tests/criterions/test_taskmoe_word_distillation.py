"""The distillation loss mixes the references with what a teacher says."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils

from taskmoe_plugin.criterions import TaskMoELabelSmoothedCrossEntropyCriterion, TaskMoEWordDistillationCriterion
from taskmoe_plugin.criterions.taskmoe_word_distillation import TaskMoEWordDistillationCriterionConfig
from taskmoe_plugin.errors import UsageError
from tests.helpers.commands import run
from tests.helpers.corpus import Corpus
from tests.helpers.models import build_model
from tests.helpers.tasks import LANGTOKS, batches, make_task, task_flags
from tests.helpers.training import train


@pytest.fixture(scope="module")
def task(corpus: Corpus) -> Any:
    return make_task(corpus)


@pytest.fixture(scope="module")
def teacher(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a model routed by token."""
    directory = tmp_path_factory.mktemp("teacher")
    routing = ("--encoder-moe-routing", "token", "--decoder-moe-routing", "token")
    train(corpus, directory, *routing, "--max-update", 2, "--no-epoch-checkpoints")
    return directory / "checkpoint_last.pt"


def distilling(task: Any, teacher: Path, **flags: Any) -> Any:
    flags = {"sentence_avg": False, "label_smoothing": 0.1, "moe_gate_loss_wt": 0.0, **flags}
    return TaskMoEWordDistillationCriterion(task, distill_from=str(teacher), **flags)


def loss_of(criterion: Any, model: Any, sample: Any, training: bool = True) -> float:
    criterion.train(training)
    model.eval()  # without dropout
    return float(criterion(model, sample)[0])


def test_the_loss_is_a_mixture_of_references_and_teacher(task: Any, teacher: Path) -> None:
    model, sample = build_model(task=task), next(iter(batches(task, "valid")))
    hard, soft, mixed = (loss_of(distilling(task, teacher, distill_wt=w), model, sample) for w in (0.0, 1.0, 0.25))
    plain = TaskMoELabelSmoothedCrossEntropyCriterion(task, False, 0.1, moe_gate_loss_wt=0.0)
    assert hard == pytest.approx(loss_of(plain, model, sample))
    assert abs(hard - soft) > 1e-2
    assert mixed == pytest.approx(0.75 * hard + 0.25 * soft)


@pytest.mark.parametrize("prefix", [0, 1])
def test_of_the_teacher_all_words_are_learned_but_padding_and_a_prefix(task: Any, teacher: Path, prefix: int) -> None:
    model, sample = build_model(task=task).eval(), next(iter(batches(task, "valid")))
    criterion = distilling(task, teacher, distill_wt=1.0, ignore_prefix_size=prefix)
    before = torch.get_rng_state()
    both = model, criterion.teacher
    assert torch.equal(torch.get_rng_state(), before)
    lprobs, wanted = (each.get_normalized_probs(each(**sample["net_input"]), log_probs=True).double() for each in both)
    sample["target"][0, -1] = task.target_dictionary.pad()
    words = sample["target"].ne(task.target_dictionary.pad())
    words[:, :prefix] = False
    expected = -(wanted.exp() * lprobs).sum(dim=-1)[words].sum()
    assert loss_of(criterion, model, sample) == pytest.approx(float(expected), rel=1e-4)


def test_the_teacher_has_a_quarter_unless_told_otherwise(task: Any, teacher: Path) -> None:
    assert distilling(task, teacher).distill_wt == TaskMoEWordDistillationCriterionConfig().distill_wt == 0.25


def test_a_student_that_says_what_the_teacher_says_has_nothing_to_learn_from_it(task: Any, teacher: Path) -> None:
    sample = next(iter(batches(task, "valid")))
    largest = {}
    for weight in (0.0, 1.0):
        (student,), _ = checkpoint_utils.load_model_ensemble([str(teacher)], task=task)
        criterion = distilling(task, teacher, distill_wt=weight).train()
        criterion(student.eval(), sample)[0].backward()
        gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
        largest[weight] = max(float(gradient.abs().max()) for gradient in gradients)
    assert largest[1.0] < 1e-4 < 1 < largest[0.0]


def test_validation_uses_the_references_alone(task: Any, teacher: Path) -> None:
    model, sample = build_model(task=task), next(iter(batches(task, "valid")))
    criterion = distilling(task, teacher, distill_wt=1.0)
    assert loss_of(criterion, model, sample, training=False) == pytest.approx(
        loss_of(distilling(task, teacher, distill_wt=0.0), model, sample)
    )


def test_the_teacher_is_neither_trained_nor_saved(task: Any, teacher: Path) -> None:
    criterion = distilling(task, teacher)
    assert not list(criterion.parameters())
    assert not criterion.state_dict()


def test_a_student_is_trained_through_fairseqs_command(corpus: Corpus, teacher: Path, tmp_path: Path) -> None:
    train(corpus, tmp_path, "--criterion", "taskmoe_word_distillation", "--distill-from", teacher, "--moe-freq", 0,
          "--max-update", 2)  # fmt: skip
    names = torch.load(tmp_path / "checkpoint_last.pt", weights_only=True)["model"]
    assert not any("expert" in name for name in names)


DISTILLING = ("--criterion", "taskmoe_word_distillation", "--moe-freq", 0, "--max-update", 1)


def test_bleu_in_validation_is_the_students(corpus: Corpus, teacher: Path, tmp_path: Path) -> None:
    chosen = ("--eval-bleu", "--eval-bleu-args", '{"beam": 1, "max_len_a": 0, "max_len_b": 9}', "--lr", 1e-9)
    found = {}
    for name, flags in (("plain", ()), ("distilled", ("--distill-from", teacher))):
        criterion = DISTILLING if flags else DISTILLING[2:]
        stats = train(corpus, tmp_path / name, *criterion, *flags, *chosen).stats("valid")
        found[name] = [(each["valid_chrf"], each["valid_en-de_chrf"]) for each in stats]
    # Neither has learnt anything yet; the teacher has.
    assert found["distilled"] == found["plain"] != []
    by_token = ("--encoder-moe-routing", "token", "--decoder-moe-routing", "token")
    stats = train(corpus, tmp_path / "teacher", *by_token, *chosen, "--finetune-from-model", teacher).stats("valid")
    assert stats[-1]["valid_chrf"] != found["plain"][-1][0]


def test_who_validates_need_not_have_the_teacher(corpus: Corpus, teacher: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone.pt"
    shutil.copy(teacher, gone)
    train(corpus, tmp_path, *DISTILLING, "--distill-from", gone)
    gone.unlink()
    flags = task_flags(corpus, *LANGTOKS, "--path", tmp_path / "checkpoint_last.pt", "--max-tokens", 1000)
    assert run("validate", *flags, "--log-format", "json").stats("valid")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--distill-wt", 1.5), "--distill-wt 1.5: give a value from 0 to 1"),
        (("--distill-from", "nowhere.pt"), "--distill-from nowhere.pt: no such file"),
    ],
)
def test_mistakes_are_one_line(
    corpus: Corpus, teacher: Path, tmp_path: Path, flags: tuple[Any, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        train(corpus, tmp_path / "student", *DISTILLING, "--distill-from", teacher, *flags)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "student" / "checkpoint_last.pt").exists()


def test_a_teacher_that_does_not_know_a_pair_is_refused(corpus: Corpus, tmp_path: Path, task: Any) -> None:
    flags = ("--lang-pairs", "en-de,de-en", "--encoder-moe-routing", "pair", "--max-update", 1)
    train(corpus, tmp_path, *flags, "--no-epoch-checkpoints")
    path = tmp_path / "checkpoint_last.pt"
    with pytest.raises(UsageError, match=f"--distill-from {path}: cannot teach en-fr"):
        _ = distilling(task, path).teacher
