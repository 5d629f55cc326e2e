"""Training goes on from a checkpoint only if its weights mean the same."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from taskmoe_plugin.errors import TaskMoEError, UsageError
from taskmoe_plugin.models.continuing import check_continues
from taskmoe_plugin.models.subnet_shape import SubnetShape
from tests.helpers.models import GROUPS, PAIRS, StubTask, build_model_of, model_args

NAME = "--restore-file x.pt"


def args_of(task: Any = None, **flags: Any) -> Namespace:
    """The arguments of a model, as a checkpoint carries them."""
    args = model_args(**flags)
    build_model_of(args, task=task)
    return args


def grouped(path: Path, groups: dict[str, str], **flags: Any) -> Namespace:
    path.write_text("".join(f"{pair}\t{group}\n" for pair, group in groups.items()))
    return args_of(encoder_moe_routing="group", decoder_moe_routing="token", moe_task_groups=str(path), **flags)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({}, {"encoder_moe_routing": "target"}, ["--encoder-moe-routing target", "--encoder-moe-routing source"]),
        (
            {},
            {"encoder_moe_routing": "target", "decoder_moe_routing": "source"},
            ["--encoder-moe-routing target", "; also: --decoder-moe-routing source", "--decoder-moe-routing target"],
        ),
        ({}, {"decoder_moe_routing": "token"}, ["--decoder-moe-routing token", "--decoder-moe-routing target"]),
        ({}, {"moe_expert_count": 4}, ["--moe-expert-count 4", "--moe-expert-count 8"]),
        ({}, {"moe_top_k": 1}, ["--moe-top-k 1", "--moe-top-k 2"]),
        (
            {},
            {"moe_freq": 1},
            ["--encoder-moe-freq 1", "--encoder-moe-freq 2; give the same; also: --decoder"],
        ),
        ({}, {"encoder_moe_freq": 0}, ["--encoder-moe-freq 0", "--encoder-moe-freq 2"]),
        ({"decoder_moe_freq": 0}, {}, ["--decoder-moe-freq 2", "--decoder-moe-freq 0"]),
        ({}, {"moe_task_gate": "static"}, ["--moe-task-gate static", "--moe-task-gate learned"]),
        ({}, {"moe_combine": "weights"}, ["--moe-combine weights", "--moe-combine outputs"]),
        (
            {"decoder_moe_routing": "token"},
            {"decoder_moe_routing": "token", "moe_language_experts": 4},
            ["--moe-language-experts 4", "--moe-language-experts 0"],
        ),
        ({}, {"moe_threshold": 0.5}, ["--moe-threshold 0.5", "--moe-threshold 0.0"]),
        ({}, {"moe_route_scale": 2.0}, ["--moe-route-scale 2.0", "--moe-route-scale 1.0"]),
        ({}, {"moe_expert_ffn_dim": 8}, ["--moe-expert-ffn-dim 8", "--moe-expert-ffn-dim 24"]),
        ({"moe_freq": 0}, {"moe_freq": 0, "task_low_rank": 4}, ["--task-low-rank 4", "--task-low-rank 0"]),
        ({}, {"encoder_layers": 4}, ["--encoder-layers 4", "--encoder-layers 2"]),
        (
            {},
            {"encoder_embed_dim": 8, "decoder_embed_dim": 8},
            ["--encoder-embed-dim 8", "--encoder-embed-dim 16", "--decoder-embed-dim 8"],
        ),
        ({}, {"encoder_attention_heads": 4}, ["--encoder-attention-heads 4", "--encoder-attention-heads 2"]),
        ({"moe_freq": 0}, {"moe_freq": 0, "decoder_ffn_embed_dim": 8}, ["--decoder-ffn-embed-dim 8", "-dim 24"]),
    ],
    ids=str,
)
def test_other_flags_are_refused_with_both_values(before: dict, after: dict, said: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        check_continues(args_of(**after), args_of(**before), NAME)
    line = str(caught.value)
    assert line.startswith(said[0] + ": " + NAME + " was trained with ")
    assert all(each in line for each in said)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {}),
        ({}, {"moe_expert_ffn_dim": 24}),
        ({}, {"moe_router_jitter": 0.1, "moe_expert_dropout": 0.1, "dropout": 0.3}),
        ({"moe_freq": 0}, {"moe_freq": 0, "moe_expert_count": 4, "encoder_moe_routing": "pair"}),
        (
            {"encoder_moe_routing": "token", "decoder_moe_routing": "token"},
            {"encoder_moe_routing": "token", "decoder_moe_routing": "token", "moe_capacity_factor": 1.0},
        ),
    ],
    ids=str,
)
def test_flags_that_change_no_weight_are_taken(before: dict, after: dict) -> None:
    check_continues(args_of(**after), args_of(**before), NAME)


def test_finetuning_may_add_low_rank_matrices_and_not_change_them() -> None:
    by_language = {"task_low_rank": 2, "task_low_rank_by": "language"}
    check_continues(args_of(task_low_rank=2), args_of(), NAME, finetuned=True)
    check_continues(args_of(**by_language), args_of(), NAME, finetuned=True)
    with pytest.raises(UsageError, match=r"--task-low-rank-by pair: .* was trained with --task-low-rank-by language"):
        check_continues(args_of(task_low_rank=2), args_of(**by_language), NAME, finetuned=True)
    with pytest.raises(UsageError, match=r"--task-low-rank 2: .* was trained with --task-low-rank 3"):
        check_continues(args_of(task_low_rank=2), args_of(task_low_rank=3), NAME, finetuned=True)
    with pytest.raises(UsageError, match=r"--encoder-moe-freq 2: .* was trained with --encoder-moe-freq 0"):
        check_continues(args_of(task_low_rank=3), args_of(task_low_rank=3, moe_freq=0), NAME, finetuned=True)


def test_flags_that_older_checkpoints_do_not_have_are_the_defaults() -> None:
    trained = args_of()
    del trained.moe_combine, trained.moe_route_scale
    check_continues(args_of(), trained, NAME)
    with pytest.raises(UsageError, match=r"--moe-combine weights: .* was trained with --moe-combine out"):
        check_continues(args_of(moe_combine="weights"), trained, NAME)


def test_other_languages_are_refused() -> None:
    with pytest.raises(UsageError, match=r"--langs en,fr,de: --restore-file x\.pt was trained with --langs en,de,fr"):
        check_continues(args_of(task=StubTask(("en", "fr", "de"))), args_of(), NAME)


def test_pairs_in_another_order_are_refused_where_they_are_tasks() -> None:
    routing = {"encoder_moe_routing": "token", "decoder_moe_routing": "pair"}
    turned = StubTask(pairs=PAIRS[::-1])
    with pytest.raises(UsageError, match="the decoder's gates know its tasks by their order"):
        check_continues(args_of(task=turned, **routing), args_of(**routing), NAME)
    routing["decoder_moe_routing"] = "target"
    check_continues(args_of(task=turned, **routing), args_of(**routing), NAME)


def test_fewer_pairs_are_taken_where_the_tasks_are_the_same() -> None:
    fewer = StubTask(pairs=[pair for pair in PAIRS if pair != "de-fr"])
    check_continues(args_of(task=fewer), args_of(), NAME)


def test_pairs_that_were_moved_between_groups_are_refused(tmp_path: Path) -> None:
    trained = grouped(tmp_path / "a.tsv", GROUPS)
    moved = grouped(tmp_path / "b.tsv", {**GROUPS, "fr-en": "germanic"})
    with pytest.raises(UsageError, match=r"--moe-task-groups .*b.tsv: puts fr-en into germanic, and .* it in mixed"):
        check_continues(moved, trained, NAME)
    check_continues(grouped(tmp_path / "c.tsv", GROUPS), trained, NAME)


def test_another_pair_in_an_old_group_is_refused(tmp_path: Path) -> None:
    trained = grouped(tmp_path / "a.tsv", GROUPS, task=StubTask(pairs=PAIRS[:4]))
    with pytest.raises(
        UsageError, match=r"--lang-pairs: .* was trained without de-fr, and the encoder's gates know its tasks by"
    ):
        check_continues(grouped(tmp_path / "a.tsv", GROUPS), trained, NAME)


@pytest.mark.parametrize("arch", ["transformer", "transformer_iwslt_de_en", None])
def test_a_dense_model_is_called_that(arch: str | None) -> None:
    dense = Namespace(_name="transformer") if arch is None else Namespace(arch=arch)
    with pytest.raises(UsageError, match=f"{NAME}: is a dense model, which has no"):
        check_continues(args_of(), dense, NAME)
    check_continues(args_of(moe_freq=0), dense, NAME)
    with pytest.raises(UsageError, match="which has no low-rank matrices"):
        check_continues(args_of(moe_freq=0, task_low_rank=2), dense, NAME)


def test_a_subnet_is_called_that_and_a_pruned_model_is_not() -> None:
    subnet, pruned = args_of(), args_of()
    SubnetShape.write(subnet, dict.fromkeys(("encoder", "decoder"), SubnetShape(ffn_dims=(24, 48))))
    SubnetShape.write(pruned, dict.fromkeys(("encoder", "decoder"), SubnetShape(experts={1: (0, 2)})))
    with pytest.raises(UsageError, match=f"{NAME}: is a subnet"):
        check_continues(args_of(), subnet, NAME)
    check_continues(pruned, pruned, NAME)


@pytest.mark.parametrize("change", [{"taskmoe_langs": None}, {"encoder_moe_freq": "2"}, {"taskmoe_groups": "{"}])
def test_damaged_flags_are_called_that(change: dict[str, Any]) -> None:
    trained = Namespace(**{**vars(args_of()), **change})
    with pytest.raises(TaskMoEError, match=f"{NAME}: its flags are damaged"):
        check_continues(args_of(), trained, NAME)


def test_another_format_is_called_that() -> None:
    trained = Namespace(**{**vars(args_of()), "taskmoe_format": 1})
    with pytest.raises(TaskMoEError, match=f"{NAME}: has format 1"):
        check_continues(args_of(), trained, NAME)


WARM = {"moe_task_gate_warmup_updates": 50}


@pytest.mark.parametrize(
    ("after", "before", "finetuned", "message"),
    [
        (WARM, {}, False, "were trained with experts that were dealt to them"),
        (WARM, {}, True, "were trained with experts that were dealt to them"),
        ({}, WARM, False, "was trained with --moe-task-gate-warmup-updates 50, from 8 experts on; give the same"),
        ({"moe_task_gate_warmup_updates": 3}, WARM, False, "was trained with --moe-task-gate-warmup-updates 50"),
        ({}, WARM, True, None),
        (WARM, WARM, False, None),
        ({"moe_task_gate_warmup_updates": 3}, WARM, True, None),
    ],
)
def test_gates_go_on_as_they_have_begun(
    after: dict[str, Any], before: dict[str, Any], finetuned: bool, message: str | None
) -> None:
    if message is None:
        check_continues(args_of(**after), args_of(**before), NAME, finetuned=finetuned)
    else:
        with pytest.raises(UsageError, match=message):
            check_continues(args_of(**after), args_of(**before), NAME, finetuned=finetuned)


@pytest.mark.parametrize("flags", [{"activation_fn": "gelu"}, {"no_scale_embedding": True}])
def test_what_the_shapes_of_weights_do_not_tell_is_compared(flags: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"--{next(iter(flags)).replace('_', '-')} .*give the same"):
        check_continues(args_of(**flags), args_of(), NAME)
