"""Training data in several folders, one shard of each pair an epoch."""

from pathlib import Path
from typing import Any

import pytest

from tests.helpers import commands
from tests.helpers.corpus import Corpus
from tests.helpers.tasks import make_task, words

PAIRS = "de-en,en-de,en-fr,fr-en"
LINES = {"de-en": 30, "en-fr": 10}


def preprocess(directory: Path, text: Path, pair: str, dictionary: Path, *splits: str) -> None:
    source, target = pair.split("-")
    languages = ("--source-lang", source, "--target-lang", target, "--srcdict", dictionary, "--tgtdict", dictionary)
    prefixes = [argument for split in splits for argument in (f"--{split}pref", text / f"{split}.{pair}")]
    commands.run("preprocess", *languages, *prefixes, "--destdir", directory)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three shards of de-en, whose sentences all name their shard's letter, and en-fr, all of it in the first."""
    root = tmp_path_factory.mktemp("shards")
    dictionary = root / "dict.txt"
    dictionary.write_text("".join(f"{piece} 1\n" for piece in ("a", "b", "c", "x")))
    shards = [root / "binary", root / "binary" / "shard2", root / "binary" / "shard3"]
    for letter, shard in zip("abc", shards):
        text = root / letter
        text.mkdir()
        for pair, count in LINES.items():
            word = letter if pair == "de-en" else "x"
            for lang in pair.split("-"):
                (text / f"train.{pair}.{lang}").write_text(f"{word} {word}\n" * count)
                (text / f"valid.{pair}.{lang}").write_text(f"{word} {word}\n" * 2)
        preprocess(shard, text, "de-en", dictionary, *(("train", "valid") if letter == "a" else ("train",)))
        if letter == "a":
            preprocess(shard, text, "en-fr", dictionary, "train", "valid")
    return shards


def drawn(shards: list[Path], epoch: int) -> list[tuple[int, str]]:
    """Source language and first word of every sentence that an epoch of 400 draws, with a temperature of 2."""
    flags = ("--sampling-method", "temperature", "--sampling-temperature", 2, "--virtual-data-size", 400)
    task: Any = make_task(Corpus(shards[0], ":".join(map(str, shards))), "--lang-pairs", PAIRS, *flags)
    task.load_dataset("train", epoch=epoch)
    iterator = task.get_batch_iterator(task.datasets["train"], max_sentences=50, epoch=epoch)
    return [
        (source, words(task, tokens)[1])
        for batch in iterator.next_epoch_itr(shuffle=False)
        for source, tokens in zip(batch["net_input"]["src_lang_id"].tolist(), batch["net_input"]["src_tokens"])
    ]


@pytest.mark.parametrize(("epoch", "letter"), [(1, "a"), (2, "b"), (3, "c"), (4, "a")])
def test_an_epoch_has_one_shard_of_large_pairs_and_all_of_small_ones(
    shards: list[Path], epoch: int, letter: str
) -> None:
    sentences = drawn(shards, epoch)
    assert {word for _, word in sentences} == {letter, "x"}
    # The shares are those of all shards: 90 and 10 sentences give 3 : 1, where one shard of 30 would give 1.7 : 1.
    assert sum(word == letter for _, word in sentences) == 300


def train(shards: list[Path], save_dir: Path, max_epoch: int) -> list[str]:
    """The folders that the first side of de-en is read from, in the order of epochs."""
    output = commands.run(
        "train", ":".join(map(str, shards)), "--user-dir", commands.USER_DIR, "--task", "taskmoe_translation",
        "--langs", "en,de,fr", "--lang-pairs", PAIRS, "--arch", "taskmoe_transformer_tiny", "--cpu",
        "--criterion", "taskmoe_label_smoothed_cross_entropy", "--encoder-langtok", "tgt", "--num-workers", 0,
        "--optimizer", "adam", "--lr", 1e-4, "--max-tokens", 500, "--max-epoch", max_epoch, "--save-dir", save_dir,
        "--no-epoch-checkpoints", "--disable-validation",
    )  # fmt: skip
    loaded = [text.rsplit(" ", 1)[1] for _, text in output.records if text.startswith("loaded 30 examples")]
    return [Path(path).parent.name for path in loaded if path.endswith("train.de-en.de")][::2]


def test_a_training_that_goes_on_goes_on_with_the_next_shard(shards: list[Path], tmp_path: Path) -> None:
    assert train(shards, tmp_path, max_epoch=2)[:2] == ["binary", "shard2"]
    assert train(shards, tmp_path, max_epoch=4)[:2] == ["shard3", "binary"]
