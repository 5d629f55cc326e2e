"""Subnets of several pairs: what they keep, and when they are dense all the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from taskmoe_plugin.tasks.remembered_flags import forget_dictionaries
from tests.helpers.corpus import Corpus
from tests.helpers.training import generate
from tests.subnet.helpers import UNSHARED, extract, load, rewrite, write_model
from tests.subnet.stock import assert_equal, stock_fairseq, stock_generate_flags


def experts_of(directory: Path) -> dict[str, set[int]]:
    """The global indices of the experts that each stack's second layer still has."""
    state = load(directory / "model.pt")
    found: dict[str, set[int]] = {"encoder": set(), "decoder": set()}
    for stack, shape in json.loads(state["cfg"]["model"].taskmoe_subnet).items():
        stacked = state["model"].get(f"{stack}.layers.1.moe.experts.fc1_weight")
        if stacked is not None:
            found[stack] = set(shape["experts"].get("1", range(stacked.size(0))))
            assert stacked.size(0) == len(found[stack])
    return found


@pytest.mark.parametrize(
    ("routings", "top_k", "gate"),
    [
        (("source", "target"), 1, "learned"),
        (("pair", "group"), 2, "learned"),
        (("token", "target"), 2, "learned"),
        (("target", "source"), 2, "static"),
    ],
)
def test_several_pairs_keep_the_union_of_their_experts(
    corpus: Corpus, trained: Path, tmp_path: Path, routings: tuple[str, str], top_k: int, gate: str
) -> None:
    path = write_model(
        corpus, trained / "checkpoint_last.pt", tmp_path / "full.pt", "--moe-top-k", top_k, "--moe-task-gate", gate,
        "--encoder-moe-routing", routings[0], "--decoder-moe-routing", routings[1], "--moe-expert-count", 8,
    )  # fmt: skip
    pairs = ["en-de", "fr-en"]
    subnet = extract(corpus, path, tmp_path, "+".join(pairs))
    gates = json.loads((subnet / "subnet.json").read_text())["gates"]
    for stack, found in experts_of(subnet).items():
        layer = gates[stack]["1"]
        expected = set(range(8)) if layer == "all" else {each for pair in pairs for each in layer[pair]["experts"]}
        assert found == expected
    for pair in pairs:
        expected_hypotheses = generate(corpus, path, pair).hypotheses
        assert_equal(generate(corpus, subnet / "model.pt", pair).hypotheses, expected_hypotheses)


def test_a_language_that_would_need_two_dictionaries_is_refused(
    corpus: Corpus, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = write_model(corpus, trained / "checkpoint_last.pt", tmp_path / "full.pt", UNSHARED)
    lines = (corpus.bin / "dict.en.txt").read_text().splitlines(keepends=True)
    (tmp_path / "target.txt").write_text("".join(reversed(lines)))

    def give_dictionaries(state: Any) -> None:
        forget_dictionaries(state["cfg"]["task"])
        state["cfg"]["task"].source_dict = str(corpus.bin / "dict.en.txt")
        state["cfg"]["task"].target_dict = str(tmp_path / "target.txt")

    rewrite(full, full, give_dictionaries)
    with pytest.raises(SystemExit):
        extract(corpus, full, tmp_path / "union", "en-de+fr-en")
    assert "--lang-pairs en-de+fr-en: en is on both sides, whose dictionaries differ" in capsys.readouterr().err
    assert not list((tmp_path / "union").glob("*"))
    assert (extract(corpus, full, tmp_path / "one", "fr-en") / "dict.en.txt").read_text().startswith(lines[-1])


def test_a_stack_that_has_one_task_for_several_pairs_is_folded(corpus: Corpus, full: Path, tmp_path: Path) -> None:
    subnet = extract(corpus, full, tmp_path, "en-de+en-fr", "--verify", "all")
    content = json.loads((subnet / "subnet.json").read_text())
    assert content["stacks"] == {"encoder": "folded", "decoder": "routed"}
    assert set(content["verified"]) == {"en-de", "en-fr"}
    assert not experts_of(subnet)["encoder"]


def test_a_subnet_of_several_pairs_whose_stacks_have_one_task_each_is_dense(
    corpus: Corpus, trained: Path, tmp_path: Path
) -> None:
    routing = ("--encoder-moe-routing", "target", "--decoder-moe-routing", "target")
    path = write_model(corpus, trained / "checkpoint_last.pt", tmp_path / "full.pt", *routing)
    pairs = ("de-en", "fr-en")
    subnet = extract(corpus, path, tmp_path, "+".join(pairs))
    commands = [("generate", stock_generate_flags(corpus.bin, subnet / "model.pt", pair)) for pair in pairs]
    for pair, hypotheses in zip(pairs, stock_fairseq(commands)):
        assert_equal(hypotheses, generate(corpus, path, pair).hypotheses)
    # Both put __en__ first, so that CTranslate2 can.
    converted = extract(corpus, path, tmp_path / "c", "+".join(pairs), "--format", "ctranslate2", "--verify", "all")
    assert set(json.loads((converted / "subnet.json").read_text())["verified"]) == set(pairs)


@pytest.mark.parametrize("flags", [(), ("--encoder-moe-freq", 0, "--moe-top-k", 2)], ids=["both", "decoder"])
def test_several_pairs_of_merged_experts_have_a_network_for_each_task(
    corpus: Corpus, trained: Path, tmp_path: Path, flags: tuple[Any, ...]
) -> None:
    merged = ("--moe-combine", "weights", "--moe-expert-count", 2)
    path = write_model(corpus, trained / "checkpoint_last.pt", tmp_path / "full.pt", *merged, *flags)
    pairs = ["en-de", "en-fr", "de-en"]
    subnet = extract(corpus, path, tmp_path, "+".join(pairs), "--verify", "all")
    state = load(subnet / "model.pt")["model"]
    # To German, French and English, of which two experts were all there was.
    assert state["decoder.layers.1.moe.experts.fc1_weight"].size(0) == 3
    assert not [name for name in state if name.endswith("gates.table")]
    for pair in pairs:
        assert_equal(generate(corpus, subnet / "model.pt", pair).hypotheses, generate(corpus, path, pair).hypotheses)


def test_a_union_knows_no_other_pairs(corpus: Corpus, trained: Path, tmp_path: Path) -> None:
    routing = ("--encoder-moe-routing", "pair", "--decoder-moe-routing", "pair")
    path = write_model(corpus, trained / "checkpoint_last.pt", tmp_path / "full.pt", *routing)
    subnet = extract(corpus, path, tmp_path, "en-de+fr-en")
    with pytest.raises(SystemExit) as stopped:
        generate(corpus, subnet / "model.pt", "de-fr")
    assert stopped.value.code == 2
