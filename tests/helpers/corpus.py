"""A made-up corpus of three languages, binarised as fairseq-preprocess does."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.commands import run

LANGS = ("en", "de", "fr")
PAIRS = ("en-de", "de-en", "en-fr", "fr-en", "de-fr")
# No count is a multiple of 8, fairseq's default --required-batch-size-multiple; some are smaller.
LINES = {
    "train": {"en-de": 61, "en-fr": 37, "de-fr": 19},
    "valid": {"en-de": 13, "en-fr": 11, "de-fr": 5},
    "test": {"en-de": 21, "en-fr": 3, "de-fr": 9},
}
STEMS = ("ba", "do", "fi", "gu", "ka", "lo", "mi", "nu", "pe", "ra", "so", "tu", "wi")


def sentence(stems: list[str], lang: str) -> str:
    """The words of a sentence in one of the languages; French puts them the other way round."""
    words = {"en": stems, "de": [f"{stem}en" for stem in stems], "fr": [f"le{stem}" for stem in reversed(stems)]}
    return " ".join(words[lang])


@dataclass(frozen=True)
class Corpus:
    """Where the corpus is: ``raw`` holds ``test.en-de.en`` and the like, ``bin`` the binarised files."""

    raw: Path
    bin: Path

    def lines(self, split: str, source: str, target: str, lang: str) -> list[str]:
        """The sentences of one side of a pair, in whichever direction it was written."""
        pair = f"{source}-{target}" if f"{source}-{target}" in LINES[split] else f"{target}-{source}"
        return (self.raw / f"{split}.{pair}.{lang}").read_text().splitlines()


def write_corpus(directory: Path) -> Corpus:
    """Make the corpus in an empty directory."""
    corpus = Corpus(directory / "raw", directory / "bin")
    corpus.raw.mkdir()
    rng = random.Random(0)
    for split, pairs in LINES.items():
        for pair, count in pairs.items():
            meanings = [rng.choices(STEMS, k=rng.randint(1, 8)) for _ in range(count)]
            for lang in pair.split("-"):
                text = "".join(sentence(stems, lang) + "\n" for stems in meanings)
                (corpus.raw / f"{split}.{pair}.{lang}").write_text(text)
    dictionary = directory / "dict.txt"
    dictionary.write_text("".join(f"{sentence([stem], lang)} 1\n" for lang in LANGS for stem in STEMS))
    for pair in LINES["train"]:
        binarize(corpus, pair, dictionary)
    return corpus


def binarize(corpus: Corpus, pair: str, dictionary: Path) -> None:
    """Run fairseq-preprocess on one pair."""
    source, target = pair.split("-")
    prefixes = [arg for split in LINES for arg in (f"--{split}pref", corpus.raw / f"{split}.{pair}")]
    run(
        "preprocess", "--source-lang", source, "--target-lang", target, *prefixes, "--destdir", corpus.bin,
        "--srcdict", dictionary, "--tgtdict", dictionary, "--workers", 1,
    )  # fmt: skip
