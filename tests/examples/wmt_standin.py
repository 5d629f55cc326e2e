"""A small stand-in for the download of the WMT data, in the layout that mtdata and sacrebleu leave."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import wmt

Rows = Sequence[tuple[str, str]]

NOUNS = {
    "en": ["dog", "cat", "bird", "horse"],
    "cs": ["psa", "kočku", "ptáka", "koně"],
    "zh": ["狗", "猫", "鸟", "马"],
    "hi": ["कुत्ता", "बिल्ली", "चिड़िया", "घोड़ा"],
    "ro": ["câine", "pisică", "pasăre", "cal"],
    "tr": ["köpek", "kedi", "kuş", "at"],
}
VERBS = {
    "en": ["sees", "hears", "follows"],
    "cs": ["vidí", "slyší", "sleduje"],
    "zh": ["看见", "听见", "跟着"],
    "hi": ["देखता", "सुनता", "जानता"],
    "ro": ["vede", "aude", "urmează"],
    "tr": ["görür", "duyar", "izler"],
}


def sentences(lang: str) -> list[str]:
    """48 sentences in a made-up word order, in the same order in every language."""
    space = "" if lang == "zh" else " "
    nouns, verbs = NOUNS[lang], VERBS[lang]
    return [f"{a}{space}{verb}{space}{b}" for a in nouns for verb in verbs for b in nouns]


def rows(lang: str) -> list[tuple[str, str]]:
    """The sentences of a language with their English."""
    return list(zip(sentences(lang), sentences("en")))


def write(paths: tuple[Path, Path], lines: Rows) -> None:
    for path, column in zip(paths, zip(*lines)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in column), encoding="utf-8")


def write_corpus(download_dir: Path, lang: str, corpus: str, lines: Rows, folder: str = "train-parts") -> None:
    """A corpus as mtdata leaves it, with the empty file that says that it is complete."""
    pair = "-".join(sorted((lang, "en")))
    directory = download_dir / "mtdata" / pair / folder
    write((directory / f"{corpus}.{wmt.LANGUAGES[lang].code}", directory / f"{corpus}.{wmt.ENGLISH}"), lines)
    (directory / f".valid.{corpus}").touch()


def write_test_set(download_dir: Path, name: str, lang: str, lines: Rows) -> None:
    """A test set as sacrebleu leaves it, in both directions, the one from English with its lines reversed."""
    stem = download_dir / "sacrebleu" / name / name.replace("/", "_")
    write((Path(f"{stem}.{lang}-en.src"), Path(f"{stem}.{lang}-en.ref")), lines)
    write((Path(f"{stem}.en-{lang}.ref"), Path(f"{stem}.en-{lang}.src")), lines[::-1])


def write_wmt22(download_dir: Path, source: str, target: str, lines: Rows, translator: str) -> None:
    """The raw XML of a direction of wmt22, as sacrebleu unpacks it, with another reference that is not to be used."""
    raw = download_dir / "sacrebleu" / "wmt22" / "raw"
    path = raw / "wmt22-news-systems-1.1" / "xml" / f"wmttest2022.{source}-{target}.all.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    (raw / "wmt22.v1.1.tar.gz").write_text("unpacked")

    def segments(texts: Iterable[str]) -> str:
        return "".join(f'<seg id="{number}">{text}</seg>' for number, text in enumerate(texts, 1))

    sources, targets = zip(*lines)
    references = {translator: targets, "Z": ["not this one"] * len(targets)}
    path.write_text(
        f'<dataset id="wmttest2022"><doc origlang="{source}" id="1">'
        + f'<src lang="{source}"><p>{segments(sources)}</p></src>'
        + "".join(
            f'<ref lang="{target}" translator="{name}"><p>{segments(texts)}</p></ref>'
            for name, texts in references.items()
        )
        + "</doc></dataset>",
        encoding="utf-8",
    )


def write_flores(download_dir: Path, code: str, lines: Rows) -> None:
    """FLORES-200's devtest of a language and English, as mtdata leaves it."""
    name = "-".join(sorted((code, wmt.ENGLISH)))
    stem = download_dir / "mtdata" / "flores200" / code / "tests" / f"Flores-flores200_devtest-1-{name}"
    write((Path(f"{stem}.{code}"), Path(f"{stem}.{wmt.ENGLISH}")), lines)


def write_language(download_dir: Path, lang: str, lines: Rows, held_out: Rows) -> None:
    """All that the paper has of a language: ``lines`` dealt to its corpora, ``held_out`` to validation and test."""
    language = wmt.LANGUAGES[lang]
    for number, corpus in enumerate(language.corpora):
        write_corpus(download_dir, lang, corpus, lines[number :: len(language.corpora)])
    if language.valid.startswith("wmt"):
        write_test_set(download_dir, language.valid, lang, held_out)
    else:
        write_corpus(download_dir, lang, language.valid, held_out, "tests")
    write_test_set(download_dir, language.test, lang, held_out)
