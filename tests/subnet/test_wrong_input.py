"""What a user can get wrong ends in one clear line and status 1, with nothing written."""

from __future__ import annotations

import pickle
import resource
import signal
import subprocess
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from taskmoe_plugin.cli.extract_subnet import main
from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.subnet import argos_format
from taskmoe_plugin.subnet import extract as extraction
from taskmoe_plugin.tasks.remembered_flags import forget_dictionaries
from tests.helpers.commands import run
from tests.helpers.corpus import Corpus
from tests.helpers.tasks import LANGTOKS, task_flags
from tests.helpers.training import SIZES
from tests.subnet.helpers import extract, load, rewrite, write_model


def error_of(
    capsys: pytest.CaptureFixture[str], output_dir: Path, data: Any, path: Any, pairs: str, *flags: Any, status: int = 1
) -> str:
    """The one line that extraction stops with, after nothing was written."""
    before = sorted(output_dir.rglob("*"))
    argv = (data, "--path", path, "--lang-pairs", pairs, "--output-dir", output_dir, *flags)
    with pytest.raises(SystemExit) as stopped:
        main([str(each) for each in argv])
    assert stopped.value.code == status
    assert sorted(output_dir.rglob("*")) == before
    output = capsys.readouterr()
    assert not output.out
    lines = [line for line in output.err.splitlines() if "error: " in line]
    assert len(lines) == 1
    assert "Traceback" not in output.err
    return lines[0]


class Foreign:
    """Something that no checkpoint of ours holds."""


def truncated(path: Path, target: Path) -> Path:
    target.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return target


def corrupted(path: Path, target: Path) -> Path:
    content = bytearray(path.read_bytes())
    start = content.find(b"data.pkl") + 200
    content[start : start + 2000] = b"\0" * 2000
    target.write_bytes(bytes(content))
    return target


def foreign_class(path: Path, target: Path) -> Path:
    state = load(path)
    torch.save({**state, "extra": Foreign()}, target)
    return target


def no_checkpoint(path: Path, target: Path) -> Path:
    torch.save({"weights": torch.zeros(3)}, target)
    return target


def plain_pickle(path: Path, target: Path) -> Path:
    target.write_bytes(pickle.dumps({"model": {}}))
    return target


def text(path: Path, target: Path) -> Path:
    target.write_text("not a checkpoint\n" * 100)
    return target


def adapters(path: Path, target: Path) -> Path:
    return rewrite(
        path, target, lambda state: state["model"].update({"encoder.layers.0.adapter.fc1.weight": torch.zeros(2)})
    )


def lacks_an_expert(path: Path, target: Path) -> Path:
    return rewrite(path, target, lambda state: state["model"].pop("decoder.layers.1.moe.experts.fc2_weight"))


def lacks_a_projection(path: Path, target: Path) -> Path:
    return rewrite(path, target, lambda state: state["model"].pop("decoder.layers.0.self_attn.k_proj.bias"))


def lacks_embeddings(path: Path, target: Path) -> Path:
    return rewrite(path, target, lambda state: state["model"].pop("encoder.embed_tokens.weight"))


def wider_projection(path: Path, target: Path) -> Path:
    def widen(state: Any) -> None:
        name = "decoder.layers.0.self_attn.k_proj.bias"
        state["model"][name] = torch.cat([state["model"][name]] * 2)

    return rewrite(path, target, widen)


def lacks_gates(path: Path, target: Path) -> Path:
    return rewrite(path, target, lambda state: state["model"].pop("encoder.tasks.gates.weight"))


def older_format(path: Path, target: Path) -> Path:
    return rewrite(path, target, lambda state: vars(state["cfg"]["model"]).pop("taskmoe_format"))


def other_architecture(path: Path, target: Path) -> Path:
    def rename(state: Any) -> None:
        state["cfg"]["model"] = Namespace(arch="someone_elses_moe")

    return rewrite(path, target, rename)


def flags(part: str = "model", **values: Any) -> Any:
    """Gives a checkpoint's flags other values; None: takes a flag out."""

    def spoil(path: Path, target: Path) -> Path:
        def change(state: Any) -> None:
            own = vars(state["cfg"][part])
            own.update(values)
            for name in [name for name, value in values.items() if value is None]:
                del own[name]

        return rewrite(path, target, change)

    spoil.__name__ = f"flags {'-'.join(values)}"
    return spoil


def lacks(part: str) -> Any:
    def spoil(path: Path, target: Path) -> Path:
        return rewrite(path, target, lambda state: state["cfg"].pop(part))

    spoil.__name__ = f"lacks {part}"
    return spoil


def no_model(path: Path, target: Path) -> Path:
    return rewrite(path, target, lambda state: state.update(model=None))


