"""What is wrong with data, languages or models is said in one line, with status 2."""

from __future__ import annotations

import pytest
from fairseq import tasks

from taskmoe_plugin.errors import one_line_errors
from taskmoe_plugin.models.subnet_shape import SubnetShape
from tests.helpers.corpus import Corpus
from tests.helpers.models import build_model
from tests.helpers.tasks import make_args, make_task


def message_of(capsys: pytest.CaptureFixture[str], function, *args, **kwargs) -> str:
    with pytest.raises(SystemExit) as stopped, one_line_errors():
        function(*args, **kwargs)
    assert stopped.value.code == 2
    (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("taskmoe")]
    return line


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--lang-pairs", "en-de,en-cs"), "en-cs contains languages that are not in the language dictionary"),
        (("--lang-dict", "langs.txt"), "--langs and --lang-dict can not both be specified"),
        (("--source-lang", "en", "--target-lang", "cs"), "en-cs contains languages that are not"),
    ],
)
def test_wrong_languages_are_named(corpus: Corpus, capsys, flags: tuple, expected: str) -> None:
    assert expected in message_of(capsys, make_task, corpus, *flags)


def test_a_missing_data_directory_is_named(corpus: Corpus, capsys, tmp_path) -> None:
    nowhere = Corpus(tmp_path, tmp_path / "nowhere")
    message = message_of(capsys, make_task, nowhere)
    assert str(tmp_path / "nowhere") in message
    assert "fairseq-preprocess" in message


def test_a_missing_language_dict_is_named(corpus: Corpus, capsys, tmp_path) -> None:
    args = make_args(corpus)
    args.langs, args.lang_dict = None, str(tmp_path / "langs.txt")
    assert str(tmp_path / "langs.txt") in message_of(capsys, tasks.setup_task, args)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_missing_pair_of_the_data_is_named(corpus: Corpus, capsys, split: str, tmp_path) -> None:
    for path in corpus.bin.iterdir():
        if not path.name.startswith(f"{split}.de-fr"):
            (tmp_path / path.name).symlink_to(path)
    task = make_task(Corpus(corpus.raw, tmp_path))
    message = message_of(capsys, task.load_dataset, split)
    assert f"{tmp_path}: no {split} data for de-fr" in message
    assert "fairseq-preprocess" in message


def test_a_split_that_does_not_exist_is_named(corpus: Corpus, capsys) -> None:
    task = make_task(corpus, "--source-lang", "en", "--target-lang", "de")
    assert "no test7 data for en-de" in message_of(capsys, task.load_dataset, "test7")


def test_a_stock_architecture_is_refused(corpus: Corpus, capsys) -> None:
    args = make_args(corpus, "--arch", "transformer")
    task = make_task(corpus)
    assert "--arch transformer: does not take the language ids" in message_of(capsys, task.build_model, args)


def idle_experts(caplog, corpus: Corpus, *flags, subnet: dict[str, SubnetShape] | None = None) -> list[str]:
    args = make_args(corpus, *flags)
    if subnet is not None:
        SubnetShape.write(args, subnet)
    make_task(corpus).build_model(args)
    return [message for message in caplog.messages if "never used" in message]


def test_experts_that_no_task_can_use_are_named(corpus: Corpus, caplog) -> None:
    encoder, decoder = idle_experts(caplog, corpus, "--moe-expert-count", 12, "--decoder-moe-routing", "pair")
    tasks = "the encoder has 3 tasks with 2 experts each"
    assert encoder == f"--moe-expert-count 12: {tasks}, so that 6 experts of each layer are never used"
    assert "the decoder has 5 tasks" in decoder


@pytest.mark.parametrize(
    "flags",
    [("--moe-expert-count", 6), ("--moe-freq", 0), ("--encoder-moe-routing", "token", "--decoder-moe-freq", 0)],
)
def test_experts_that_all_can_be_used_are_not_spoken_of(corpus: Corpus, caplog, flags: tuple) -> None:
    assert not idle_experts(caplog, corpus, *flags)


def test_experts_that_a_subnet_has_not_kept_are_not_spoken_of(corpus: Corpus, caplog) -> None:
    subnet = {"encoder": SubnetShape((), {1: (0, 1, 6), 3: (2, 3)}), "decoder": SubnetShape((), {})}
    flags = ("--moe-expert-count", 12, "--decoder-moe-freq", 0)
    assert idle_experts(caplog, corpus, *flags)
    caplog.clear()
    assert not idle_experts(caplog, corpus, *flags, subnet=subnet)


def test_a_model_trained_with_other_languages_is_refused(corpus: Corpus, capsys) -> None:
    trained = build_model().args
    trained._name = "taskmoe_transformer"
    task = make_task(corpus, "--langs", "en,fr,de", "--source-lang", "en", "--target-lang", "fr")
    message = message_of(capsys, task.build_model, trained, from_checkpoint=True)
    assert "--langs en,fr,de: the checkpoint was trained with --langs en,de,fr" in message


@pytest.mark.parametrize(
    ("routing", "refused"),
    [("source", False), ("target", False), ("pair", True), ("token", False), ("sentence", False)],
)
@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_a_pair_without_a_task_is_refused_and_the_known_ones_named(
    corpus: Corpus, capsys, stack: str, routing: str, refused: bool
) -> None:
    flags = {"encoder_moe_routing": "token", "decoder_moe_routing": "token", f"{stack}_moe_routing": routing}
    trained = build_model(**flags).args
    trained._name = "taskmoe_transformer"
    task = make_task(corpus, "--source-lang", "fr", "--target-lang", "de")
    if not refused:
        assert task.build_model(trained, from_checkpoint=True)
        return
    message = message_of(capsys, task.build_model, trained, from_checkpoint=True)
    assert f"--source-lang fr --target-lang de: the {stack}'s {routing} routing knows only" in message
    assert "en-de, de-en, en-fr, fr-en, de-fr" in message


def test_a_dense_stack_needs_no_task_for_a_pair(corpus: Corpus) -> None:
    trained = build_model(moe_freq=0, encoder_moe_routing="pair", decoder_moe_routing="pair").args
    trained._name = "taskmoe_transformer"
    task = make_task(corpus, "--source-lang", "fr", "--target-lang", "de")
    assert task.build_model(trained, from_checkpoint=True)
