"""A row's result depends on the row alone: not on its batch, their order, or padding."""

from __future__ import annotations

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from tests.helpers.models import ROUTED, Row, build_grouped, dictionary, kept, name_of, net_input, rows

# Gates, and fairseq's attention weights, are fp32 in a model of any precision.
TOLERANCE = {"atol": 1e-6, "rtol": 1e-5}


@pytest.fixture(params=ROUTED, ids=name_of)
def model(request, tmp_path):
    return build_grouped(tmp_path, moe_freq=1, moe_expert_count=4, **request.param).double()


def logits(model, batch: list[Row], **layout) -> list[Tensor]:
    """Each row's logits, without padding."""
    inputs = net_input(batch, **layout)
    with torch.no_grad():
        return kept(model(**inputs)[0], inputs)


def test_a_row_alone_gives_what_it_gives_in_a_mixed_batch(model) -> None:
    batch = rows()
    for row, expected in zip(batch, logits(model, batch)):
        torch.testing.assert_close(logits(model, [row])[0], expected, **TOLERANCE)


def test_the_order_of_rows_does_not_matter(model) -> None:
    batch = rows()
    torch.testing.assert_close(logits(model, batch[::-1])[::-1], logits(model, batch), **TOLERANCE)


@pytest.mark.parametrize("layout", [{"left": True, "extra": 3}, {"left": False}, {"left": False, "extra": 3}], ids=str)
def test_padding_does_not_matter(model, layout: dict) -> None:
    # Positions are counted from the first word on, so that padding on the left changes nothing for the dense parts.
    torch.testing.assert_close(logits(model, rows(), **layout), logits(model, rows()), **TOLERANCE)


def generate(model, batch: list[Row], beam: int) -> list[list[dict]]:
    inputs = net_input(batch)
    del inputs["prev_output_tokens"]
    generator = SequenceGenerator([model], dictionary(), beam_size=beam, max_len_b=8)
    return generator.generate([model], {"net_input": inputs})


@pytest.mark.parametrize("beam", [1, 3])
def test_beam_search_finds_the_same_for_a_row_alone_and_in_a_mixed_batch(model, beam: int) -> None:
    batch = rows()
    for row, together in zip(batch, generate(model, batch, beam)):
        alone = generate(model, [row], beam)[0]
        assert [hypothesis["tokens"].tolist() for hypothesis in alone] == [each["tokens"].tolist() for each in together]
        scores = [torch.stack([hypothesis["score"] for hypothesis in each]) for each in (alone, together)]
        torch.testing.assert_close(*scores, **TOLERANCE)


@pytest.mark.parametrize("beam", [1, 4])
def test_the_score_of_a_hypothesis_is_what_the_model_gives_it_without_beams(model, beam: int) -> None:
    batch = rows(4)
    for row, hypotheses in zip(batch, generate(model, batch, beam)):
        for hypothesis in hypotheses:
            target = hypothesis["tokens"]
            forced = Row(row.pair, row.source, tuple(target[:-1].tolist()))
            log_probs = logits(model, [forced])[0].log_softmax(dim=-1)
            expected = log_probs.gather(1, target.unsqueeze(1)).squeeze(1)
            torch.testing.assert_close(hypothesis["positional_scores"].double(), expected, atol=1e-5, rtol=1e-5)


def test_a_row_of_another_task_gives_something_else(tmp_path) -> None:
    model = build_grouped(tmp_path, moe_freq=1, moe_expert_count=4).double()
    row = rows(1)[0]
    other = Row("fr-de", row.source, row.target)
    assert not torch.allclose(logits(model, [row])[0], logits(model, [other])[0])
