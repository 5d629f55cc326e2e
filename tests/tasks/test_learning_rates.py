"""Experts with a learning rate of their own."""

from __future__ import annotations

from argparse import Namespace

import pytest
import torch
from fairseq.optim.adam import FairseqAdam
from fairseq.optim.nag import FairseqNAG
from torch import Tensor

from taskmoe_plugin.optim import TaskMoEAdam
from taskmoe_plugin.tasks.learning_rates import own_learning_rates
from tests.helpers.corpus import Corpus
from tests.helpers.models import build_model, net_input, rows
from tests.parallel.scenarios import ADAM, EVEN, TOKEN, Scenario
from tests.parallel.training import make_trainer, run_updates, write_groups

SCALE, UPDATES = 0.25, 4
OF_ADAM = {"adam_betas": "(0.9, 0.98)", "adam_eps": 1e-8, "fp16_adam_stats": False}
OPTIMIZERS = {
    "adam": (FairseqAdam, OF_ADAM),
    "taskmoe_adam": (TaskMoEAdam, OF_ADAM),
    # It notes the last learning rate with its parameters.
    "nag": (FairseqNAG, {"momentum": 0.9}),
}


def losses(model, seed: int) -> Tensor:
    return model(**net_input(rows(6, seed=seed)))[0].square().mean()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_is_that_of_a_group_with_this_learning_rate(name: str) -> None:
    kind, flags = OPTIMIZERS[name]
    cfg = Namespace(lr=[0.01], weight_decay=0.1, tpu=False, **flags)
    model, reference = (build_model(moe_expert_lr_scale=scale).double() for scale in (SCALE, 1.0))
    ours = kind(cfg, list(model.parameters()))
    experts = {id(each) for name, each in reference.named_parameters() if ".experts." in name}
    theirs = kind(cfg, list(reference.parameters()))
    (group,) = theirs.optimizer.param_groups
    rest, own = ([each for each in group["params"] if (id(each) in experts) == yes] for yes in (False, True))
    theirs.optimizer.param_groups[:] = [{**group, "params": rest}, {**group, "params": own}]
    for seed in range(UPDATES):
        rate = 0.01 / (1 + seed)
        for each, optimizer in ((model, ours), (reference, theirs)):
            optimizer.zero_grad()
            optimizer.set_lr(rate)
            losses(each, seed).backward()
        theirs.optimizer.param_groups[1]["lr"] *= SCALE
        theirs.step()
        with own_learning_rates(ours):
            ours.step()
    torch.testing.assert_close(dict(model.named_parameters()), dict(reference.named_parameters()))
    (group,) = ours.state_dict()["param_groups"]
    assert group["lr"] == rate
    assert len(group["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("precision", [(), ("--bf16",)], ids=["fp32", "bf16"])
def test_a_training_gives_experts_a_smaller_step_and_no_others(corpus: Corpus, precision: tuple[str, ...]) -> None:
    write_groups(corpus)
    found = []
    for scale in (1.0, SCALE):
        scenario = Scenario((EVEN,), {**TOKEN, "moe_expert_lr_scale": scale}, (*ADAM, *precision), spread=False)
        trainer = make_trainer(corpus, scenario, 1, 0)
        copies = dict(zip(trainer.get_model().parameters(), trainer.optimizer.params))
        before = [each.detach().clone() for each in trainer.optimizer.params]
        run_updates(trainer, scenario.updates, 1, 0)
        names = [name for name, each in trainer.get_model().named_parameters() if each in copies]
        steps = [(after - each).detach() for after, each in zip(trainer.optimizer.params, before)]
        found.append(dict(zip(names, steps, strict=True)))
    assert any(".experts." in name for name in found[0])
    for name, step in found[0].items():
        torch.testing.assert_close(found[1][name], step * (SCALE if ".experts." in name else 1.0), atol=1e-6, rtol=1e-3)
