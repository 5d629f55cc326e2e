"""The model's flags: what they are called, their defaults, and what is wrong with a combination of them."""

from __future__ import annotations

import json
import math
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from taskmoe_plugin.errors import TaskMoEError, UsageError, listed, raise_all
from taskmoe_plugin.models.task_table import ROUTINGS, TASK_ROUTINGS
from taskmoe_plugin.moe.quantize import BITS

STACKS = ("encoder", "decoder")
# Of what a checkpoint's tensors are called and shaped like. 2: the experts of a layer are stacked.
FORMAT = 2
# Far beyond what anybody has trained, and not what only a damaged file asks for.
MAX_EXPERTS, MAX_LAYERS = 65_536, 1_000
# Of the flags below, where neither the user nor the architecture says otherwise.
DEFAULTS: Mapping[str, Any] = {
    "moe_freq": 2,
    "moe_expert_count": 8,
    "moe_combine": "outputs",
    "moe_route_scale": 1.0,
    "moe_threshold": 0.0,
    "moe_language_experts": 0,
    "moe_dense_training": False,
    "moe_expert_ffn_dim": None,
    "encoder_moe_routing": "source",
    "decoder_moe_routing": "target",
    "moe_task_groups": None,
    "moe_task_gate": "learned",
    "moe_task_gate_warmup_updates": 0,
    "moe_task_gate_warmup_top_k": None,
    "moe_capacity_factor": 0.0,
    "moe_eval_capacity_factor": 0.0,
    "moe_random_token_priority": False,
    "moe_router_jitter": 0.0,
    "moe_expert_dropout": None,
    "moe_expert_bits": None,
    "moe_expert_grad_scale": 1.0,
    "moe_expert_lr_scale": 1.0,
    "moe_expert_parallel": False,
    "task_low_rank": 0,
    "task_low_rank_by": "pair",
}


def add_moe_args(parser: ArgumentParser) -> None:
    """Add the MoE flags; their defaults belong to the architectures (``set_moe_defaults``)."""
    add = parser.add_argument
    add("--moe-freq", type=int, metavar="N", help="every N-th layer of both stacks is an MoE layer (default: 2)")
    for stack in STACKS:
        add(f"--{stack}-moe-freq", type=int, metavar="N",
            help=f"every N-th {stack} layer is an MoE layer, 0: none (default: --moe-freq)")  # fmt: skip
    add("--moe-expert-count", type=int, metavar="E", help="experts in each MoE layer (default: 8)")
    add("--moe-top-k", type=int, metavar="K", help="experts per token (default: 2)")
    add("--moe-expert-ffn-dim", type=int, metavar="N", help="hidden width of one expert (default: the stack's ffn dim)")
    for stack, default in zip(STACKS, ("source", "target")):
        add(f"--{stack}-moe-routing", choices=ROUTINGS,
            help=f"what the {stack}'s gates route by (default: {default})")  # fmt: skip
    add("--moe-task-groups", metavar="FILE", help="for group routing: a file of lines 'pair<TAB>group name'")
    add("--moe-task-gate", choices=("learned", "static"),
        help="tasks begin with experts dealt in turn and even weights; "
        "static: they keep these (default: learned)")  # fmt: skip
    add("--moe-task-gate-warmup-updates", type=int, metavar="N",
        help="no experts are dealt: in training tasks begin with more of them than --moe-top-k, and lose those that "
        "they weigh least, so that after N updates they have learnt which to share; 0: none (default: 0)")  # fmt: skip
    add("--moe-task-gate-warmup-top-k", type=int, metavar="K",
        help="with how many experts a task begins; they cost time and memory as --moe-top-k of as many does (default: "
        "4 times --moe-top-k, at most all)")  # fmt: skip
    add("--moe-combine", choices=("outputs", "weights"),
        help="what of a task's experts is combined; weights: they are merged to one network of an expert's width, and "
        "--moe-top-k is by default all of them (default: outputs)")  # fmt: skip
    add("--moe-threshold", type=float, metavar="T",
        help="a token or a task has as many experts as their probabilities need to sum to T, at most --moe-top-k; "
        "these are their weights as they are (default: all --moe-top-k)")  # fmt: skip
    add("--moe-language-experts", type=int, metavar="M",
        help="for token routing: tokens choose among M experts, which the gate of their language chooses (of the "
        "source in the encoder, of the target in the decoder); a subnet keeps these; 0: all (default: 0)")  # fmt: skip
    add("--moe-route-scale", type=float, metavar="S",
        help="multiply the weights of experts by S; for experts that are 1/k of a dense network's width, "
        "give k (default: 1)")  # fmt: skip
    add("--moe-capacity-factor", type=float, metavar="C",
        help="for token routing: in training an expert takes at most ceil(C·k·tokens/experts) tokens, "
        "0: dropless (default: 0)")  # fmt: skip
    add("--moe-eval-capacity-factor", type=float, metavar="C", help="the same in evaluation (default: 0)")
    add("--moe-random-token-priority", action="store_true",
        help="in training, with a capacity, an expert takes tokens in random order rather than sentence after sentence "
        "(default: off)")  # fmt: skip
    add("--moe-router-jitter", type=float, metavar="EPS",
        help="in training, multiply the gate's input by noise from [1-EPS, 1+EPS] (default: 0)")  # fmt: skip
    add("--moe-expert-dropout", type=float, metavar="P", help="dropout inside experts (default: activation dropout)")
    add("--moe-expert-bits", type=int, choices=BITS,
        help="round the weights of experts to this many bits wherever they are used, and train them all the same, for "
        "taskmoe convert quantize (default: no rounding)")  # fmt: skip
    add("--moe-expert-grad-scale", type=float, metavar="S",
        help="multiply the gradients of experts by S before they are clipped; the square root of E is what fairseq's "
        "moe branch calls sqrt_world_size (default: 1)")  # fmt: skip
    add("--moe-expert-lr-scale", type=float, metavar="S",
        help="multiply the learning rate of experts by S; unlike the scale of their gradients, Adam does not undo it "
        "(default: 1)")  # fmt: skip
    add("--moe-dense-training", action="store_true",
        help="in training every token uses all experts, weighted by their probabilities, so that all gates learn from "
        "every token; --moe-top-k is for translation alone (DS-MoE); see --moe-mutual-information-wt")  # fmt: skip
    add("--moe-expert-parallel", action="store_true",
        help="spread the experts over the data-parallel processes (default: every process has all)")  # fmt: skip


