"""What fairseq-train makes of flags for precision and several processes, put right where it would go wrong."""

from __future__ import annotations

import os
from argparse import Namespace
from importlib.util import find_spec

import torch

from taskmoe_plugin.errors import UsageError

LAUNCH = "start it with: taskmoe launch --processes N -- fairseq-train ..."


def correct_flags(args: Namespace) -> None:
    """Correct the flags of a command line, or raise ``UsageError``.

    Args:
        args: all flags; called without those of training, it does nothing.
    """
    # fairseq takes --bf16 for TPUs alone.
    if getattr(args, "tpu", False) and find_spec("torch_xla") is None:
        args.tpu = False
    if not hasattr(args, "distributed_world_size"):
        return
    # Otherwise one process reads a checkpoint and sends it to the others in a form that safe loading refuses.
    args.load_checkpoint_on_all_dp_ranks = True
    if not torch.cuda.is_available():
        _check_cpu_launch(args)


def _check_cpu_launch(args: Namespace) -> None:
    """Refuse what fails without a word on a machine without GPUs, or trains nothing."""
    if args.distributed_no_spawn:
        return
    if args.distributed_init_method is not None:
        raise UsageError(
            f"--distributed-init-method {args.distributed_init_method}: without GPUs fairseq starts no process, trains "
            f"nothing and reports success; {LAUNCH}"
        )
    if args.distributed_world_size > 1:
        raise UsageError(
            f"--distributed-world-size {args.distributed_world_size}: fairseq starts one process for each GPU, and "
            f"there is none; {LAUNCH}"
        )
    if "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError(f"torchrun: fairseq deals its processes to GPUs, and there is none; {LAUNCH}")
