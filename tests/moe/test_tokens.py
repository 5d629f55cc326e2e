"""Which tokens of a padded batch there are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from taskmoe_plugin.moe import Tokens

MASKS = hnp.arrays(bool, st.tuples(st.integers(1, 5), st.integers(1, 6)))


@given(MASKS, st.booleans())
def test_the_tokens_are_those_that_are_not_padding_in_time_major_order(mask, known: bool) -> None:
    padding = torch.from_numpy(mask)
    rows, length = padding.shape
    batch = Tokens.from_padding(padding, int((~padding).sum()) if known else None)
    places = [(t, b) for t in range(length) for b in range(rows) if not padding[b, t]]
    assert batch.rows == rows
    assert batch.row.tolist() == [b for _, b in places]
    flat = torch.arange(length * rows).unsqueeze(1)
    assert batch.take(flat).squeeze(1).tolist() == [t * rows + b for t, b in places]


@pytest.mark.parametrize("count", [None, 6])
def test_a_batch_without_padding_is_taken_as_it_is(count: int | None) -> None:
    batch = Tokens.from_padding(torch.zeros(2, 3, dtype=torch.bool), count)
    assert batch.index is None
    flat = torch.randn(6, 4)
    assert batch.take(flat) is flat


@pytest.mark.parametrize("count", [None, 0])
def test_a_batch_of_padding_alone_has_no_tokens(count: int | None) -> None:
    batch = Tokens.from_padding(torch.ones(2, 3, dtype=torch.bool), count)
    assert batch.row.numel() == 0
    assert batch.take(torch.randn(6, 4)).shape == (0, 4)
