"""BLEU and chrF of a validation are sacrebleu's over the same sentences, for each direction."""

from __future__ import annotations

import random
from argparse import ArgumentParser
from typing import Any

import pytest
import torch
from fairseq import tasks
from fairseq.data import Dictionary
from fairseq.logging import metrics
from sacrebleu import corpus_bleu, corpus_chrf
from sacrebleu.tokenizers import tokenizer_ja_mecab

from taskmoe_plugin.errors import UsageError, one_line_errors
from taskmoe_plugin.tasks.validation_bleu import ValidationBleu, add_bleu_args, log_bleu
from tests.helpers.corpus import PAIRS, Corpus
from tests.helpers.tasks import batches, make_args, make_task, words


def altered(tokens: list[int], rng: random.Random, unknown: int) -> list[int]:
    """A translation that is neither right nor entirely wrong: some words doubled, one lost, one unknown."""
    langtok, *text, eos = tokens
    text = [word for word in text for _ in range(rng.choice((1, 1, 1, 2)))]
    if rng.random() < 0.3:
        text.pop(rng.randrange(len(text)))
    if rng.random() < 0.2:
        text.append(unknown)
    return [langtok, *text, eos]


class Translations:
    """Stands in for a model: answers every batch, and remembers what it said and what was right."""

    def __init__(self, task: Any) -> None:
        self.task, self.rng = task, random.Random(0)
        self.said: dict[str, list[tuple[str, str]]] = {pair: [] for pair in PAIRS}

    def __call__(self, generator: Any, models: Any, sample: dict[str, Any]) -> list[list[dict[str, Any]]]:
        symbols, answers = self.task.target_dictionary, []
        pairs = self.task.pair_index(sample).tolist()
        for pair, target in zip(pairs, sample["target"].tolist()):
            reference = [token for token in target if token != symbols.pad()]
            hypothesis = altered(reference, self.rng, symbols.unk())
            texts = (
                " ".join("UNKNOWNTOKENINHYP" if token == symbols.unk() else symbols[token] for token in tokens[1:-1])
                for tokens in (hypothesis, reference)
            )
            self.said[PAIRS[pair]].append(tuple(texts))
            answers.append([{"tokens": torch.tensor(hypothesis)}])
        return answers


def validate(task: Any) -> tuple[dict[str, float], Translations]:
    """What is logged for the whole validation set, and what was translated."""
    scorer = ValidationBleu(task, None, len(PAIRS), set(task._langtoks().values()))
    task.inference_step = translations = Translations(task)
    with metrics.aggregate(new_root=True) as logged:
        # Batch by batch, as it is logged where one process validates, and where fairseq sums several.
        for batch in batches(task, "valid"):
            log_bleu(scorer.count(batch, task.pair_index(batch)), task.lang_pairs)
    return logged.get_smoothed_values(), translations


def test_scores_of_every_direction_are_those_of_sacrebleu_on_the_whole_validation_set(corpus: Corpus) -> None:
    logged, translations = validate(make_task(corpus, "--eval-bleu"))
    expected, chrf = {}, {}
    for pair, said in translations.said.items():
        hypotheses, references = zip(*said)
        source, target = pair.split("-")
        assert sorted(references) == sorted(corpus.lines("valid", source, target, target))
        expected[pair] = corpus_bleu(hypotheses, [references]).score
        assert 5 < expected[pair] < 95
        assert logged[f"{pair}_bleu"] == pytest.approx(expected[pair], abs=0.006)
        chrf[pair] = corpus_chrf(hypotheses, [references]).score
        assert 5 < chrf[pair] < 99
        assert logged[f"{pair}_chrf"] == pytest.approx(chrf[pair], abs=0.006)
    assert logged["bleu"] == pytest.approx(sum(expected.values()) / len(PAIRS), abs=0.01)
    assert logged["chrf"] == pytest.approx(sum(chrf.values()) / len(PAIRS), abs=0.01)


@pytest.mark.parametrize(("flags", "words_counted"), [((), 6), (("--eval-tokenized-bleu",), 4)])
def test_tokenized_bleu_does_not_tokenize_again(corpus: Corpus, flags: tuple, words_counted: int) -> None:
    scorer = ValidationBleu(make_task(corpus, "--eval-bleu", *flags), None, len(PAIRS), set())
    assert scorer.bleus[0].corpus_score(["ba,do fi gu ka"], [["ba,do fi gu ka"]]).sys_len == words_counted


CHINESE = ["狗在垫子上睡觉。", "猫坐在大椅子上。", "今天天气很好我们去公园。"]


class Answers:
    """Stands in for a task of Chinese: answers the references of a batch, or others."""

    lang_pairs = ("en-zh_CN",)

    def __init__(self, answers: list[str], *flags: str) -> None:
        parser = ArgumentParser()
        add_bleu_args(parser)
        self.args = parser.parse_args(["--eval-bleu", *flags])
        self.target_dictionary, self.answers = Dictionary(), answers
        for text in (*CHINESE, *answers):
            self.target_dictionary.add_symbol(text)

    def build_generator(self, models: Any, args: Any) -> None:
        return None

    def inference_step(self, generator: Any, models: Any, sample: Any) -> list[list[dict[str, Any]]]:
        return [[{"tokens": torch.tensor([self.target_dictionary.index(text)])}] for text in self.answers]


