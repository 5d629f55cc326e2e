"""fairseq's Adam in few kernels: PyTorch's AdamW for all parameters at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from fairseq.optim import FairseqOptimizer, register_optimizer
from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from taskmoe_plugin.errors import UsageError

NAME = "taskmoe_adam"
STATE = {"step", "exp_avg", "exp_avg_sq"}


class AdamW(torch.optim.AdamW):
    """PyTorch's AdamW as fairseq's wrappers of optimizers use it, with a state that fairseq's Adam takes up, too.

    Args:
        params: what it updates, in single or double precision.
        config: PyTorch's arguments, of which ``fused`` must be one.
    """

    # --fp16 may put all parameters in a row. No supports_step_with_scale, although the kernel could scale: with --bf16
    # fairseq would keep the scale of an update for the next ones.
    supports_flat_params = True

    def state_dict(self) -> dict[str, Any]:
        """The state, with updates counted in numbers, as fairseq's optimizers do, and not in tensors."""
        whole = super().state_dict()
        states = {
            number: {name: int(value) if name == "step" else value for name, value in each.items()}
            for number, each in whole["state"].items()
        }
        return {**whole, "state": states}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A checkpoint may come from another device, or from an optimizer that knows of no kernels.
        for group in state.get("param_groups", ()):
            group.update({name: self.defaults[name] for name in ("fused", "foreach")})
        super().__setstate__(state)


@register_optimizer(NAME, dataclass=FairseqAdamConfig)
class TaskMoEAdam(FairseqAdam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019), as fairseq's ``adam``, up to where epsilon acts.

    It is added to the root of the second moment after that is corrected for its beginning at zero, as the paper has it
    (Kingma and Ba, 2015, algorithm 1); fairseq adds it before.

    Where PyTorch has a fused kernel for the parameters, an update is a few kernel launches for all of them, and
    otherwise a few for each operation. So is clipping.

    Args:
        cfg: the flags of fairseq's ``adam``.
        params: what it updates.

    Raises:
        UsageError: a flag has a value that PyTorch refuses.
    """

    def __init__(self, cfg: Any, params: Iterable[nn.Parameter]) -> None:
        # Not that of fairseq's Adam, which makes its own.
        FairseqOptimizer.__init__(self, cfg)
        params = list(params)
        fused = all(has_fused_kernel(*kind) for kind in {(each.device, each.dtype) for each in params})
        config = self.optimizer_config
        config["betas"] = tuple(map(float, config["betas"]))
        try:
            self._optimizer = AdamW(params, **config, fused=fused, foreach=not fused)
        except ValueError as error:
            raise UsageError(f"--optimizer {NAME}: {error}; give another value") from error

    def load_state_dict(self, state_dict: dict[str, Any], optimizer_overrides: dict[str, Any] | None = None) -> None:
        """Take up a state of this optimizer or of fairseq's own Adam, or raise ``UsageError`` if it is of another."""
        # fairseq does not know which optimizer it has wrapped for half precision.
        if any(not each.keys() >= STATE for each in state_dict["state"].values()):
            raise UsageError(
                f"--optimizer {NAME}: the checkpoint has the state of another optimizer; give that one, or "
                "--reset-optimizer"
            )
        super().load_state_dict(state_dict, optimizer_overrides)

    def clip_grad_norm(self, max_norm: float, aggregate_norm_fn: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Clip gradients by their norm as fairseq does, which leaves spread experts out of the norm; returns it."""
        params = [each for each in self.params if each.grad is not None]
        norm = get_total_norm([each.grad for each in params if not hasattr(each, "expert")])
        if aggregate_norm_fn is not None:
            norm = aggregate_norm_fn(norm)
        if max_norm > 0:
            clip_grads_with_norm_(params, float(max_norm), norm)
        return norm


# fairseq resumes with an optimizer whose class has the name that the checkpoint says. The state is the same.
TaskMoEAdam.__name__ = FairseqAdam.__name__


def has_fused_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether PyTorch has a fused AdamW for parameters of this kind. It does not tell, other than by an error."""
    probe = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))
    probe.grad = torch.zeros_like(probe)
    try:
        torch.optim.AdamW([probe], fused=True).step()
    except RuntimeError:
        return False
    return True
