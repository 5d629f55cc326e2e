"""English, German and French sentences with numbers in words: small, exact, and with numbers kept for the test."""

from __future__ import annotations

import random
from pathlib import Path

import sentencepiece

from tests.helpers.commands import run
from tests.helpers.corpus import Corpus

PAIRS = ("en-de", "de-en", "en-fr", "fr-en")

ENGLISH, ENGLISH_TENS, GERMAN, GERMAN_TENS, FRENCH, FRENCH_TENS = (
    words.split()
    for words in (
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen",
        ". . twenty thirty forty fifty sixty seventy eighty ninety",
        "null ein zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn "
        "siebzehn achtzehn neunzehn",
        ". . zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig",
        "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize dix-sept "
        "dix-huit dix-neuf",
        ". . vingt trente quarante cinquante soixante soixante quatre-vingt quatre-vingt",
    )
)

# Numbers go up to here.
LARGEST = 100

# Things and days in English, German and French; what is counted is in the plural.
THINGS = (
    ("apples", "Äpfel", "pommes"), ("books", "Bücher", "livres"), ("houses", "Häuser", "maisons"),
    ("birds", "Vögel", "oiseaux"), ("chairs", "Stühle", "chaises"), ("keys", "Schlüssel", "clés"),
    ("letters", "Briefe", "lettres"), ("horses", "Pferde", "chevaux"),
)  # fmt: skip
DAYS = (("Monday", "Montag", "lundi"), ("Tuesday", "Dienstag", "mardi"), ("Friday", "Freitag", "vendredi"))
FRAMES = (
    ("{n} {thing} cost {m} euros", "{n} {thing} kosten {m} Euro", "{n} {thing} coûtent {m} euros"),
    ("on {day} we saw {n} {thing}", "am {day} haben wir {n} {thing} gesehen", "{day} nous avons vu {n} {thing}"),
    ("the old man has {n} {thing}", "der alte Mann hat {n} {thing}", "le vieil homme a {n} {thing}"),
)


def english(number: int) -> str:
    """A number from 2 to 999 in words."""
    if number < 20:
        return ENGLISH[number]
    if number < 100:
        tens, one = divmod(number, 10)
        return ENGLISH_TENS[tens] + (f"-{ENGLISH[one]}" if one else "")
    hundreds, rest = divmod(number, 100)
    return f"{ENGLISH[hundreds]} hundred" + (f" and {english(rest)}" if rest else "")


def german(number: int) -> str:
    """The same in German, one word: the ones come before the tens."""
    if number < 20:
        return "eins" if number == 1 else GERMAN[number]
    if number < 100:
        tens, one = divmod(number, 10)
        return (f"{GERMAN[one]}und" if one else "") + GERMAN_TENS[tens]
    hundreds, rest = divmod(number, 100)
    return f"{GERMAN[hundreds]}hundert" + (german(rest) if rest else "")


def french(number: int) -> str:
    """The same in French, where seventy is sixty-ten."""
    if number < 20:
        return FRENCH[number]
    if number < 100:
        tens, one = divmod(number, 10)
        one += 10 if tens in (7, 9) else 0
        if number == 80:
            return "quatre-vingts"
        joint = " et " if one in (1, 11) and tens < 8 else "-"
        return FRENCH_TENS[tens] + (f"{joint}{FRENCH[one]}" if one else "")
    hundreds, rest = divmod(number, 100)
    head = "cent" if hundreds == 1 else f"{FRENCH[hundreds]} cent"
    return head + (f" {french(rest)}" if rest else "s" if hundreds > 1 else "")


def held_out(number: int) -> bool:
    """Whether a number is kept for validation and test: every seventh."""
    return number % 7 == 3


def sentence(rng: random.Random, kept: bool) -> dict[str, str]:
    """A sentence in all three languages; its numbers are held out or not."""
    frame, thing, day = rng.choice(FRAMES), rng.choice(THINGS), rng.choice(DAYS)
    n, m = rng.choices([number for number in range(2, LARGEST) if held_out(number) == kept], k=2)
    return {
        lang: frame[index].format(n=words(n), m=words(m), thing=thing[index], day=day[index])
        for index, (lang, words) in enumerate((("en", english), ("de", german), ("fr", french)))
    }


def write_numbers(directory: Path, train: int, test: int, pieces: int = 110) -> Corpus:
    """Make the corpus, cut into SentencePiece pieces and binarised, in an empty directory."""
    corpus, rng = Corpus(directory / "raw", directory / "bin"), random.Random(0)
    corpus.raw.mkdir()
    splits = {
        split: [sentence(rng, kept=split != "train") for _ in range(count)]
        for split, count in (("train", train), ("valid", 50), ("test", test))
    }
    for split, sentences in splits.items():
        for lang in ("en", "de", "fr"):
            (corpus.raw / f"{split}.{lang}").write_text(
                "".join(f"{each[lang]}\n" for each in sentences), encoding="utf-8"
            )
    binarize_pieces(corpus, [f"en-{lang}" for lang in ("de", "fr")], pieces)
    return corpus


def binarize_pieces(corpus: Corpus, pairs: list[str], pieces: int) -> None:
    """Learn pieces from the training text in ``raw`` (``train.en`` and so on) and binarise all splits with them."""
    langs = sorted({lang for pair in pairs for lang in pair.split("-")})
    sentencepiece.SentencePieceTrainer.train(
        input=[str(corpus.raw / f"train.{lang}") for lang in langs], model_prefix=str(corpus.raw / "pieces"),
        vocab_size=pieces, character_coverage=1.0, minloglevel=2, num_threads=1,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_file=str(corpus.raw / "pieces.model"))
    dictionary = corpus.raw / "dict.txt"
    dictionary.write_text(
        "".join(f"{processor.id_to_piece(each)} 1\n" for each in range(3, len(processor))), encoding="utf-8"
    )
    for pair in pairs:
        for split in ("train", "valid", "test"):
            for lang in pair.split("-"):
                text = (corpus.raw / f"{split}.{lang}").read_text(encoding="utf-8")
                cut = [" ".join(processor.encode(line, out_type=str)) for line in text.splitlines()]
                (corpus.raw / f"{split}.{pair}.{lang}").write_text("\n".join(cut) + "\n", encoding="utf-8")
        source, target = pair.split("-")
        prefixes = [
            arg for split in ("train", "valid", "test") for arg in (f"--{split}pref", corpus.raw / f"{split}.{pair}")
        ]
        run(
            "preprocess", "--source-lang", source, "--target-lang", target, *prefixes, "--destdir", corpus.bin,
            "--srcdict", dictionary, "--tgtdict", dictionary, "--workers", 1,
        )  # fmt: skip
