"""A checkpoint, pair or flag that is wrong ends in one clear line and its status, with nothing written."""

from __future__ import annotations

import pickle
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.subnet import argos_format
from tests.helpers.commands import run
from tests.helpers.corpus import Corpus
from tests.helpers.tasks import LANGTOKS, task_flags
from tests.helpers.training import SIZES
from tests.subnet.helpers import error_of, extract, load, rewrite, write_model


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
    assert f"does not know the language {lang}; it was trained on en-de, de-en, en-fr, fr-en, de-fr" in line


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