def sparse(path: Path, target: Path) -> Path:
    name = "encoder.layer_norm.weight"
    return rewrite(path, target, lambda state: state["model"].update({name: state["model"][name].to_sparse()}))


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (no_model, "not a fairseq checkpoint"),
        *((lacks(part), "not a fairseq checkpoint") for part in ("task", "criterion", "common")),
        (sparse, "the tensor encoder.layer_norm.weight is sparse"),
        (flags(encoder_layers=10**7), "flags are damaged (--encoder-layers 10000000: give at most 1000"),
        (flags(moe_expert_count="many"), "its flags are damaged ("),
        (flags(taskmoe_format="two"), "its flags are damaged ("),
        (flags(taskmoe_langs=None), "its flags are damaged ("),
        (flags(taskmoe_groups="{", decoder_moe_routing="group"), "its flags are damaged ("),
        (flags(taskmoe_subnet="{"), "its flags are damaged ("),
        (flags(taskmoe_langs="en,de,/tmp/x"), "has a language named '/tmp/x', which is no code"),
        (flags(taskmoe_langs="en,de,.."), "has a language named '..', which is no code"),
        (flags(taskmoe_lang_pairs="en-../x"), "has a language named '../x', which is no code"),
        (truncated, "truncated: its end is missing; copy it again"),
        (corrupted, "damaged ("),
        (foreign_class, "holds Python objects that safe loading refuses"),
        (no_checkpoint, "not a fairseq checkpoint"),
        (plain_pickle, "no PyTorch checkpoint"),
        (text, "no PyTorch checkpoint"),
        (adapters, 'do not fit its flags (Unexpected key(s) in state_dict: "encoder.layers.0.adapter.fc1.weight".)'),
        (lacks_an_expert, 'flags (Missing key(s) in state_dict: "decoder.layers.1.moe.experts.fc2_weight".)'),
        (lacks_a_projection, 'flags (Missing key(s) in state_dict: "decoder.layers.0.self_attn.k_proj.bias".)'),
        (lacks_embeddings, "the tensor encoder.embed_tokens.weight is missing"),
        (wider_projection, "flags (size mismatch for decoder.layers.0.self_attn.k_proj.bias: "),
        (lacks_gates, 'flags (Missing key(s) in state_dict: "encoder.tasks.gates.weight".)'),
        (older_format, "has format 1, of an older version of taskmoe_plugin, and this one reads format 2"),
        (other_architecture, "a checkpoint of someone_elses_moe, not taskmoe_transformer"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_wrong_file_is_refused(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any, expected: str
) -> None:
    path = spoil(full, tmp_path / "spoiled.pt")
    output_dir = tmp_path / "out"
    output_dir.mkdir()
    line = error_of(capsys, output_dir, corpus.bin, path, "en-de")
    assert f"--path {path}: " in line
    assert expected in line


def test_a_missing_file_is_named(corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = error_of(capsys, tmp_path, corpus.bin, "nowhere.pt", "en-de")
    assert line.endswith("--path nowhere.pt: no such file; give a checkpoint_*.pt that training wrote")


def test_a_number_of_experts_that_no_model_has_is_refused(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = rewrite(full, tmp_path / "model.pt", lambda state: setattr(state["cfg"]["model"], "moe_expert_count", 10**9))
    (tmp_path / "out").mkdir()
    assert "its flags say 1000000000 experts" in error_of(capsys, tmp_path / "out", corpus.bin, path, "en-de")


def test_a_dense_checkpoint_is_refused(corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "dense"
    flags = task_flags(corpus, "--task", "translation_multi_simple_epoch", *LANGTOKS, "--arch", "transformer", *SIZES)
    run("train", *flags, "--optimizer", "adam", "--max-tokens", 300, "--max-update", 1, "--save-dir", directory)
    (tmp_path / "out").mkdir()
    line = error_of(capsys, tmp_path / "out", corpus.bin, directory / "checkpoint_last.pt", "en-de")
    assert "a checkpoint of transformer, a dense model, which has no experts" in line


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--moe-freq", 0), "no stack routes by task"),
        (("--encoder-moe-routing", "token", "--decoder-moe-routing", "sentence"), "no stack routes by task"),
    ],
    ids=["no experts", "no tasks"],
)
def test_a_model_without_tasks_is_refused(
    corpus: Corpus, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: Any, expected: str
) -> None:
    path = write_model(corpus, trained / "checkpoint_last.pt", tmp_path / "full.pt", *flags)
    assert expected in error_of(capsys, tmp_path / "out", corpus.bin, path, "en-de")


@pytest.mark.parametrize(("pairs", "lang"), [("en-cs", "cs"), ("en-de,nonsense-en", "nonsense"), ("en-de+pt-de", "pt")])
def test_a_language_that_was_not_trained_is_refused(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], pairs: str, lang: str
) -> None:
    line = error_of(capsys, tmp_path, corpus.bin, full, pairs)
    assert f"does not know the language {lang}; it was trained on en-de,de-en,en-fr,fr-en,de-fr" in line


@pytest.mark.parametrize("pairs", ["fr-de", "en-de+fr-de"])
def test_a_direction_that_the_gates_do_not_know_is_refused(
    corpus: Corpus, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], pairs: str
) -> None:
    path = write_model(corpus, trained / "checkpoint_last.pt", tmp_path / "full.pt", "--decoder-moe-routing", "pair")
    line = error_of(capsys, tmp_path / "out", corpus.bin, path, pairs)
    assert "--lang-pairs fr-de: " in line
    assert "has no experts for it in the decoder, which routes by pair; it was trained on en-de," in line


