"""BLEU of a validation is sacrebleu's over the same sentences, for each direction."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from fairseq.logging import metrics
from sacrebleu import corpus_bleu

from taskmoe_plugin.errors import one_line_errors
from taskmoe_plugin.tasks.validation_bleu import ValidationBleu, log_bleu
from tests.helpers.corpus import PAIRS, Corpus
from tests.helpers.tasks import batches, make_task, words


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
            log_bleu(scorer.count(None, batch, task.pair_index(batch)), task.lang_pairs)
    return logged.get_smoothed_values(), translations


def test_bleu_of_every_direction_is_that_of_sacrebleu_on_the_whole_validation_set(corpus: Corpus) -> None:
    logged, translations = validate(make_task(corpus, "--eval-bleu"))
    expected = {}
    for pair, said in translations.said.items():
        hypotheses, references = zip(*said)
        source, target = pair.split("-")
        assert sorted(references) == sorted(corpus.lines("valid", source, target, target))
        expected[pair] = corpus_bleu(hypotheses, [references]).score
        assert 5 < expected[pair] < 95
        assert logged[f"{pair}_bleu"] == pytest.approx(expected[pair], abs=0.006)
    assert logged["bleu"] == pytest.approx(sum(expected.values()) / len(PAIRS), abs=0.01)


@pytest.mark.parametrize(("flags", "words_counted"), [((), 6), (("--eval-tokenized-bleu",), 4)])
def test_tokenized_bleu_does_not_tokenize_again(corpus: Corpus, flags: tuple, words_counted: int) -> None:
    scorer = ValidationBleu(make_task(corpus, "--eval-bleu", *flags), None, len(PAIRS), set())
    assert scorer.bleu.corpus_score(["ba,do fi gu ka"], [["ba,do fi gu ka"]]).sys_len == words_counted


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
