"""How many operators of PyTorch translating calls, beside a dense model.

A GPU waits for Python there, so that every operator costs about the same, views included.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator

from taskmoe_plugin.models.taskmoe_transformer import TaskMoETransformerModel
from taskmoe_plugin.moe.fold import PARTS, fold, part_shapes
from tests.helpers.models import build_model, dictionary, net_input, rows
from tests.helpers.operators import CountedOperators

# Transformer Base, but for its width.
SHAPE = {"encoder_layers": 6, "decoder_layers": 6}
MOE_LAYERS = 6
STEPS = 8


def calls(model: Any, length: int) -> Counter[str]:
    """The operators that a beam search over a batch of one pair calls, in which all hypotheses have one length."""
    batch = net_input(rows(3, pairs=["en-de"]))
    names = ["src_tokens", "src_lengths"]
    if isinstance(model, TaskMoETransformerModel):
        names += ["src_lang_id", "tgt_lang_id"]
    inputs = {name: batch[name] for name in names}
    generator = SequenceGenerator([model], dictionary(), beam_size=3, max_len_a=0, max_len_b=length, min_len=length)
    with CountedOperators() as counted:
        generator.generate([model], {"net_input": inputs})
    return counted.calls


def calls_of_steps_and_batch(model: Any) -> tuple[Counter[str], Counter[str]]:
    """The operators of ``STEPS`` steps, and those that do not depend on how many steps there are."""
    once, twice = calls(model, STEPS), calls(model, 2 * STEPS)
    return twice - once, once + once - twice


@pytest.fixture(scope="module")
def dense() -> tuple[Counter[str], Counter[str]]:
    return calls_of_steps_and_batch(build_model("transformer", **SHAPE))


@pytest.mark.parametrize("combine", ["outputs", "weights"])
def test_a_step_of_decoding_calls_the_operators_of_a_dense_one(dense: Any, combine: str) -> None:
    steps, _ = calls_of_steps_and_batch(build_model(moe_combine=combine, **SHAPE))
    # What comes on top rearranges the language ids with the rows.
    assert steps - dense[0] == {"aten::index_select": STEPS}
    assert not dense[0] - steps


def test_a_batch_is_routed_and_folded_with_few_operators(dense: Any) -> None:
    _, batch = calls_of_steps_and_batch(build_model(**SHAPE))
    assert batch.total() - dense[1].total() <= 34 * MOE_LAYERS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_few_operators_fold_a_layer(dtype: torch.dtype) -> None:
    experts = [{part: torch.randn(shape).to(dtype) for part, shape in zip(PARTS, part_shapes(8, 16).values())}] * 2
    weights = torch.tensor([0.7, 0.3])
    with CountedOperators() as counted:
        for part in PARTS:
            fold(part, [each[part] for each in experts], weights)
    assert counted.launches <= 8, counted.calls
