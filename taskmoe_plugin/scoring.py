"""sacrebleu's BLEU with a tokenizer that fits the target language. Imports nothing of fairseq or of this package."""

from __future__ import annotations

import re

from sacrebleu.metrics.bleu import BLEU

TOKENIZERS = tuple(BLEU.TOKENIZERS)
# These split words at spaces and punctuation, and take a sentence of a language without spaces for a single word.
WORD_TOKENIZERS = ("13a", "intl")
# sacrebleu's own choice, and characters where it has none.
LANGUAGES = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab", "th": "char", "lo": "char", "km": "char", "my": "char"}
# ISO 639-3, as in zho_Hans, to 639-1.
CODES = {
    "zho": "zh", "cmn": "zh", "yue": "zh", "jpn": "ja", "kor": "ko", "tha": "th", "lao": "lo", "khm": "km", "mya": "my",
}  # fmt: skip


def tokenizer_of(lang: str, wanted: str | None = None) -> str:
    """The name of sacrebleu's tokenizer for a language, such as zh, zh_CN or zho_Hans.

    Args:
        lang: the language.
        wanted: a tokenizer that is preferred; those that split at spaces give way where the language needs its own.
    """
    code = re.split("[-_]", lang.lower())[0]
    own = LANGUAGES.get(CODES.get(code, code), BLEU.TOKENIZER_DEFAULT)
    if wanted is None or (wanted in WORD_TOKENIZERS and own != BLEU.TOKENIZER_DEFAULT):
        return own
    return wanted


def make_bleu(lang: str, wanted: str | None, flag: str) -> BLEU:
    """BLEU with the tokenizer of ``tokenizer_of``.

    Args:
        lang: the target language.
        wanted: as in ``tokenizer_of``.
        flag: the flag that ``wanted`` is from, for the error.

    Raises:
        ValueError: what the tokenizer needs is not installed, or cannot be downloaded.
    """
    name = tokenizer_of(lang, wanted)
    try:
        return BLEU(tokenize=name)
    except (RuntimeError, ImportError, OSError) as error:
        code = name.removesuffix("-mecab")
        needs = f"pip install 'sacrebleu[{code}]'" if code != name else f"its model ({' '.join(str(error).split())})"
        raise ValueError(
            f"{flag} {name}: BLEU into {lang} needs {needs}; or choose a tokenizer that is there, such as {flag} char"
        ) from error
