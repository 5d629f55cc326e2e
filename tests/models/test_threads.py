"""A model may translate in several threads at once: what it is told of a batch is that thread's."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.models import build_model, net_input, rows

LOW_RANK = {"moe_freq": 0, "task_low_rank": 3}
TOKEN = {"encoder_moe_routing": "token", "decoder_moe_routing": "token"}


@pytest.mark.parametrize("flags", [{}, TOKEN, LOW_RANK, {"moe_combine": "weights"}])
def test_threads_that_take_turns_in_every_layer_compute_what_one_does(flags: dict[str, Any]) -> None:
    model = build_model(**flags).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    batches = [net_input([each]) for each in rows()[:2]]
    expected = [model(**batch)[0] for batch in batches]
    barrier = threading.Barrier(len(batches), timeout=60)

    def wait(*_: Any) -> None:
        barrier.wait()

    for layer in (*model.encoder.layers, *model.decoder.layers):
        layer.register_forward_pre_hook(wait)

    def run(batch: dict[str, Any]) -> Tensor:
        return model(**batch)[0]  # type: ignore[no-any-return]

    with ThreadPoolExecutor(len(batches)) as pool:
        found = list(pool.map(run, batches))
    torch.testing.assert_close(found, expected)


def test_a_copy_of_a_model_is_told_of_batches_of_its_own() -> None:
    model = build_model(task_low_rank=3).eval()
    copied = deepcopy(model)
    batch = net_input(rows()[:1])
    torch.testing.assert_close(copied(**batch)[0], model(**batch)[0])
    layer, other = (each.encoder.routed_layers[0] for each in (model, copied))
    assert layer.batch is not other.batch
    assert layer.languages is not other.languages
