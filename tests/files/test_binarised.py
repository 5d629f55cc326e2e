"""Binarised sets are looked at in blocks, and found whole or damaged wherever a block ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fairseq.data import indexed_dataset

from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.files import binarised

SENTENCES = [[5, 2], [7, 7, 9, 2], [300, 2], [2], [11, 12, 13, 14, 2]]
BLOCKS = pytest.mark.parametrize("block", [1, 2, 3, 5, 14, 1000])


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    path = str(tmp_path / "train.en-de.de")
    builder = indexed_dataset.make_builder(f"{path}.bin", impl="mmap", vocab_size=400)
    for sentence in SENTENCES:
        builder.add_item(torch.tensor(sentence))
    builder.finalize(f"{path}.idx")
    return path


@BLOCKS
def test_blocks_are_all_pieces(prefix: str, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(binarised, "_BLOCK", block)
    blocks = binarised.map_pieces(prefix)
    assert blocks is not None
    assert np.concatenate(blocks).tolist() == [piece for sentence in SENTENCES for piece in sentence]
    assert max(map(len, blocks)) <= block


@BLOCKS
@pytest.mark.parametrize("sentence", range(len(SENTENCES)))
@pytest.mark.parametrize("part", ["length", "start"])
def test_a_damaged_index_is_found_in_every_block(
    prefix: str, monkeypatch: pytest.MonkeyPatch, block: int, sentence: int, part: str
) -> None:
    monkeypatch.setattr(binarised, "_BLOCK", block)
    index = Path(f"{prefix}.idx")
    content = bytearray(index.read_bytes())
    lengths = len(content) - 12 * len(SENTENCES)
    content[lengths + (4 * sentence if part == "length" else 4 * len(SENTENCES) + 8 * sentence)] ^= 64
    index.write_bytes(content)
    with pytest.raises(TaskMoEError, match=r"damaged|truncated|does not belong"):
        binarised.check_set(prefix)


def test_a_set_in_another_format_has_no_blocks(tmp_path: Path) -> None:
    path = str(tmp_path / "train.en-de.de")
    builder = indexed_dataset.make_builder(f"{path}.bin", impl="lazy")
    builder.add_item(torch.tensor([5, 2], dtype=torch.int32))
    builder.finalize(f"{path}.idx")
    assert binarised.map_pieces(path) is None
    assert binarised.map_pieces(str(tmp_path / "nothing")) is None
