"""What fairseq would silently get wrong with experts spread over processes, refused before training."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator

from taskmoe_plugin.errors import raise_all

DDP = ("pytorch_ddp", "c10d", "legacy_ddp", "no_c10d")
UNSUPPORTED = {
    "amp": "each process would skip updates of its own; use --bf16, or --fp16 --fp16-no-flatten-grads",
    "use_bmuf": "processes must stay in step; leave it out",
    "store_ema": "checkpoints hold no moving average of experts; leave it out",
    "no_save_optimizer_state": "experts are saved along with it; leave it out, and use taskmoe consolidate "
    "--drop-optimizer for a small file",
    "tpu": "not supported; leave it out",
    "pipeline_model_parallel": "not supported; leave it out",
}


def check_flags(args: Namespace, processes: int) -> None:
    """Raise ``UsageError`` if the flags of a training run with ``--moe-expert-parallel`` cannot work together.

    Args:
        args: all flags of fairseq-train.
        processes: the number of processes.
    """
    if processes > 1:
        raise_all(list(_problems(args, processes)))


def _problems(args: Namespace, processes: int) -> Iterator[str]:
    experts = args.moe_expert_count
    if experts % processes:
        divisors = [count for count in range(1, experts + 1) if experts % count == 0]
        yield (
            f"--moe-expert-count {experts}: cannot be spread evenly over {processes} processes; with "
            f"--moe-expert-parallel use {', '.join(map(str, divisors))} processes, or another number of experts"
        )
    if args.ddp_backend not in DDP:
        yield (
            f"--ddp-backend {args.ddp_backend}: would average the experts of different processes; "
            "with --moe-expert-parallel give --ddp-backend pytorch_ddp or legacy_ddp"
        )
    if args.fp16 and not (args.memory_efficient_fp16 or args.fp16_no_flatten_grads):
        yield (
            "--fp16: flattened gradients mix experts with shared weights; with --moe-expert-parallel add "
            "--fp16-no-flatten-grads, or use --memory-efficient-fp16 or --bf16"
        )
    for name, reason in UNSUPPORTED.items():
        if getattr(args, name, False):
            yield f"--{name.replace('_', '-')}: with --moe-expert-parallel {reason}"
    for stack in ("encoder", "decoder"):
        for name in (f"{stack}_layerdrop", f"{stack}_layers_to_keep"):
            if getattr(args, name, 0):
                yield (
                    f"--{name.replace('_', '-')}: with --moe-expert-parallel processes would drop different layers and "
                    "wait for each other forever; leave it out"
                )
    if getattr(args, "model_parallel_size", 1) > 1:
        yield "--model-parallel-size: with --moe-expert-parallel not supported; leave it out"
    if getattr(args, "zero_sharding", "none") != "none":
        yield (
            "--zero-sharding: with --moe-expert-parallel not supported; leave it out, spread experts have spread "
            "optimizer state"
        )
