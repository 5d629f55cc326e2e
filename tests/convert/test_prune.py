"""Language-specific expert pruning: what is kept, and that the result is a model like any other."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from taskmoe_plugin.cli.main import main
from taskmoe_plugin.convert.activity import Activity, counted_choices
from taskmoe_plugin.subnet.checkpoint import Checkpoint
from taskmoe_plugin.subnet.references import References
from tests.convert.checkpoints import load
from tests.helpers.corpus import PAIRS, Corpus
from tests.helpers.training import generate, train
from tests.subnet.helpers import DEFAULT, extract, write_model
from tests.subnet.stock import assert_equal

BY_TOKEN = ("--encoder-moe-routing", "token", "--decoder-moe-routing", "token")
EXPERTS = 5


@pytest.fixture(scope="module")
def full(corpus: Corpus, template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("by_token") / "full.pt"
    return write_model(corpus, template, path, *DEFAULT, *BY_TOKEN, "--moe-expert-count", EXPERTS, "--moe-freq", 1)


@pytest.fixture(scope="module")
def activities(corpus: Corpus, full: Path) -> Any:
    """What the tokens of a pair choose in each layer of both stacks, one after the other."""
    references = References(Checkpoint.open(full), [corpus.bin], PAIRS, "valid", None)

    @cache
    def activities_of(pair: str) -> list[Activity]:
        layers = [*references.model.encoder.moe_layers, *references.model.decoder.moe_layers]
        with torch.no_grad(), counted_choices(layers) as sums:
            references.run(pair)
        return [Activity.of_sums(each) for each in sums]

    return activities_of


def prune(path: Path, output: Path, *flags: Any) -> Path:
    main(["convert", "prune", str(path), "--output", str(output), *map(str, flags)])
    return output


def test_pairs_may_stand_in_a_file(full: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("en-de\nde-en\n")
    flags = ("--metric", "random", "--experts", 2, "--lang-pairs")
    found = [shapes_of(prune(full, tmp_path / f"{len(str(each))}.pt", *flags, each)) for each in (pairs, "en-de,de-en")]
    assert found[0] == found[1]
    assert found[0]["encoder"]["restriction"]["pairs"] == ["en-de", "de-en"]


def shapes_of(path: Path) -> dict[str, Any]:
    return json.loads(load(path)["cfg"]["model"].taskmoe_subnet)  # type: ignore[no-any-return]


def importance_of(activities: Any, pairs: list[str], layer: int) -> torch.Tensor:
    """The mean of top-1 activity and confidence over pairs, then top1 · exp(conf)."""
    first = sum(activities(pair)[layer].first for pair in pairs) / len(pairs)
    confidence = sum(activities(pair)[layer].confidence for pair in pairs) / len(pairs)
    return first * torch.exp(confidence)


def test_each_language_keeps_the_experts_that_are_most_important_to_its_pairs(
    corpus: Corpus, full: Path, activities: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = prune(full, tmp_path / "pruned.pt", "--experts", "3,2", "--data", corpus.bin, "--sentences", "all")
    before, after = load(full)["model"], load(path)["model"]
    counts = {"encoder": 0, "decoder": 0}
    for number, (stack, count, side) in enumerate((("encoder", 3, 0), ("decoder", 2, 1))):
        shape = shapes_of(path)[stack]
        assert shape["restriction"]["pairs"] == list(PAIRS)
        for layer in (0, 1):
            kept = shape["experts"][str(layer)]
            counts[stack] += len(kept)
            for lang, places in zip(("en", "de", "fr"), shape["restriction"]["allowed"][str(layer)]):
                pairs = [pair for pair in PAIRS if pair.split("-")[side] == lang]
                worth = importance_of(activities, pairs, 2 * number + layer)
                # Experts that no token has first are worth nothing, all of them.
                found = worth[[kept[place] for place in places]]
                assert found.sort(descending=True).values.allclose(worth.topk(count).values)
            for name in ("router.gate.weight", "experts.fc1_weight", "experts.fc2_bias"):
                name = f"{stack}.layers.{layer}.moe.{name}"
                assert torch.equal(after[name], before[name][kept])
    said = " and ".join(f"{count} of {2 * EXPERTS} experts of the {stack}" for stack, count in counts.items())
    assert f"kept {said} for {', '.join(PAIRS)}" in capsys.readouterr().out


def test_a_threshold_leaves_layers_and_pairs_different_numbers_of_experts(
    corpus: Corpus, full: Path, activities: Any, tmp_path: Path
) -> None:
    flags = ("--threshold", 0.3, "--by", "pair", "--metric", "utilization", "--lang-pairs", "en-de,fr-en")
    path = prune(full, tmp_path / "pruned.pt", *flags, "--data", corpus.bin, "--sentences", "all")
    for stack, first in (("encoder", 0), ("decoder", 2)):
        shape = shapes_of(path)[stack]
        for layer in (0, 1):
            for pair, places in zip(("en-de", "fr-en"), shape["restriction"]["allowed"][str(layer)]):
                share, order = activities(pair)[first + layer].chosen.sort(descending=True)
                count = 2 + int(((share[2:].cumsum(0) < 0.3) & (share[2:] > 0)).sum())
                assert [shape["experts"][str(layer)][place] for place in places] == sorted(order[:count].tolist())


def test_the_model_as_a_whole_keeps_what_all_pairs_use(
    corpus: Corpus, full: Path, activities: Any, tmp_path: Path
) -> None:
    flags = ("--experts", 2, "--by", "model", "--metric", "activity", "--sentences", "all")
    shape = shapes_of(prune(full, tmp_path / "pruned.pt", *flags, "--data", corpus.bin))["decoder"]
    assert shape["restriction"] is None
    mean = sum(activities(pair)[3].first for pair in PAIRS)
    assert mean[shape["experts"]["1"]].sum() == mean.topk(2).values.sum()


def test_the_control_is_random_and_needs_no_data(full: Path, tmp_path: Path) -> None:
    flags = ("--experts", 3, "--metric", "random", "--seed")
    one, same, other = (
        shapes_of(prune(full, tmp_path / name, *flags, seed)) for name, seed in (("1", 1), ("2", 1), ("3", 2))
    )
    assert one == same != other


def test_with_all_experts_it_is_the_same_model(corpus: Corpus, full: Path, tmp_path: Path) -> None:
    path = prune(full, tmp_path / "pruned.pt", "--experts", 2 * EXPERTS, "--metric", "random")
    assert_equal(generate(corpus, path, "fr-en").hypotheses, generate(corpus, full, "fr-en").hypotheses)


def test_a_pruned_model_translates_and_is_extracted_like_any_other(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--experts", 2, "--lang-pairs", "en-de,fr-en", "--data", corpus.bin)
    path = prune(full, tmp_path / "pruned.pt", *flags)
    translated = generate(corpus, path, "fr-en").hypotheses
    assert translated != generate(corpus, full, "fr-en").hypotheses
    capsys.readouterr()
    extract(corpus, path, tmp_path / "subnets", "all")
    assert "pruned" in capsys.readouterr().out
    subnet = tmp_path / "subnets" / "fr-en" / "model.pt"
    kept = json.loads(subnet.with_name("subnet.json").read_text())["gates"]["encoder"]["1"]
    rows = load(full)["model"]["encoder.layers.1.moe.router.gate.weight"][kept]
    assert torch.equal(load(subnet)["model"]["encoder.layers.1.moe.router.gate.weight"], rows)
    assert load(subnet)["model"]["encoder.layers.1.moe.experts.fc1_bias"].size(0) == 2
    assert_equal(generate(corpus, subnet, "fr-en").hypotheses, translated)
    with pytest.raises(SystemExit):
        generate(corpus, path, "de-fr")


def test_a_report_names_the_experts_by_their_numbers_in_the_full_model(
    corpus: Corpus, full: Path, tmp_path: Path
) -> None:
    flags = ("--experts", 2, "--lang-pairs", "en-de,fr-en", "--data", corpus.bin)
    path = prune(full, tmp_path / "pruned.pt", *flags)
    main(["report", str(path), "--output-dir", str(tmp_path / "report"), "--data", str(corpus.bin), "--no-plots"])
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    for stack, shape in shapes_of(path).items():
        assert report["stacks"][stack]["tasks"] == ["en-de", "fr-en"]
        layer = report["stacks"][stack]["layers"]["1"]
        assert len(layer["expert_load"]) == EXPERTS
        kept, places = shape["experts"]["1"], shape["restriction"]["allowed"]["1"]
        # English comes first by source, and last by target.
        for shares, own in zip(layer["load"], places if stack == "encoder" else places[::-1]):
            assert sum(shares[kept[place]] for place in own) == pytest.approx(1)
    main(["report", str(path), "--output-dir", str(tmp_path / "without"), "--no-plots"])
    layer = json.loads((tmp_path / "without" / "report.json").read_text())["stacks"]["decoder"]["layers"]["1"]
    kept, places = (shapes_of(path)["decoder"][name] for name in ("experts", "restriction"))
    for weights, own in zip(layer["weight"], places["allowed"]["1"]):
        assert {kept["1"][place]: 1 / len(own) for place in own} == {n: each for n, each in enumerate(weights) if each}
    subnets = {each["pair"]: each["parameters"] for each in report["parameters"]["subnets"]}
    tensors = load(extract(corpus, path, tmp_path, "fr-en") / "model.pt")["model"]
    unshared = {each.data_ptr(): each.numel() for name, each in tensors.items() if "version" not in name}
    assert subnets["fr-en"] == sum(unshared.values())


def test_only_the_stack_that_routes_by_token_is_pruned(corpus: Corpus, template: Path, tmp_path: Path) -> None:
    flags = (*DEFAULT, "--encoder-moe-routing", "token")
    full = write_model(corpus, template, tmp_path / "full.pt", *flags)
    path = prune(full, tmp_path / "pruned.pt", "--experts", 2, "--lang-pairs", "de-en", "--data", corpus.bin)
    assert shapes_of(path)["decoder"] == {"ffn_dims": [], "experts": {}, "restriction": None}
    extract(corpus, path, tmp_path / "subnets", "de-en", "--verify", 2)


def test_a_pruned_model_can_be_trained_further(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = prune(full, tmp_path / "pruned.pt", "--experts", 2, "--data", corpus.bin)
    flags = (*DEFAULT, *BY_TOKEN, "--moe-expert-count", EXPERTS, "--moe-freq", 1, "--finetune-from-model", path)
    train(corpus, tmp_path / "further", *flags, "--max-update", 1, "--disable-validation", "--no-epoch-checkpoints")
    before, after = load(path), load(tmp_path / "further" / "checkpoint_last.pt")
    assert after["cfg"]["model"].taskmoe_subnet == before["cfg"]["model"].taskmoe_subnet
    name = "encoder.layers.0.moe.router.gate.weight"
    assert after["model"][name].shape == before["model"][name].shape
    assert not torch.equal(after["model"][name], before["model"][name])
    with pytest.raises(SystemExit):
        train(corpus, tmp_path / "spread", *flags, "--moe-expert-parallel", "--max-update", 1)
    assert "--moe-expert-parallel: the layers of a pruned model" in capsys.readouterr().err


def test_what_was_pruned_to_some_pairs_is_trained_on_these_alone(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--experts", 2, "--lang-pairs", "en-de,de-en", "--metric", "random")
    path = prune(full, tmp_path / "pruned.pt", *options)
    flags = (*DEFAULT, *BY_TOKEN, "--moe-expert-count", EXPERTS, "--moe-freq", 1, "--finetune-from-model", path,
             "--max-update", 1, "--disable-validation", "--no-epoch-checkpoints")  # fmt: skip
    with pytest.raises(SystemExit):
        train(corpus, tmp_path / "all", *flags)
    assert f"{path} was pruned to en-de, de-en; leave out fr-en" in capsys.readouterr().err
    train(corpus, tmp_path / "these", *flags, "--lang-pairs", "de-en,en-de")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--experts", "0"), "--experts 0: give a number"),
        (("--experts", "1,4", "--metric", "random"), "--experts 1: a token of this model has 2"),
        (("--threshold", "1.5"), "--threshold 1.5: give a value from 0 to 1"),
        (("--experts", "2"), "--metric importance: is counted on data; give --data DATA_BIN"),
        (("--experts", "2", "--lang-pairs", "en-cs", "--metric", "random"), "--lang-pairs en-cs: "),
        (("--experts", "2", "--data", "x", "--sentences", "none"), "--sentences none"),
    ],
)
def test_what_cannot_be_pruned_is_refused(
    full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        prune(full, tmp_path / "pruned.pt", *flags)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_model_that_chooses_by_language_or_was_pruned_already_is_refused(
    corpus: Corpus, template: Path, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--experts", 2, "--metric", "random")
    pruned = prune(full, tmp_path / "pruned.pt", *flags)
    chosen = (*DEFAULT, *BY_TOKEN, "--moe-expert-count", EXPERTS, "--moe-language-experts", 2)
    by_language = write_model(corpus, template, tmp_path / "language.pt", *chosen)
    for path, message in (
        (template, "no stack routes by token"),
        (pruned, "is pruned to languages already"),
        (by_language, "was trained with --moe-language-experts"),
    ):
        with pytest.raises(SystemExit):
            prune(path, tmp_path / "again.pt", *flags)
        assert message in capsys.readouterr().err
