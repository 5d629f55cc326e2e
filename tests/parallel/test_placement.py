"""Who is served by experts that several processes share."""

from __future__ import annotations

import torch

from taskmoe_plugin.parallel.placement import share_capacity, share_capacity_at_random

CAPACITY = 7


def test_in_random_order_all_processes_have_a_share_and_agree_on_it() -> None:
    taken = torch.zeros(2, 3)
    torch.manual_seed(0)
    for _ in range(300):
        # Two processes, two choices, three experts; one more token makes it another draw.
        more = torch.randint(100, (1,)).item()
        choices = torch.tensor([[[6, 2, more], [1, 0, 0]], [[3, 4, 100], [5, 1, 0]]])
        each = [share_capacity_at_random(choices, CAPACITY, process) for process in (0, 1)]
        assert torch.equal(each[0][0], each[1][0])
        # As many as in order: the capacity, or all.
        assert torch.equal(each[0][0].sum(0), share_capacity(choices, CAPACITY, 0)[0].sum(0))
        # A process serves those of its own that have fewer ahead than there is room.
        for process, (found, ahead) in enumerate(each):
            own = choices[process]
            rank = own.cumsum(0) - own + ahead
            assert torch.equal((CAPACITY - rank).clamp(min=0).minimum(own).sum(0), found[process])
        taken += each[0][0]
    # Nine first choices for seven places, six of them of the first process: its share of the places is two thirds.
    assert abs(taken[0, 0] / 300 - 7 * 6 / 9) < 0.2
    assert (taken[:, 1] == 300 * torch.tensor([2, 5])).all()
