"""Experts in few bits: the file, what loads it, and what is cut out of it."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from taskmoe_plugin.cli.main import main
from taskmoe_plugin.models.config import FORMAT
from taskmoe_plugin.models.loading import meta_model
from taskmoe_plugin.moe.quantize import quantize
from tests.convert.checkpoints import load, write_checkpoint
from tests.helpers.corpus import Corpus
from tests.helpers.models import LANGS, PAIRS, build_model_of, kept, model_args, net_input, rows
from tests.helpers.training import generate, train
from tests.subnet.helpers import DEFAULT, extract, rewrite, write_model
from tests.subnet.stock import TOLERANCE, assert_equal, stock_fairseq, stock_generate_flags

FLAGS = {"share_all_embeddings": True, "moe_freq": 1, "encoder_moe_routing": "token", "moe_expert_ffn_dim": 16}
WEIGHT = re.compile(r"\.moe\.experts\.fc[12]_weight$")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("full") / "full.pt", model_args(**FLAGS))


def convert(path: Path, output: Path, bits: int, *flags: Any) -> Any:
    """What ``taskmoe convert quantize`` writes."""
    main(["convert", "quantize", *map(str, (path, "--output", output, "--bits", bits, *flags))])
    return load(output)


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("flags", [[], ["--group", "8"]])
def test_the_model_has_the_rounded_weights_of_experts_and_all_others(
    checkpoint: Path, tmp_path: Path, bits: int, flags: list[str]
) -> None:
    state = convert(checkpoint, tmp_path / "small.pt", bits, *flags)
    before = load(checkpoint)["model"]
    model = build_model_of(state["cfg"]["model"], seed=1)
    model.load_state_dict(state["model"])
    for name, found in model.state_dict().items():
        expected = before[name]
        if WEIGHT.search(name):
            expected = quantize(expected, bits, 8 if flags else None).dequantize()
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    # The function is near.
    full = build_model_of(model_args(**FLAGS))
    batch = net_input(rows(10))
    logits = [torch.cat(kept(each(**batch)[0], batch)) for each in (full, model)]
    error = (logits[0] - logits[1]).square().mean().sqrt() / logits[0].std()
    assert error < {8: 0.02, 4: 0.3, 3: 0.5, 2: 0.8}[bits], error


def test_other_weights_are_halved_if_asked_and_gates_are_not(checkpoint: Path, tmp_path: Path) -> None:
    model = convert(checkpoint, tmp_path / "small.pt", 4, "--half", "fp16")["model"]
    packed = model.pop("packed_experts")
    assert {entry["codes"].dtype for entry in packed.values()} == {torch.uint8}
    floats = {name: each.dtype for name, each in model.items() if each.is_floating_point()}
    gates = {name for name in floats if ".router." in name or ".tasks." in name}
    assert {floats[name] for name in gates} == {torch.float}
    assert {dtype for name, dtype in floats.items() if name not in gates} == {torch.half}
    shared = {model[name].data_ptr() for name in ("encoder.embed_tokens.weight", "decoder.output_projection.weight")}
    assert len(shared) == 1


# The paper's model of 533M parameters has 76 % in experts, the one of 13 billion with 128 experts 97 %.
@pytest.mark.parametrize(
    ("arch", "bits", "smaller"), [("base", 8, 3.2), ("base", 4, 4.6), ("big", 8, 3.9), ("big", 4, 7.3)]
)
def test_a_large_model_gets_as_small_as_the_share_of_experts_allows(arch: str, bits: int, smaller: float) -> None:
    size = Size()
    for name, each in meta_model(build_args(f"taskmoe_transformer_{arch}"), (64000, 64000)).named_parameters():
        size.add(name, each, bits)
    assert size.before / size.after == pytest.approx(smaller, abs=0.1)


@pytest.mark.parametrize("bits", [8, 4])
def test_the_tensors_of_a_file_take_what_they_should(tmp_path: Path, bits: int) -> None:
    args = model_args("taskmoe_transformer", share_all_embeddings=True, moe_expert_ffn_dim=256, moe_expert_count=32)
    path = write_checkpoint(tmp_path / "full.pt", args)
    convert(path, tmp_path / "small.pt", bits, "--half", "fp16")
    expected = Size()
    for name, each in build_model_of(args).named_parameters():
        expected.add(name, each, bits)
    sizes = [path.stat().st_size, (tmp_path / "small.pt").stat().st_size]
    # Names and headers of about 100 tensors.
    assert [sizes[0] - expected.before, sizes[1] - expected.after] == pytest.approx([40_000, 40_000], abs=40_000)


class Size:
    """Bytes of a model in single precision, and of what is made of it."""

    before = after = 0.0

    def add(self, name: str, parameter: torch.Tensor, bits: int) -> None:
        """Count a parameter."""
        self.before += 4 * parameter.numel()
        of_expert = WEIGHT.search(name) is not None
        self.after += parameter.numel() * (bits / 8 if of_expert else 2)
        self.after += 4 * parameter[..., 0].numel() if of_expert else 0


def build_args(arch: str) -> Namespace:
    """The arguments of a model with languages."""
    args = model_args(arch)
    args.taskmoe_langs, args.taskmoe_lang_pairs = ",".join(LANGS), ",".join(PAIRS)
    args.taskmoe_groups, args.taskmoe_format = "{}", FORMAT
    return args


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--group", 7], 2, "--group 7: does not divide 16, a width of the experts"),
        (["--group", 0], 2, "--group 0: give"),
    ],
)
def test_groups_that_do_not_fit_are_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[Any], code: int, message: str
) -> None:
    with pytest.raises(SystemExit) as exit:
        convert(checkpoint, tmp_path / "small.pt", 4, *flags)
    assert exit.value.code == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_has_no_weights_to_quantise_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = write_checkpoint(tmp_path / "dense.pt", model_args("transformer"))
    convert(checkpoint, tmp_path / "small.pt", 4)
    for command, path, message in (
        (["convert", "quantize", "--bits", "4"], dense, "is dense; only experts are quantised"),
        (["convert", "quantize", "--bits", "4"], tmp_path / "small.pt", "is quantised already"),
        (["consolidate"], tmp_path / "small.pt", "has no experts in other files"),
    ):
        with pytest.raises(SystemExit):
            main([*command, str(path), "--output", str(tmp_path / "out.pt")])
        assert f"{path}: {message}" in capsys.readouterr().err


def test_other_conversions_take_it(checkpoint: Path, tmp_path: Path) -> None:
    # Eight bits of what has four are near; they need the weights as floating point.
    convert(checkpoint, tmp_path / "small.pt", 4)
    args = [str(tmp_path / "small.pt"), str(checkpoint), "--output", str(tmp_path / "both.pt")]
    main(["convert", "join", *args])
    name = "encoder.layers.0.moe.experts.fc1_weight"
    small, before = load(tmp_path / "both.pt")["model"][name], load(checkpoint)["model"][name]
    assert torch.equal(small[8:], before)
    assert torch.equal(small[:8], quantize(before, 4).dequantize())


@pytest.fixture(scope="module")
def random(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that fairseq's commands load."""
    directory = tmp_path_factory.mktemp("random")
    train(corpus, directory, *DEFAULT, "--max-update", 1, "--disable-validation")
    return write_model(corpus, directory / "checkpoint_last.pt", directory / "full.pt", *DEFAULT)


