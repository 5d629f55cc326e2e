"""Measure which decodes faster: layers padded to one width in stock fairseq, or of their own widths in the plugin.

    OMP_NUM_THREADS=1 python -m tests.subnet.measure_padding /tmp/scratch --width 512 --ffn 2048

makes a model of random weights, extracts one pair in both ways, lets both translate the same sentences with a beam in
turn, and prints tokens per second of computing time: the median over the rounds, and the ratio's median and range.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from pathlib import Path

from taskmoe_plugin.subnet.decoders import FairseqDecoder, build_model, build_task
from taskmoe_plugin.subnet.extract import Options, extract
from taskmoe_plugin.subnet.fairseq_format import read_model
from tests.subnet.measure_extraction import write_checkpoint

FORMS = {"padded": True, "unpadded": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="where to put the models")
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--layers", type=int, default=6, help="of each stack")
    parser.add_argument("--moe-freq", type=int, default=2)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--ffn", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--sentences", type=int, default=16)
    parser.add_argument("--beam", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    data, checkpoint = args.directory / "data", args.directory / "checkpoint.pt"
    write_checkpoint(args, data, checkpoint)
    decoders = {}
    for name, padded in FORMS.items():
        extract(checkpoint, [["en-de"]], Options((data,), args.directory / name, padded=padded, force=True))
        decoders[name] = open_subnet(args.directory / name / "en-de")
    rng = random.Random(0)
    sources = [[f"piece{rng.randrange(args.vocabulary)}" for _ in range(20)] for _ in range(args.sentences)]
    speeds: dict[str, list[float]] = {name: [] for name in FORMS}
    translations = {name: decoder.translate(sources[:2], args.beam) for name, decoder in decoders.items()}
    assert translations["padded"] == translations["unpadded"]
    for _ in range(args.rounds):
        for name, decoder in decoders.items():
            start = time.process_time()
            found = decoder.translate(sources, args.beam)
            speeds[name].append(sum(map(len, found)) / (time.process_time() - start))
    for name, each in speeds.items():
        print(f"{name:9} {statistics.median(each):8.1f} tokens/s")
    ratios = sorted(own / padded for own, padded in zip(speeds["unpadded"], speeds["padded"]))
    print(f"unpadded / padded: {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")
    checkpoint.unlink()


def open_subnet(directory: Path) -> FairseqDecoder:
    """The subnet in a directory."""
    model_args, task_args, weights = read_model(directory / "model.pt")
    task = build_task(task_args, model_args.arch, directory, "en-de")
    return FairseqDecoder(task, build_model(model_args, task, weights))


if __name__ == "__main__":
    main()
