"""What cannot be given together with our optimizer."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator

from taskmoe_plugin.optim.adam import NAME

UNSUPPORTED = {
    "memory_efficient_fp16": "keeps no copies in single precision, which it needs; give --fp16 instead",
    "memory_efficient_bf16": "keeps no copies in single precision, which it needs; give --bf16 instead",
    "fp16_adam_stats": "its moments are in single precision; leave it out",
    "use_old_adam": "names another optimizer; leave it out",
}
SHARDED = {"ddp_backend": "fully_sharded", "zero_sharding": "os"}


def check_optimizer(args: Namespace) -> Iterator[str]:
    """What of the flags of a command does not go with ``--optimizer taskmoe_adam``, a line each.

    Args:
        args: all flags of one of fairseq's commands.
    """
    if getattr(args, "optimizer", None) != NAME:
        return
    for name, reason in UNSUPPORTED.items():
        if getattr(args, name, False):
            yield f"--{name.replace('_', '-')}: with --optimizer {NAME} {reason}, or give --optimizer adam"
    for name, value in SHARDED.items():
        if getattr(args, name, None) == value:
            yield f"--{name.replace('_', '-')} {value}: does not shard --optimizer {NAME}; give --optimizer adam"
