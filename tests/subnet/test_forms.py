"""Partial subnets, subnets of several pairs, layers of their own widths, and every kind of checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from taskmoe_plugin.subnet.checkpoint import Checkpoint
from tests.helpers.corpus import LANGS, PAIRS, Corpus
from tests.helpers.training import generate, train
from tests.subnet.helpers import DEFAULT, UNSHARED, extract, load, rewrite, write_model
from tests.subnet.stock import assert_equal, stock_fairseq, stock_generate_flags


@pytest.mark.parametrize(
    ("flags", "whole"),
    [
        (("--encoder-moe-routing", "token"), "encoder"),
        (("--decoder-moe-routing", "sentence", "--encoder-moe-routing", "pair"), "decoder"),
        (("--encoder-moe-routing", "sentence", "--decoder-moe-routing", "group", "--moe-freq", 1), "encoder"),
        (("--encoder-moe-routing", "token", "--moe-task-gate", "static", UNSHARED), "encoder"),
    ],
    ids=["token encoder", "sentence decoder", "every layer", "static gate"],
)
def test_the_stack_that_routes_by_task_is_folded_and_the_other_kept(
    corpus: Corpus, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: Any, whole: str
) -> None:
    path = write_model(corpus, trained / "checkpoint_last.pt", tmp_path / "full.pt", *flags)
    subnet = extract(corpus, path, tmp_path, "en-de", "--verify", "all")
    assert f"partial, {whole} whole" in capsys.readouterr().out
    names = load(subnet / "model.pt")["model"]
    assert names[f"{whole}.layers.1.moe.experts.fc1_weight"].size(0) == 4
    folded = {"encoder": "decoder", "decoder": "encoder"}[whole]
    assert not [name for name in names if name.startswith(f"{folded}.") and "moe" in name]
    assert_equal(generate(corpus, subnet / "model.pt", "en-de").hypotheses, generate(corpus, path, "en-de").hypotheses)


def test_with_a_threshold_every_pair_has_its_own_width(corpus: Corpus, trained: Path, tmp_path: Path) -> None:
    flags = ("--moe-threshold", 0.7, "--moe-top-k", 4, "--moe-expert-count", 8, "--moe-route-scale", 2)
    path = write_model(corpus, trained / "checkpoint_last.pt", tmp_path / "full.pt", *flags)

    def spread_gates(state: Any) -> None:
        for stack in ("encoder", "decoder"):
            state["model"][f"{stack}.tasks.gates.weight"] *= 20

    path = rewrite(path, path, spread_gates)
    widths = set()
    for pair in ("en-de", "fr-en"):
        subnet = extract(corpus, path, tmp_path, pair, "--unpadded")
        translated = generate(corpus, path, pair).hypotheses
        assert_equal(generate(corpus, subnet / "model.pt", pair).hypotheses, translated)
        content = json.loads((subnet / "subnet.json").read_text())
        for stack, width in content["ffn_dims"].items():
            weights = content["gates"][stack]["1"][pair]["weights"]
            assert min(weights) > 0
            assert width == [24, 24 * len(weights)]
            widths.add(width[1])
    assert len(widths) > 1
    union = extract(corpus, path, tmp_path, "en-de+fr-en")
    assert_equal(generate(corpus, union / "model.pt", "fr-en").hypotheses, translated)


BY_TOKEN = ("--encoder-moe-routing", "token", "--decoder-moe-routing", "token")
AMONG = (*BY_TOKEN, "--moe-expert-count", 6, "--moe-language-experts", 3, "--moe-freq", 1, *DEFAULT)


def test_a_subnet_keeps_the_experts_that_the_tokens_of_its_languages_choose_among(
    corpus: Corpus, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_model(corpus, trained / "checkpoint_last.pt", tmp_path / "full.pt", *AMONG)

    def spread_gates(state: Any) -> None:
        for stack in ("encoder", "decoder"):
            state["model"][f"{stack}.tasks.gates.weight"] *= 100

    path = rewrite(path, path, spread_gates)
    subnet = extract(corpus, path, tmp_path, "fr-en")
    assert "pruned" in capsys.readouterr().out
    kept = json.loads((subnet / "subnet.json").read_text())["gates"]
    before, after = load(path)["model"], load(subnet / "model.pt")["model"]
    for stack, task in (("encoder", LANGS.index("fr")), ("decoder", LANGS.index("en"))):
        gates = {name: before[f"{stack}.tasks.gates.{name}"] for name in ("embedding", "weight", "head_start")}
        for layer in (0, 1):
            scores = gates["weight"][layer] @ gates["embedding"][layer, task] / 16 + gates["head_start"][task]
            own = sorted(scores.topk(3).indices.tolist())
            assert kept[stack][str(layer)] == own
            for name in ("experts.fc2_weight", "router.gate.weight"):
                name = f"{stack}.layers.{layer}.moe.{name}"
                assert torch.equal(after[name], before[name][own])
    union = extract(corpus, path, tmp_path, "fr-en+de-fr")
    for pair, model in (("fr-en", subnet), ("de-fr", union)):
        translated = generate(corpus, model / "model.pt", pair).hypotheses
        assert_equal(translated, generate(corpus, path, pair).hypotheses)
    with pytest.raises(SystemExit):
        generate(corpus, subnet / "model.pt", "en-fr")


def test_a_stack_may_choose_among_experts_of_a_language_and_the_other_have_them(corpus: Corpus, tmp_path: Path) -> None:
    flags = (*DEFAULT, "--encoder-moe-routing", "token", "--moe-language-experts", 2, "--moe-router-jitter", 0.1)
    train(corpus, tmp_path, *flags, "--max-update", 2, "--no-epoch-checkpoints", "--checkpoint-activations")
    subnet = extract(corpus, tmp_path / "checkpoint_last.pt", tmp_path, "en-de", "--verify", "all")
    content = json.loads((subnet / "subnet.json").read_text())
    assert content["stacks"] == {"encoder": "pruned", "decoder": "folded"}
    assert content["ffn_dims"] == {"encoder": [24, 24], "decoder": [24, 48]}


@pytest.mark.parametrize("flags", [("--encoder-moe-routing", "token"), ("--encoder-moe-routing", "source")])
def test_a_subnet_has_no_warmup_of_gates_left(corpus: Corpus, tmp_path: Path, flags: tuple[str, ...]) -> None:
    warmup = ("--moe-task-gate-warmup-updates", 2, "--moe-task-gate-warmup-top-k", 3)
    train(corpus, tmp_path, *DEFAULT, *flags, *warmup, "--max-update", 2, "--no-epoch-checkpoints")
    full = tmp_path / "checkpoint_last.pt"
    subnet = extract(corpus, full, tmp_path / "subnets", "en-de", "--unpadded", "--verify", "all")
    assert_equal(generate(corpus, subnet / "model.pt", "en-de").hypotheses, generate(corpus, full, "en-de").hypotheses)


def test_layers_may_keep_their_own_widths(corpus: Corpus, full: Path, tmp_path: Path) -> None:
    padded, own = extract(corpus, full, tmp_path / "padded", "en-de"), None
    own = extract(corpus, full, tmp_path / "own", "en-de", "--unpadded", "--verify", "all")
    content = {path: json.loads((path / "subnet.json").read_text()) for path in (padded, own)}
    assert content[padded]["ffn_dims"] == {"encoder": [24, 48], "decoder": [24, 48]}
    assert content[padded]["padded_to"] == {"encoder": 48, "decoder": 48}
    assert "padded_to" not in content[own]
    assert content[own]["arch"] == "taskmoe_transformer"
    # Twice 24 hidden units of 16 inputs, 16 outputs and a bias.
    assert content[padded]["subnet"]["parameters"] - content[own]["subnet"]["parameters"] == 2 * 24 * (16 + 16 + 1)
    assert load(own / "model.pt")["model"]["encoder.layers.0.fc1.weight"].shape == (24, 16)
    assert_equal(generate(corpus, own / "model.pt", "en-de").hypotheses, generate(corpus, full, "en-de").hypotheses)


def without_optimizer_state(state: Any) -> None:
    del state["last_optimizer_state"]


def half(dtype: torch.dtype) -> Callable[[Any], None]:
    def change(state: Any) -> None:
        state["model"] = {
            name: value.to(dtype) if value.is_floating_point() else value for name, value in state["model"].items()
        }

    return change


def averaged(state: Any) -> None:
    # As fairseq's script does: every tensor is a new one, shared embeddings are stored several times.
    state["model"] = {name: (value + value) / 2 for name, value in state["model"].items()}


def test_subnets_of_every_kind_of_checkpoint_are_equal(corpus: Corpus, full: Path, tmp_path: Path) -> None:
    kinds: dict[str, Callable[[Any], None]] = {
        "without-optimizer-state": without_optimizer_state,
        "averaged": averaged,
        "fp16": half(torch.float16),
        "bf16": half(torch.bfloat16),
    }
    expected, commands = [], []
    for name, change in kinds.items():
        path = rewrite(full, tmp_path / f"{name}.pt", change)
        subnet = extract(corpus, path, tmp_path / name, "en-de")
        weights = load(subnet / "model.pt")["model"]
        shared = [weights[f"{stack}.embed_tokens.weight"].data_ptr() for stack in ("encoder", "decoder")]
        assert shared[0] == shared[1], name
        expected.append(generate(corpus, path, "en-de").hypotheses)
        commands.append(("generate", stock_generate_flags(corpus.bin, subnet / "model.pt", "en-de")))
    for found, hypotheses in zip(stock_fairseq(commands), expected):
        assert_equal(found, hypotheses)


@pytest.mark.parametrize("name", ["checkpoint_last.pt", "checkpoint_best.pt"])
def test_every_file_that_training_writes_can_be_extracted(
    corpus: Corpus, trained: Path, tmp_path: Path, name: str
) -> None:
    # With the exponential moving average of the weights in it, too.
    assert "ema" in load(trained / name)["extra_state"]
    subnet = extract(corpus, trained / name, tmp_path, "en-de", "--verify", "all")
    assert set(load(subnet / "model.pt")["extra_state"]) == {"train_iterator"}


@pytest.mark.parametrize(("flag", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_weights_can_be_stored_in_half_precision(
    corpus: Corpus, learned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, dtype: torch.dtype
) -> None:
    whole = extract(corpus, learned, tmp_path / "whole", "en-de")
    subnet = extract(corpus, learned, tmp_path, "en-de", "--half", flag, "--verify", "all")
    assert {value.dtype for value in load(subnet / "model.pt")["model"].values()} == {dtype}
    sizes = [json.loads((path / "subnet.json").read_text())["subnet"]["parameters"] for path in (whole, subnet)]
    assert sizes[0] == sizes[1]
    assert "en-de verified: " in capsys.readouterr().out


def test_a_gate_is_not_rounded_to_half_precision(corpus: Corpus, full: Path, tmp_path: Path) -> None:
    whole = load(extract(corpus, full, tmp_path / "whole", "en-de+fr-en") / "model.pt")["model"]
    halved = load(extract(corpus, full, tmp_path, "en-de+fr-en", "--half", "fp16") / "model.pt")["model"]
    name = "decoder.tasks.gates.weights"
    assert torch.equal(halved[name], whole[name])


def test_all_pairs_are_extracted_at_once(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extract(corpus, full, tmp_path, "all")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(PAIRS)
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["pairs", "form", "parameters", "of", "ratio", "bytes", "of", "seconds"]
    assert [row.split()[0] for row in rows] == list(PAIRS)
    assert all(row.split()[1] == "folded" for row in rows)


def test_subnet_json_says_where_the_subnet_is_from_and_what_it_is(corpus: Corpus, full: Path, tmp_path: Path) -> None:
    import hashlib

    subnet = extract(corpus, full, tmp_path, "en-de")
    content = json.loads((subnet / "subnet.json").read_text())
    digest = hashlib.sha256(full.read_bytes()).hexdigest()
    assert content["source"] == {"file": full.name, "sha256": digest, "bytes": full.stat().st_size}
    assert content["pairs"] == ["en-de"]
    assert content["form"] == "folded"
    assert content["format"] == "fairseq"
    assert content["prefixes"] == {"en-de": {"source": ["__de__"], "target": ["__de__"]}}
    state = load(subnet / "model.pt")["model"]
    embeddings = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight"}
    own = [value.numel() for name, value in state.items() if "version" not in name and name not in embeddings]
    expected = sum(own) + state["encoder.embed_tokens.weight"].numel()
    assert content["subnet"] == {"parameters": expected, "bytes": (subnet / "model.pt").stat().st_size}
    assert content["full_model"]["parameters"] > expected
    assert set(content["gates"]) == {"encoder", "decoder"}
    for layers in content["gates"].values():
        assert len(layers["1"]["en-de"]["experts"]) == 2
        assert sum(layers["1"]["en-de"]["weights"]) == pytest.approx(1)
    assert content["versions"]["torch"] == version("torch")


def test_verification_notices_a_subnet_that_is_not_the_full_model(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from taskmoe_plugin.subnet import weights

    original = weights.fold
    monkeypatch.setattr(
        weights, "fold", lambda part, experts, gates: original(part, experts, [gate + 0.1 for gate in gates])
    )
    with pytest.raises(SystemExit) as stopped:
        extract(corpus, full, tmp_path, "en-de", "--verify")
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert "--verify en-de: the subnet is not the full model" in error
    assert "hypotheses equal" in error
    assert not list(tmp_path.iterdir())


def test_a_sample_of_another_set_can_be_verified(corpus: Corpus, full: Path, tmp_path: Path) -> None:
    subnet = extract(corpus, full, tmp_path, "de-fr", "--verify", 4, "--gen-subset", "valid")
    verified = json.loads((subnet / "subnet.json").read_text())["verified"]["de-fr"]
    assert verified.startswith("4 of 4 hypotheses equal, scores of 4 references")


def test_all_pairs_come_from_one_opening_of_the_checkpoint(
    corpus: Corpus, full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    original = Checkpoint.open
    monkeypatch.setattr(Checkpoint, "open", lambda path, name: opened.append(path) or original(path, name))
    extract(corpus, full, tmp_path, "all")
    assert {path.name for path in tmp_path.iterdir()} == set(PAIRS)
    assert opened == [full]


def test_a_subnet_can_be_trained_further_averaged_and_used_in_an_ensemble(
    corpus: Corpus, learned: Path, tmp_path: Path
) -> None:
    subnet = extract(corpus, learned, tmp_path, "en-de") / "model.pt"
    further = tmp_path / "further"
    generation = stock_generate_flags(corpus.bin, subnet, "en-de")
    common = generation[: generation.index("--path")]
    args = load(subnet)["cfg"]["model"]
    shape = [
        "--arch", "transformer", "--share-all-embeddings", "--encoder-normalize-before", "--decoder-normalize-before",
        *(f"--{stack}-{name.replace('_', '-')}={args[f'{stack}_{name}']}" for stack in ("encoder", "decoder")
          for name in ("layers", "embed_dim", "ffn_embed_dim", "attention_heads")),
    ]  # fmt: skip
    training = [
        *common, *shape, "--finetune-from-model", str(subnet), "--save-dir", str(further), "--optimizer", "adam",
        "--lr", "0.001", "--max-tokens", "300", "--max-update", "2", "--criterion", "label_smoothed_cross_entropy",
        "--no-epoch-checkpoints",
    ]  # fmt: skip
    trained = str(further / "checkpoint_last.pt")
    alone, _ = stock_fairseq([("generate", generation), ("train", training)])
    before, after = load(subnet)["model"], load(Path(trained))["model"]

    def average(state: Any) -> None:
        state["model"] = {name: (before[name] + after[name]) / 2 for name in before}

    averaged = rewrite(subnet, tmp_path / "averaged.pt", average)
    mean, tuned, ensemble = stock_fairseq(
        [
            ("generate", stock_generate_flags(corpus.bin, averaged, "en-de")),
            ("generate", stock_generate_flags(corpus.bin, trained, "en-de")),
            ("generate", stock_generate_flags(corpus.bin, f"{subnet}:{trained}", "en-de")),
        ],
        trusted=True,
    )
    changes = [(before[name] - after[name]).abs().max().item() for name in before]
    # Two small steps away from where the subnet was, and not from somewhere else.
    assert 0 < max(changes) < 0.01
    assert alone.keys() == tuned.keys() == ensemble.keys() == mean.keys()
    for other in (mean, ensemble):
        assert [score for score, _ in alone.values()] != [score for score, _ in other.values()]


@pytest.mark.parametrize("flags", [DEFAULT, (UNSHARED,)], ids=["shared", "separate"])
def test_subnets_of_a_fixed_dictionary_bring_it_along(
    corpus: Corpus, trained: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    path = write_model(corpus, trained / "checkpoint_last.pt", tmp_path / "full.pt", *flags)

    def fix(state: Any) -> None:
        state["cfg"]["task"].fixed_dictionary = str(tmp_path / "dict.txt")

    (tmp_path / "dict.txt").write_text((corpus.bin / "dict.en.txt").read_text())
    fixed = rewrite(path, tmp_path / "fixed.pt", fix)
    (tmp_path / "empty").mkdir()
    directory = tmp_path / "out" / "en-de"
    from taskmoe_plugin.cli.extract_subnet import main

    main(
        [str(tmp_path / "empty"), "--path", str(fixed), "--lang-pairs", "en-de", "--output-dir", str(tmp_path / "out")]
    )
    tokens = "".join(f"__{lang}__ 1\n" for lang in LANGS)
    assert (directory / "dict.en.txt").read_text() == (corpus.bin / "dict.en.txt").read_text() + tokens
    assert load(directory / "model.pt")["cfg"]["task"]["fixed_dictionary"] is None


def test_taskmoe_extract_is_the_same_command(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from taskmoe_plugin.cli.main import main

    expected = extract(corpus, full, tmp_path / "one", "en-de")
    argv = [corpus.bin, "--path", full, "--lang-pairs", "en-de", "--output-dir", tmp_path / "other"]
    main(["extract", *map(str, argv)])
    found = tmp_path / "other" / "en-de"
    for path in expected.iterdir():
        if path.name != "model.pt":
            assert (found / path.name).read_bytes() == path.read_bytes()
    one, other = (load(path / "model.pt")["model"] for path in (expected, found))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["extract", *map(str, argv), "--quantization", "int8", "--half", "fp16"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "taskmoe: error: --quantization: is for --format ctranslate2; for fairseq there is --half\n"
    )
