"""fairseq's flags for the models that the benchmarks build."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import taskmoe_plugin
from taskmoe_plugin.models.config import STACKS

MOE_FREQ = 2


def dense_args(args: Namespace) -> list[str]:
    """Flags of a stock ``transformer`` that does the work of the MoE model: its mean width over the layers.

    Args:
        args: ``layers``, ``width``, ``ffn_dim``, ``heads``, ``top_k``.
    """
    moe_layers = args.layers // MOE_FREQ
    ffn_dim = args.ffn_dim * (args.layers + (args.top_k - 1) * moe_layers) // args.layers
    return [
        "--task", "translation_multi_simple_epoch", "--arch", "transformer",
        "--criterion", "label_smoothed_cross_entropy", *_shape_args(args, ffn_dim),
    ]  # fmt: skip


def moe_args(args: Namespace, routing: str, experts: int) -> list[str]:
    """Flags of a ``taskmoe_transformer`` that does the work of the dense one.

    Args:
        args: as of ``dense_args``.
        routing: ``task`` is the default, source languages and target languages; ``merged`` the same with experts that
            are merged, each as wide as the K experts of a task together.
        experts: E.
    """
    by_task = routing in ("task", "merged")
    routings = ("source", "target") if by_task else (routing, routing)
    k = ["--moe-top-k", str(args.top_k)]
    if routing == "merged":
        k = ["--moe-combine", "weights", "--moe-expert-ffn-dim", str(args.top_k * args.ffn_dim)]
    return [
        "--user-dir", str(Path(taskmoe_plugin.__file__).parent), "--task", "taskmoe_translation",
        "--arch", "taskmoe_transformer", "--criterion", "taskmoe_label_smoothed_cross_entropy",
        "--encoder-moe-routing", routings[0], "--decoder-moe-routing", routings[1], "--moe-freq", str(MOE_FREQ),
        "--moe-expert-count", str(experts), *k, *_shape_args(args, args.ffn_dim),
    ]  # fmt: skip


def _shape_args(args: Namespace, ffn_dim: int) -> list[str]:
    values = {"layers": args.layers, "embed-dim": args.width, "ffn-embed-dim": ffn_dim, "attention-heads": args.heads}
    return [part for stack in STACKS for name, value in values.items() for part in (f"--{stack}-{name}", str(value))]