def test_a_model_has_one_language_token_of_its_own(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = error_of(capsys, tmp_path, corpus.bin, full, "en-de+en-fr", "--format", "ctranslate2")
    assert "puts the same language token before every source, and en-de+en-fr need different ones" in line


def test_a_package_for_argos_has_one_pair() -> None:
    with pytest.raises(TaskMoEError, match="a package has one pair, not de-en\\+fr-en"):
        argos_format.check_supported(["de-en", "fr-en"])


def test_a_subnet_is_no_model_to_extract_from(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subnet = extract(corpus, full, tmp_path / "first", "en-de+de-fr") / "model.pt"
    capsys.readouterr()
    assert "is a subnet already" in error_of(capsys, tmp_path / "second", corpus.bin, subnet, "en-de")


def shortened(corpus: Corpus, data: Path) -> str:
    path = data / "dict.en.txt"
    path.write_text("".join((corpus.bin / "dict.en.txt").read_text().splitlines(keepends=True)[:-3]))
    return f"{path}: has 43 symbols with the language tokens, the checkpoint's embeddings have 46"


def malformed(corpus: Corpus, data: Path) -> str:
    path = data / "dict.en.txt"
    path.write_text("a word without a count\n")
    return f"{path}: line 1 is not 'piece count': 'a word without a count'"


def not_utf8(corpus: Corpus, data: Path) -> str:
    path = data / "dict.en.txt"
    path.write_bytes(b"\xff\xfe 1\n")
    return f"{path}: cannot be read"


def reordered(corpus: Corpus, data: Path) -> str:
    lines = (corpus.bin / "dict.en.txt").read_text().splitlines(keepends=True)
    for lang in ("en", "de"):
        (data / f"dict.{lang}.txt").write_text("".join(reversed(lines)))
    return f"{data / 'dict.en.txt'}: is not the dictionary that the model was trained with; give the DATA_BIN"


def missing(corpus: Corpus, data: Path) -> str:
    return f"{data / 'dict.en.txt'}: no such file; give the DATA_BIN that fairseq-preprocess wrote"


@pytest.mark.parametrize("spoil", [shortened, malformed, not_utf8, reordered, missing], ids=lambda each: each.__name__)
def test_a_dictionary_that_does_not_fit_is_refused(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any
) -> None:
    (tmp_path / "data").mkdir()
    expected = spoil(corpus, tmp_path / "data")
    assert expected in error_of(capsys, tmp_path / "out", tmp_path / "data", full, "en-de")


def test_what_training_did_not_remember_of_dictionaries_must_be_equal_where_one_is_shared(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = rewrite(full, tmp_path / "full.pt", lambda state: forget_dictionaries(state["cfg"]["task"]))
    data = tmp_path / "data"
    data.mkdir()
    lines = (corpus.bin / "dict.en.txt").read_text().splitlines(keepends=True)
    (data / "dict.en.txt").write_text("".join(lines))
    (data / "dict.de.txt").write_text("".join(reversed(lines)))
    line = error_of(capsys, tmp_path / "out", data, path, "en-de")
    assert f"{data}: the dictionaries of en and de differ, and the model has one for both" in line


def test_a_dictionary_that_has_moved_since_training_is_that_of_the_data(
    corpus: Corpus, full: Path, tmp_path: Path
) -> None:
    moved = str(tmp_path / "moved.txt")
    path = rewrite(full, tmp_path / "full.pt", lambda state: setattr(state["cfg"]["task"], "fixed_dictionary", moved))
    assert (extract(corpus, path, tmp_path / "out", "en-de") / "model.pt").exists()


@pytest.mark.parametrize(
    "form", [("--half", "fp16"), ("--format", "ctranslate2", "--quantization", "float16")], ids=lambda form: form[-1]
)
def test_weights_that_half_precision_cannot_hold_are_refused(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: tuple[str, ...]
) -> None:
    path = rewrite(full, tmp_path / "f.pt", lambda state: state["model"]["decoder.layer_norm.weight"].fill_(7e4))
    assert "no finite numbers in float16" in error_of(capsys, tmp_path / "out", corpus.bin, path, "en-de", *form)


def test_data_that_trimming_or_verifying_needs_must_be_there(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for lang in ("en", "de"):
        (data / f"dict.{lang}.txt").write_text((corpus.bin / f"dict.{lang}.txt").read_text())
    line = error_of(capsys, tmp_path / "out", data, full, "en-de", "--trim-vocabulary")
    assert f"{data}: no training data of en-de (train.en-de.en.bin), which --trim-vocabulary needs" in line
    line = error_of(capsys, tmp_path / "out", data, full, "en-de", "--verify")
    assert f"{data}: no test set of en-de; binarise one" in line


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--quantization", "int8"), "--quantization: is for --format ctranslate2"),
        (("--format", "ctranslate2", "--half", "fp16"), "--half: is for --format fairseq"),
        (("--format", "ctranslate2", "--unpadded"), "--unpadded: is for --format fairseq"),
        (("--format", "onnx"), "argument --format: invalid choice: 'onnx'"),
        (("--verify", "many"), "argument --verify"),
        (("--verify", "-3"), "argument --verify"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_flags_that_do_not_go_together_are_wrong_usage(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: Any, expected: str
) -> None:
    assert expected in error_of(capsys, tmp_path, corpus.bin, full, "en-de", *flags, status=2)


@pytest.mark.parametrize("pairs", ["", "en-de,", "en-de++de-en", "en", "en-de,fr", "-"])
def test_pairs_that_are_no_pairs_are_wrong_usage(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], pairs: str
) -> None:
    assert "give pairs such as en-de,en-fr, or all" in error_of(capsys, tmp_path, corpus.bin, full, pairs, status=2)


def test_a_directory_with_something_in_it_is_left_alone(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "en-de"
    directory.mkdir()
    (directory / "model.pt").write_text("precious")
    line = error_of(capsys, tmp_path, corpus.bin, full, "de-en,en-de")
    assert f"{directory}: exists and is not empty; give --force to replace it" in line
    assert (directory / "model.pt").read_text() == "precious"
    extract(corpus, full, tmp_path, "en-de", "--force")
    assert sorted(path.name for path in directory.iterdir()) == [
        "README.md",
        "dict.de.txt",
        "dict.en.txt",
        "model.pt",
        "subnet.json",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["en-de"]


def test_an_empty_directory_is_used_and_a_file_in_its_place_refused(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "en-de").mkdir()
    extract(corpus, full, tmp_path, "en-de")
    capsys.readouterr()
    (tmp_path / "de-en").write_text("")
    assert "exists and is no directory" in error_of(capsys, tmp_path, corpus.bin, full, "de-en", "--force")


def test_what_was_there_stays_when_replacing_it_fails(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = extract(corpus, full, tmp_path, "en-de")
    before = (directory / "subnet.json").read_text()
    capsys.readouterr()

    def full_disk(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(extraction, "write_json", full_disk)
    line = error_of(capsys, tmp_path, corpus.bin, full, "en-de", "--force")
    assert f"{directory}: cannot be written (No space left on device); nothing was kept of it" in line
    assert (directory / "subnet.json").read_text() == before


EXTRACT = "import sys; from taskmoe_plugin.cli.extract_subnet import main; main(sys.argv[1:])"


@pytest.mark.parametrize("form", [("--format", "fairseq"), ("--format", "ctranslate2")], ids=lambda form: form[1])
def test_running_out_of_space_leaves_nothing(corpus: Corpus, full: Path, tmp_path: Path, form: tuple[str, ...]) -> None:
    # No file may grow beyond 20 kB, as on a disk that is full by then.
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EXTRACT, str(corpus.bin), "--path", str(full), "--lang-pairs", "en-de",
         "--output-dir", str(tmp_path), *form],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode == 1
    [line] = [line for line in result.stderr.splitlines() if "error: " in line]
    assert f"{tmp_path / 'en-de'}: cannot be written" in line
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_an_interrupted_run_leaves_nothing(corpus: Corpus, full: Path, tmp_path: Path, kind: signal.Signals) -> None:
    # Verification is where most of the time goes; here it never ends.
    script = f"""
import time
from taskmoe_plugin.subnet import extract
extract.Verifier.verify = lambda *args: (print("verifying", flush=True), time.sleep(60))
{EXTRACT}"""
    argv = [corpus.bin, "--path", full, "--lang-pairs", "en-de", "--output-dir", tmp_path, "--verify"]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script, *map(str, argv)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background, a shell has them ignore SIGINT, which children inherit.
        preexec_fn=partial(signal.signal, kind, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "verifying\n"
    assert [path.name.startswith(".en-de") for path in tmp_path.iterdir()] == [True]
    process.send_signal(kind)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "interrupted; the unfinished subnet was not kept" in errors
    assert "Traceback" not in errors
    assert not list(tmp_path.iterdir())
