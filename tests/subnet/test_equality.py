"""A subnet equals the full model on its task: same hypotheses, scores within 1e-4, over a whole test set.

The subnets are run by stock fairseq-generate in a process that does not have the plugin.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.corpus import Corpus
from tests.helpers.training import generate
from tests.subnet.helpers import UNSHARED, extract, load, write_model
from tests.subnet.stock import TOLERANCE, assert_equal, stock_fairseq, stock_generate_flags

PRE = ("--encoder-normalize-before", "--decoder-normalize-before")
ROUTINGS = (("source", "target"), ("target", "source"), ("pair", "pair"), ("group", "group"))
# Of norms and embeddings half of the combinations: every two choices occur together, whatever the others are.
PRODUCT = {
    f"{encoder}/{decoder} k={k} {'pre' if norm else 'post'}-norm {'unshared' if unshared else 'shared'}": (
        *("--encoder-moe-routing", encoder, "--decoder-moe-routing", decoder, "--moe-top-k", k),
        *norm,
        *unshared,
    )
    for (place, (encoder, decoder)), k, norm, unshared in product(
        enumerate(ROUTINGS), (1, 2, 3), ((), PRE), ((), (UNSHARED,))
    )
    if (place + k + bool(norm) + bool(unshared)) % 2
}
UNTRAINED = "a direction that was not trained"
VARIANTS: dict[str, tuple[Any, ...]] = {
    "static gates": ("--moe-task-gate", "static", *PRE),
    "static gates, one expert": ("--moe-task-gate", "static", "--moe-top-k", 1),
    "every layer": ("--moe-freq", 1),
    "merged experts": ("--moe-combine", "weights", *PRE),
    "merged experts, the best two, in every layer": ("--moe-combine", "weights", "--moe-top-k", 2, "--moe-freq", 1),
    "trained with all experts": ("--moe-dense-training", *PRE),
    "trained with all experts, one kept": ("--moe-dense-training", "--moe-top-k", 1),
    "weights times two": ("--moe-route-scale", 2, *PRE),
    "dense encoder": ("--encoder-moe-freq", 0, *PRE),
    "dense decoder": ("--decoder-moe-freq", 0, *PRE),
    "narrow experts": ("--moe-expert-ffn-dim", 8, *PRE),
    "learned positions": ("--encoder-learned-pos", "--decoder-learned-pos", *PRE),
    "layernorm of embeddings": ("--layernorm-embedding",),
    "gelu": ("--activation-fn", "gelu", *PRE),
    "tanh": ("--activation-fn", "tanh"),
    "stacks of different depth and heads": ("--encoder-layers", 4, "--decoder-attention-heads", 4, *PRE),
    "no scaling of embeddings": ("--no-scale-embedding", *PRE),
    "no final norm": ("--no-decoder-final-norm", *PRE),
    "another output width": ("--decoder-output-dim", 12, UNSHARED),
    "adaptive softmax": ("--adaptive-softmax-cutoff", "10,20", UNSHARED, *PRE),
    "tied decoder embeddings": ("--share-decoder-input-output-embed", UNSHARED),
    "shared cross-attention": ("--cross-self-attention", *PRE),
    "layer drop": ("--encoder-layerdrop", 0.1, "--decoder-layerdrop", 0.1, *PRE),
    UNTRAINED: ("--encoder-moe-routing", "source", "--decoder-moe-routing", "target", *PRE),
    "activation dropout": ("--activation-dropout", 0.1, "--moe-expert-dropout", 0.3, *PRE),
}


@pytest.fixture(scope="module")
def found(corpus: Corpus, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, ...]]:
    """By name of the model: hypotheses of the full model, those of its subnet, the subnet's directory."""
    models, commands = {}, []
    for index, (name, flags) in enumerate({**PRODUCT, **VARIANTS}.items()):
        directory = tmp_path_factory.mktemp("model")
        pair = "fr-de" if name == UNTRAINED else ("de-fr", "en-de", "fr-en")[index % 3]
        path = write_model(corpus, trained / "checkpoint_last.pt", directory / "full.pt", *flags, seed=index)
        subnet = extract(corpus, path, directory, pair)
        models[name] = (generate(corpus, path, pair).hypotheses, subnet)
        commands.append(("generate", stock_generate_flags(corpus.bin, subnet / "model.pt", pair)))
    return {name: (*models[name], hypotheses) for name, hypotheses in zip(models, stock_fairseq(commands))}


@pytest.mark.parametrize("name", [*PRODUCT, *VARIANTS])
def test_a_subnet_translates_as_the_full_model_does(found: dict[str, Any], name: str) -> None:
    expected, _, hypotheses = found[name]
    assert_equal(hypotheses, expected)


def test_the_scores_that_are_compared_depend_on_the_sentences(found: dict[str, Any]) -> None:
    for name, (expected, _, _) in found.items():
        scores = sorted(score for score, _ in expected.values())
        assert scores[-1] - scores[0] > 10 * TOLERANCE, name


def test_the_subnet_of_a_model_that_has_learned_translates_as_it_does(
    corpus: Corpus, learned: Path, tmp_path: Path
) -> None:
    pairs = ("en-de", "fr-en")
    extract(corpus, learned, tmp_path, ",".join(pairs))
    commands = [("generate", stock_generate_flags(corpus.bin, tmp_path / pair / "model.pt", pair)) for pair in pairs]
    for pair, hypotheses in zip(pairs, stock_fairseq(commands)):
        expected = generate(corpus, learned, pair).hypotheses
        assert len({text for _, text in expected.values()}) > 2
        assert_equal(hypotheses, expected)


@pytest.mark.parametrize("name", ["source/target k=2 pre-norm shared", "static gates"])
def test_nothing_of_the_plugin_is_left(found: dict[str, Any], name: str) -> None:
    state = load(found[name][1] / "model.pt")
    assert not torch.serialization.get_unsafe_globals_in_checkpoint(found[name][1] / "model.pt")
    args = state["cfg"]["model"]
    assert args["arch"] == "transformer"
    assert not [each for each in args if "moe" in each or "bleu" in each]
    assert "taskmoe" not in str({name: part for name, part in state.items() if name != "model"})
    assert not [each for each in state["model"] if "moe" in each or "tasks" in each]


def test_hypotheses_of_other_pairs_are_others(corpus: Corpus, full: Path, tmp_path: Path) -> None:
    # So that the tests above would notice experts of another task.
    own, other = (extract(corpus, full, tmp_path, pair) / "model.pt" for pair in ("en-de", "de-fr"))
    flags = [("generate", stock_generate_flags(corpus.bin, path, "en-de")) for path in (own, other)]
    one, two = stock_fairseq(flags)
    assert one != two
