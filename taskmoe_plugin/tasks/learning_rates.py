"""Parameters with a learning rate of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# What of a group of parameters is a learning rate; the second is the one that nag had in the last update.
RATES = ("lr", "lr_old")


@contextmanager
def own_learning_rates(optimizer: Any) -> Iterator[None]:
    """Within the context, where an update is made, parameters have the learning rate times a factor of their own.

    It is the ``lr_scale`` of a parameter's ``optim_overrides``, which fairseq's composite optimizer reads, and its
    copies in single precision carry. Of the optimizers that a command line can ask for, fairseq sets one learning rate
    for all parameters before each update. The groups into which they are divided here are gone afterwards, so that
    checkpoints are those of any training.

    Args:
        optimizer: of fairseq's.
    """
    groups: list[dict[str, Any]] = optimizer.optimizer.param_groups
    whole = list(groups)
    divided = [_divide(group) for group in whole]
    if all(len(parts) == 1 for parts in divided):
        yield
        return
    groups[:] = [part for parts in divided for part in parts]
    try:
        yield
    finally:
        for group, (rest, *_) in zip(whole, divided):
            # Some optimizers count updates here.
            group.update({name: value for name, value in rest.items() if name != "params"})
        groups[:] = whole


def _divide(group: dict[str, Any]) -> list[dict[str, Any]]:
    """A group for each factor, first that of the parameters without one."""
    by_factor: dict[float, list[Any]] = {1.0: []}
    for parameter in group["params"]:
        overrides = getattr(parameter, "optim_overrides", {}).get("optimizer", {})
        by_factor.setdefault(overrides.get("lr_scale", 1.0), []).append(parameter)
    return [
        {**group, "params": params, **{name: group[name] * factor for name in RATES if group.get(name) is not None}}
        for factor, params in by_factor.items()
    ]