def add_low_rank_args(parser: ArgumentParser) -> None:
    """Add the flags of low-rank matrices; their defaults are among those of ``set_moe_defaults``."""
    add = parser.add_argument
    add("--task-low-rank", type=int, metavar="R",
        help="rank of the language matrices that are added to the linear maps of attention and dense feed-forward "
        "networks, 0: none (default: 0)")  # fmt: skip
    add("--task-low-rank-by", choices=("pair", "language"),
        help="pair: the factors V of the source and F of the target; language: those of the source in the encoder and "
        "of the target in the decoder, which directions that were not trained need (default: pair)")  # fmt: skip


def set_moe_defaults(args: Namespace) -> None:
    """Fill in the flags that neither the user nor the architecture has set."""
    for name, value in DEFAULTS.items():
        setattr(args, name, getattr(args, name, value))
    for stack in STACKS:
        name = f"{stack}_moe_freq"
        setattr(args, name, getattr(args, name, args.moe_freq))
    merged = args.moe_combine == "weights"
    args.moe_top_k = getattr(args, "moe_top_k", args.moe_expert_count if merged else 2)


def settle_task_gates(args: Namespace) -> None:
    """Drop what says how tasks come to their experts in training: for a model that is made of a trained one."""
    for name in ("moe_task_gate", "moe_task_gate_warmup_updates", "moe_task_gate_warmup_top_k"):
        setattr(args, name, DEFAULTS[name])


