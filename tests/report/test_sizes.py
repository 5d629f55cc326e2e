"""The parameters of subnets are those that extraction finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from taskmoe_plugin.report.content import find_out
from taskmoe_plugin.report.sizes import subnet_sizes
from taskmoe_plugin.subnet.checkpoint import Checkpoint
from tests.helpers.corpus import PAIRS, Corpus
from tests.subnet.helpers import UNSHARED, extract, write_model


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--moe-expert-ffn-dim", 40, UNSHARED),
        ("--encoder-moe-routing", "token"),
        ("--decoder-moe-freq", 0),
        ("--moe-combine", "weights"),
    ],
    ids=["default", "wide experts", "partial", "dense decoder", "merged"],
)
def test_every_size_is_that_of_the_subnet(corpus: Corpus, template: Path, tmp_path: Path, flags: tuple[object]) -> None:
    path = write_model(corpus, template, tmp_path / "model.pt", *flags)
    sizes = subnet_sizes(Checkpoint.open(path))
    assert [size.pair for size in sizes] == list(PAIRS)
    described = {
        form: json.loads((extract(corpus, path, tmp_path / form, "de-fr", *form_flags) / "subnet.json").read_text())
        for form, form_flags in {"padded": (), "unpadded": ("--unpadded",)}.items()
    }
    size = sizes[PAIRS.index("de-fr")]
    assert size.form == described["padded"]["form"]
    assert size.parameters == described["unpadded"]["subnet"]["parameters"]
    if size.padded is None:
        assert "partial" in size.form
    else:
        assert size.padded == described["padded"]["subnet"]["parameters"]
    assert find_out(path, [], "valid", None).parameters == described["padded"]["full_model"]["parameters"]


def test_a_model_that_routes_by_token_has_no_subnets(corpus: Corpus, by_token: Path) -> None:
    assert find_out(by_token, [corpus.bin], "valid", 1).subnets == []
