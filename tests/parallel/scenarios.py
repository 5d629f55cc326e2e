"""What is trained on several processes and again on one: flags, and the batches of every process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.helpers.models import PAIRS, Row, rows

# For each update, for each of its --update-freq parts, the rows of each process; None: it has run out of batches.
Parts = tuple[tuple[tuple[Row, ...] | None, ...], ...]

SGD = ("--optimizer", "sgd", "--lr", 0.1)
ADAM = ("--optimizer", "adam", "--lr", 1e-3, "--adam-eps", 1e-3, "--weight-decay", 0.1)
OUR_ADAM = ("--optimizer", "taskmoe_adam", *ADAM[2:])
CLIPPED = (*SGD, "--clip-norm", 0.3)
# It clips each update by its own norm, and a process knows the norm of its own experts alone; here nothing is clipped.
# With the default epsilon it makes updates of mere rounding where a gradient is zero.
ADAFACTOR = (
    "--optimizer", "adafactor", "--lr", 1e-3, "--beta1", 0.9, "--clip-threshold", 1e9,
    "--adafactor-eps", "(1e-8, 1e-3)",
)  # fmt: skip
# Where every process has all experts, each has the gates' losses of its own batch.
NO_GATE_LOSS = (*SGD, "--moe-gate-loss-wt", 0, "--moe-z-loss-wt", 0)
ROUTINGS = ("source", "target", "pair", "group", "sentence", "token")


@dataclass(frozen=True)
class Scenario:
    """A few updates of a model.

    Attributes:
        updates: the batches.
        model: flags of the model, as attributes.
        training: flags of fairseq-train.
        spread: whether experts are spread over the processes, or every process has all of them.
        backend: how gradients are exchanged.
        double: compute in double precision, for which fairseq's trainer has no norm; otherwise train as it does.
    """

    updates: tuple[Parts, ...]
    model: dict[str, Any]
    training: tuple[Any, ...] = SGD
    spread: bool = True
    backend: str = "legacy_ddp"
    double: bool = False


def some(count: int, seed: int, pairs: tuple[str, ...] = PAIRS, longest: int = 6) -> tuple[Row, ...]:
    """Rows of a batch."""
    return tuple(rows(count, seed, pairs, longest))


EVEN: Parts = ((some(5, 1), some(4, 2)),)
AGAIN: Parts = ((some(3, 3), some(6, 4)),)
UNEVEN: Parts = ((some(9, 5, longest=12), some(1, 6, longest=1)),)
FILLER: Parts = ((some(5, 7), None),)
HALVES: Parts = ((some(5, 8), some(4, 9)), (some(2, 10), some(7, 11)))
# Process 0 has one task and no padding, process 1 has others.
ONE_TASK: Parts = (((Row("en-de", (5, 6), (7, 8)),) * 3, some(4, 12, ("de-en", "fr-en"))),)
ENGLISH: Parts = ((some(6, 13, ("de-en", "fr-en", "en-de")), some(6, 14, ("fr-en", "de-en", "en-fr"))),)


def _routed(encoder: str, decoder: str, **flags: Any) -> dict[str, Any]:
    return {"encoder_moe_routing": encoder, "decoder_moe_routing": decoder, **flags}


def _by_routing() -> dict[str, Scenario]:
    found = {}
    for routing in ROUTINGS:
        for k in (1, 2):
            model = _routed(routing, routing, moe_top_k=k)
            found[f"{routing}-top{k}"] = Scenario((EVEN, UNEVEN, ONE_TASK, FILLER), model, double=True)
            found[f"{routing}-top{k}-update-freq-2"] = Scenario((HALVES,), model)
    return found


TOKEN, TASK = _routed("token", "token"), _routed("source", "target")
MERGED = {"moe_combine": "weights"}
STATIC = {**TASK, "moe_task_gate": "static", "moe_top_k": 1}
NOISE = {**TASK, "moe_router_jitter": 0.5, "moe_top_k": 1}
AMONG = {**TOKEN, "moe_language_experts": 3}
NO_EXPERTS = {**TASK, "encoder_moe_freq": 0, "decoder_moe_freq": 0}
# Updates on 1, 2, 4 and 1 processes, saved and loaded in between; and on one process all the time.
RESHARDED = {
    "adam": Scenario((EVEN, AGAIN, EVEN, UNEVEN, AGAIN), STATIC, ADAM),
    "nag": Scenario((EVEN, AGAIN, EVEN, UNEVEN, AGAIN), TOKEN, ("--optimizer", "nag", "--lr", 0.01)),
    "adafactor": Scenario((EVEN, AGAIN, EVEN, UNEVEN, AGAIN), TASK, ADAFACTOR),
    "noise": Scenario((EVEN, AGAIN, EVEN, UNEVEN, AGAIN), NOISE, OUR_ADAM),
    "no-experts": Scenario((EVEN, AGAIN, EVEN, UNEVEN, AGAIN), NO_EXPERTS, ADAM),
    "memory-efficient-bf16": Scenario(
        (EVEN, AGAIN, EVEN, UNEVEN, AGAIN), TASK, (*ADAM, "--clip-norm", 0.3, "--memory-efficient-bf16")
    ),
}
STAGES = ((1, slice(0, 2)), (2, slice(2, 3)), (4, slice(3, 4)), (1, slice(4, 5)))

# For fairseq's default too, PyTorch's own DDP, which insists on a gradient for every parameter in every update. A
# process uses some experts and tasks only (STATIC), one task, or nothing; an update has two batches; a stack's only
# layer is no MoE layer.
BACKENDS = ("pytorch_ddp", "legacy_ddp")
DDP = {
    "replicated": Scenario((EVEN, ONE_TASK, FILLER, HALVES), STATIC, ADAM, spread=False),
    "replicated-token": Scenario((ONE_TASK, FILLER, HALVES), TOKEN, NO_GATE_LOSS, spread=False),
    "replicated-pair": Scenario(
        (ONE_TASK, HALVES, FILLER), {**_routed("pair", "source"), "moe_freq": 1}, CLIPPED, spread=False
    ),
    "replicated-checkpointing": Scenario(
        (ONE_TASK, HALVES),
        {**_routed("sentence", "target"), "checkpoint_activations": True},
        NO_GATE_LOSS,
        spread=False,
    ),
    "replicated-dense-encoder": Scenario((FILLER, HALVES), {**AMONG, "encoder_layers": 1}, NO_GATE_LOSS, spread=False),
    "spread-dense-training": Scenario((EVEN, ONE_TASK, FILLER), {**TASK, "moe_dense_training": True}, CLIPPED),
    "spread-warmup": Scenario((EVEN, ONE_TASK, FILLER), {**TASK, "moe_task_gate_warmup_updates": 2}, CLIPPED),
    "replicated-merged": Scenario((EVEN, ONE_TASK, FILLER, HALVES), {**TASK, **MERGED}, ADAM, spread=False),
    "spread": Scenario((EVEN, ONE_TASK, FILLER, HALVES), STATIC, ADAM),
    "spread-token": Scenario((ONE_TASK, FILLER, HALVES), TOKEN, CLIPPED),
    "spread-pair": Scenario((ONE_TASK, HALVES, FILLER), {**_routed("pair", "source"), "moe_freq": 1}, CLIPPED),
    "spread-checkpointing": Scenario(
        (ONE_TASK, HALVES, FILLER), {**_routed("sentence", "target"), "checkpoint_activations": True}
    ),
    "spread-dense-encoder": Scenario((FILLER, HALVES), {**AMONG, "encoder_layers": 1}),
    "spread-dense-decoder": Scenario((FILLER, HALVES), {**TASK, "decoder_layers": 1}, CLIPPED),
    "low-rank": Scenario((ONE_TASK, HALVES, FILLER), {**NO_EXPERTS, "task_low_rank": 3}, CLIPPED, spread=False),
    "spread-low-rank": Scenario(
        (ONE_TASK, HALVES, FILLER), {**STATIC, "task_low_rank": 3, "checkpoint_activations": True}, ADAM
    ),
    "no-experts": Scenario((FILLER, HALVES), NO_EXPERTS, CLIPPED),
    "no-experts-replicated": Scenario((FILLER, HALVES), NO_EXPERTS, spread=False),
}
# Processes have the same noise for tasks, whatever else they have drawn. Noise of their own tokens and sentences, and
# dropout, are of a process, so that there is no single one to compare with.
NOISY = {
    "task": Scenario((EVEN, ONE_TASK, FILLER, HALVES), {**NOISE, "dropout": 0.1}),
    "token": Scenario(
        (EVEN, ONE_TASK, FILLER, HALVES),
        {**TOKEN, "moe_router_jitter": 0.5, "moe_capacity_factor": 1.0, "moe_random_token_priority": True},
    ),
    "sentence": Scenario((EVEN, ONE_TASK, FILLER), {**_routed("sentence", "sentence"), "moe_router_jitter": 0.5}),
}

SCENARIOS = {
    **_by_routing(),
    "capacity": Scenario((EVEN, UNEVEN, FILLER), {**TOKEN, "moe_capacity_factor": 0.5}, double=True),
    "capacity-top1": Scenario((UNEVEN, EVEN), {**TOKEN, "moe_capacity_factor": 0.7, "moe_top_k": 1}, double=True),
    "capacity-logged": Scenario((EVEN,), {**TOKEN, "moe_capacity_factor": 0.5}),
    "half-of-all-tokens-to-english": Scenario((ENGLISH,), TASK, double=True),
    "unused-experts": Scenario((EVEN, ONE_TASK, EVEN), STATIC, (*OUR_ADAM, "--clip-norm", 0.3)),
    "clipping": Scenario((EVEN, UNEVEN), TOKEN, CLIPPED),
    "clipping-task": Scenario((EVEN, UNEVEN), _routed("pair", "target"), CLIPPED),
    "encoder-only": Scenario((EVEN,), {**TOKEN, "decoder_moe_freq": 0}),
    "decoder-only": Scenario((EVEN, FILLER), {**_routed("token", "sentence"), "encoder_moe_freq": 0}),
    "noise": Scenario((EVEN, ONE_TASK), NOISE),
    "noise-pair": Scenario((HALVES, FILLER), {**_routed("pair", "group"), "moe_router_jitter": 0.5}, CLIPPED),
    "sentence-average": Scenario((UNEVEN,), TOKEN, (*SGD, "--sentence-avg")),
    "replicated": Scenario((EVEN, UNEVEN, FILLER), TOKEN, NO_GATE_LOSS, spread=False),
    "replicated-sentence": Scenario(
        (EVEN, UNEVEN, FILLER), _routed("sentence", "sentence"), NO_GATE_LOSS, spread=False
    ),
    "replicated-pair": Scenario((EVEN, ONE_TASK, FILLER), _routed("pair", "pair"), spread=False),
    "replicated-group": Scenario((HALVES,), _routed("group", "group"), CLIPPED, spread=False),
    "replicated-double": Scenario((EVEN, UNEVEN), _routed("pair", "token"), NO_GATE_LOSS, spread=False, double=True),
    "replicated-task": Scenario((EVEN, UNEVEN), STATIC, ADAM, spread=False),
    "bf16": Scenario((EVEN, UNEVEN), TOKEN, (*CLIPPED, "--bf16")),
    "memory-efficient-bf16": Scenario((EVEN,), TOKEN, (*ADAM, "--memory-efficient-bf16")),
    "fp16": Scenario((EVEN, UNEVEN), TOKEN, (*SGD, "--fp16", "--fp16-no-flatten-grads")),
    "memory-efficient-fp16": Scenario((EVEN,), TOKEN, (*ADAM, "--memory-efficient-fp16")),
}