def test_fairseq_translates_with_it_and_a_subnet_of_it_is_the_same(
    corpus: Corpus, random: Path, tmp_path: Path
) -> None:
    convert(random, tmp_path / "small.pt", 4)
    expected = generate(corpus, tmp_path / "small.pt", "en-de").hypotheses
    assert generate(corpus, random, "en-de").hypotheses != expected
    subnet = extract(corpus, tmp_path / "small.pt", tmp_path / "subnets", "en-de")
    [found] = stock_fairseq([("generate", stock_generate_flags(corpus.bin, subnet / "model.pt", "en-de"))])
    assert_equal(found, expected)
    main(["report", str(tmp_path / "small.pt"), "--output-dir", str(tmp_path / "report"), "--no-plots"])
    assert (tmp_path / "report" / "report.json").exists()


def test_training_goes_on_from_it(corpus: Corpus, random: Path, tmp_path: Path) -> None:
    state = convert(random, tmp_path / "small.pt", 4)
    flags = ("--finetune-from-model", tmp_path / "small.pt", "--lr", 0, "--max-update", 1, "--disable-validation")
    train(corpus, tmp_path / "on", *DEFAULT, *flags)
    [name, *_] = state["model"]["packed_experts"]
    expected = quantize(load(random)["model"][name], 4).dequantize()
    assert torch.equal(load(tmp_path / "on" / "checkpoint_last.pt")["model"][name], expected)


