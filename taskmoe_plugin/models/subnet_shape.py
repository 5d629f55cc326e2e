"""What extraction has left of a stack, where its layers differ from each other."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class SubnetShape:
    """The layers of one stack of a subnet.

    Attributes:
        ffn_dims: hidden width of the feed-forward network of each layer; empty: all have the stack's ffn dim.
        experts: for each MoE layer that routes by a fixed table, the global indices of the experts it kept.
    """

    ffn_dims: tuple[int, ...]
    experts: Mapping[int, tuple[int, ...]]

    @classmethod
    def of(cls, args: Namespace, stack: str) -> SubnetShape | None:
        """The shape of the ``encoder`` or ``decoder`` that a model's arguments carry; None if it is no subnet."""
        shapes = getattr(args, "taskmoe_subnet", None)
        if shapes is None:
            return None
        shape = json.loads(shapes)[stack]
        return cls(tuple(shape["ffn_dims"]), {int(index): tuple(kept) for index, kept in shape["experts"].items()})

    @staticmethod
    def write(args: Namespace, shapes: Mapping[str, SubnetShape]) -> None:
        """Note the shapes of both stacks in a model's arguments."""
        args.taskmoe_subnet = json.dumps(
            {stack: {"ffn_dims": shape.ffn_dims, "experts": dict(shape.experts)} for stack, shape in shapes.items()}
        )