def chinese_scores(answers: list[str], *flags: str) -> dict[str, float]:
    task = Answers(answers, *flags)
    target = torch.tensor([[task.target_dictionary.index(text)] for text in CHINESE])
    with metrics.aggregate(new_root=True) as logged:
        scorer = ValidationBleu(task, None, 1, set())
        log_bleu(scorer.count({"target": target}, torch.zeros(len(CHINESE), dtype=torch.int64)), ["en-zh_CN"])
    return logged.get_smoothed_values()


def test_chinese_is_scored_by_its_characters() -> None:
    perfect = chinese_scores(CHINESE)
    assert (perfect["bleu"], perfect["chrf"]) == (100, 100)
    answers = [CHINESE[0], "猫在大椅子上坐着。", "我们去公园今天天气很好。"]
    logged = chinese_scores(answers)
    assert logged["en-zh_CN_bleu"] == pytest.approx(corpus_bleu(answers, [CHINESE], tokenize="zh").score, abs=0.006)
    assert logged["en-zh_CN_chrf"] == pytest.approx(corpus_chrf(answers, [CHINESE]).score, abs=0.006)
    characters = chinese_scores(answers, "--eval-bleu-tokenize", "char")["bleu"]
    assert characters == pytest.approx(corpus_bleu(answers, [CHINESE], tokenize="char").score, abs=0.006)
    # As words, which is what --eval-tokenized-bleu asks for, nothing is left to match.
    assert chinese_scores(CHINESE, "--eval-tokenized-bleu")["bleu"] == 0


def test_a_tokenizer_that_is_not_installed_is_named_before_training(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_ja_mecab, "MeCab", None)
    args = make_args(corpus, "--eval-bleu", "--eval-bleu-tokenize", "ja-mecab")
    with pytest.raises(
        UsageError, match=r"--eval-bleu-tokenize ja-mecab: BLEU into de needs pip install 'sacrebleu\[ja\]'"
    ):
        tasks.setup_task(args).build_model(args)


def test_languages_share_a_tokenizer(corpus: Corpus) -> None:
    """One may take tens of megabytes."""
    task = make_task(corpus, "--eval-bleu")
    bleu = ValidationBleu(task, None, len(task.lang_pairs), set())
    assert len(bleu.bleus) == len(task.lang_pairs)
    assert len(set(map(id, bleu.bleus))) == 1


def test_nothing_in_common_is_zero() -> None:
    logged = chinese_scores(["a", "b", "c"])
    assert (logged["bleu"], logged["chrf"]) == (0, 0)


def test_subword_marks_are_undone_if_asked(corpus: Corpus) -> None:
    text = "▁ba do ▁fi"
    for flags, expected in (((), text), (("--eval-bleu-remove-bpe", "sentencepiece"), "bado fi")):
        task = make_task(corpus, "--eval-bleu", *flags)
        for symbol in text.split():
            task.target_dictionary.add_symbol(symbol)
        langtok = next(iter(task._langtoks().values()))
        scorer = ValidationBleu(task, None, 5, {langtok})
        tokens = [langtok, *(task.target_dictionary.index(symbol) for symbol in text.split())]
        assert scorer._text(torch.tensor(tokens), "UNK") == expected


def test_a_sample_can_be_printed(corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    _, translations = validate(make_task(corpus, "--eval-bleu", "--eval-bleu-print-samples"))
    printed = capsys.readouterr().out
    said = [each for pair in translations.said.values() for each in pair]
    assert any(f"example hypothesis: {hyp}\nexample reference: {ref}\n" in printed for hyp, ref in said)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--eval-bleu-args", "beam 4"), "--eval-bleu-args beam 4: not JSON"),
        (("--eval-bleu-args", "[4]"), "--eval-bleu-args [4]: give a JSON object"),
        (("--eval-tokenized-bleu", "--eval-bleu-tokenize", "char"), "--eval-bleu-tokenize char: contradicts"),
        (("--eval-bleu-detok-args", "{"), "--eval-bleu-detok-args {: not JSON"),
        (("--eval-bleu", "--lang-tok-replacing-bos-eos"), "--eval-bleu: cannot be combined"),
    ],
)
def test_wrong_flags_are_named(corpus: Corpus, capsys: pytest.CaptureFixture[str], flags: tuple, expected: str) -> None:
    with pytest.raises(SystemExit) as stopped, one_line_errors():
        make_task(corpus, *flags)
    assert stopped.value.code == 2
    assert f"taskmoe: error: {expected}" in capsys.readouterr().err


def test_each_row_is_translated_into_its_own_language(corpus: Corpus) -> None:
    """One batch of validation has several target languages, each forced by its token."""
    task = make_task(corpus, "--eval-bleu")
    prefixes = []

    class Generator:
        def generate(self, models: Any, sample: Any, prefix_tokens: Any, constraints: Any) -> None:
            prefixes.append((sample, prefix_tokens))

    for batch in batches(task, "valid"):
        task.inference_step(Generator(), [], batch)
    for sample, prefix in prefixes:
        targets = [words(task, row)[0] for row in sample["target"]]
        assert [task.target_dictionary[token] for token in prefix[:, 0].tolist()] == targets
    assert len({token for _, prefix in prefixes for token in prefix[:, 0].tolist()}) == 3
