"""The distillation loss mixes the references with what a teacher says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils

from taskmoe_plugin.criterions import TaskMoELabelSmoothedCrossEntropyCriterion, TaskMoEWordDistillationCriterion
from taskmoe_plugin.errors import one_line_errors
from tests.helpers.corpus import Corpus
from tests.helpers.models import build_model
from tests.helpers.tasks import batches, make_task
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


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"distill_wt": 1.5}, "--distill-wt 1.5: give a value from 0 to 1"),
        ({"distill_from": "nowhere.pt"}, "--distill-from nowhere.pt: no such file"),
    ],
)
def test_mistakes_are_one_line(
    task: Any, teacher: Path, flags: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped, one_line_errors():
        distilling(task, Path(flags.pop("distill_from", teacher)), **flags)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
