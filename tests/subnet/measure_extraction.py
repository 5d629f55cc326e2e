"""Measure what extraction takes of memory, disk and time, on a checkpoint of random weights.

    python -m tests.subnet.measure_extraction /tmp/scratch --experts 128 --layers 6 --moe-freq 6

writes a checkpoint with optimizer state (and removes it, unless --keep), then extracts one pair in a process of its
own, with a cold page cache, and prints:

- the peak resident memory of that process (VmHWM) beyond that of an interpreter that has imported torch alone;
- the bytes that it read from the disk (read_bytes of /proc/self/io, which counts page faults of mapped files and
  read-ahead, and not what the page cache held), without the SHA-256 of the checkpoint, which reads all of it once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

LANGS, PAIRS = ("en", "de", "fr", "cs"), ("en-de", "de-en", "en-fr", "fr-en", "en-cs", "cs-en")

IMPORT_TORCH = "import torch; print(open('/proc/self/status').read())"
EXTRACT = """
import json, sys, time
from taskmoe_plugin.subnet import extract as extraction
from taskmoe_plugin.subnet.extract import Options, extract
from pathlib import Path

def disk():
    return int(open("/proc/self/io").read().split("read_bytes: ")[1].split()[0])

hashing = {}
def sha256(path, advance):
    before, start = disk(), time.monotonic()
    digest = original(path, advance)
    hashing.update(bytes=disk() - before, seconds=time.monotonic() - start)
    drop(path)
    return digest

def drop(path):
    import os
    file = os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)

original, extraction.sha256 = extraction.sha256, sha256
path, data, out, options = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
drop(path)
before, start = disk(), time.monotonic()
[row] = extract(path, [["en-de"]], Options((data,), out, **options))
print(json.dumps({"read": disk() - before - hashing["bytes"], "hashing": hashing, "seconds": row.seconds,
    "total_seconds": time.monotonic() - start, "subnet": row.subnet.bytes, "full": row.full.bytes,
    "status": open("/proc/self/status").read()}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="where to put several gigabytes")
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--layers", type=int, default=6, help="of each stack")
    parser.add_argument("--moe-freq", type=int, default=6)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--ffn", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=64000)
    parser.add_argument("--quantization", help="write a CTranslate2 model instead")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoint there, and use it if it is")
    args = parser.parse_args()
    data, checkpoint = args.directory / "data", args.directory / "checkpoint.pt"
    if not checkpoint.exists():
        write_checkpoint(args, data, checkpoint)
    base = _kilobytes(_python(IMPORT_TORCH), "VmHWM")
    written = {"format": "ctranslate2", "quantization": args.quantization} if args.quantization else {}
    options = json.dumps({"force": True, **written})
    found = json.loads(_python(EXTRACT, checkpoint, data, args.directory / "out", options))
    kept = kept_bytes(checkpoint)
    peak = (_kilobytes(found["status"], "VmHWM") - base) * 1024
    subnet = found["subnet"]
    print(f"checkpoint          {checkpoint.stat().st_size / 1e6:10.0f} MB, model {found['full'] / 1e6:.0f} MB")
    print(f"subnet              {subnet / 1e6:10.1f} MB")
    print(f"peak beyond torch   {peak / 1e6:10.1f} MB = {peak / subnet:.2f} x the subnet")
    print(f"kept of checkpoint  {kept / 1e6:10.1f} MB")
    print(f"read                {found['read'] / 1e6:10.1f} MB = {found['read'] / kept:.3f} x what is kept")
    print(f"read for SHA-256    {found['hashing']['bytes'] / 1e6:10.0f} MB in {found['hashing']['seconds']:.1f} s")
    print(f"extraction          {found['seconds']:10.1f} s, with SHA-256 {found['total_seconds']:.1f} s")
    if not args.keep:
        checkpoint.unlink()


def write_checkpoint(args: Namespace, data: Path, path: Path) -> None:
    """Write a checkpoint as training leaves it, and the dictionaries that belong to it."""
    import torch

    from taskmoe_plugin.models import TaskMoETransformerModel
    from taskmoe_plugin.models.taskmoe_transformer import base_architecture
    from taskmoe_plugin.tasks import TaskMoETranslationTask

    data.mkdir(parents=True, exist_ok=True)
    for lang in LANGS:
        (data / f"dict.{lang}.txt").write_text("".join(f"piece{index} 1\n" for index in range(args.vocabulary)))
    parser = argparse.ArgumentParser()
    TaskMoETranslationTask.add_args(parser)
    task_args = parser.parse_args(
        [str(data), "--langs", ",".join(LANGS), "--lang-pairs", ",".join(PAIRS), "--encoder-langtok", "tgt"]
    )
    task_args.train_subset, task_args.seed = "train", 1
    task = TaskMoETranslationTask.setup_task(task_args)
    model_args = Namespace(
        arch="taskmoe_transformer",
        share_all_embeddings=True,
        encoder_layers=args.layers,
        decoder_layers=args.layers,
        encoder_embed_dim=args.width,
        encoder_ffn_embed_dim=args.ffn,
        moe_freq=args.moe_freq,
        moe_expert_count=args.experts,
        encoder_normalize_before=True,
        decoder_normalize_before=True,
        max_source_positions=1024,
        max_target_positions=1024,
    )
    base_architecture(model_args)
    model = TaskMoETransformerModel.build_model(model_args, task)
    # Zeros that were never written to are not in memory, and are written to the file all the same.
    states = {
        index: {"step": 1, "exp_avg": torch.zeros_like(each), "exp_avg_sq": torch.zeros_like(each)}
        for index, each in enumerate(model.parameters())
    }
    task_args._name = task_args.task = "taskmoe_translation"
    torch.save(
        {
            "args": None,
            "cfg": {"model": model_args, "task": task_args, "common": {}, "criterion": {"_name": "cross_entropy"}},
            "model": model.state_dict(),
            "optimizer_history": [
                {"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 1}
            ],
            "extra_state": {},
            "last_optimizer_state": {"state": states, "param_groups": []},
        },
        path,
    )
    with path.open("rb") as file:
        os.fsync(file.fileno())


def kept_bytes(path: Path) -> int:
    """Bytes of the tensors that the subnet of en-de is made of."""
    from taskmoe_plugin.subnet.checkpoint import Checkpoint
    from taskmoe_plugin.subnet.plan import Planner
    from taskmoe_plugin.subnet.weights import kept_bytes

    checkpoint = Checkpoint.open(path)
    return kept_bytes(checkpoint.tensors, Planner(checkpoint).plan(["en-de"]), {})


def _python(script: str, *argv: object) -> str:
    command = [sys.executable, "-c", script, *map(str, argv)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def _kilobytes(status: str, name: str) -> int:
    return int(status.split(f"{name}:")[1].split()[0])


if __name__ == "__main__":
    main()
