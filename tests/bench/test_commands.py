"""``taskmoe bench`` at sizes that say nothing about speed: everything runs, and what it writes is well formed."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from taskmoe_plugin.cli.main import main
from tests.helpers.corpus import Corpus
from tests.helpers.training import train
from tests.subnet.helpers import DEFAULT

SHAPE = ["--layers", "2", "--width", "16", "--ffn-dim", "32", "--heads", "2", "--vocabulary", "400", "--tasks", "3"]


def bench(directory: Path, kind: str, *argv: str) -> list[dict[str, Any]]:
    """Run a benchmark and check what all of them promise; returns the rows of its JSON."""
    prefix = directory / kind
    main(["bench", kind, "--repetitions", "2", "--output", str(prefix), *argv])
    report = json.loads(prefix.with_suffix(".json").read_text())
    assert report["name"] == kind
    with prefix.with_suffix(".csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(report["rows"])
    assert prefix.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    for row in report["rows"]:
        assert row["ratio"] > 0
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
    return report["rows"]  # type: ignore[no-any-return]


def ratios(rows: list[dict[str, Any]], reference: str) -> list[float]:
    return [row["ratio"] for row in rows if row["system"] == reference]


def test_bench_layer_times_every_system_in_every_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--tokens", "4", "16", "--experts", "4", "--width", "8", "--ffn-dim", "16", "--min-seconds", "0"]
    rows = bench(tmp_path, "layer", *flags)
    printed = capsys.readouterr().out
    everything = {"dense", "products", "task", "one-task", "sentence", "token", "fairscale"}
    for mode in ("forward", "forward+backward"):
        # Four rows cannot hold eight tasks.
        for tokens, systems in ((4, everything - {"task"}), (16, everything)):
            assert {row["system"] for row in rows if (row["pass"], row["tokens"]) == (mode, tokens)} == systems
    assert ratios(rows, "dense") == [1.0] * 4
    main(["bench", "show", str(tmp_path / "layer.json")])
    assert capsys.readouterr().out == printed
    assert printed.count("\n") == 2 + 4


@pytest.mark.parametrize("flag", ["--precision", "--dtypes"])
def test_bench_layer_computes_in_several_precisions(tmp_path: Path, flag: str) -> None:
    flags = ["--tokens", "16", "--experts", "4", "--width", "8", "--ffn-dim", "16", "--min-seconds", "0"]
    rows = bench(tmp_path, "layer", *flags, flag, "bfloat16", "fp16", "--systems", "one-task", "task", "token")
    assert {(row["system"], row["dtype"]) for row in rows} == {
        (name, dtype) for name in ("dense", "one-task", "task", "token") for dtype in ("bfloat16", "float16")
    }


def test_bench_train_compares_updates_with_a_dense_model_of_equal_work(tmp_path: Path) -> None:
    flags = ["--experts", "3", "--routings", "task", "merged", "--tokens", "40", "--length", "5", "--precision", "bf16"]
    rows = bench(tmp_path, "train", *SHAPE, *flags)
    assert {row["precision"] for row in rows} == {"bf16"}
    assert [row["system"] for row in rows] == ["dense", "task", "dense", "merged"]
    assert ratios(rows, "dense") == [1.0, 1.0]
    dense, task, _, merged = rows
    # Three experts of two matrices in one layer of each stack, against half an expert's width more in every layer.
    expert = 2 * 16 * 32 + 16 + 32
    assert task["parameters"] - dense["parameters"] > 2 * (3 - 2) * expert
    # Merged ones are each as wide as two.
    assert merged["parameters"] - dense["parameters"] > 2 * (3 - 2) * 2 * expert
    assert min(row["words_per_second"] for row in rows) > 0
    assert min(row["peak_bytes"] for row in rows) > 2**20


def test_bench_decode_translates_in_half_precision(tmp_path: Path) -> None:
    flags = ["--experts", "3", "--batch-sizes", "2", "--beam", "2", "--length", "4", "--systems", "dense"]
    rows = bench(tmp_path, "decode", *SHAPE, *flags, "--precision", "fp16")
    assert {row["system"] for row in rows} == {"token", "dense"}


def test_bench_parallel_counts_what_processes_send_each_other(tmp_path: Path) -> None:
    flags = [*SHAPE, "--ffn-dim", "256", "--experts", "4", "--tokens", "80", "--length", "5", "--routings", "task"]
    rows = bench(tmp_path, "parallel", *flags)
    assert [(row["routing"], row["experts"], row["processes"]) for row in rows] == [
        ("task", "one process", 1), ("task", "replicated", 2), ("task", "expert parallel", 2)
    ]  # fmt: skip
    alone, replicated, spread = rows
    assert {row["words_per_update"] for row in rows} == {80}
    # Each process has half of the four experts of one layer in each stack.
    expert = 2 * 16 * 256 + 16 + 256
    assert alone["parameters"] == replicated["parameters"]
    assert replicated["parameters"] - spread["parameters"] == 2 * 2 * expert
    assert alone["sent_bytes"] < 1000
    # Each of the two sends the other half of its gradients, and half of the sums.
    assert replicated["sent_bytes"] == pytest.approx(2 * 4 * replicated["parameters"], rel=0.1)
    shared = spread["parameters"] - 2 * 2 * expert
    # Out and back, forward and backward, of two layers: 80 tokens of width 16 for two experts, if all cross over.
    exchanged = 2 * 2 * 2 * 80 * 16 * 2 * 4
    assert 0 < spread["sent_bytes"] - 2 * 4 * shared < 1.1 * exchanged


def test_bench_decode_builds_models_extracts_and_translates(tmp_path: Path) -> None:
    systems = ["full", "naive", "token-int4", "subnet-trimmed", "ctranslate2-int8"]
    flags = ["--experts", "3", "--batch-sizes", "1", "3", "--beam", "2", "--length", "4", "--systems", *systems]
    rows = bench(tmp_path, "decode", *SHAPE, *flags)
    assert {(row["system"], row["batch"]) for row in rows} == {
        (name, batch) for name in ("token", *systems) for batch in (1, 3)
    }
    assert ratios(rows, "token") == [1.0, 1.0]
    for row in rows:
        tokens = row["tokens_per_second"] * row["seconds"]
        assert tokens == pytest.approx(4 * row["batch"], abs=1e-6)
    disk = {row["system"]: row["disk_bytes"] for row in rows}
    assert disk["full"] > disk["subnet-trimmed"] > disk["ctranslate2-int8"] > 0
    assert disk["naive"] == disk["token"] > disk["token-int4"]


@pytest.mark.parametrize(
    "flags",
    [("--moe-combine", "weights"), ("--moe-task-gate-warmup-updates", 2), ("--moe-task-gate", "static")],
    ids=lambda flags: flags[0],
)
def test_bench_decode_measures_a_trained_model(corpus: Corpus, tmp_path: Path, flags: tuple[Any, ...]) -> None:
    train(corpus, tmp_path, *DEFAULT, *flags, "--max-update", 1, "--disable-validation", "--no-epoch-checkpoints")
    own = [str(corpus.bin), "--path", str(tmp_path / "checkpoint_last.pt"), "--lang-pair", "en-de"]
    rows = bench(
        tmp_path, "decode", *own, "--batch-sizes", "2", "--length", "4", "--systems", "full", "subnet-unpadded"
    )
    assert [row["system"] for row in rows] == ["full", "token", "subnet-unpadded"]


def test_bench_decode_measures_fairscales_layer_in_fp32_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        bench(tmp_path, "decode", *SHAPE, "--systems", "naive", "--precision", "bf16")
    assert exit_.value.code == 2
    assert "--systems naive: fairscale's layer is measured in fp32 on a CPU" in capsys.readouterr().err


def test_wrong_usage_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["bench", "decode", str(tmp_path), "--output", str(tmp_path / "run")])
    assert exit_.value.code == 2
    error = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert error == [
        "taskmoe: error: DATA_BIN needs --path CKPT and --lang-pair PAIR; without all three, random models are measured"
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is about machines without a GPU")
@pytest.mark.parametrize("kind", ["layer", "train", "decode"])
def test_a_gpu_that_is_not_there_is_told_in_one_line(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["bench", kind, "--device", "cuda", "--cpu-time", "--output", str(tmp_path / "run")])
    assert exit_.value.code == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "--device cuda: PyTorch finds no GPU" in error
    assert "also: --cpu-time" in error


def test_training_in_fp16_on_a_cpu_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["bench", "train", "--precision", "fp16", "--output", str(tmp_path / "run")])
    assert exit_.value.code == 2
    assert "--precision fp16: fairseq trains in it on a GPU alone" in capsys.readouterr().err


GPU = {"layer": "1.00 (1.00-1.00), 123 MiB", "train": "on the GPU, GiB", "decode": "on the GPU, MiB"}


@pytest.mark.parametrize("kind", GPU)
def test_tables_show_the_memory_of_a_gpu_where_there_is_one(kind: str) -> None:
    row = {
        "experts": 4, "ratio": 1.0, "ratio_low": 1.0, "ratio_high": 1.0, "dtype": "float32", "pass": "forward",
        "tokens": 8, "milliseconds": 1.0, "words_per_second": 7.0, "parameters": 10, "batch": 1,
        "tokens_per_second": 7.0, "seconds": 0.5, "disk_bytes": 2**20, "peak_bytes": 2**30,
    }  # fmt: skip
    rows = [{**row, "system": name} for name in ("token" if kind == "decode" else "dense", "task")]
    bench = import_module(f"taskmoe_plugin.bench.{kind}")
    assert GPU[kind] not in bench.summary(rows)
    assert GPU[kind] in bench.summary([{**each, "peak_gpu_bytes": 123 * 2**20} for each in rows])


def test_importing_the_plugin_imports_none_of_what_only_benchmarks_need() -> None:
    script = """
import sys, fairseq.options, fairseq_cli.generate
before = set(sys.modules)
import taskmoe_plugin
added = {name for name in set(sys.modules) - before}
parts = tuple(f"taskmoe_plugin.{part}" for part in ("bench", "subnet", "cli"))
print(sorted(name for name in added if name.startswith(("matplotlib", "ctranslate2", "fairscale", *parts))))
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=env)
    assert result.stdout.strip() == "[]", result.stderr
