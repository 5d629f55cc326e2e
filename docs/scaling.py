"""Computes the tables of scaling.md from bytes and floating-point operations; needs only the standard library."""

from __future__ import annotations

import math
from dataclasses import dataclass

BYTES = 2  # of a number in half precision
VOCABULARY = 64_000  # of the paper's WMT model
PAPER = {
    "Base": (0.269, 1.87),
    "Large": (0.36, 2.6),
}  # share of a step spent on communication; speed-up of task routing
TOKENS_PER_SECOND = 1.3e5  # of the paper's token-routed Base model, on 32 cores


@dataclass(frozen=True)
class Model:
    """A model of the paper, with one expert a device, width d and hidden width f; half of its layers are MoE layers."""

    name: str
    devices: int
    d: int
    f: int
    layers: int = 6
    k: int = 2

    @property
    def moe_layers(self) -> int:
        return self.layers // 2

    @property
    def token_bytes(self) -> float:
        """What a device sends for each of its tokens in one MoE layer, forward: k activations out, k back."""
        return 2 * self.k * self.d * BYTES * (self.devices - 1) / self.devices

    @property
    def expert_flops(self) -> int:
        """Of a token's k experts."""
        return 4 * self.k * self.d * self.f

    @property
    def decoder_flops(self) -> int:
        """Of a step of decoding for one token, without attention scores: projections, networks, output layer."""
        projections = self.layers * 2 * 6 * self.d**2  # q, k, v, out; of the source q, out
        networks = (self.layers - self.moe_layers) * 4 * self.d * self.f + self.moe_layers * self.expert_flops
        return projections + networks + 2 * self.d * VOCABULARY


@dataclass(frozen=True)
class Link:
    """Peak floating-point operations of a device, and bytes it can send, each a second."""

    name: str
    flops: float
    bytes: float


BASE, LARGE = Model("Base", 32, 512, 2048), Model("Large", 128, 1024, 8192)
A100 = 312e12
LINKS = (Link("A100, NVLink", A100, 300e9), Link("A100, 200 Gbit/s network", A100, 25e9))
TPU_FLOPS = 61.5e12  # of a TPU v3 core, half a chip
POD_SIDE, POD_BISECTION = 32, 6.4e12  # chips; bytes a second


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def volume(model: Model) -> list[str]:
    """What goes through the all-to-alls of a model."""
    forward = 2 * model.moe_layers * model.token_bytes
    return [
        model.name,
        str(model.devices),
        f"{model.token_bytes:,.0f}",
        f"{forward / 1e3:.1f}",
        f"{2 * forward / 1e3:.1f}",
        f"{model.expert_flops / 1e6:.1f}",
        f"{model.expert_flops / model.token_bytes:,.0f}",
    ]


def against_experts(model: Model) -> list[str]:
    """How long the all-to-alls take, relative to the experts."""
    ratios = [model.token_bytes / link.bytes / (model.expert_flops / link.flops) for link in LINKS]
    return [model.name, *(f"{ratio:.2f}" for ratio in ratios)]


def tpu_seconds(model: Model) -> tuple[float, float]:
    """Seconds of a decoding step for each token of a core, at the peak of the links and of the arithmetic."""
    chips = model.devices // 2
    bisection = POD_BISECTION * math.isqrt(chips) / POD_SIDE
    # Half of what a chip sends crosses to the other half of the torus.
    exchanged = model.moe_layers * model.token_bytes * model.devices / 2 / bisection
    return exchanged, model.decoder_flops / TPU_FLOPS


def decoding(model: Model) -> list[str]:
    """The share of communication, as computed and as measured."""
    exchanged, computed = tpu_seconds(model)
    share, speedup = PAPER[model.name]
    gain = 1 / (1 - share)
    return [
        model.name,
        f"{model.decoder_flops / 1e6:.0f}",
        f"{computed * 1e6:.2f}",
        f"{exchanged * 1e6:.2f}",
        f"{exchanged / (exchanged + computed):.1%}",
        f"{share:.1%}",
        f"{gain:.2f}",
        f"{speedup:.2f}",
        f"{speedup / gain:.2f}",
    ]


def placed(model: Model, tokens: int) -> list[str]:
    """What is sent in training for one MoE layer: tokens to their experts, or the gradients of a task's experts."""
    exchange = 2 * tokens * model.token_bytes
    gradients = 2 * model.k * 2 * model.d * model.f * BYTES
    return [
        model.name,
        f"{tokens:,}",
        f"{exchange / 1e6:.1f}",
        f"{gradients / 1e6:.1f}",
        f"{gradients / exchange:.2f}",
    ]


def filled(model: Model) -> list[str]:
    """How much larger blocks of one size are than what is in them, if the target is English in half of all tokens."""
    largest_together, largest_apart = model.k / 2, model.k / 4
    mean = model.k / model.devices
    return [model.name, f"{largest_apart / mean:.0f}", f"{largest_together / mean:.0f}"]


def per_token_microseconds() -> str:
    """What the paper's figures make of the token-routed Base model's time."""
    step = BASE.devices / TOKENS_PER_SECOND
    communication = PAPER["Base"][0] * step
    exchanged, computed = tpu_seconds(BASE)
    return (
        f"{step * 1e6:.0f} µs for each token of a core, {communication * 1e6:.0f} µs of them communication: "
        f"{communication / exchanged:.0f} times what the links need, and the rest "
        f"{(step - communication) / computed:.0f} times what the arithmetic needs"
    )


def tables() -> list[str]:
    """Everything that scaling.md shows."""
    models = (BASE, LARGE)
    return [
        table(
            ["model", "experts, devices", "bytes a token, one layer", "kB a token, forward", "kB a token, update",
             "MFLOP of its experts, one layer", "FLOP a byte"],
            [volume(model) for model in models],
        ),
        table(["model", *(link.name for link in LINKS)], [against_experts(model) for model in models]),
        table(
            ["model", "MFLOP a token", "µs arithmetic", "µs exchange", "share computed", "share in the paper",
             "speed-up without communication", "the paper's speed-up", "left to explain"],
            [decoding(model) for model in models],
        ),
        per_token_microseconds(),
        table(["model", "its experts on two devices", "on one device"], [filled(model) for model in models]),
        table(
            ["model", "tokens a device", "MB of tokens", "MB of gradients", "ratio"],
            [placed(model, tokens) for model in models for tokens in (1024, 4096, 16384)],
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    print("\n\n".join(tables()))
