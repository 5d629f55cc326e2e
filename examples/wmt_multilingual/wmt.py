"""The WMT data of the paper: corpora, validation and test sets of each language, to and from English.

The paper (Kudugunta et al. 2021, arXiv 2110.03742) takes the set-up of Siddhant et al. 2020 (arXiv 2005.04816).
"""

from __future__ import annotations

from typing import NamedTuple


class Language(NamedTuple):
    """A language's data, with English on the other side.

    ``code`` is the language's name in mtdata (ISO 639-3), ``corpora`` are mtdata's names of the training corpora,
    ``valid`` and ``test`` are sacrebleu's names of test sets, or in ``valid`` mtdata's name of a corpus.
    ``sentences`` is the number of training sentences in the paper (table 3).
    """

    code: str
    corpora: tuple[str, ...]
    valid: str
    test: str
    sentences: int


ENGLISH = "eng"
LANGUAGES = {
    "cs": Language(
        "ces",
        (
            "Statmt-europarl-9-ces-eng",
            "Statmt-commoncrawl_wmt13-1-ces-eng",
            "Statmt-news_commentary-14-ces-eng",
            "Statmt-wiki_titles-1-ces-eng",
            "ParaCrawl-paracrawl-3-eng-ces",
        ),
        "wmt17",
        "wmt18",
        64_336_053,
    ),
    "fr": Language(
        "fra",
        (
            "Statmt-europarl-7-fra-eng",
            "Statmt-commoncrawl_wmt13-1-fra-eng",
            "Statmt-news_commentary-14-eng-fra",
            "OPUS-multiun-v1-eng-fra",
            "OPUS-giga_fren-v2-eng-fra",
        ),
        "wmt13",
        "wmt14",
        40_449_146,
    ),
    "ru": Language(
        "rus",
        (
            "Statmt-commoncrawl_wmt13-1-rus-eng",
            "Statmt-news_commentary-14-eng-rus",
            "Statmt-wiki_titles-1-rus-eng",
            "Statmt-yandex-wmt22-eng-rus",
            "ParaCrawl-paracrawl-1_bonus-eng-rus",
            "OPUS-unpc-v1.0-eng-rus",
        ),
        "wmt18",
        "wmt19",
        38_492_126,
    ),
    "zh": Language(
        "zho",
        ("Statmt-news_commentary-14-eng-zho", "Statmt-wiki_titles-1-zho-eng", "OPUS-unpc-v1.0-eng-zho"),
        "wmt18",
        "wmt19",
        25_986_436,
    ),
    "es": Language(
        "spa",
        (
            "Statmt-europarl-7-spa-eng",
            "Statmt-commoncrawl_wmt13-1-spa-eng",
            "Statmt-news_commentary-14-eng-spa",
            "OPUS-multiun-v1-eng-spa",
        ),
        "wmt12",
        "wmt13",
        15_182_374,
    ),
    "fi": Language(
        "fin",
        (
            "Statmt-europarl-9-fin-eng",
            "Statmt-wiki_titles-1-fin-eng",
            "ParaCrawl-paracrawl-3-eng-fin",
            "Tilde-rapid-2016-eng-fin",
        ),
        "wmt18",
        "wmt19",
        6_587_448,
    ),
    "de": Language(
        "deu",
        ("Statmt-europarl-7-deu-eng", "Statmt-commoncrawl_wmt13-1-deu-eng", "Statmt-news_commentary-14-deu-eng"),
        "wmt13",
        "wmt14",
        4_508_785,
    ),
    "et": Language(
        "est",
        ("Statmt-europarl-7-est-eng", "OPUS-paracrawl-v1-eng-est", "Tilde-rapid-2016-eng-est"),
        "wmt18/dev",
        "wmt18",
        2_175_873,
    ),
    "lv": Language("lav", ("Statmt-europarl-7-lav-eng",), "wmt17/dev", "wmt17", 637_599),
    "lt": Language("lit", ("Statmt-europarl-9-lit-eng",), "wmt19/dev", "wmt19", 635_146),
    "ro": Language("ron", ("Statmt-europarl-7-ron-eng", "OPUS-setimes-v2-eng-ron"), "wmt16/dev", "wmt16", 610_320),
    "hi": Language(
        "hin",
        ("IITB-hien_train-1.5-hin-eng", "JoshuaDec-indian_training-1-hin-eng"),
        "IITB-hien_dev-1.5-hin-eng",
        "wmt14",
        313_748,
    ),
    "kk": Language(
        "kaz",
        ("Statmt-news_commentary-14-eng-kaz", "Statmt-wiki_titles-1-kaz-eng"),
        "wmt19/dev",
        "wmt19",
        222_424,
    ),
    "tr": Language("tur", ("OPUS-setimes-v2-eng-tur",), "wmt17", "wmt18", 205_756),
    "gu": Language(
        "guj",
        (
            "Statmt-wiki_titles-1-guj-eng",
            "OPUS-bible_uedin-v1-eng-guj",
            "OPUS-gnome-v1-eng-guj",
            "OPUS-kde4-v2-eng-guj",
            "OPUS-ubuntu-v14.10-eng-guj",
        ),
        "wmt19/dev",
        "wmt19",
        155_798,
    ),
}
