"""fairseq-generate and fairseq-interactive, with what users give them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils

from taskmoe_plugin.cli.main import main
from taskmoe_plugin.models import TaskMoETransformerModel
from tests.helpers.commands import USER_DIR, Output, run
from tests.helpers.corpus import LINES, Corpus, binarize
from tests.helpers.tasks import batches, make_task
from tests.helpers.training import generate, generate_flags, train

KINDS = ("source/target", "pair/group", "sentence/sentence", "token/token")


def assert_same(
    one: dict[int, tuple[float, str]], other: dict[int, tuple[float, str]], tolerance: float = 1e-4
) -> None:
    """The same hypotheses with the same scores."""
    assert one.keys() == other.keys()
    assert {number: text for number, (_, text) in one.items()} == {number: text for number, (_, text) in other.items()}
    for number, (score, _) in one.items():
        assert score == pytest.approx(other[number][0], abs=tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pair", ["en-de", "de-en"])
def test_interactive_translates_as_generate_does(corpus: Corpus, checkpoints: dict, kind: str, pair: str) -> None:
    lines = corpus.lines("test", *pair.split("-"), pair.split("-")[0])
    translated = generate(corpus, checkpoints[kind], pair).hypotheses
    assert len({text for _, text in translated.values()}) > 5
    flags = generate_flags(corpus, checkpoints[kind], pair, "--buffer-size", 10, "--batch-size", 4)
    typed = run("interactive", *flags, stdin="".join(f"{line}\n" for line in lines))
    assert_same(typed.hypotheses, translated)
    one_by_one = run("interactive", *generate_flags(corpus, checkpoints[kind], pair), stdin=f"{lines[2]}\n{lines[0]}\n")
    assert_same(one_by_one.hypotheses, {0: translated[2], 1: translated[0]})


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_of_batches_does_not_change_translations(corpus: Corpus, checkpoints: dict, kind: str) -> None:
    expected = generate(corpus, checkpoints[kind], "en-de", "--batch-size", 1).hypotheses
    for flags in (("--batch-size", 7), ("--max-tokens", 100)):
        assert_same(generate(corpus, checkpoints[kind], "en-de", *flags).hypotheses, expected)


@pytest.mark.parametrize("multiple", [1, 8, 16])
@pytest.mark.parametrize("pair", ["en-de", "en-fr", "de-fr"])
def test_every_sentence_is_translated(corpus: Corpus, checkpoint: Path, pair: str, multiple: int) -> None:
    output = generate(corpus, checkpoint, pair, "--required-batch-size-multiple", multiple)
    assert sorted(output.hypotheses) == list(range(LINES["test"][pair]))
    source, target = pair.split("-")
    references = {number: text for number, (text,) in output.lines("T").items()}
    assert [references[number] for number in sorted(references)] == corpus.lines("test", source, target, target)


@pytest.mark.parametrize("shards", [2, 5])
def test_shards_together_translate_every_sentence(corpus: Corpus, checkpoint: Path, shards: int) -> None:
    found: list[int] = []
    for shard in range(shards):
        flags = ("--distributed-world-size", shards, "--distributed-rank", shard, "--batch-size", 4)
        found += generate(corpus, checkpoint, "en-de", *flags).hypotheses
    assert sorted(found) == list(range(21))


def test_translations_hold_no_language_tokens(corpus: Corpus, checkpoint: Path) -> None:
    output = generate(corpus, checkpoint, "en-de")
    assert not [text for _, text in output.hypotheses.values() if "__" in text]


def test_padding_symbols_in_references_change_no_translation(corpus: Corpus, checkpoint: Path, tmp_path: Path) -> None:
    found = []
    for number, reference in enumerate(("<pad> baen", "baen")):
        data = Corpus(tmp_path / f"raw{number}", tmp_path / f"bin{number}")
        data.raw.mkdir()
        for split in LINES:
            (data.raw / f"{split}.en-de.en").write_text("ba do\nfi gu ka\n")
            (data.raw / f"{split}.en-de.de").write_text(f"{reference}\ndoen fien kaen\n")
        binarize(data, "en-de", corpus.bin / "dict.en.txt")
        shutil.copy(corpus.bin / "dict.fr.txt", data.bin)
        found.append(generate(data, checkpoint, "en-de").hypotheses)
        flags = ("--lang-pairs", "en-de", "--max-update", 1, "--eval-bleu", "--eval-bleu-args", '{"max_len_b": 9}')
        assert "valid_bleu" in train(data, tmp_path / f"model{number}", *flags).stats("valid")[-1]
    assert_same(*found)


@pytest.mark.parametrize("combine", ["outputs", "weights"])
def test_retained_dropout_is_that_of_experts_too(corpus: Corpus, tmp_path: Path, combine: str) -> None:
    flags = ("--dropout", 0, "--moe-expert-dropout", 0.5, "--moe-freq", 1, "--moe-combine", combine)
    train(corpus, tmp_path, *flags, "--max-update", 1, "--disable-validation", "--no-epoch-checkpoints")
    path = tmp_path / "checkpoint_last.pt"
    plain, dropping = (
        [generate(corpus, path, "en-de", *flags, "--seed", seed).hypotheses for seed in (1, 1, 2)]
        for flags in ((), ("--retain-dropout",))
    )
    assert plain[0] == plain[2]
    assert dropping[0] == dropping[1] != dropping[2]
    main(["convert", "quantize", str(path), "--bits", "8", "--output", str(tmp_path / "small.pt")])
    packed = [
        generate(corpus, tmp_path / "small.pt", "en-de", "--keep-packed", "--retain-dropout", "--seed", seed).hypotheses
        for seed in (1, 2)
    ]
    assert packed[0] != packed[1]


def test_a_model_and_itself_translate_as_the_model_alone(corpus: Corpus, checkpoint: Path) -> None:
    alone, twice = (generate(corpus, path, "en-de").hypotheses for path in (checkpoint, f"{checkpoint}:{checkpoint}"))
    assert_same(twice, alone)


def test_models_of_different_routings_form_an_ensemble(corpus: Corpus, checkpoints: dict) -> None:
    paths = [str(path) for path in checkpoints.values()]
    single = [generate(corpus, path, "en-de", "--score-reference") for path in paths]
    together = generate(corpus, ":".join(paths), "en-de", "--score-reference")
    for number, (scores,) in together.lines("P").items():
        each = torch.tensor([[float(p) for p in output.lines("P")[number][0].split()] for output in single])
        mean = each.exp2().mean(dim=0).log2()
        torch.testing.assert_close(torch.tensor([float(p) for p in scores.split()]), mean, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_references_are_scored_with_the_models_own_probabilities(corpus: Corpus, checkpoints: dict, kind: str) -> None:
    output = generate(corpus, checkpoints[kind], "de-en", "--score-reference")
    assert {number: text for number, (_, text) in output.hypotheses.items()} == {
        number: text for number, (text,) in output.lines("T").items()
    }
    task = make_task(corpus, "--source-lang", "de", "--target-lang", "en")
    (model,), _ = checkpoint_utils.load_model_ensemble([str(checkpoints[kind])], task=task)
    model.eval()
    pad = task.target_dictionary.pad()
    for sample in batches(task, "test"):
        with torch.no_grad():
            log_probs = model(**sample["net_input"])[0].log_softmax(dim=-1) / torch.tensor(2.0).log()
        picked = log_probs.gather(2, sample["target"].unsqueeze(2)).squeeze(2)
        for row, number in enumerate(sample["id"].tolist()):
            expected = picked[row][sample["target"][row].ne(pad)]
            printed = torch.tensor([float(p) for p in output.lines("P")[number][0].split()])
            torch.testing.assert_close(printed, expected, atol=1e-3, rtol=1e-3)


def test_a_prefix_is_kept(corpus: Corpus, checkpoint: Path) -> None:
    # The language token is the first word of the target, so that 3 keeps two words of the reference.
    output = generate(corpus, checkpoint, "en-de", "--prefix-size", 3)
    for number, (_, text) in output.hypotheses.items():
        reference = output.lines("T")[number][0].split()
        assert text.split()[: min(2, len(reference))] == reference[:2]


def test_sampling_gives_several_translations_of_each_sentence(corpus: Corpus, checkpoint: Path) -> None:
    flags = ("--sampling", "--beam", 3, "--nbest", 3, "--seed", 1)
    output = generate(corpus, checkpoint, "en-de", *flags)
    printed = [line.split("\t")[2] for line in output.stdout.splitlines() if line.startswith("H-")]
    assert len(printed) == 3 * 21
    assert len(set(printed)) > 21
    again = generate(corpus, checkpoint, "en-de", *flags)
    assert again.hypotheses == output.hypotheses


LONG = " ".join(["ba"] * 1100)
SKIP = "--skip-invalid-size-inputs-valid-test"


def test_a_line_that_is_too_long_is_skipped(corpus: Corpus, checkpoint: Path) -> None:
    flags = generate_flags(corpus, checkpoint, "en-de", SKIP)
    expected = run("interactive", *flags, stdin="ba do\ngu ka\n").hypotheses
    found = run("interactive", *flags, stdin=f"ba do\n{LONG}\ngu ka\n").hypotheses
    assert_same(found, {0: expected[0], 2: expected[1]})


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), "sentence 0: has 1101, 0 pieces of source and target, and at most (1024, 1024) are taken"),
        ((SKIP, "--max-tokens", 2), "--max-tokens 2: "),
        (("--constraints",), "--constraints: fairseq's multilingual tasks do not take them"),
    ],
)
def test_what_cannot_be_translated_is_told_in_one_line(
    corpus: Corpus, checkpoint: Path, capsys, flags: tuple, expected: str
) -> None:
    text = "ba do gu\n" if flags else f"{LONG}\n"
    with pytest.raises(SystemExit) as stopped:
        run("interactive", *generate_flags(corpus, checkpoint, "en-de", *flags), stdin=text)
    assert stopped.value.code == 2
    assert expected in capsys.readouterr().err


def test_a_stock_model_in_an_ensemble_is_named(corpus: Corpus, checkpoint: Path, tmp_path: Path, capsys) -> None:
    flags = ("--lang-pairs", "en-de", "--output-dir", tmp_path)
    main(["extract", *map(str, (corpus.bin, "--path", checkpoint, *flags))])
    both = f"{checkpoint}:{tmp_path / 'en-de' / 'model.pt'}"
    with pytest.raises(SystemExit):
        generate(corpus, both, "en-de")
    assert f"--path {both}: a model of --arch transformer does not take" in capsys.readouterr().err


def load_hub(corpus: Corpus, checkpoint: Path, **settings: Any) -> Any:
    return TaskMoETransformerModel.from_pretrained(
        str(checkpoint.parent), checkpoint.name, str(corpus.bin), user_dir=str(USER_DIR),
        source_lang="en", target_lang="de", **settings,
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_hub_interface_translates_as_generate_does(corpus: Corpus, checkpoints: dict, kind: str) -> None:
    hub = load_hub(corpus, checkpoints[kind])
    lines = corpus.lines("test", "en", "de", "en")
    translated = generate(corpus, checkpoints[kind], "en-de").hypotheses
    expected = [text.split() for _, (_, text) in sorted(translated.items())]
    # Unlike the commands, the interface shows language tokens.
    found = [text.split() for text in hub.translate(lines, beam=2, max_len_b=12)]
    assert [[word for word in text if word != "__de__"] for text in found] == expected
    assert hub.translate(lines[3], beam=2, max_len_b=12).split() == found[3]


def test_the_hub_interface_takes_nothing_and_lines_that_are_too_long(corpus: Corpus, checkpoint: Path) -> None:
    hub = load_hub(corpus, checkpoint)
    assert hub.translate([]) == []
    assert hub.generate([hub.encode(LONG)], skip_invalid_size_inputs=True) == []


def test_a_program_may_go_on_to_another_pair(corpus: Corpus, checkpoint: Path) -> None:
    hub, other = (load_hub(corpus, checkpoint, source_dict=dictionary, target_dict=dictionary)
                  for dictionary in [str(corpus.bin / "dict.en.txt")] * 2)  # fmt: skip
    lines = corpus.lines("test", "en", "de", "en")[:5]
    for target in ("fr", "de"):
        other.task.args.target_lang = target
        found = other.translate(lines, beam=2, max_len_b=12)
        assert all(each.startswith(f"__{target}__") for each in found)
    assert found == hub.translate(lines, beam=2, max_len_b=12)


def test_the_hub_interface_takes_a_constraint_on_the_tokens(corpus: Corpus, checkpoint: Path) -> None:
    hub = load_hub(corpus, checkpoint)
    symbols = hub.tgt_dict
    allowed = [symbols.index(symbol) for symbol in ("__de__", "baen", "doen")] + [symbols.eos()]
    found = hub.translate(["gu ka lo"], beam=2, max_len_b=12, prefix_allowed_tokens_fn=lambda row, prefix: allowed)
    assert set(found[0].split()) <= {"__de__", "baen", "doen"}


def average(paths: list[Path], output: Path) -> None:
    """What fairseq's script does, which its wheel does not carry."""
    states = [checkpoint_utils.load_checkpoint_to_cpu(str(path)) for path in paths]
    merged = torch.load(paths[-1], weights_only=True)
    for name, value in merged["model"].items():
        total = sum(
            state["model"][name].float() if value.is_floating_point() else state["model"][name] for state in states
        )
        merged["model"][name] = total / len(states) if value.is_floating_point() else total // len(states)
    torch.save(merged, output)


def test_averaged_checkpoints_translate(corpus: Corpus, checkpoint: Path, tmp_path: Path) -> None:
    average([checkpoint, checkpoint], tmp_path / "same.pt")
    expected = generate(corpus, checkpoint, "en-de")
    assert_same(generate(corpus, tmp_path / "same.pt", "en-de").hypotheses, expected.hypotheses)


def test_what_is_printed_is_what_is_written_to_a_file(corpus: Corpus, checkpoint: Path, tmp_path: Path) -> None:
    printed: Output = generate(corpus, checkpoint, "en-de")
    generate(corpus, checkpoint, "en-de", "--results-path", tmp_path)
    written = Output((tmp_path / "generate-test.txt").read_text())
    assert written.hypotheses == printed.hypotheses
