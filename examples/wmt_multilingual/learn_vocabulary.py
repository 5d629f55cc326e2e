#!/usr/bin/env python3
"""Learn one SentencePiece model for all languages and write its pieces as a fairseq dictionary.

Reads the training text of every pair (TEXT_DIR/train.*); writes spm.model and dict.txt. Each
distinct line counts once, so a language that is part of many pairs has no larger share for it.
With --temperature T, pairs have the shares that they have in training with T: proportional to
their number of lines to the power of 1/T, sampled in a stream, small pairs repeated.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

import sentencepiece as spm

import text
from text import TextError


def distinct_lines(text_dir: Path) -> Iterator[str]:
    """Yield the distinct lines of each language's training text. Raises TextError if there is none."""
    paths_by_lang: dict[str, list[Path]] = {}
    for path in sorted(text_dir.glob("train.*-*.*")):
        paths_by_lang.setdefault(path.suffix, []).append(path)
    if not paths_by_lang:
        raise TextError(f"{text_dir}: no files train.{{src}}-{{tgt}}.{{lang}}")
    for paths in paths_by_lang.values():
        yield from dict.fromkeys(line for path in paths for line in text.read_lines(path))


def sampled_lines(text_dir: Path, temperature: float, max_lines: int) -> Iterator[str]:
    """Yield ``max_lines`` lines, as many of each side of a pair, of pairs in proportion to lines^(1/temperature).

    Raises TextError if there are none.
    """
    lines = {path: text.count_lines(path) for path in sorted(text_dir.glob("train.*-*.*"))}
    if not lines:
        raise TextError(f"{text_dir}: no files train.{{src}}-{{tgt}}.{{lang}}")
    total = sum(count ** (1 / temperature) for count in lines.values())
    for path, count in lines.items():
        yield from sample(path, count, round(max_lines * count ** (1 / temperature) / total))


def sample(path: Path, count: int, wanted: int) -> Iterator[str]:
    """Yield ``wanted`` of the ``count`` lines of a file, in order: each equally often, the rest at random."""
    generator = random.Random(path.name)
    every, left = divmod(wanted, count)
    for index, line in enumerate(text.read_lines(path)):
        # Selection sampling (Knuth, The Art of Computer Programming, vol. 2, 3.4.2, algorithm S).
        chosen = generator.random() * (count - index) < left
        left -= chosen
        for _ in range(every + chosen):
            yield line


def learn(
    text_dir: Path,
    output_dir: Path,
    size: int,
    character_coverage: float,
    max_lines: int,
    temperature: float | None = None,
) -> None:
    """Write spm.model and dict.txt to ``output_dir``, which must not exist.

    Raises TextError where the text does not support a vocabulary of ``size`` pieces.
    """
    lines = distinct_lines(text_dir) if temperature is None else sampled_lines(text_dir, temperature, max_lines)
    with text.new_directory(output_dir) as partial:
        try:
            spm.SentencePieceTrainer.train(
                sentence_iterator=lines,
                model_prefix=str(partial / "spm"),
                vocab_size=size,
                character_coverage=character_coverage,
                input_sentence_size=max_lines,
                shuffle_input_sentence=True,
                minloglevel=1,
            )
        except RuntimeError as error:
            reason = str(error).splitlines()[-1]
            raise TextError(f"--size {size}: SentencePiece could not learn this vocabulary: {reason}") from None
        (partial / "spm.vocab").unlink()
        processor = spm.SentencePieceProcessor(model_file=str(partial / "spm.model"))
        pieces = [processor.id_to_piece(i) for i in range(len(processor)) if not is_special(processor, i)]
        # fairseq adds its own special symbols; it wants a count, which nothing here uses.
        (partial / "dict.txt").write_text("".join(f"{piece} 1\n" for piece in pieces), encoding="utf-8")
    print(f"{output_dir}: {len(pieces)} pieces")


def is_special(processor: spm.SentencePieceProcessor, index: int) -> bool:
    """Whether a piece is <unk>, <s> or </s>."""
    return bool(processor.is_control(index) or processor.is_unknown(index))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text-dir", type=Path, required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--size", type=int, required=True, help="number of pieces, special ones included")
    parser.add_argument("--character-coverage", type=float, default=0.9999, help="default: 0.9999")
    parser.add_argument("--max-lines", type=int, default=1_000_000, help="learn from a sample (default: 1,000,000)")
    parser.add_argument("--temperature", type=float, help="sample pairs with this temperature (default: do not)")
    args = parser.parse_args()
    learn(args.text_dir, args.output_dir, args.size, args.character_coverage, args.max_lines, args.temperature)


if __name__ == "__main__":
    text.run(main)