@pytest.mark.parametrize("change", [{"bits": 5}, {"codes": torch.zeros(1)}, {"scale": torch.zeros(2)}, {"more": 1}])
def test_damaged_quantised_experts_are_called_that(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    path = tmp_path / "small.pt"
    state = convert(checkpoint, path, 4)
    [entry, *_] = state["model"]["packed_experts"].values()
    entry.update(change)
    torch.save(state, path)
    with pytest.raises(SystemExit):
        main(["convert", "join", str(path), str(path), "--output", str(tmp_path / "both.pt")])
    assert f"taskmoe: error: {path}: its quantised experts are damaged (" in capsys.readouterr().err


@pytest.mark.parametrize("bits", [2, 4])
def test_the_file_of_a_model_that_was_trained_for_it_computes_what_was_trained(tmp_path: Path, bits: int) -> None:
    flags = {**FLAGS, "moe_expert_bits": bits}
    path = write_checkpoint(tmp_path / "full.pt", model_args(**flags))
    trained, plain = (build_model_of(model_args(**each)) for each in (flags, FLAGS))
    small = load_small(convert(path, tmp_path / "small.pt", bits))
    # Of all pairs, whose experts are dispatched to, and of one, whose experts are folded.
    for batch in (net_input(rows(10)), net_input(rows(3, pairs=PAIRS[:1]))):
        expected, found, rounded = (torch.cat(kept(each(**batch)[0], batch)) for each in (plain, small, trained))
        torch.testing.assert_close(found, rounded, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(expected, rounded, atol=1e-2)
    trained.train()(**net_input(rows(10)))[0].sin().sum().backward()
    assert trained.encoder.layers[0].moe.experts.fc1_weight.grad.abs().sum() > 0


def load_small(state: Any) -> Any:
    """The model of a quantised checkpoint."""
    model = build_model_of(state["cfg"]["model"], seed=1)
    model.load_state_dict(state["model"])
    return model


def test_a_model_trained_for_some_bits_is_quantised_to_these_and_only_then_extracted(
    corpus: Corpus, random: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trained.pt"
    state = load(random)
    state["cfg"]["model"].moe_expert_bits = 2
    torch.save(state, path)
    for act, message in (
        (
            lambda: convert(path, tmp_path / "small.pt", 4),
            f"--bits 4: {path} was trained with --moe-expert-bits 2; give",
        ),
        (lambda: extract(corpus, path, tmp_path / "subnets", "en-de"), "run taskmoe convert quantize --bits 2, and"),
    ):
        with pytest.raises(SystemExit):
            act()
        assert message in capsys.readouterr().err
    convert(path, tmp_path / "small.pt", 2)
    extract(corpus, tmp_path / "small.pt", tmp_path / "subnets", "en-de")


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("flags", [("--encoder-moe-routing", "token"), (), ("--moe-combine", "weights")], ids=str)
def test_experts_that_stay_packed_translate_as_those_that_do_not(
    corpus: Corpus, random: Path, tmp_path: Path, flags: tuple[str, ...], bits: int
) -> None:
    path = write_model(corpus, random, tmp_path / "model.pt", *DEFAULT, *flags) if flags else random
    convert(path, tmp_path / "small.pt", bits)
    expected = generate(corpus, tmp_path / "small.pt", "en-de").hypotheses
    # Where PyTorch has a product of their shape, it computes in bf16.
    found = generate(corpus, tmp_path / "small.pt", "en-de", "--keep-packed").hypotheses
    assert_equal(found, expected, tolerance=0.01 if bits == 8 else TOLERANCE)
    # In fp16 a processor rounds other hypotheses to the best ones.
    assert len(generate(corpus, tmp_path / "small.pt", "en-de", "--keep-packed", "--fp16").hypotheses) == len(expected)


def test_weights_that_are_no_numbers_are_refused(
    corpus: Corpus, random: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = rewrite(random, tmp_path / "damaged.pt", spoil)
    with pytest.raises(SystemExit):
        convert(path, tmp_path / "small.pt", 8)
    assert "encoder.layers.1.moe.experts.fc1_weight has weights that are no finite" in capsys.readouterr().err
    assert not (tmp_path / "small.pt").exists()


def spoil(state: dict[str, Any]) -> None:
    state["model"]["encoder.layers.1.moe.experts.fc1_weight"][2, 3, 1] = float("nan")


def test_experts_that_are_not_packed_cannot_stay_so(
    corpus: Corpus, random: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        generate(corpus, random, "en-de", "--keep-packed")
    assert exit.value.code == 2
    assert "--keep-packed: the checkpoint has no quantised experts" in capsys.readouterr().err
