"""A dense Transformer's tensors made into those of a ``taskmoe_transformer`` that computes the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from taskmoe_plugin.errors import UsageError
from taskmoe_plugin.models.stack import StackConfig
from taskmoe_plugin.moe.fold import PARTS
from taskmoe_plugin.moe.upcycle import Upcycling


@dataclass(frozen=True)
class StackUpcycling:
    """What becomes of a dense stack.

    Attributes:
        config: the new stack.
        how: what becomes of each feed-forward network that is replaced.
    """

    config: StackConfig
    how: Upcycling

    @classmethod
    def plan(cls, config: StackConfig, dense_width: int) -> StackUpcycling:
        """How a stack can have the function of a dense one.

        Args:
            config: the new stack, which has MoE layers.
            dense_width: the hidden width of the dense feed-forward networks.

        Raises:
            UsageError: with these flags it cannot.
        """
        experts, k = config.experts, config.top_k
        slices = 1 if config.ffn_dim == dense_width or config.merge else k
        if config.ffn_dim * slices != dense_width:
            also = "" if config.merge or dense_width % k else f", or {dense_width // k} for slices, one of {k} for each"
            raise UsageError(
                f"--moe-expert-ffn-dim {config.ffn_dim}: the {config.stack} has dense networks of width {dense_width}; "
                f"give {dense_width} for experts that are copies{also}"
            )
        if slices > 1 and not config.by_task and experts % slices:
            raise UsageError(
                f"--moe-expert-count {experts}: {config.routing} routing with slices needs as many experts for each of "
                f"the {slices} slices (--moe-top-k); give a multiple of {slices}"
            )
        if slices > 1 and config.language_experts:
            raise UsageError(
                f"--moe-language-experts {config.language_experts}: leaves tokens without experts of some slices; "
                f"leave it out, or give --moe-expert-ffn-dim {dense_width} for experts that are copies"
            )
        if config.choice.threshold:
            raise UsageError(
                f"--moe-threshold {config.choice.threshold:g}: the weights of a token's experts have no known sum; "
                "leave it out"
            )
        if config.expert_bits:
            raise UsageError(
                f"--moe-expert-bits {config.expert_bits}: rounded experts would not compute what the dense model does; "
                "leave it out, and train for it afterwards"
            )
        if config.choice.dense_training and (slices > 1 or k == 1):
            raise UsageError(
                "--moe-dense-training: every token has all experts, which then must be copies of a dense network, and "
                "--moe-top-k above 1; leave it out, or make them so"
            )
        if config.warmup:
            raise UsageError(
                "--moe-task-gate-warmup-updates: tasks begin with experts that were not dealt to them, which would not "
                "compute what the dense model does; leave it out"
            )
        total = 1.0 if config.merge else config.choice.scale
        if k == 1 and not config.by_task:
            total /= config.language_experts or experts
        return cls(config, Upcycling(experts, k, slices, total))

    @property
    def dense_names(self) -> dict[str, str]:
        """For each stacked parameter of the experts its name in the dense model."""
        return {
            f"{self._layer(index)}.moe.experts.{part.replace('.', '_')}": f"{self._layer(index)}.{part}"
            for index in self.config.moe_layers
            for part in PARTS
        }

    def experts(self, name: str, dense: Tensor) -> Iterator[Tensor]:
        """A parameter of each of the E experts of a layer in turn.

        Args:
            name: its dense name.
            dense: the dense one.
        """
        return self.how.parts(_part(name), dense)

    def moments(self, name: str, dense: Tensor, power: int) -> Iterator[Tensor]:
        """The optimizer's moment of a parameter of each of the E experts in turn.

        Args:
            name: its dense name.
            dense: the dense one's.
            power: 2 for a moment of squares.
        """
        return self.how.gradients(_part(name), dense, power)

    def gates(self, fresh: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of gates, made of their initial values.

        Where not every gate will do, those of tasks keep what is dealt to each: the scores they add to it are zero.

        Args:
            fresh: the initial values of a model's tensors, those of other parts perhaps among them.
        """
        routers = {f"{self._layer(index)}.moe.router.gate.weight" for index in self.config.moe_layers}
        found = {name: self.how.router(each) for name, each in fresh.items() if name in routers}
        any_gate = self.how.slices == 1 < self.how.top_k
        for name, each in fresh.items():
            if name.startswith(f"{self.config.stack}.tasks."):
                found[name] = each if any_gate or not name.endswith(".tasks.gates.weight") else torch.zeros_like(each)
        return found

    def __str__(self) -> str:
        """What was done, for a log."""
        how, count = self.how, len(self.config.moe_layers)
        kind = f"slices, {how.slices} of which make one network" if how.slices > 1 else "copies"
        return f"{count} feed-forward networks of the {self.config.stack} became {how.experts} experts each, {kind}"

    def _layer(self, index: int) -> str:
        return f"{self.config.stack}.layers.{index}"


def _part(dense_name: str) -> str:
    return ".".join(dense_name.split(".")[-2:])


def plan_upcycling(configs: Iterable[StackConfig], shape: Callable[[str], torch.Size | None]) -> list[StackUpcycling]:
    """The stacks that have experts where a dense model has none.

    Args:
        configs: the stacks of the new model.
        shape: of a tensor of the dense one; None where there is none of this name.

    Raises:
        UsageError: a stack cannot have its function.
    """
    found = []
    for config in configs:
        if config.moe_layers:
            bias = shape(f"{config.stack}.layers.{config.moe_layers[0]}.fc1.bias")
            if bias is not None:
                found.append(StackUpcycling.plan(config, bias[0]))
    return found


def upcycle_state(state: dict[str, Tensor], configs: Iterable[StackConfig], fresh: Mapping[str, Tensor]) -> str:
    """Make a dense model's state that of a model with experts, in place; a state that has experts stays as it is.

    Args:
        state: the tensors by name.
        configs: the stacks of the new model.
        fresh: its initial tensors.

    Returns:
        What was done; nothing if the state has experts.

    Raises:
        UsageError: see ``StackUpcycling.plan``.
    """
    plans = plan_upcycling(configs, lambda name: state[name].shape if name in state else None)
    for plan in plans:
        for name, dense_name in plan.dense_names.items():
            state[name] = torch.stack(list(plan.experts(dense_name, state.pop(dense_name))))
        state.update(plan.gates(fresh))
    return "; ".join(map(str, plans))
