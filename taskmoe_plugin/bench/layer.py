"""``taskmoe bench layer``: an MoE layer against a dense FFN of equal work, fairscale's layer and matrix products."""

from __future__ import annotations

import functools
import math
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from taskmoe_plugin.bench.device import DTYPES
from taskmoe_plugin.bench.naive import start_group
from taskmoe_plugin.bench.report import Row, progress, table
from taskmoe_plugin.bench.timing import Summary, make_clock, paired_ratios, time_in_turns
from taskmoe_plugin.memory import keep_freed_memory
from taskmoe_plugin.moe import (
    Experts,
    MoELayer,
    Routing,
    SentenceRouter,
    TaskGates,
    TokenRouter,
    Tokens,
    routings_of_units,
)

REFERENCE = "dense"
SYSTEMS = (REFERENCE, "products", "task", "one-task", "sentence", "token", "fairscale")
MAX_ROWS = 128  # a batch has at most this many sentences; more tokens make them longer
FAIRSCALE_LIMIT = 2**27  # elements of its (tokens, experts, capacity) masks, of which it makes half a dozen

System = Callable[[], object]
Layer = TypeVar("Layer", bound=nn.Module)


def run(args: Namespace) -> list[Row]:
    """Time every requested combination; one row for each system, shape, dtype and pass, with the time of one layer."""
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    if args.device == "cpu":
        # As the plugin's task does when training starts; the dense layer has it, too.
        keep_freed_memory()
    rows: list[Row] = []
    for dtype in (DTYPES[precision] for precision in args.precisions):
        for experts in args.experts:
            with _fairscale_group("fairscale" in args.systems):
                for tokens in args.tokens:
                    shape = {"dtype": dtype, "experts": experts, "tokens": tokens}
                    systems = LayerSystems(args, tokens, experts, getattr(torch, dtype), device)
                    for mode in args.passes:
                        progress(f"{tokens} tokens, {experts} experts, {dtype}, {mode}")
                        rows += _measure(systems.build(mode), args, device, {**shape, "pass": mode})
    return rows


def _measure(systems: dict[str, System], args: Namespace, device: torch.device, shape: Row) -> list[Row]:
    seconds = time_in_turns(systems, args.repetitions, 2, args.min_seconds, make_clock(args.cpu_time, device))
    rows = []
    for name, values in seconds.items():
        ratio = paired_ratios(seconds[REFERENCE], values)
        figures = {"milliseconds": 1e3 * Summary.of(values).median / args.layers, "ratio": ratio.median}
        figures.update(ratio_low=ratio.low, ratio_high=ratio.high, **_peak(systems[name], device))
        rows.append({**shape, "system": name, **figures})
    return rows


def _peak(system: System, device: torch.device) -> dict[str, int]:
    """The most memory of a GPU that a pass needs besides what is there before it; nothing on a CPU."""
    if device.type != "cuda":
        return {}
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    system()
    torch.cuda.synchronize(device)
    return {"peak_gpu_bytes": torch.cuda.max_memory_allocated(device) - before}