def remember_languages(args: Namespace, langs: Sequence[str], pairs: Sequence[str]) -> None:
    """Note in a new model's arguments what its gates need to know of languages, so that the checkpoint carries it.

    The arguments of a model that comes from a checkpoint are left as they are.

    Raises:
        TaskMoEError: the checkpoint has a format that this version does not read.
        UsageError: the groups of pairs are wrong.
    """
    if hasattr(args, "taskmoe_langs"):
        check_format(args, "the checkpoint")
        return
    args.taskmoe_format = FORMAT
    args.taskmoe_langs = ",".join(langs)
    args.taskmoe_lang_pairs = ",".join(pairs)
    grouped = "group" in (args.encoder_moe_routing, args.decoder_moe_routing)
    args.taskmoe_groups = json.dumps(_read_groups(args.moe_task_groups, pairs) if grouped else {})


def check_format(args: Namespace, name: str) -> None:
    """Refuse a checkpoint of another format, whose tensors would not fit.

    Args:
        args: the model's arguments that it carries.
        name: what to call it.

    Raises:
        TaskMoEError: it was written by a version that this one cannot read.
    """
    found = getattr(args, "taskmoe_format", 1)
    if found != FORMAT:
        age = "an older" if found < FORMAT else "a newer"
        raise TaskMoEError(
            f"{name}: has format {found}, of {age} version of taskmoe_plugin, and this one reads format {FORMAT}; "
            "use that version for it, or train again"
        )


def _read_groups(path: str | None, pairs: Sequence[str]) -> dict[str, str]:
    if not path:
        raise UsageError("--moe-task-groups: group routing needs this file of lines 'pair<TAB>group name'")
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--moe-task-groups {path}: cannot be read ({error}); give a UTF-8 file") from error
    groups: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        pair, _, group = (part.strip() for part in line.partition("\t"))
        if not (pair and group):
            raise UsageError(f"--moe-task-groups {path}: line {number} is not 'pair<TAB>group name': {line!r}")
        if groups.setdefault(pair, group) != group:
            raise UsageError(
                f"--moe-task-groups {path}: line {number} puts {pair} into {group}, an earlier one "
                f"into {groups[pair]}; a pair has one group"
            )
    missing = [pair for pair in pairs if pair not in groups]
    if missing:
        raise UsageError(f"--moe-task-groups {path}: no group for {listed(missing)}; add a line for each")
    return {pair: groups[pair] for pair in pairs}


def check_args(args: Namespace) -> None:
    """Raise one ``UsageError`` with all that is wrong with the flags of a model."""
    problems = _problems_of_sizes, _problems_of_routing, _problems_of_combining, _problems_with_fairseq
    raise_all([line for find in problems for line in find(args)])


def _excluded(args: Namespace, name: str, *flags: str, why: str = "is not supported with {}") -> Iterator[str]:
    """What is wrong where ``name`` is given, as on a command line, beside flags that must then have their defaults."""
    for flag in flags:
        if getattr(args, flag) != DEFAULTS[flag]:
            yield f"{name}: {why.format('--' + flag.replace('_', '-'))}; leave one of them out"


def _problems_of_sizes(args: Namespace) -> Iterator[str]:
    experts, k = args.moe_expert_count, args.moe_top_k
    if experts < 1:
        yield f"--moe-expert-count {experts}: give at least 1 (for a dense stack, --encoder-moe-freq 0)"
    elif experts > MAX_EXPERTS:
        yield f"--moe-expert-count {experts}: give at most {MAX_EXPERTS}"
    elif not 1 <= k <= experts:
        yield f"--moe-top-k {k}: give between 1 and --moe-expert-count, which is {experts}"
    if not 0 <= args.moe_expert_grad_scale < math.inf:
        yield f"--moe-expert-grad-scale {args.moe_expert_grad_scale:g}: give 0 (experts stay as they are) or more"
    if not 0 < args.moe_expert_lr_scale < math.inf:
        yield f"--moe-expert-lr-scale {args.moe_expert_lr_scale:g}: give a value above 0"
    if args.moe_expert_ffn_dim is not None and args.moe_expert_ffn_dim < 1:
        yield f"--moe-expert-ffn-dim {args.moe_expert_ffn_dim}: give at least 1"
    for stack in STACKS:
        freq, count = getattr(args, f"{stack}_moe_freq"), getattr(args, f"{stack}_layers")
        if count > MAX_LAYERS:
            yield f"--{stack}-layers {count}: give at most {MAX_LAYERS}"
        if freq < 0:
            yield f"--{stack}-moe-freq {freq}: give 0 (no MoE layer) or more"
    layers = {stack: getattr(args, f"{stack}_layers") for stack in STACKS if getattr(args, f"{stack}_moe_freq") > 0}
    if layers and all(getattr(args, f"{stack}_moe_freq") > count for stack, count in layers.items()):
        yield (
            f"--moe-freq {args.moe_freq}: no stack has as many layers, so that none would have experts; give "
            f"{max(layers.values())} or less, or 0 for a dense model"
        )
    rank, width = args.task_low_rank, min(getattr(args, f"{stack}_embed_dim") for stack in STACKS)
    if not 0 <= rank < width:
        yield f"--task-low-rank {rank}: give 0 (none) or more, and less than the model's width, which is {width}"
    if args.task_low_rank_by != "pair" and not rank:
        yield f"--task-low-rank-by {args.task_low_rank_by}: there are no low-rank matrices; give --task-low-rank"


