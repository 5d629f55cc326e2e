"""``taskmoe bench layer``: an MoE layer against a dense FFN of equal work, fairscale's layer and matrix products."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from taskmoe_plugin.bench.report import Row, progress, table
from taskmoe_plugin.bench.timing import Summary, make_clock, paired_ratios, time_in_turns
from taskmoe_plugin.moe import (
    Expert,
    MoELayer,
    RoutedBatch,
    SentenceRouter,
    TaskRouter,
    TokenBatch,
    TokenRouter,
)

REFERENCE = "dense"
SYSTEMS = (REFERENCE, "products", "task", "one-task", "sentence", "token", "fairscale")
PASSES = ("forward", "forward+backward")
MAX_ROWS = 128  # a batch has at most this many sentences; more tokens make them longer
FAIRSCALE_LIMIT = 2**27  # elements of its (tokens, experts, capacity) masks, of which it makes half a dozen

System = Callable[[], object]


def run(args: Namespace) -> list[Row]:
    """Time every requested combination; one row for each system, shape, dtype and pass."""
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    rows: list[Row] = []
    for dtype in args.dtypes:
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
        figures = {"milliseconds": 1e3 * Summary.of(values).median, "ratio": ratio.median}
        rows.append({**shape, "system": name, **figures, "ratio_low": ratio.low, "ratio_high": ratio.high})
    return rows


class LayerSystems:
    """The systems of one shape. All MoE layers share one set of experts.

    Args:
        args: ``width``, ``ffn_dim``, ``top_k``, ``tasks``, ``systems``.
        tokens: N, tokens in the batch, none of them padding.
        experts: E.
        dtype, device: of activations and experts; gates compute in fp32.
    """

    def __init__(self, args: Namespace, tokens: int, experts: int, dtype: torch.dtype, device: torch.device) -> None:
        torch.manual_seed(0)
        self.args, self.tokens = args, tokens
        batch = math.gcd(tokens, MAX_ROWS)
        self.x = torch.randn(tokens // batch, batch, args.width, device=device, dtype=dtype)
        self.grad = torch.randn_like(self.x)
        self.dense = Expert(args.width, args.top_k * args.ffn_dim, F.relu).to(device, dtype)
        self.experts = [Expert(args.width, args.ffn_dim, F.relu).to(device, dtype) for _ in range(experts)]
        self.token_batch = TokenBatch.from_padding(torch.zeros(batch, tokens // batch, dtype=torch.bool, device=device))

    def build(self, mode: str) -> dict[str, System]:
        """The systems that can run this shape, the reference first, as functions that make one pass."""
        wanted = [name for name in SYSTEMS if name in (REFERENCE, *self.args.systems)]
        return {name: self._pass(name, mode) for name in wanted if self._runs(name)}

    def _runs(self, name: str) -> bool:
        if name == "task":
            return bool(self.token_batch.rows >= self.args.tasks)
        if name == "fairscale":
            # Its gate is top-2, wants a multiple of E tokens, and makes masks of 2 · tokens² elements.
            fits = self.tokens % len(self.experts) == 0 and 2 * self.tokens**2 <= FAIRSCALE_LIMIT
            return fits and self.args.top_k == 2 and self.x.dtype == torch.float32
        return True

    def _pass(self, name: str, mode: str) -> System:
        if name == "products":
            return self._products(mode == "forward")
        module, call = self._module(name)
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

    def _module(self, name: str) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
        if name == REFERENCE:
            return self.dense, self.dense
        if name == "fairscale":
            from fairscale.nn.moe import MOELayer, Top2Gate

            fairscale = MOELayer(Top2Gate(self.args.width, len(self.experts)), nn.ModuleList(self.experts))
            return fairscale, lambda x: fairscale(x.view(self.tokens, 1, -1)).view_as(x)
        router, batch = self._router(name)
        layer = MoELayer(router, self.experts)
        return layer, lambda x: layer(x, batch)[0]

    def _router(self, name: str) -> tuple[TaskRouter | SentenceRouter | TokenRouter, RoutedBatch]:
        args, rows, device = self.args, self.token_batch.rows, self.x.device
        if name in ("token", "sentence"):
            router = TokenRouter if name == "token" else SentenceRouter
            return router(args.width, len(self.experts), args.top_k), RoutedBatch(self.token_batch)
        tasks = args.tasks if name == "task" else 1
        task = torch.arange(rows, device=device) % tasks
        share = torch.full((tasks,), 1 / tasks, device=device)
        batch = RoutedBatch(self.token_batch, task, None if tasks > 1 else 0, share)
        return TaskRouter(tasks, args.width, len(self.experts), args.top_k), batch

    def _products(self, forward_only: bool) -> System:
        # What no feed-forward network of this work can do without: two matrix products forward, four backward.
        x, grad = self.x.view(self.tokens, -1), self.grad.view(self.tokens, -1)
        w1, w2 = self.dense.fc1.weight.detach(), self.dense.fc2.weight.detach()

        def forward() -> tuple[Tensor, Tensor]:
            hidden = x @ w1.t()
            return hidden, hidden @ w2.t()

        def forward_backward() -> tuple[Tensor, ...]:
            hidden, _ = forward()
            grad_hidden = grad @ w2
            return grad.t() @ hidden, grad_hidden.t() @ x, grad_hidden @ w1

        return forward if forward_only else forward_backward


@contextmanager
def _fairscale_group(wanted: bool) -> Iterator[None]:
    # fairscale's layer exchanges tokens even where there is one process, and needs a group for it.
    if not wanted:
        yield
        return
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
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
    return f"{row['ratio']:.2f} ({row['ratio_low']:.2f}-{row['ratio_high']:.2f})" if row else ""


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
