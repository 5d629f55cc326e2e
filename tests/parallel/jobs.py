"""What the processes of the tests do."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from fairseq.models import distributed_fairseq_model
from fairseq.sequence_generator import EnsembleModel, SequenceGenerator
from fairseq.trainer import Trainer
from torch import distributed as dist

from taskmoe_plugin.bench.workers import peak_bytes
from taskmoe_plugin.moe import TaskGates
from taskmoe_plugin.parallel.manifest import is_stacked, make_manifest
from taskmoe_plugin.parallel.placement import held_by
from taskmoe_plugin.parallel.shards import write_shard
from taskmoe_plugin.subnet.consolidate import consolidate
from tests.helpers.commands import run
from tests.helpers.corpus import Corpus
from tests.parallel.scenarios import BACKENDS, DDP, EVEN, NOISY, RESHARDED, SCENARIOS
from tests.parallel.training import make_trainer, run_stage, run_updates, sample, save_as_fairseq, tensors


def corpus_in(directory: Path) -> Corpus:
    """The corpus that the tests have written."""
    return Corpus(directory / "raw", directory / "bin")


def train_scenarios(rank: int, processes: int, directory: Path) -> None:
    """Train every scenario and write what comes of it."""
    results = {}
    for name, scenario in SCENARIOS.items():
        trainer = make_trainer(corpus_in(directory), scenario, processes, rank)
        results[name] = run_updates(trainer, scenario.updates, processes, rank)
    for name, scenario in NOISY.items():
        trainer = make_trainer(corpus_in(directory), scenario, processes, rank)
        for gates in (each for each in trainer.get_model().modules() if isinstance(each, TaskGates)):
            # Otherwise tasks keep the experts that were dealt to them, whatever the noise.
            gates.head_start.zero_()
        results[f"noisy-{name}"] = run_updates(trainer, scenario.updates, processes, rank)
    torch.save(results, directory / f"results-{rank}.pt")


def train_with_ddp(rank: int, processes: int, directory: Path) -> None:
    """Train with each way of exchanging gradients, and count the collectives of a forward pass; write what comes of it.

    fairseq tells PyTorch's DDP of GPUs, which it refuses for a model that is on none.
    """
    original = distributed_fairseq_model.DistributedDataParallel
    distributed_fairseq_model.DistributedDataParallel = lambda **given: original(
        **{**given, "device_ids": None, "output_device": None}
    )
    results, collectives = {}, {}
    for backend in BACKENDS:
        for name, scenario in DDP.items():
            trainer = make_trainer(corpus_in(directory), replace(scenario, backend=backend), processes, rank)
            results[backend, name] = run_updates(trainer, scenario.updates, processes, rank)
            assert isinstance(trainer.model.module, original) == (backend == "pytorch_ddp")
            if backend == "legacy_ddp":
                collectives[name] = count_collectives(trainer, sample(EVEN[0][rank] or ()))
    torch.save(results, directory / f"ddp-results-{rank}.pt")
    torch.save(collectives, directory / f"collectives-{rank}.pt")


def count_collectives(trainer: Trainer, batch: dict[str, Any]) -> dict[str, list[int]]:
    """The collectives in which the loss of a batch is computed, by what they do: the sizes of what they exchange."""
    found: dict[str, list[int]] = {}
    whole = {name: getattr(dist, name) for name in ("all_reduce", "all_gather", "all_to_all_single", "broadcast")}

    def counted(name: str) -> Callable[..., Any]:
        def call(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            found.setdefault(name, []).append(tensor.numel() if isinstance(tensor, torch.Tensor) else len(tensor))
            return whole[name](tensor, *args, **kwargs)

        return call

    for name in whole:
        setattr(dist, name, counted(name))
    try:
        trainer.criterion(trainer.model, batch)
    finally:
        for name, original in whole.items():
            setattr(dist, name, original)
    return found


def run_train(rank: int, processes: int, directory: Path, flags: list[str]) -> None:
    """Run fairseq-train; write what it logged, and how many steps the translation of each validation batch took."""
    steps: list[int] = []
    generate, decode = SequenceGenerator._generate, EnsembleModel.forward_decoder

    def counted_generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        steps.append(0)
        return generate(self, *args, **kwargs)

    def counted_decode(self: Any, *args: Any, **kwargs: Any) -> Any:
        steps[-1] += 1
        return decode(self, *args, **kwargs)

    SequenceGenerator._generate, EnsembleModel.forward_decoder = counted_generate, counted_decode
    output = run(
        "train", *flags, "--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp", "--distributed-no-spawn",
        "--distributed-world-size", processes, "--distributed-rank", rank, "--distributed-init-method", "env://",
    )  # fmt: skip
    torch.save({"records": output.records, "steps": steps}, directory / f"output-{rank}.pt")


def reshard(rank: int, processes: int, directory: Path, stage: int) -> None:
    """Run a stage of resharding."""
    run_stage(corpus_in(directory), stage, rank)


def save_twice(rank: int, processes: int, directory: Path, save_dir: Path, victim: int, moment: int) -> None:
    """Save after an update and, after another, save again; one process kills itself at a moment of that.

    Moments are counted from 1 and are the beginnings, middles and ends of writing, renaming and copying files. With
    moment 0 nobody is killed, and it is written down how many moments there were, and what was saved.
    """
    scenario = RESHARDED["adam"]
    trainer = make_trainer(corpus_in(directory), scenario, processes, rank, save_dir)
    for number, update in enumerate(scenario.updates[:2]):
        run_updates(trainer, [update], processes, rank)
        if number == 1:
            counted = KilledAt(moment if rank == victim else 0)
        save_as_fairseq(trainer, number + 1)
        if number == 1:
            (save_dir / f"moments-{rank}").write_text(str(counted.passed))
        if moment == 0:
            write_weights(trainer, processes, rank, save_dir / f"weights-{number + 1}")


def write_weights(trainer: Any, processes: int, rank: int, path: Path) -> None:
    """Write down the tensors of the whole model, gathered from all processes."""
    found: list[Any] = [None] * processes
    dist.all_gather_object(found, tensors(trainer)["weights"])
    if rank == 0:
        model = trainer.get_model()
        stacked = {name: torch.cat([part[name] for part in found]) for name in found[0] if is_stacked(name)}
        torch.save({**model.state_dict(), **stacked}, path)


class KilledAt:
    """Kills its process at a moment of writing, renaming and copying files; 0: never.

    Attributes:
        passed: moments so far.
    """

    def __init__(self, moment: int) -> None:
        self.moment, self.passed = moment, 0
        self._around(torch, "save", self._write_half)
        self._around(Path, "replace")
        self._around(os, "rename")
        self._around(shutil, "copyfile", self._copy_half)

    def _around(self, owner: Any, name: str, half: Callable[..., None] | None = None) -> None:
        original = getattr(owner, name)

        def replacement(*args: Any, **kwargs: Any) -> Any:
            self._pass()
            if half is not None and self.passed + 1 == self.moment:
                half(*args)
            self._pass()
            result = original(*args, **kwargs)
            self._pass()
            return result

        setattr(owner, name, replacement)

    def _pass(self) -> None:
        self.passed += 1
        if self.passed == self.moment:
            os.kill(os.getpid(), signal.SIGKILL)

    @staticmethod
    def _write_half(_: Any, file: Any) -> None:
        if isinstance(file, Path):
            file.write_bytes(b"PK" * 1000)
        else:
            file.write(b"PK" * 1000)
            file.flush()

    @staticmethod
    def _copy_half(source: str, target: str) -> None:
        contents = Path(source).read_bytes()
        Path(target).write_bytes(contents[: len(contents) // 2])


def fail(rank: int, processes: int, directory: Path, how: str) -> None:
    """Train an update in which process 1 fails; every process writes down what it met and when."""
    scenario, save_dir = RESHARDED["adam"], directory / "failing" / how
    save_dir.mkdir(parents=True, exist_ok=True)
    trainer = make_trainer(corpus_in(directory), scenario, processes, rank, save_dir)
    run_updates(trainer, scenario.updates[:1], processes, rank)
    if rank == 1:
        model = trainer.get_model()
        if how == "exits":
            model.forward = lambda **_: sys.exit(3)
        elif how == "raises":
            model.forward = lambda **_: {}["nothing"]
        elif how == "memory":
            model.forward = _out_of_memory
        elif how == "nan":
            make_nan(model)
    try:
        if how == "disk":
            if rank == 1:
                allow_small_files_alone()
            save_as_fairseq(trainer, 1)
        elif how == "validation memory":
            if rank == 1:
                # After the experts of the encoder; fairseq tries the batch again from its beginning.
                trainer.get_model().decoder.forward = _out_of_memory
            trainer.valid_step(sample(EVEN[0][rank] or ()))
        run_updates(trainer, scenario.updates[1:2], processes, rank)
    except BaseException as error:
        (save_dir / f"error-{rank}").write_text(f"{type(error).__name__}: {error}")
        raise


def allow_small_files_alone() -> None:
    """As a full disk would, refuse to write more than a little to any file."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))


