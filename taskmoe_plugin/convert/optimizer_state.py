"""The state of fairseq's optimizers, for parameters that have become others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from taskmoe_plugin.convert.source import Source
from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.models.upcycling import StackUpcycling
from taskmoe_plugin.subnet.scratch import Scratch

# What Adam and SGD keep of each weight: means of its gradient, or of its square.
POWERS = {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2, "momentum_buffer": 1}


@dataclass(frozen=True)
class OptimizerState:
    """The state as fairseq saves it: by number of parameter, or, with ``--fp16``, of all parameters in one row.

    Attributes:
        state: PyTorch's ``state_dict`` of the optimizer, with what fairseq adds to it.
        shapes: the shapes of all trained parameters by name, in their order.
    """

    state: Mapping[str, Any]
    shapes: Mapping[str, torch.Size]

    @classmethod
    def read(cls, source: Source, shapes: Mapping[str, torch.Size]) -> OptimizerState:
        """That of a checkpoint.

        Args:
            source: the checkpoint.
            shapes: see ``shapes``.

        Raises:
            TaskMoEError: it has none, or one that is not known.
        """
        state = source.state.get("last_optimizer_state")
        if not state or not state.get("state"):
            raise TaskMoEError(f"{source.path}: has no optimizer state; leave out --optimizer")
        count = len(state["param_groups"][0]["params"])
        unknown = {key for each in state["state"].values() for key, value in each.items() if _is_unknown(key, value)}
        if len(state["param_groups"]) > 1 or count not in (1, len(shapes)) or unknown:
            name = source.state["optimizer_history"][-1].get("optimizer_name", "its optimizer")
            what = f" ({', '.join(sorted(unknown))})" if unknown else ""
            raise TaskMoEError(
                f"{source.path}: the state of {name}{what} cannot be divided among experts; leave out --optimizer"
            )
        return cls(state, shapes)

    @property
    def is_flat(self) -> bool:
        """Whether all parameters are in one row."""
        return len(self.state["param_groups"][0]["params"]) == 1 < len(self.shapes)

    def rewrite(
        self,
        shapes: Mapping[str, torch.Size],
        upcycled: Mapping[str, tuple[str, StackUpcycling]],
        scratch: Scratch,
    ) -> dict[str, Any]:
        """The state of other parameters.

        Args:
            shapes: theirs, by name, in their order.
            upcycled: for those that were made of others, of which, and how. Others that are new have no state.
            scratch: makes large tensors.
        """
        states: dict[int, dict[str, Any]] = {}
        if self.is_flat:
            total = sum(shape.numel() for shape in shapes.values())
            [before] = self.state["state"].values()
            states[0] = {
                key: scratch.cat(self._row(key, value, shapes, upcycled), total) if key in POWERS else value
                for key, value in before.items()
            }
        else:
            numbers = {name: number for number, name in enumerate(self.shapes)}
            for number, name in enumerate(shapes):
                dense, plan = upcycled.get(name, (name, None))
                before = self.state["state"].get(numbers.get(dense), {})
                if plan is None:
                    after = dict(before)
                else:
                    after = {key: _upcycled(key, value, dense, plan, scratch) for key, value in before.items()}
                if after:
                    states[number] = after
        [group] = self.state["param_groups"]
        count = 1 if self.is_flat else len(shapes)
        return {**self.state, "state": states, "param_groups": [{**group, "params": list(range(count))}]}

    def _row(
        self,
        key: str,
        row: Tensor,
        shapes: Mapping[str, torch.Size],
        upcycled: Mapping[str, tuple[str, StackUpcycling]],
    ) -> Iterator[Tensor]:
        """The moments of the new parameters, flat, one after the other."""
        ends = list(accumulate(shape.numel() for shape in self.shapes.values()))[:-1]
        before = dict(zip(self.shapes, row.tensor_split(ends)))
        for name, shape in shapes.items():
            if name in upcycled:
                dense, plan = upcycled[name]
                own = before[dense].view(self.shapes[dense])
                yield from (each.flatten() for each in plan.moments(dense, own, POWERS[key]))
            elif name in before:
                yield before[name]
            else:
                yield row.new_zeros(shape.numel())


def _is_unknown(key: str, value: Any) -> bool:
    return key not in POWERS and isinstance(value, Tensor) and value.dim() > 0


def _upcycled(key: str, value: Any, dense: str, plan: StackUpcycling, scratch: Scratch) -> Any:
    if key not in POWERS:
        return value
    return scratch.stack(plan.moments(dense, value, POWERS[key]), plan.config.experts)
