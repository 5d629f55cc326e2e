"""What an update of a whole model costs a GPU, told on a machine without one, beside that of a dense model.

Of the operators that PyTorch calls, those count that are a kernel launch or a few, not views. Whenever the host reads
values it waits for the GPU. All goes through fairseq's trainer with its optimizer, clipping and statistics.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fairseq.logging import metrics
from fairseq.trainer import Trainer
from torch import Tensor
from torch.nn import functional as F

from taskmoe_plugin.moe import products
from tests.helpers.corpus import Corpus
from tests.helpers.operators import CountedOperators
from tests.helpers.training import train

pytestmark = pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this PyTorch has no grouped products")
# Transformer Base, but for its width: every second layer has experts.
SHAPE = ("--encoder-layers", 6, "--decoder-layers", 6, "--moe-freq", 2, "--bf16")
SHORT = ("--max-update", 1, "--no-save", "--disable-validation")


def by(routing: str) -> tuple[str, ...]:
    return ("--encoder-moe-routing", routing, "--decoder-moe-routing", routing)


SYSTEMS: dict[str, tuple[Any, ...]] = {
    "dense": ("--moe-freq", 0, "--criterion", "label_smoothed_cross_entropy"),
    "source, target": (),
    "source, target, of 32": ("--moe-expert-count", 32),
    "merged": ("--moe-combine", "weights"),
    "token": by("token"),
    "token, of 32": (*by("token"), "--moe-expert-count", 32),
    "sentence": by("sentence"),
}


@dataclass
class Cost:
    """Of one update.

    Attributes:
        operators: what is called, views left out.
        waits: how often the host reads values, also to log the update.
        parameters: tensors of parameters, each of which clipping and the optimizer go over.
    """

    operators: int
    waits: int
    parameters: int


def one_hot(index: Tensor, classes: int) -> Tensor:
    """As on a GPU, where PyTorch does not read the values to check them."""
    return index.new_zeros(*index.shape, classes).scatter_(-1, index.unsqueeze(-1), 1)


@pytest.fixture(scope="module")
def costs(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cost]:
    """The first update of each system."""
    found: list[Cost] = []

    def train_step(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        lists.clear()
        with CountedOperators() as counted, metrics.aggregate() as logging:
            logged = step(self, *args, **kwargs)
            logging.get_smoothed_values()
        waits = sum(counted.calls[f"aten::{name}"] for name in ("_local_scalar_dense", "nonzero", "equal", "_unique2"))
        found.append(Cost(counted.launches, waits + len(lists), len(list(self.model.parameters()))))
        return logged

    def tolist(self: Tensor) -> Any:
        lists.append(1)
        return read(self)

    lists: list[int] = []
    step, read = Trainer.train_step, Tensor.tolist
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "has_grouped_product", lambda *_: True)
        patch.setattr(F, "one_hot", one_hot)
        patch.setattr(Trainer, "train_step", train_step)
        patch.setattr(Tensor, "tolist", tolist)
        directory: Path = tmp_path_factory.mktemp("cost")
        for flags in SYSTEMS.values():
            train(corpus, directory, *SHAPE, *SHORT, *flags)
    return dict(zip(SYSTEMS, found, strict=True))


@pytest.mark.parametrize("name", list(SYSTEMS)[1:])
def test_an_update_costs_little_more_than_a_dense_one(costs: dict[str, Cost], name: str) -> None:
    dense, found = costs["dense"], costs[name]
    assert found.operators <= 1.25 * dense.operators
    assert found.waits <= dense.waits + 2
    assert found.parameters <= 1.05 * dense.parameters


def test_an_update_costs_the_same_for_any_number_of_experts(costs: dict[str, Cost]) -> None:
    for name in ("source, target", "token"):
        assert costs[name] == costs[f"{name}, of 32"]


def test_the_count_sees_what_clipping_and_the_optimizer_do_with_every_tensor(costs: dict[str, Cost]) -> None:
    assert costs["dense"].operators > 10 * costs["dense"].parameters
