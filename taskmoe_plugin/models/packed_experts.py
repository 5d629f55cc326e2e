"""Quantised experts in a checkpoint, which has them apart from its tensors: who does not know them cannot take them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from taskmoe_plugin.errors import TaskMoEError, UsageError
from taskmoe_plugin.moe.fold import PARTS
from taskmoe_plugin.moe.packed_experts import PackedExperts
from taskmoe_plugin.moe.quantize import Packed

KEY = "packed_experts"  # among the tensors of a checkpoint's model


def packed_entry(packed: Packed) -> dict[str, Any]:
    """What a checkpoint has of one quantised parameter under ``KEY``, by the parameter's name."""
    return vars(packed).copy()


class PackedParameters(Mapping[str, Tensor]):
    """The quantised parameters of one checkpoint by name; they are made floating point when they are asked for.

    Args:
        entries: what the checkpoint has under ``KEY``.
        name: what to call the checkpoint in an error.

    Raises:
        TaskMoEError: they are damaged.
    """

    def __init__(self, entries: Any, name: str = "the checkpoint") -> None:
        try:
            self._packed = {parameter: Packed(**entry) for parameter, entry in entries.items()}
            for packed in self._packed.values():
                packed.check()
        except (AttributeError, TypeError, ValueError) as error:
            raise TaskMoEError(f"{name}: its quantised experts are damaged ({error}); copy it again") from error

    def __getitem__(self, name: str) -> Tensor:
        """All experts of a layer, (E, …) fp32."""
        return self._packed[name].dequantize()

    def __contains__(self, name: object) -> bool:
        return name in self._packed

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)

    def packed(self, name: str) -> Packed:
        """A parameter as it is."""
        return self._packed[name]

    def expert(self, name: str, index: int) -> Tensor:
        """The parameter of one expert, fp32."""
        return self._packed[name][index].dequantize()

    def shape(self, name: str) -> torch.Size:
        """The shape of a parameter."""
        return self._packed[name].shape

    def nbytes(self, name: str) -> int:
        """The bytes of a parameter as it is."""
        return self._packed[name].nbytes


def keep_packed(state: dict[str, Any], model: nn.Module) -> None:
    """Let the MoE layers of a model have quantised experts as they are, and take them out of a state.

    Args:
        state: a checkpoint's, changed in place.
        model: has the layers.

    Raises:
        UsageError: there are none.
    """
    found = PackedParameters(state.pop(KEY, {}))
    if not found:
        raise UsageError("--keep-packed: the checkpoint has no quantised experts; give one of taskmoe convert quantize")
    weights = [part for part in PARTS if part.endswith("weight")]
    for layer in {name.rsplit(".", 2)[0] for name in found}:
        moe: Any = model.get_submodule(layer)
        parts = {part: found.packed(f"{layer}.experts.{part.replace('.', '_')}") for part in weights}
        moe.experts = PackedExperts(moe.experts, parts)


def unpack_state(state: dict[str, Any]) -> None:
    """Make quantised experts in a checkpoint's state floating point, in place."""
    state.update(PackedParameters(state.pop(KEY, {})))
