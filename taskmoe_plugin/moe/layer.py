"""The MoE layer: router, dispatch, experts, combine."""

from __future__ import annotations

from torch import Tensor, nn

from taskmoe_plugin.moe.dispatch import Dispatcher, LocalDispatcher
from taskmoe_plugin.moe.experts import Experts
from taskmoe_plugin.moe.routing import Routing, SentenceRouter, TokenRouter
from taskmoe_plugin.moe.tokens import Tokens


class MoELayer(nn.Module):
    """Replaces the feed-forward network of a Transformer layer: y = Σ_e weight_e · expert_e(x) (TaskMoE, section 2).

    Where the routing merges the experts, y is that of the one network whose parameters are Σ_e weight_e · parameter_e.

    Args:
        num_experts: E.
        experts: those of this process.
        router: routes by activations; None where a stack has made the routing beforehand.
        capacity_factor: in training an expert takes at most ceil(factor · K · N / E) assignments; 0: dropless.
        eval_capacity_factor: the same in evaluation.
        dispatcher: for experts that are spread over processes; by default they are all here.
        random_priority: whether in training, with a capacity, experts serve tokens in random order.

    Raises:
        ValueError: there are not as many experts as the layer should have, or the router chooses among.
    """

    def __init__(
        self,
        num_experts: int,
        experts: Experts,
        router: TokenRouter | SentenceRouter | None = None,
        capacity_factor: float = 0.0,
        eval_capacity_factor: float = 0.0,
        dispatcher: Dispatcher | None = None,
        random_priority: bool = False,
    ) -> None:
        super().__init__()
        if router is not None and router.gate.weight.size(0) != num_experts:
            raise ValueError(
                f"the router chooses among {router.gate.weight.size(0)} experts, of which {num_experts} are"
            )
        if dispatcher is None and len(experts) != num_experts:
            raise ValueError(f"{len(experts)} experts are in this process, of which all {num_experts} should be")
        self.num_experts = num_experts
        self.router = router
        self.experts = experts
        self.capacity_factor = capacity_factor
        self.eval_capacity_factor = eval_capacity_factor
        self.dispatcher = LocalDispatcher() if dispatcher is None else dispatcher
        self.random_priority = random_priority

    def forward(self, x: Tensor, routing: Routing | Tokens) -> tuple[Tensor, Routing]:
        """Map (T, B, C) to (T, B, C), padding to zero.

        Args:
            x: activations.
            routing: what to do with them; the tokens alone where this layer's router decides it.

        Returns:
            The output, and the routing with what is known of it afterwards.

        Raises:
            ValueError: the activations are not those of the tokens.
        """
        tokens = routing if isinstance(routing, Tokens) else routing.tokens
        places = x.size(0) * x.size(1)
        if x.size(1) != tokens.rows or (tokens.index is None and places != tokens.row.numel()):
            raise ValueError(
                f"activations {tuple(x.shape)} (T, B, C), and tokens of {tokens.rows} rows of other lengths"
            )
        if isinstance(routing, Tokens):
            assert self.router is not None
            routed: Routing = self.router(x.reshape(-1, x.size(-1)), routing)
        else:
            routed = routing
        factor = self.capacity_factor if self.training else self.eval_capacity_factor
        shuffle = self.training and self.random_priority
        networks = self.num_experts if routed.merging is None else routed.merging.size(0)
        rows, dispatched = self.dispatcher.dispatch(x, routed, networks, factor, shuffle)
        outputs = self.experts(rows, dispatched.groups, routed.merging)
        return self.dispatcher.combine(outputs, dispatched), dispatched.routing