def _problems_of_routing(args: Namespace) -> Iterator[str]:
    routings = {getattr(args, f"{stack}_moe_routing") for stack in STACKS if getattr(args, f"{stack}_moe_freq")}
    for flag in ("capacity_factor", "eval_capacity_factor"):
        factor = getattr(args, f"moe_{flag}")
        name = f"--moe-{flag.replace('_', '-')} {factor:g}"
        if not 0 <= factor < math.inf:
            yield f"{name}: give 0 (dropless) or more"
        if factor and "token" not in routings:
            yield f"{name}: only token routing has a capacity; leave it out, the other routings are dropless"
    if args.moe_random_token_priority and not args.moe_capacity_factor:
        yield (
            "--moe-random-token-priority: without a capacity every token is served; give --moe-capacity-factor, or "
            "leave it out"
        )
    by_token = "token" in routings
    if args.moe_language_experts:
        yield from _problems_of_language_experts(args, by_token)
    gated = routings & set(TASK_ROUTINGS) or (by_token and args.moe_language_experts)
    if args.moe_task_gate == "static" and not gated:
        yield "--moe-task-gate static: no stack routes by task; choose source, target, pair or group routing"
    if args.moe_task_gate_warmup_updates or args.moe_task_gate_warmup_top_k is not None:
        yield from _problems_of_warmup(args, bool(routings & set(TASK_ROUTINGS)))
    if not 0 <= args.moe_router_jitter < 1:
        yield f"--moe-router-jitter {args.moe_router_jitter}: give a value from 0 up to 1"
    if args.moe_router_jitter and args.moe_task_gate == "static" and routings <= set(TASK_ROUTINGS):
        yield f"--moe-router-jitter {args.moe_router_jitter:g}: static gates have no input; leave one of them out"
    if args.moe_expert_dropout is not None and not 0 <= args.moe_expert_dropout < 1:
        yield f"--moe-expert-dropout {args.moe_expert_dropout}: give a value from 0 up to 1"


def _problems_of_warmup(args: Namespace, by_task: bool) -> Iterator[str]:
    updates, start = args.moe_task_gate_warmup_updates, args.moe_task_gate_warmup_top_k
    name = f"--moe-task-gate-warmup-updates {updates}"
    if updates < 0:
        yield f"{name}: give 0 (none) or more"
    if not updates:
        yield f"--moe-task-gate-warmup-top-k {start}: there is no warm-up; give --moe-task-gate-warmup-updates"
    if args.moe_top_k < 2:
        yield f"{name}: a task that is left with one expert learns no more; give --moe-top-k of at least 2"
    if not by_task:
        yield f"{name}: no stack routes by task; choose source, target, pair or group routing"
    if start is not None and not args.moe_top_k <= start <= args.moe_expert_count:
        yield (
            f"--moe-task-gate-warmup-top-k {start}: give at least --moe-top-k, which is {args.moe_top_k}, and at most "
            f"--moe-expert-count, which is {args.moe_expert_count}"
        )
    yield from _excluded(args, name, "moe_combine", "moe_task_gate", "moe_threshold", "moe_dense_training")