class LayerSystems:
    """The systems of one shape, each a stack of L layers one after the other. All MoE layers share their experts.

    ``task`` chooses its experts and routes anew in each pass, as a stack does: once for all its layers. The host knows
    the number of tokens of each expert, which a stack finds out once. ``one-task`` is, in the forward pass, the network
    to which evaluation folds the experts of a batch of one task, once for all steps of decoding it.

    Args:
        args: ``layers``, ``width``, ``ffn_dim``, ``top_k``, ``tasks``, ``systems``.
        tokens: N, tokens in the batch, none of them padding.
        experts: E.
        dtype, device: of activations and experts; gates compute in fp32.
    """

    def __init__(self, args: Namespace, tokens: int, experts: int, dtype: torch.dtype, device: torch.device) -> None:
        torch.manual_seed(0)
        self.args, self.tokens, self.num_experts = args, tokens, experts
        batch = math.gcd(tokens, MAX_ROWS)
        self.x = torch.randn(tokens // batch, batch, args.width, device=device, dtype=dtype)
        self.grad = torch.randn_like(self.x)
        self.dense = self._each(lambda: FeedForwardModule(args.width, args.top_k * args.ffn_dim))
        self.experts = self._each(lambda: Experts(experts, args.width, args.ffn_dim, F.relu))
        self.padding = torch.zeros(batch, tokens // batch, dtype=torch.bool, device=device)

    def _each(self, make: Callable[[], Layer]) -> list[Layer]:
        """A module for each layer."""
        return [make().to(self.x.device, self.x.dtype) for _ in range(self.args.layers)]

    def build(self, mode: str) -> dict[str, System]:
        """The systems that can run this shape, the reference first, as functions that make one pass."""
        wanted = [name for name in SYSTEMS if name in (REFERENCE, *self.args.systems)]
        return {name: self._pass(name, mode) for name in wanted if self._runs(name)}

    def _runs(self, name: str) -> bool:
        if name == "task":
            return bool(self.x.size(1) >= self.args.tasks)
        if name == "fairscale":
            # Its gate is top-2, wants a multiple of E tokens, and makes masks of 2 · tokens² elements.
            fits = self.tokens % self.num_experts == 0 and 2 * self.tokens**2 <= FAIRSCALE_LIMIT
            return fits and self.args.top_k == 2 and self.x.dtype == torch.float32
        return True

    def _pass(self, name: str, mode: str) -> System:
        if name == "products":
            return self._products(mode == "forward")
        module, call = self._module(name, mode == "forward")
        module.to(self.x.device).train(mode != "forward")

        def forward() -> object:
            with torch.no_grad():
                return call(self.x)

        parameters = list(module.parameters())

        def forward_backward() -> None:
            x = self.x.detach().requires_grad_()
            call(x).backward(self.grad)
            for parameter in parameters:
                parameter.grad = None

        return forward if mode == "forward" else forward_backward

    def _module(self, name: str, forward_only: bool) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
        if name == REFERENCE:
            stack = nn.Sequential(*self.dense)
            return stack, stack
        if name == "fairscale":
            return self._fairscale()
        if name in ("token", "sentence"):
            router = TokenRouter if name == "token" else SentenceRouter
            shape = self.args.width, self.num_experts, self.args.top_k
            layers = [MoELayer(self.num_experts, experts, router(*shape)) for experts in self.experts]
            tokens = Tokens.from_padding(self.padding)
            return nn.ModuleList(layers), lambda x: _one_after_the_other(layers, x, [tokens] * len(layers))
        return self._by_task(self.args.tasks if name == "task" else 1, forward_only)

    def _by_task(self, tasks: int, forward_only: bool) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
        device, tokens = self.x.device, Tokens.from_padding(self.padding)
        shape = self.args.layers, tasks, self.args.width, self.num_experts, self.args.top_k
        gates = TaskGates(*shape).to(device)
        chosen = gates()
        if tasks == 1 and forward_only:
            with torch.no_grad():
                choices = zip(self.experts, chosen.experts[:, 0].tolist(), chosen.weights[:, 0])
                folded = [experts.fold(each, weights) for experts, each, weights in choices]
            return nn.ModuleList(self.experts), lambda x: functools.reduce(lambda y, network: network(y), folded, x)
        layers = [MoELayer(self.num_experts, experts) for experts in self.experts]
        unit = tokens.row % tasks
        share = torch.full((tasks,), 1 / tasks, device=device)
        owners = chosen.experts.index_select(1, unit).flatten(1)
        counts = [[each.bincount(minlength=self.num_experts).tolist()] for each in owners]

        def call(x: Tensor) -> Tensor:
            routings = routings_of_units(gates(), unit, tokens, share, counts, by_task=True)
            return _one_after_the_other(layers, x, routings)

        return nn.ModuleList([gates, *layers]), call

    def _fairscale(self) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
        from fairscale.nn.moe import MOELayer, Top2Gate

        def make() -> nn.Module:
            width = self.args.width
            experts = nn.ModuleList(FeedForwardModule(width, self.args.ffn_dim) for _ in range(self.num_experts))
            layer: nn.Module = MOELayer(Top2Gate(width, self.num_experts), experts)
            return layer

        layers = nn.Sequential(*self._each(make))
        return layers, lambda x: layers(x.view(self.tokens, 1, -1)).view_as(x)

    def _products(self, forward_only: bool) -> System:
        # What no feed-forward network of this work can do without: two matrix products forward, four backward.
        x, grad = self.x.view(self.tokens, -1), self.grad.view(self.tokens, -1)
        weights = [(each.fc1.weight.detach(), each.fc2.weight.detach()) for each in self.dense]

        def forward() -> None:
            for w1, w2 in weights:
                (x @ w1.t()) @ w2.t()

        def forward_backward() -> None:
            for w1, w2 in weights:
                hidden = x @ w1.t()
                hidden @ w2.t()
                grad_hidden = grad @ w2
                grad.t() @ hidden, grad_hidden.t() @ x, grad_hidden @ w1

        return forward if forward_only else forward_backward


def _one_after_the_other(layers: Sequence[MoELayer], x: Tensor, routings: Sequence[Routing | Tokens]) -> Tensor:
    for layer, routing in zip(layers, routings):
        x, _ = layer(x, routing)
    return x


class FeedForwardModule(nn.Module):
    """A dense feed-forward network."""

    def __init__(self, width: int, ffn_dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, ffn_dim), nn.Linear(ffn_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x)))  # type: ignore[no-any-return]


