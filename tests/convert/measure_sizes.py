"""What is left of a model's BLEU when it keeps fewer experts: a table on standard output.

python -m tests.convert.measure_sizes moefy DENSE_CKPT DATA_BIN --experts 16 --keep 16,12,8,6,4,2
python -m tests.convert.measure_sizes prune TOKEN_ROUTED_CKPT DATA_BIN --keep 8,6,4,3,2 --metric importance

Experts are chosen on the valid set, the test set is translated with beam 4. BLEU and the length ratio, translations by
references, are means over the pairs.
"""

from __future__ import annotations

import logging
import tempfile
from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path
from statistics import fmean

from sacrebleu.metrics.bleu import BLEU

from taskmoe_plugin.convert.conversion import Conversion, run_conversion
from taskmoe_plugin.convert.moefy import Options as MoefyOptions
from taskmoe_plugin.convert.moefy import moefy
from taskmoe_plugin.convert.prune import Options as PruneOptions
from taskmoe_plugin.convert.prune import prune
from taskmoe_plugin.scoring import tokenizer_of
from taskmoe_plugin.subnet.checkpoint import Checkpoint
from taskmoe_plugin.subnet.decoders import FairseqDecoder, build_model, build_task
from taskmoe_plugin.subnet.verify import read_sentences
from taskmoe_plugin.subnet.vocabulary import DictionaryReader

BEAM = 4


def text(pieces: list[str]) -> str:
    return "".join(pieces).replace("▁", " ").strip()


def score(path: Path, data: Path, count: int | None) -> tuple[float, float]:
    """Mean BLEU and mean length ratio over the pairs of a model."""
    checkpoint = Checkpoint.open(path)
    reader = DictionaryReader(checkpoint, [data])
    found = []
    for pair in checkpoint.pairs:
        task = build_task(checkpoint.cfg["task"], checkpoint.args.arch, data, pair)
        model = build_model(checkpoint.args, task, checkpoint.tensors.all())
        sentences = read_sentences([data], "test", pair, reader.read([pair]), count, checkpoint.args)
        translations = FairseqDecoder(task, model).translate(sentences.sources, BEAM)
        bleu = BLEU(tokenize=tokenizer_of(pair.split("-")[1]))
        result = bleu.corpus_score(list(map(text, translations)), [list(map(text, sentences.targets))])
        found.append((result.score, result.sys_len / result.ref_len))
    return fmean(bleu for bleu, _ in found), fmean(ratio for _, ratio in found)


def conversion(args: Namespace, keep: int, metric: str) -> Conversion:
    if args.what == "moefy":
        return partial(moefy, options=MoefyOptions(args.experts, keep, (args.data,), "valid", args.sentences, 1))
    options = PruneOptions((), (keep, keep), 0.0, metric, args.by, (args.data,), "valid", args.sentences, 1)
    return partial(prune, options=options)


def main() -> None:
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("moefy", "prune"))
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--experts", type=int, default=16, help="for moefy (default: 16)")
    parser.add_argument("--keep", required=True, help="how many experts to keep, with commas")
    parser.add_argument("--metric", default="importance", help="for prune, with commas (default: importance)")
    parser.add_argument("--by", default="language", help="for prune (default: language)")
    parser.add_argument("--sentences", type=int, default=500, help="of each pair, to choose experts on (default: 500)")
    parser.add_argument("--test-sentences", type=int, help="how many of each pair of the test set (default: all)")
    args = parser.parse_args()
    logging.getLogger("fairseq").setLevel(logging.WARNING)
    for metric in args.metric.split(","):
        for keep in map(int, args.keep.split(",")):
            with tempfile.TemporaryDirectory() as directory:
                output = Path(directory) / "model.pt"
                run_conversion(args.checkpoint, output, False, conversion(args, keep, metric))
                bleu, ratio = score(output, args.data, args.test_sentences)
            kind = f"{metric} " if args.what == "prune" else ""
            print(f"{kind}{keep}: BLEU {bleu:.2f}, length ratio {ratio:.3f}", flush=True)


if __name__ == "__main__":
    main()
