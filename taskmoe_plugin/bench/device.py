"""What the benchmarks compute on, and in which precision."""

from __future__ import annotations

from argparse import Namespace

import torch

from taskmoe_plugin.errors import raise_all

# fairseq's names of precisions, and PyTorch's of their types.
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def check(args: Namespace) -> None:
    """Refuse a device that is not there, and a clock that does not tell its time.

    Raises:
        UsageError: in one message, all that is wrong.
    """
    problems = []
    if args.device == "cuda":
        if not torch.cuda.is_available():
            problems.append("--device cuda: PyTorch finds no GPU here; leave it out to measure on the CPU")
        if args.cpu_time:
            problems.append("--cpu-time: tells nothing of what a GPU does; leave it out with --device cuda")
    elif args.kind == "train" and args.precision == "fp16":
        problems.append("--precision fp16: fairseq trains in it on a GPU alone; add --device cuda, or give bf16")
    if args.cpu_time and args.threads > 1:
        problems.append("--cpu-time: adds up the time of all threads; use it with --threads 1")
    raise_all(problems)
