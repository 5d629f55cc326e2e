"""A dense model made into one with experts computes what it did."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from taskmoe_plugin.cli.main import main
from tests.convert.checkpoints import SHARED, assert_same_function, load, stock_task, write_checkpoint, write_dense
from tests.helpers.models import (
    LANGS,
    PAIRS,
    build_model,
    build_model_of,
    model_args,
    net_input,
    rows,
)
from tests.helpers.training import group_file

# How far the weights of a single expert, chosen by token or sentence, are from 1/E.
ROUNDING = {1: 1e-4, 2: 1e-5, 4: 1e-5}


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dense(tmp_path_factory.mktemp("dense") / "dense.pt")


def upcycle(dense: Path, output: Path, *flags: Any) -> Any:
    """The model of ``taskmoe convert upcycle``."""
    main(["convert", "upcycle", *map(str, (dense, "--output", output, "--moe-freq", 1, *flags))])
    state = load(output)
    model = build_model_of(state["cfg"]["model"])
    model.load_state_dict(state["model"])
    return model


# Every routing in each stack.
@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [("source", "target"), ("target", "source"), ("pair", "sentence"), ("group", "token"), ("sentence", "group"),
     ("token", "pair")],
)  # fmt: skip
def test_slices_and_copies_compute_the_same(dense: Path, tmp_path: Path, encoder: str, decoder: str, k: int) -> None:
    flags = ["--encoder-moe-routing", encoder, "--decoder-moe-routing", decoder, "--moe-top-k", k]
    flags += ["--moe-task-groups", group_file(tmp_path)]
    expected = build_model("transformer", **SHARED)
    for number, copies in enumerate(([], ["--copies"])):
        model = upcycle(dense, tmp_path / f"{number}.pt", *flags, *copies)
        experts = model.encoder.layers[0].moe.experts
        assert experts.fc1_weight.shape == (8, 24 if copies else 24 // k, 16)
        assert_same_function(model, expected, ROUNDING[k])


def test_tasks_need_no_multiple_of_k_and_static_gates_do_too(dense: Path, tmp_path: Path) -> None:
    expected = build_model("transformer", **SHARED)
    for number, flags in enumerate((["--moe-expert-count", 7], ["--moe-task-gate", "static"])):
        model = upcycle(dense, tmp_path / f"{number}.pt", "--encoder-moe-freq", 0, *flags)
        assert not model.encoder.moe_layers
        assert_same_function(model, expected)


def test_copies_may_be_trained_all_at_once(dense: Path, tmp_path: Path) -> None:
    model = upcycle(dense, tmp_path / "a.pt", "--moe-dense-training", "--copies", "--decoder-moe-routing", "token")
    assert_same_function(model, build_model("transformer", **SHARED))
    assert_same_function(model.train(), build_model("transformer", **SHARED))


@pytest.mark.parametrize("k", [1, 2])
def test_tokens_may_choose_among_copies_that_their_language_has(dense: Path, tmp_path: Path, k: int) -> None:
    flags = ("--encoder-moe-routing", "token", "--decoder-moe-routing", "token", "--moe-language-experts", 3)
    model = upcycle(dense, tmp_path / "a.pt", *flags, "--moe-top-k", k, "--copies")
    assert_same_function(model, build_model("transformer", **SHARED), ROUNDING[k])


def test_the_experts_of_a_block_have_the_slice_of_the_block(dense: Path, tmp_path: Path) -> None:
    experts = upcycle(dense, tmp_path / "a.pt", "--moe-expert-count", 5, "--moe-top-k", 2).decoder.layers[1].moe.experts
    before = load(dense)["model"]
    for expert, own in enumerate([slice(0, 12)] * 2 + [slice(12, 24)] * 3):
        assert torch.equal(experts.fc1_weight[expert], before["decoder.layers.1.fc1.weight"][own])
        assert torch.equal(experts.fc1_bias[expert], before["decoder.layers.1.fc1.bias"][own])
        assert torch.equal(experts.fc2_weight[expert], 2 * before["decoder.layers.1.fc2.weight"][:, own])
        assert torch.equal(experts.fc2_bias[expert], before["decoder.layers.1.fc2.bias"])


def test_gates_can_learn(dense: Path, tmp_path: Path) -> None:
    flags = ("--encoder-moe-routing", "token", "--moe-top-k", 1, "--copies")
    model = upcycle(dense, tmp_path / "a.pt", *flags).train()
    batch = net_input(rows(10))
    with torch.no_grad():
        # Copies have one output, whatever the gate; so let them differ.
        for layer in model.encoder.moe_layers:
            layer.experts.fc2_weight.add_(torch.randn_like(layer.experts.fc2_weight))
        chosen = {expert for record in model.encoder(**encoder_input(batch))["moe"] for expert in record.gates.experts}
    # Not all tokens have the same expert, though all experts have nearly the same weight.
    assert len({int(each) for each in chosen}) > 2
    model(**batch)[0].square().sum().backward()
    assert model.encoder.layers[0].moe.router.gate.weight.grad.abs().max() > 0
    upcycle(dense, tmp_path / "b.pt")
    gates = load(tmp_path / "b.pt")["model"]
    assert gates["decoder.tasks.gates.weight"].eq(0).all()
    assert gates["decoder.tasks.gates.embedding"].std() > 0.5


def encoder_input(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: each for name, each in batch.items() if name != "prev_output_tokens"}


def test_half_precision_stays_half(dense: Path, tmp_path: Path) -> None:
    state = load(dense)
    state["model"] = {name: each.half() for name, each in state["model"].items()}
    torch.save(state, tmp_path / "half.pt")
    upcycle(tmp_path / "half.pt", tmp_path / "a.pt")
    model = load(tmp_path / "a.pt")["model"]
    assert model["encoder.layers.0.moe.experts.fc2_weight"].dtype is torch.half
    # Gates compute in fp32.
    assert model["encoder.tasks.gates.embedding"].dtype is torch.float


def test_a_dense_model_of_this_plugin_is_upcycled_too(tmp_path: Path) -> None:
    task = stock_task(task="taskmoe_translation")
    path = write_dense(tmp_path / "dense.pt", task, "taskmoe_transformer", moe_freq=0)
    model = upcycle(path, tmp_path / "a.pt", "--decoder-moe-routing", "pair")
    assert_same_function(model, build_model("transformer", **SHARED))


def test_the_new_checkpoint_remembers_what_the_dense_model_was_trained_with(dense: Path, tmp_path: Path) -> None:
    upcycle(dense, tmp_path / "a.pt")
    state = load(tmp_path / "a.pt")
    args, task = state["cfg"]["model"], state["cfg"]["task"]
    assert (args.arch, args.taskmoe_langs, args.taskmoe_lang_pairs) == (
        "taskmoe_transformer",
        "en,de,fr",
        ",".join(PAIRS),
    )
    trained = task.taskmoe_trained
    assert [trained[name] for name in ("langs", "encoder_langtok", "langtoks", "left_pad_target")] == [
        list(LANGS), "tgt", {"main": ("tgt", "tgt")}, "False",
    ]  # fmt: skip
    assert task.task == "taskmoe_translation"


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--moe-top-k", 5], 2, "--moe-top-k 5: does not divide the width 24 of the networks; give another, or"),
        (["--moe-expert-ffn-dim", 7], 2, "--moe-expert-ffn-dim 7: the encoder has dense networks of width 24; give 24 "
         "for experts that are copies, or 12 for slices, one of 2 for each"),
        (["--encoder-moe-routing", "token", "--moe-expert-count", 7], 2, "--moe-expert-count 7: token routing with"),
        (["--moe-freq", 0], 2, "--moe-freq 0: the model stays dense"),
        (["--moe-threshold", 0.5], 2, "--moe-threshold 0.5: the weights of a token's experts have no known sum"),
        (["--moe-expert-bits", 2], 2, "--moe-expert-bits 2: rounded experts would not compute what the dense"),
        (["--moe-dense-training"], 2, "--moe-dense-training: every token has all experts, which then must be copies"),
        (["--task-low-rank", 4], 2, "unrecognized arguments: --task-low-rank"),  # which training can add
        (["--moe-top-k", 9], 2, "--moe-top-k 9: give between 1 and --moe-expert-count, which is 8"),
        (["--optimizer"], 1, "has no optimizer state; leave out --optimizer"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(
    dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[Any], code: int, message: str
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["convert", "upcycle", str(dense), "--output", str(tmp_path / "a.pt"), *map(str, flags)])
    assert exit.value.code == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_models_that_cannot_be_upcycled_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sparse = write_checkpoint(tmp_path / "sparse.pt", model_args())
    bilingual = write_dense(tmp_path / "bilingual.pt", Namespace(_name="translation"))
    for path, message in ((sparse, "is a mixture of experts already"), (bilingual, "--task translation, whose dict")):
        with pytest.raises(SystemExit):
            upcycle(path, tmp_path / "a.pt")
        assert re.search(rf"^taskmoe: error: {path}: .*{message}", capsys.readouterr().err)


def test_the_line_says_what_was_done(dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    upcycle(dense, tmp_path / "a.pt", "--encoder-moe-freq", 2)
    expected = (
        "1 feed-forward networks of the encoder became 8 experts each, slices, 2 of which make one network; "
        "2 feed-forward networks of the decoder became"
    )
    assert expected in capsys.readouterr().out


def test_merged_experts_compute_the_same_and_learn_to_differ(dense: Path, tmp_path: Path) -> None:
    expected = build_model("transformer", **SHARED)
    for k in (1, 2, 8):
        model = upcycle(dense, tmp_path / f"{k}.pt", "--moe-combine", "weights", "--moe-top-k", k)
        assert model.encoder.moe_layers[0].experts.fc1_weight.shape == (8, 24, 16)
        assert_same_function(model, expected)
    model(**net_input(rows(10)))[0].sin().sum().backward()
    gradient = model.encoder.moe_layers[0].experts.fc2_weight.grad
    assert not torch.allclose(gradient[0], gradient[1])


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("flags", [[], ["--moe-task-gate", "static"], ["--decoder-moe-routing", "token"]])
def test_the_route_scale_is_taken_into_account(dense: Path, tmp_path: Path, k: int, flags: list[str]) -> None:
    model = upcycle(dense, tmp_path / "a.pt", "--moe-route-scale", k + 1, "--moe-top-k", k, *flags)
    assert_same_function(model, build_model("transformer", **SHARED), ROUNDING[k])


def test_with_a_route_scale_of_k_the_slices_are_slices(dense: Path, tmp_path: Path) -> None:
    experts = upcycle(dense, tmp_path / "a.pt", "--moe-route-scale", 2).decoder.layers[1].moe.experts
    weight = load(dense)["model"]["decoder.layers.1.fc2.weight"]
    assert torch.equal(torch.cat([experts.fc2_weight[0], experts.fc2_weight[-1]], dim=1), weight)