def make_nan(model: Any) -> None:
    """Let a model compute nothing but NaN from now on."""
    model.decoder.output_projection.register_forward_hook(lambda _, __, output: output * float("nan"))


def _out_of_memory(*_: Any, **__: Any) -> None:
    raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")


LARGE = 2048  # rows and columns of the weights of an expert of write_large
LAYERS, EXPERTS = 8, 4


def write_large(directory: Path) -> Path:
    """A checkpoint of a made-up model of some 400 MB, with the optimizer's, whose experts are in two files."""
    names = [f"encoder.layers.{layer}.moe.experts.fc1_weight" for layer in range(LAYERS)]
    manifest = make_manifest("0", 2, EXPERTS, names)
    for process, file in enumerate(manifest["files"]):
        held = held_by(process, 2, EXPERTS)
        weights = {
            name: torch.stack([torch.full((LARGE, LARGE // EXPERTS), float(EXPERTS * layer + each)) for each in held])
            for layer, name in enumerate(names)
        }
        states = {name: {"exp_avg": weight + 1, "exp_avg_sq": weight + 2} for name, weight in weights.items()}
        write_shard(directory / file, file, weights, states, {name: number for number, name in enumerate(names)})
    path = directory / "checkpoint_last.pt"
    torch.save({"model": {"expert_shards": manifest}, "last_optimizer_state": {"state": {}}}, path)
    return path


def consolidate_large(rank: int, processes: int, directory: Path) -> None:
    """Consolidate that, and write down by how many bytes the process grew at most."""
    path = write_large(directory)
    Path("/proc/self/clear_refs").write_text("5")  # forget how large it has been
    before = peak_bytes()
    consolidate(path, directory / "one.pt", optimizer=True, force=False)
    (directory / "growth").write_text(str(peak_bytes() - before))
    state = torch.load(directory / "one.pt", mmap=True, weights_only=True)
    for layer in range(LAYERS):
        values = [float(EXPERTS * layer + expert) for expert in range(EXPERTS)]
        assert state["model"][f"encoder.layers.{layer}.moe.experts.fc1_weight"][:, -1, -1].tolist() == values
        squares = state["last_optimizer_state"]["state"][layer]["exp_avg_sq"]
        assert squares[:, -1, -1].tolist() == [value + 2 for value in values]


def consolidate_killed(rank: int, processes: int, directory: Path) -> None:
    """Consolidate that, and be killed before the file gets its name."""
    path = write_large(directory)
    KilledAt(2)  # the beginning and the middle of writing
    consolidate(path, directory / "one.pt", optimizer=True, force=False)
