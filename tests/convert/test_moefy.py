"""Dense models cut into experts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from taskmoe_plugin.cli.main import main
from taskmoe_plugin.convert import moefy as conversion
from taskmoe_plugin.convert.dense import sparse_cfg
from taskmoe_plugin.convert.source import Source
from taskmoe_plugin.convert.unit_mass import counted_mass
from taskmoe_plugin.models.config import STACKS
from taskmoe_plugin.models.stack import StackConfig
from taskmoe_plugin.subnet.checkpoint import Checkpoint
from taskmoe_plugin.subnet.references import References
from tests.convert.checkpoints import SHARED, assert_same_function, load, write_dense
from tests.helpers.corpus import PAIRS, Corpus
from tests.helpers.models import build_model as small_model
from tests.helpers.models import build_model_of, net_input, rows
from tests.helpers.training import generate
from tests.subnet.helpers import DEFAULT, extract, write_model
from tests.subnet.stock import assert_equal

EXPERTS, WIDTH = 6, 24


@pytest.fixture(scope="module")
def dense(corpus: Corpus, template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(corpus, template, tmp_path_factory.mktemp("dense") / "dense.pt", *DEFAULT, "--moe-freq", 0)


def moefy(path: Path, output: Path, *flags: Any) -> Path:
    main(["convert", "moefy", str(path), "--output", str(output), "--experts", str(EXPERTS), *map(str, flags)])
    return output


def test_with_all_experts_it_computes_what_stock_fairseq_did(tmp_path: Path) -> None:
    dense = write_dense(tmp_path / "dense.pt")
    state = load(moefy(dense, tmp_path / "moefied.pt"))
    model = build_model_of(state["cfg"]["model"])
    model.load_state_dict(state["model"])
    assert_same_function(model, small_model("transformer", **SHARED))
    experts = model.encoder.layers[0].moe.experts.fc1_weight
    assert experts.shape == (EXPERTS, WIDTH // EXPERTS, 16)
    before = load(dense)["model"]["encoder.layers.0.fc1.weight"]
    assert sorted(map(tuple, experts.flatten(0, 1).tolist())) == sorted(map(tuple, before.tolist()))


def test_the_mass_of_a_unit_is_what_it_puts_out_over_all_tokens_that_are_not_padding() -> None:
    model = small_model(moe_freq=0)
    inputs = net_input(rows(5))
    layer = model.decoder.layers[1]
    outputs: list[Tensor] = []
    layer.fc1.register_forward_hook(lambda module, args, output: outputs.append(output))
    with torch.no_grad():
        with counted_mass(model.decoder) as masses:
            model(**inputs)
            model(**inputs)
        model(**inputs)
    tokens = inputs["prev_output_tokens"].ne(model.decoder.padding_idx).t()
    expected = sum(F.relu(out[tokens]).sum(dim=0) for out in outputs[:2]) * layer.fc2.weight.norm(dim=0)
    assert torch.allclose(masses[1], expected)


def test_each_language_keeps_the_experts_with_most_of_its_activation(
    corpus: Corpus, dense: Path, tmp_path: Path
) -> None:
    path = moefy(dense, tmp_path / "moefied.pt", "--keep", 2, "--data", corpus.bin)
    model, state = load(path)["model"], load(dense)["model"]
    references = References(Checkpoint.open(dense), [corpus.bin], PAIRS, "valid", None)
    units = {tuple(row): unit for unit, row in enumerate(state["decoder.layers.1.fc1.weight"].tolist())}
    blocks = [
        [units[tuple(row)] for row in expert.tolist()] for expert in model["decoder.layers.1.moe.experts.fc1_weight"]
    ]
    for task, lang in enumerate(("en", "de", "fr")):
        with counted_mass(references.model.decoder) as masses:
            for pair in PAIRS:
                if pair.endswith(lang):
                    references.run(pair)
        mass = masses[1]
        expected = sorted(range(EXPERTS), key=lambda block: -sum(float(mass[unit]) for unit in blocks[block]))[:2]
        assert model["decoder.tasks.gates.experts"][1, task].tolist() == expected
    assert model["decoder.tasks.gates.weights"].eq(1).all()
    # The last bias is added once.
    bias = model["decoder.layers.1.moe.experts.fc2_bias"]
    assert torch.allclose(2 * bias, state["decoder.layers.1.fc2.bias"].expand(EXPERTS, -1))


def test_units_are_measured_by_source_in_the_encoder_and_by_target_in_the_decoder(corpus: Corpus, dense: Path) -> None:
    source = Source.open(dense)
    options = conversion.Options(EXPERTS, 2, (corpus.bin,), "valid", None, 1)
    args = sparse_cfg(source, conversion._flags(source, options))["model"]
    found = conversion._measure(source, [StackConfig.from_args(args, stack) for stack in STACKS], options)
    references = References(Checkpoint.open(dense), [corpus.bin], PAIRS, "valid", None)
    for side, stack in enumerate(STACKS):
        # de-fr has no way back, so that the two sides of a language differ.
        with counted_mass(getattr(references.model, stack)) as masses:
            for pair in PAIRS:
                if pair.split("-")[side] == "de":
                    references.run(pair)
        for layer, mass in enumerate(masses):
            torch.testing.assert_close(found[f"{stack}.layers.{layer}"][1], mass)


def test_the_subnet_of_a_language_pair_is_a_smaller_dense_model(corpus: Corpus, dense: Path, tmp_path: Path) -> None:
    path = moefy(dense, tmp_path / "moefied.pt", "--keep", 2, "--data", corpus.bin)
    subnet = extract(corpus, path, tmp_path / "subnets", "fr-en", "--unpadded")
    assert json.loads((subnet / "subnet.json").read_text())["ffn_dims"] == {"encoder": [8, 8], "decoder": [8, 8]}
    translated = generate(corpus, path, "fr-en").hypotheses
    assert_equal(generate(corpus, subnet / "model.pt", "fr-en").hypotheses, translated)
    assert translated != generate(corpus, dense, "fr-en").hypotheses


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--keep", 2), "--keep 2: which they are is found on data; give --data"),
        (("--keep", 7, "--data", "x"), "--keep 7: give between 1 and --experts, which is 6"),
        (("--experts", 5), "--experts 5: give a divisor, from 2 up, of 24"),
        (("--experts", 1), "--experts 1: give a divisor, from 2 up, of 24, the networks' width"),
    ],
)
def test_what_cannot_be_cut_is_refused(
    dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        moefy(dense, tmp_path / "moefied.pt", *flags)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_model_with_experts_is_refused(template: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        moefy(template, tmp_path / "moefied.pt")
    assert "its networks are cut already" in capsys.readouterr().err


def test_a_model_whose_tensors_are_not_those_of_its_flags_is_refused(tmp_path: Path, capsys) -> None:
    state = load(write_dense(tmp_path / "dense.pt"))
    name = "encoder.layers.0.fc1.weight"
    state["model"][name] = torch.cat([state["model"][name]] * 2)
    torch.save(state, tmp_path / "wider.pt")
    with pytest.raises(SystemExit) as stopped:
        moefy(tmp_path / "wider.pt", tmp_path / "moefied.pt")
    assert stopped.value.code == 1
    assert f"wider.pt: its tensors do not fit its flags (size mismatch for {name}" in capsys.readouterr().err
