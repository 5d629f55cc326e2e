"""Two processes train together over NCCL, each on a GPU of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing

from tests.gpu.updates import check_finite, make_trainer, train
from tests.helpers.corpus import Corpus

PROCESSES = 2
# How experts are kept, and how gradients are exchanged: the first is fairseq's default.
WAYS = {
    "replicated": ("--ddp-backend", "pytorch_ddp"),
    "replicated, legacy": ("--ddp-backend", "legacy_ddp"),
    "spread": ("--ddp-backend", "pytorch_ddp", "--moe-expert-parallel"),
    "spread, legacy": ("--ddp-backend", "legacy_ddp", "--moe-expert-parallel"),
}
# What a process that misses another one would do for ever.
PATIENCE = 300  # seconds


def job(rank: int, corpus: Corpus, meeting: Path, on_gpu: bool, precision: str, routing: str, way: str) -> None:
    """Train as one of the processes, and leave the losses in a file."""
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    backend = "nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=PROCESSES)
    trainer = make_trainer(
        corpus, device, precision, "--encoder-moe-routing", routing, "--decoder-moe-routing", routing,
        "--distributed-world-size", PROCESSES, "--distributed-rank", rank, "--device-id", rank if on_gpu else 0,
        "--distributed-backend", backend, "--distributed-no-spawn", *WAYS[way],
    )  # fmt: skip
    losses = train(trainer, rank, PROCESSES)
    check_finite(trainer, losses)
    torch.save(losses, meeting.with_name(f"losses-{rank}"))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("routing", ["target", "token"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_two_processes_make_the_same_updates(
    corpus: Corpus, device: torch.device, tmp_path: Path, precision: str, routing: str, way: str
) -> None:
    on_gpu = device.type == "cuda"
    if on_gpu and torch.cuda.device_count() < PROCESSES:
        pytest.skip("this needs two GPUs")
    if not on_gpu and "legacy_ddp" not in WAYS[way]:
        pytest.skip("fairseq gives PyTorch's DDP a GPU")
    context = multiprocessing.start_processes(
        job, (corpus, tmp_path / "meeting", on_gpu, precision, routing, way), PROCESSES, join=False,
        start_method="spawn",
    )  # fmt: skip
    try:
        for process in context.processes:
            process.join(PATIENCE)
        assert [process.exitcode for process in context.processes] == [0] * PROCESSES
    finally:
        for process in context.processes:
            process.kill()
    first, second = (torch.load(tmp_path / f"losses-{rank}") for rank in range(PROCESSES))
    assert first == second
