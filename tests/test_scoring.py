"""BLEU has a tokenizer that fits the target language, or says what that needs."""

from __future__ import annotations

import pytest
from sacrebleu.tokenizers import tokenizer_ja_mecab, tokenizer_ko_mecab, tokenizer_spm

from taskmoe_plugin.scoring import LANGUAGES, TOKENIZERS, make_bleu, tokenizer_of


@pytest.mark.parametrize(
    ("lang", "name"),
    [("de", "13a"), ("zh", "zh"), ("zh_CN", "zh"), ("zho_Hant", "zh"), ("zh-TW", "zh"), ("ja_XX", "ja-mecab"),
     ("jpn_Jpan", "ja-mecab"), ("kor_Hang", "ko-mecab"), ("th", "char"), ("tha_Thai", "char"), ("zha", "13a")],
)  # fmt: skip
def test_a_language_has_its_tokenizer(lang: str, name: str) -> None:
    assert tokenizer_of(lang) == name


@pytest.mark.parametrize(
    ("wanted", "of_german", "of_chinese"),
    [("intl", "intl", "zh"), ("13a", "13a", "zh"), ("flores200", "flores200", "flores200"), ("char", "char", "char")],
)
def test_what_splits_at_spaces_gives_way(wanted: str, of_german: str, of_chinese: str) -> None:
    assert (tokenizer_of("de", wanted), tokenizer_of("zh", wanted)) == (of_german, of_chinese)


def test_a_sentence_without_spaces_is_not_one_word() -> None:
    thai = ["แมวนั่งอยู่บนเก้าอี้ตัวใหญ่"]
    assert make_bleu("th", None, "--tokenize").corpus_score(thai, [thai]).score == pytest.approx(100)
    assert set(LANGUAGES.values()) <= set(TOKENIZERS)


@pytest.mark.parametrize(("lang", "module"), [("ja", tokenizer_ja_mecab), ("ko", tokenizer_ko_mecab)], ids=("ja", "ko"))
def test_what_a_tokenizer_needs_is_named(lang: str, module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MeCab", None)
    with pytest.raises(ValueError, match="needs pip install") as refused:
        make_bleu(lang, None, "--eval-bleu-tokenize")
    assert str(refused.value) == (
        f"--eval-bleu-tokenize {lang}-mecab: BLEU into {lang} needs pip install 'sacrebleu[{lang}]'; "
        "or choose a tokenizer that is there, such as --eval-bleu-tokenize char"
    )


def test_a_model_that_cannot_be_downloaded_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    def fail(url: str, path: str) -> None:
        raise OSError("no\nnetwork")

    monkeypatch.setattr(tokenizer_spm, "SACREBLEU_DIR", str(tmp_path))
    monkeypatch.setattr(tokenizer_spm, "download_file", fail)
    with pytest.raises(ValueError, match=r"--tokenize flores200: BLEU into de needs its model \(no network\)"):
        make_bleu("de", "flores200", "--tokenize")


@pytest.mark.parametrize(
    ("lang", "needed", "sentence"),
    [("ja", "MeCab", "猫が大きな椅子に座っている。"), ("ko", "mecab_ko", "고양이가 큰 의자에 앉아 있다.")],
)
def test_japanese_and_korean_are_split_into_words(lang: str, needed: str, sentence: str) -> None:
    pytest.importorskip(needed)
    assert make_bleu(lang, None, "--tokenize").corpus_score([sentence], [[sentence]]).sys_len > 6
