"""Wrong flags stop before training, with one line that names the flag and exit status 2."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

import pytest

from taskmoe_plugin.errors import UsageError, one_line_errors
from taskmoe_plugin.models.config import add_moe_args
from taskmoe_plugin.moe import Warmup
from tests.helpers.models import PAIRS, StubTask, build_model

WRONG = [
    ({"moe_expert_count": 0}, "--moe-expert-count 0: give at least 1"),
    ({"moe_expert_count": 10**9}, "--moe-expert-count 1000000000: give at most 65536"),
    ({"moe_top_k": 9}, "--moe-top-k 9: give between 1 and --moe-expert-count, which is 8"),
    ({"moe_top_k": 0}, "--moe-top-k 0: give between 1"),
    ({"moe_expert_ffn_dim": 0}, "--moe-expert-ffn-dim 0: give at least 1"),
    ({"encoder_moe_freq": -1}, "--encoder-moe-freq -1: give 0"),
    ({"decoder_moe_freq": -2}, "--decoder-moe-freq -2: give 0"),
    ({"moe_capacity_factor": 1.25}, "--moe-capacity-factor 1.25: only token routing has a capacity"),
    ({"moe_eval_capacity_factor": 2.0}, "--moe-eval-capacity-factor 2: only token routing has a capacity"),
    ({"moe_capacity_factor": -1.0}, "--moe-capacity-factor -1: give 0"),
    (
        {"moe_capacity_factor": 1.0, "encoder_moe_routing": "token", "encoder_moe_freq": 0},
        "--moe-capacity-factor 1: only",
    ),
    (
        {"moe_task_gate": "static", "encoder_moe_routing": "token", "decoder_moe_routing": "sentence"},
        "--moe-task-gate static: no stack routes by task",
    ),
    ({"moe_language_experts": 4}, "--moe-language-experts 4: only token routing leaves tokens a choice; leave it out"),
    (
        {"moe_language_experts": 8, "moe_top_k": 3, "moe_combine": "weights", "encoder_moe_routing": "token"},
        "--moe-language-experts 8: give at least 2 and --moe-top-k, which is 3, and fewer than --moe-expert-count, "
        "which is 8; also: --moe-combine weights: merges the experts of a task",
    ),
    (
        {"moe_language_experts": 1, "moe_top_k": 1, "decoder_moe_routing": "token", "moe_dense_training": True},
        "--moe-language-experts 1: give at least 2 and --moe-top-k, which is 1, and fewer than --moe-expert-count, "
        "which is 8; also: --moe-dense-training: every token has all experts, which --moe-language-experts is not for",
    ),
    ({"moe_expert_lr_scale": 0.0}, "--moe-expert-lr-scale 0: give a value above 0"),
    (
        {
            "moe_expert_lr_scale": 0.5,
            "fp16": True,
            "memory_efficient_fp16": False,
            "fp16_no_flatten_grads": False,
            "zero_sharding": "os",
        },
        "--fp16: flattened gradients mix experts with other weights; with --moe-expert-lr-scale add "
        "--fp16-no-flatten-grads, or use --memory-efficient-fp16 or --bf16; also: --zero-sharding: not supported with",
    ),
    ({"moe_threshold": 1.5}, "--moe-threshold 1.5: give a value above 0, at most 1"),
    ({"moe_threshold": 0.5, "moe_top_k": 1}, "--moe-threshold 0.5: chooses how many experts up to --moe-top-k"),
    ({"moe_threshold": 0.5, "moe_task_gate": "static"}, "--moe-threshold 0.5: is not supported with --moe-task-gate"),
    ({"moe_router_jitter": 1.0}, "--moe-router-jitter 1.0: give a value from 0"),
    ({"moe_router_jitter": -0.1}, "--moe-router-jitter -0.1: give a value from 0"),
    ({"moe_router_jitter": 0.1, "moe_task_gate": "static"}, "--moe-router-jitter 0.1: static gates have no input"),
    (
        {"moe_top_k": 9, "moe_router_jitter": 2.0, "quant_noise_pq": 0.1},
        "--moe-top-k 9: give between 1 and --moe-expert-count, which is 8; also: --moe-router-jitter 2.0: give a value "
        "from 0 up to 1; also: --quant-noise-pq: not supported",
    ),
    (
        {"moe_combine": "weights", "encoder_moe_routing": "token"},
        "--moe-combine weights: merges the experts of a task, and --encoder-moe-routing token has none; choose source",
    ),
    ({"moe_combine": "weights", "moe_expert_parallel": True}, "leave out --moe-expert-parallel"),
    (
        {"moe_combine": "weights", "moe_task_gate": "static"},
        "--moe-combine weights: --moe-task-gate is for experts whose",
    ),
    ({"moe_combine": "weights", "moe_router_jitter": 0.1}, "--moe-combine weights: --moe-router-jitter is for experts"),
    ({"moe_combine": "weights", "moe_route_scale": 2.0}, "--moe-combine weights: --moe-route-scale is for experts wh"),
    ({"moe_dense_training": True, "moe_combine": "weights"}, "has all experts, which --moe-combine is not for"),
    ({"moe_dense_training": True, "moe_task_gate": "static"}, "has all experts, which --moe-task-gate is not for"),
    ({"moe_freq": 3}, "--moe-freq 3: no stack has as many layers, so that none would have experts; give 2 or less"),
    (
        {"ddp_backend": "fully_sharded", "moe_expert_lr_scale": 2.0},
        "--ddp-backend fully_sharded: without --not-fsdp-flatten-parameters it mixes experts with other weights, which "
        "--moe-expert-lr-scale tells apart",
    ),
    ({"ddp_backend": "fully_sharded", "moe_expert_grad_scale": 2.0}, "which --moe-expert-grad-scale tells apart"),
    ({"moe_task_gate_warmup_updates": -1}, "--moe-task-gate-warmup-updates -1: give 0 (none) or more"),
    ({"moe_task_gate_warmup_top_k": 4}, "--moe-task-gate-warmup-top-k 4: there is no warm-up; give --moe-task-gate-w"),
    (
        {"moe_task_gate_warmup_updates": 9, "moe_task_gate_warmup_top_k": 1},
        "--moe-task-gate-warmup-top-k 1: give at least --moe-top-k, which is 2, and at most --moe-expert-count, which",
    ),
    ({"moe_task_gate_warmup_updates": 9, "moe_top_k": 1}, "a task that is left with one expert learns no more; give"),
    (
        {"moe_task_gate_warmup_updates": 9, "encoder_moe_routing": "token", "decoder_moe_routing": "token"},
        "--moe-task-gate-warmup-updates 9: no stack routes by task; choose source",
    ),
    (
        {"moe_task_gate_warmup_updates": 9, "moe_task_gate": "static", "moe_combine": "weights"},
        "--moe-task-gate-warmup-updates 9: is not supported with --moe-combine; leave one of them out; also: --moe-",
    ),
    ({"moe_route_scale": 0.0}, "--moe-route-scale 0: give a value above 0"),
    ({"moe_combine": "weights", "moe_top_k": 9}, "--moe-top-k 9: give between 1 and --moe-expert-count, which is 8"),
    ({"task_low_rank_by": "language"}, "--task-low-rank-by language: there are no low-rank matrices; give --task-low-"),
    ({"task_low_rank": -1}, "--task-low-rank -1: give 0 (none) or more, and less than the model's width, which is 16"),
    (
        {"task_low_rank": 16, "moe_top_k": 9, "encoder_xformers_att_config": "{}"},
        "which is 8; also: --task-low-rank 16: give 0 (none) or more, and less than the model's width, which is 16; "
        "also: --encoder-xformers-att-config: not supported with --task-low-rank",
    ),
    ({"offload_activations": True}, "--offload-activations: not supported"),
    ({"quant_noise_pq": 0.1}, "--quant-noise-pq: not supported"),
    ({"encoder_moe_routing": "group"}, "--moe-task-groups: group routing needs this file"),
]


def message_of(capsys, **flags) -> str:
    """The one line that building a model with wrong flags prints."""
    with pytest.raises(SystemExit) as stopped, one_line_errors():
        build_model(**flags)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("taskmoe: error: ")
    return line


@pytest.mark.parametrize(("flags", "expected"), WRONG, ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_a_wrong_flag_is_named(capsys, flags: dict, expected: str) -> None:
    assert expected in message_of(capsys, **flags)


def group_error(capsys, path) -> str:
    return message_of(capsys, encoder_moe_routing="group", moe_task_groups=str(path))


def test_a_missing_group_file_is_named(capsys, tmp_path) -> None:
    message = group_error(capsys, tmp_path / "none.tsv")
    assert f"--moe-task-groups {tmp_path / 'none.tsv'}: cannot be read" in message


def test_pairs_without_a_group_are_named(capsys, tmp_path) -> None:
    path = tmp_path / "groups.tsv"
    path.write_text("".join(f"{pair}\tall\n" for pair in PAIRS[:3]))
    assert f"{path}: no group for fr-en, de-fr; add a line for each" in group_error(capsys, path)


@pytest.mark.parametrize("line", ["en-de all", "en-de\t", "\tall"])
def test_a_malformed_line_of_a_group_file_is_numbered(capsys, tmp_path, line: str) -> None:
    path = tmp_path / "groups.tsv"
    path.write_text(f"de-en\tall\n\n{line}\n")
    assert f"{path}: line 3 is not 'pair<TAB>group name'" in group_error(capsys, path)


def test_a_group_file_that_is_not_utf8_is_named(capsys, tmp_path) -> None:
    path = tmp_path / "groups.tsv"
    path.write_bytes(b"en-de\tnordfranz\xf6sisch\n")
    assert f"{path}: cannot be read" in group_error(capsys, path)


def test_a_group_file_may_hold_more_pairs_and_spaces(tmp_path) -> None:
    path = tmp_path / "groups.tsv"
    path.write_text("".join(f" {pair} \t two words \n" for pair in (*PAIRS, "cs-en")), encoding="utf-8")
    model = build_model(encoder_moe_routing="group", moe_task_groups=str(path))
    assert model.encoder.moe_config.table.names == ("two words",)


@pytest.mark.parametrize("flag", ["--encoder-moe-routing", "--decoder-moe-routing", "--moe-task-gate"])
def test_an_unknown_choice_is_answered_with_the_known_ones(capsys, flag: str) -> None:
    parser = ArgumentParser()
    add_moe_args(parser)
    with pytest.raises(SystemExit) as stopped, one_line_errors():
        parser.parse_args([flag, "language"])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert flag in message
    assert ("learned" if flag == "--moe-task-gate" else "source") in message


def test_a_task_without_language_ids_is_refused(capsys) -> None:
    task = StubTask()
    del task.routed_pairs
    assert "--task taskmoe_translation" in message_of(capsys, task=task)


@pytest.mark.parametrize(
    "flags",
    [
        {"moe_capacity_factor": 1.0, "decoder_moe_routing": "token"},
        {"moe_freq": 0, "moe_capacity_factor": 0.0},
        {"moe_expert_count": 1, "moe_top_k": 1},
        {"moe_task_gate": "static", "encoder_moe_routing": "sentence"},
        {
            "moe_task_gate": "static",
            "moe_language_experts": 2,
            "encoder_moe_routing": "token",
            "decoder_moe_routing": "token",
        },
    ],
)
def test_flags_that_work_together_are_accepted(flags: dict) -> None:
    assert build_model(**flags) is not None


def test_a_program_gets_an_exception_and_keeps_its_interpreter(capsys) -> None:
    with pytest.raises(UsageError, match="--moe-top-k 9: give between 1 and"):
        build_model(moe_top_k=9)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, {"top_k": 2, "experts": 8, "merge": False, "warmup": None}),
        ({"moe_expert_count": 5, "moe_combine": "weights"}, {"top_k": 5, "merge": True}),
        ({"moe_expert_count": 20, "moe_task_gate_warmup_updates": 7}, {"warmup": Warmup(7, 8)}),
        ({"moe_expert_count": 5, "moe_task_gate_warmup_updates": 7}, {"warmup": Warmup(7, 5)}),
    ],
)
def test_what_is_left_out_is_as_the_help_says(flags: dict[str, Any], expected: dict[str, Any]) -> None:
    model = build_model(encoder_ffn_embed_dim=24, decoder_ffn_embed_dim=40, **flags)
    for stack, width in ((model.encoder, 24), (model.decoder, 40)):
        assert {name: getattr(stack.moe_config, name) for name in expected} == expected
        assert stack.moe_config.ffn_dim == width
