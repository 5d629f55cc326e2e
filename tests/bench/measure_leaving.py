"""How many rows are left in a batch after each step of decoding: fairseq takes finished sentences out of it.

    OMP_NUM_THREADS=1 python -m tests.bench.measure_leaving CKPT DATA_BIN --lang-pair en-de

prints a table: the rows, sentences times beam, that the decoder computes in some of the steps, and in all of them, for
batches of the test set. This is what Elephants (Kim et al. 2022, section 3.5) call batch pruning.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

from fairseq.dataclass.configs import GenerationConfig

from taskmoe_plugin.bench.report import table
from taskmoe_plugin.subnet.checkpoint import Checkpoint
from taskmoe_plugin.subnet.decoders import build_model, build_task
from taskmoe_plugin.subnet.verify import read_sentences
from taskmoe_plugin.subnet.vocabulary import DictionaryReader

BEAM = 4


def counted(forward: Callable[..., Any], rows: list[int]) -> Callable[..., Any]:
    """A decoder's ``forward`` that appends to ``rows`` how many it computes."""

    def count(tokens: Any, *args: Any, **kwargs: Any) -> Any:
        rows.append(tokens.size(0))
        return forward(tokens, *args, **kwargs)

    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--lang-pair", required=True)
    parser.add_argument("--sentences", type=int, default=256, help="of the test set (default: 256)")
    parser.add_argument("--batch", type=int, default=64, help="sentences in a batch (default: 64)")
    args = parser.parse_args()
    checkpoint = Checkpoint.open(args.checkpoint)
    task = build_task(checkpoint.cfg["task"], checkpoint.args.arch, args.data, args.lang_pair)
    model = build_model(checkpoint.args, task, checkpoint.tensors.all())
    words = DictionaryReader(checkpoint, [args.data]).read([args.lang_pair])
    sources = read_sentences([args.data], "test", args.lang_pair, words, args.sentences, checkpoint.args).sources
    dictionary, generator = task.source_dictionary, task.build_generator([model], GenerationConfig(beam=BEAM))
    ids = [dictionary.encode_line(" ".join(each), add_if_not_exist=False).long() for each in sources]
    dataset = task.build_dataset_for_inference(ids, [len(each) for each in ids])
    forward, found = model.decoder.forward, []
    # In the order of the test set: sentences of one length would be finished together.
    for first in range(0, len(ids), args.batch):
        rows: list[int] = []
        model.decoder.forward = counted(forward, rows)
        batch = dataset.collater([dataset[row] for row in range(first, min(first + args.batch, len(ids)))])
        task.inference_step(generator, [model], batch)
        found.append(rows)
    steps = [sum(each) / len(found) for each in zip_longest(*found, fillvalue=0)]
    shown = [step for step in (1, 5, 10, 15, 20, 30, 40, 60, 80, 120, 160) if step <= len(steps)]
    share = sum(map(sum, found)) / sum(len(each) * each[0] for each in found)
    cells = ["rows", *(f"{steps[step - 1]:.0f}" for step in shown), f"{share:.2f}"]
    print(table(["step", *map(str, shown), "of all steps times all rows"], [cells]))


if __name__ == "__main__":
    main()