def _problems_of_language_experts(args: Namespace, by_token: bool) -> Iterator[str]:
    experts = args.moe_language_experts
    name = f"--moe-language-experts {experts}"
    if not by_token:
        yield f"{name}: only token routing leaves tokens a choice; leave it out, or choose token routing"
    if not max(args.moe_top_k, 2) <= experts < args.moe_expert_count:
        yield (
            f"{name}: give at least 2 and --moe-top-k, which is {args.moe_top_k}, and fewer than --moe-expert-count, "
            f"which is {args.moe_expert_count}"
        )


def _problems_of_combining(args: Namespace) -> Iterator[str]:
    if not 0 < args.moe_route_scale < math.inf:
        yield f"--moe-route-scale {args.moe_route_scale:g}: give a value above 0"
    if args.moe_threshold:
        yield from _problems_of_threshold(args)
    if args.moe_dense_training:
        yield from _problems_of_dense_training(args)
    if args.moe_combine != "weights":
        return
    for stack in STACKS:
        routing = getattr(args, f"{stack}_moe_routing")
        if getattr(args, f"{stack}_moe_freq") and routing not in TASK_ROUTINGS:
            yield (
                f"--moe-combine weights: merges the experts of a task, and --{stack}-moe-routing {routing} has none; "
                "choose source, target, pair or group"
            )
    if args.moe_expert_parallel:
        yield (
            "--moe-combine weights: every process needs all experts to merge them, so leave out --moe-expert-parallel; "
            "merged experts cost no exchange of tokens"
        )
    yield from _excluded(
        args, "--moe-combine weights", "moe_task_gate", "moe_router_jitter", "moe_route_scale",
        why="{} is for experts whose outputs are combined",
    )  # fmt: skip


def _problems_of_threshold(args: Namespace) -> Iterator[str]:
    name = f"--moe-threshold {args.moe_threshold:g}"
    if not 0 < args.moe_threshold <= 1:
        yield f"{name}: give a value above 0, at most 1"
    if args.moe_top_k < 2:
        yield f"{name}: chooses how many experts up to --moe-top-k, which is {args.moe_top_k}; give at least 2"
    yield from _excluded(
        args, name, "moe_combine", "moe_task_gate", "moe_capacity_factor", "moe_eval_capacity_factor",
        "moe_expert_parallel",
    )  # fmt: skip


def _problems_of_dense_training(args: Namespace) -> Iterator[str]:
    yield from _excluded(
        args, "--moe-dense-training", "moe_combine", "moe_task_gate", "moe_threshold", "moe_capacity_factor",
        "moe_language_experts", why="every token has all experts, which {} is not for",
    )  # fmt: skip


def _problems_with_fairseq(args: Namespace) -> Iterator[str]:
    if getattr(args, "offload_activations", False):
        yield "--offload-activations: not supported with MoE layers; give --checkpoint-activations alone"
    if getattr(args, "quant_noise_pq", 0):
        yield "--quant-noise-pq: not supported with MoE layers; leave it out"
    if args.moe_expert_lr_scale != 1:
        yield from _problems_of_lr_scale(args)
    sharded = getattr(args, "ddp_backend", None) == "fully_sharded"
    if sharded and not getattr(args, "not_fsdp_flatten_parameters", False):
        yield from _excluded(
            args, "--ddp-backend fully_sharded", "moe_expert_lr_scale", "moe_expert_grad_scale",
            why="without --not-fsdp-flatten-parameters it mixes experts with other weights, which {} tells apart",
        )  # fmt: skip
    for stack in STACKS:
        if args.task_low_rank and getattr(args, f"{stack}_xformers_att_config", None):
            yield f"--{stack}-xformers-att-config: not supported with --task-low-rank; leave one of them out"


def _problems_of_lr_scale(args: Namespace) -> Iterator[str]:
    """What leaves the optimizer no parameters of experts; flags of training, which a model need not have."""
    if getattr(args, "fp16", False) and not (args.memory_efficient_fp16 or args.fp16_no_flatten_grads):
        yield (
            "--fp16: flattened gradients mix experts with other weights; with --moe-expert-lr-scale add "
            "--fp16-no-flatten-grads, or use --memory-efficient-fp16 or --bf16"
        )
    if getattr(args, "zero_sharding", "none") != "none":
        yield "--zero-sharding: not supported with --moe-expert-lr-scale; leave one of them out"
