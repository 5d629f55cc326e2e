"""What all conversions have in common."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from taskmoe_plugin.cli.conversions.common import add_conversion
from taskmoe_plugin.convert.conversion import Converted, run_conversion
from taskmoe_plugin.convert.source import Source
from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.subnet.scratch import Scratch
from tests.convert.checkpoints import load, write_checkpoint
from tests.helpers.models import model_args

NAME = "encoder.layers.1.moe.experts.fc2_weight"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    args = model_args(moe_expert_count=4, share_all_embeddings=True)
    return write_checkpoint(tmp_path_factory.mktemp("before") / "model.pt", args)


def turn_round(source: Source, scratch: Scratch) -> Converted:
    """Experts of one tensor in the opposite order: all that a conversion does."""
    model = {name: source.kept(name, scratch) for name in source.tensors.names()}
    model[NAME] = scratch.stack((source.tensors.expert(NAME, expert) for expert in (3, 2, 1, 0)), 4)
    return Converted(source.cfg, model, "turned 1 tensor round")


def test_what_is_converted_changes_and_all_else_stays(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "after.pt"
    line = run_conversion(checkpoint, output, False, turn_round)
    before, after = load(checkpoint), load(output)
    assert torch.equal(after["model"].pop(NAME), before["model"].pop(NAME).flip(0))
    torch.testing.assert_close(after["model"], before["model"], rtol=0, atol=0)
    assert vars(after["cfg"]["model"]) == vars(before["cfg"]["model"])
    assert after["optimizer_history"] == before["optimizer_history"]
    # Of weights that are not these any more.
    assert after["last_optimizer_state"] is None
    assert after["extra_state"] == {"train_iterator": {"epoch": 2}}
    count = len(before["model"])
    assert line.startswith(f"{output}: turned 1 tensor round; {count} tensors stay, 1 became 1; weights of ")
    assert [path.name for path in tmp_path.iterdir()] == ["after.pt"]


def test_shared_weights_stay_shared(checkpoint: Path, tmp_path: Path) -> None:
    run_conversion(checkpoint, tmp_path / "after.pt", False, turn_round)
    model = load(tmp_path / "after.pt")["model"]
    assert model["decoder.output_projection.weight"].data_ptr() == model["encoder.embed_tokens.weight"].data_ptr()


@pytest.mark.parametrize("change", ["missing", "added", "other shape"])
def test_what_fairseq_would_not_load_is_not_written(checkpoint: Path, tmp_path: Path, change: str) -> None:
    def spoil(source: Source, scratch: Scratch) -> Converted:
        model = {name: source.kept(name, scratch) for name in source.tensors.names()}
        if change == "missing":
            del model[NAME]
        elif change == "added":
            model["encoder.adapter"] = torch.ones(1)
        else:
            model[NAME] = model[NAME][:2]
        return Converted(source.cfg, model, "")

    with pytest.raises(TaskMoEError, match=r"do not fit its flags .*(experts\.fc2_weight|adapter)"):
        run_conversion(checkpoint, tmp_path / "after.pt", False, spoil)
    assert not list(tmp_path.iterdir())


def test_a_file_is_replaced_only_if_asked_also_by_itself(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(checkpoint.read_bytes())
    with pytest.raises(TaskMoEError, match="exists; give --force"):
        run_conversion(path, path, False, turn_round)
    run_conversion(path, path, True, turn_round)
    assert torch.equal(load(path)["model"][NAME], load(checkpoint)["model"][NAME].flip(0))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"no checkpoint", "is no PyTorch checkpoint"),
        ({"model": 1}, "no checkpoint of fairseq"),
        ({"model": {}, "cfg": None}, "does not say what model it is"),
        ({"model": {}, "cfg": {"model": Namespace(arch="lstm"), "task": None}}, "a checkpoint of lstm; give"),
        ({"model": {}, "cfg": {"model": Namespace(arch="taskmoe_transformer"), "task": None}}, "has format 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "model.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(TaskMoEError, match=message) as error:
        run_conversion(path, tmp_path / "after.pt", False, turn_round)
    assert str(error.value).startswith(str(path))


def test_a_checkpoint_of_an_old_fairseq_has_its_flags_in_one_namespace(tmp_path: Path) -> None:
    args = model_args("transformer", task="translation", source_lang="en", target_lang="de")
    path = write_checkpoint(tmp_path / "model.pt", args, args=args, cfg=None)
    source = Source.open(path)
    assert source.is_dense
    assert source.cfg["model"].encoder_layers == 2
    assert source.cfg["task"].source_lang == "en"


def test_a_conversion_has_the_common_flags_and_names_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    from argparse import ArgumentParser

    conversions = ArgumentParser().add_subparsers()
    parser = add_conversion(conversions, "turn", "turn round", "Turn round (Somebody 2020).", lambda args: turn_round)
    assert "Somebody 2020" in parser.format_help()
    for flag in ("CKPT", "--output FILE", "--force"):
        assert flag in parser.format_help()