@contextmanager
def _fairscale_group(wanted: bool) -> Iterator[None]:
    # fairscale's layer exchanges tokens even where there is one process, and needs a group for it.
    if not wanted:
        yield
        return
    start_group()
    try:
        yield
    finally:
        dist.destroy_process_group()


def summary(rows: list[Row]) -> str:
    """A table of the speed of each system relative to the dense FFN of equal work, with quartiles."""
    systems = [name for name in SYSTEMS if any(row["system"] == name for row in rows)]
    cells: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        cells.setdefault((row["dtype"], row["experts"], row["pass"], row["tokens"]), {})[row["system"]] = row
    body = [
        [*key, f"{found[REFERENCE]['milliseconds']:.3g}", *(_cell(found.get(name)) for name in systems[1:])]
        for key, found in cells.items()
    ]
    return table(["dtype", "experts", "pass", "tokens", "dense, ms", *systems[1:]], body)


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    memory = f", {row['peak_gpu_bytes'] / 2**20:.0f} MiB" if "peak_gpu_bytes" in row else ""
    return f"{row['ratio']:.2f} ({row['ratio_low']:.2f}-{row['ratio_high']:.2f}){memory}"


def draw(rows: list[Row], figure: Any) -> None:
    """Plot speed relative to dense against tokens: a column of panels per pass, a row per dtype and expert count."""
    passes = list(dict.fromkeys(row["pass"] for row in rows))
    kinds = list(dict.fromkeys((row["dtype"], row["experts"]) for row in rows))
    figure.set_size_inches(4.5 * len(passes), 2 + 2.5 * len(kinds))
    panels = figure.subplots(len(kinds), len(passes), squeeze=False)
    for across, (dtype, experts) in zip(panels, kinds):
        for axes, mode in zip(across, passes):
            chosen = [row for row in rows if (row["dtype"], row["experts"], row["pass"]) == (dtype, experts, mode)]
            for name in dict.fromkeys(row["system"] for row in chosen):
                points = [row for row in chosen if row["system"] == name]
                axes.plot([row["tokens"] for row in points], [row["ratio"] for row in points], marker="o", label=name)
            axes.set(xscale="log", xlabel="tokens", ylabel="speed, dense = 1", ylim=(0, None))
            axes.set_title(f"{mode}, {experts} experts, {dtype}")
            axes.legend(fontsize="small")
