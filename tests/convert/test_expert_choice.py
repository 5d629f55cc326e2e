"""Which experts are kept, against the formulas."""

from __future__ import annotations

import math

import pytest
import torch

from taskmoe_plugin.convert.activity import Activity
from taskmoe_plugin.convert.expert_choice import METRICS, best, best_beyond

ACTIVITY = Activity(torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.1, 0.9, 0.4]), torch.tensor([0.2, 0.3, 0.5]))


def test_metrics_are_those_of_the_papers() -> None:
    top1, conf = (0.5, 0.3, 0.2), (0.1, 0.9, 0.4)
    expected = {
        "importance": [t * math.exp(c) for t, c in zip(top1, conf)],
        "activity": top1,
        "utilization": (0.2, 0.3, 0.5),
    }
    assert METRICS.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.allclose(METRICS[name](ACTIVITY), torch.tensor(values)), name
    # Confidence lifts the second above the first.
    assert [best(METRICS[name](ACTIVITY), 1) for name in expected] == [(1,), (0,), (2,)]


def test_a_fixed_number_of_the_best_is_kept() -> None:
    assert best(torch.tensor([0.1, 0.4, 0.2, 0.3]), 2) == (1, 3)
    assert best(torch.tensor([0.2, 0.2, 0.2]), 2) == (0, 1)


@pytest.mark.parametrize("least", [1, 2])
@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.35, 0.6, 1.0])
def test_a_threshold_keeps_the_best_and_others_as_long_as_their_sum_is_below_it(threshold: float, least: int) -> None:
    worth = torch.tensor([0.4, 2.0, 0.0, 1.2, 0.4])
    shares = sorted(((each / 4.0, expert) for expert, each in enumerate(worth.tolist())), key=lambda x: (-x[0], x[1]))
    expected, total = {expert for _, expert in shares[:least]}, 0.0
    for share, expert in shares[least:]:
        total += share
        if share and total < threshold - 1e-7:
            expected.add(expert)
    assert set(best_beyond(worth, threshold, least)) == expected
    if threshold == 1.0:
        assert expected == {0, 1, 3, 4}
