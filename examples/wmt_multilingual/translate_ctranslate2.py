#!/usr/bin/env python3
"""Translate raw text with a subnet in CTranslate2: needs neither fairseq nor the plugin.

MODEL is what fairseq-extract-subnet --format ctranslate2 wrote. The last line printed says how fast it was.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import ctranslate2
import sentencepiece as spm

import text


def translate(model: Path, sentencepiece_model: Path, lines: list[str], beam: int, max_batch: int) -> list[str]:
    """Translate lines, one sentence each, with one thread, and report the speed."""
    pieces = spm.SentencePieceProcessor(model_file=str(sentencepiece_model))
    (prefixes,) = json.loads((model / "subnet.json").read_text(encoding="utf-8"))["prefixes"].values()
    translator = ctranslate2.Translator(str(model), inter_threads=1, intra_threads=1)
    sources = [prefixes["source"] + pieces.encode(line, out_type=str) for line in lines]
    start = time.perf_counter()
    results = translator.translate_batch(
        sources,
        target_prefix=[prefixes["target"]] * len(sources),
        beam_size=beam,
        max_batch_size=max_batch,
        batch_type="tokens",
    )
    seconds = time.perf_counter() - start
    outputs = [result.hypotheses[0] for result in results]
    # fairseq, too, counts the language token and the sentence's end.
    tokens = sum(len(output) + 1 for output in outputs)
    rate = tokens / seconds
    print(f"Translated {len(lines):,} sentences ({tokens:,} tokens) in {seconds:.1f}s ({rate:.2f} tokens/s)")
    return [str(pieces.decode(output[len(prefixes["target"]) :])) for output in outputs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--sentencepiece-model", type=Path, required=True)
    parser.add_argument("--input", type=Path, required=True, help="text, one sentence a line")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--beam", type=int, default=5, help="default: 5")
    parser.add_argument("--max-tokens", type=int, default=4096, help="tokens in a batch (default: 4096)")
    args = parser.parse_args()
    lines = list(text.read_lines(args.input))
    translations = translate(args.model, args.sentencepiece_model, lines, args.beam, args.max_tokens)
    args.output.write_text("".join(f"{line}\n" for line in translations), encoding="utf-8")


if __name__ == "__main__":
    text.run(main)
