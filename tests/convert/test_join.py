"""The experts of two models in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from taskmoe_plugin.cli.main import main
from taskmoe_plugin.convert import join as joining
from tests.convert.checkpoints import load
from tests.helpers.corpus import Corpus
from tests.helpers.training import generate, train
from tests.subnet.helpers import DEFAULT, rewrite, write_model

FLAGS = (*DEFAULT, "--encoder-moe-routing", "token")


@pytest.fixture(scope="module")
def models(corpus: Corpus, template: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models whose encoders route by token, their decoders by task."""
    directory = tmp_path_factory.mktemp("models")
    return [write_model(corpus, template, directory / f"{seed}.pt", *FLAGS, seed=seed) for seed in (1, 2)]


def join(output: Path, *paths: Path) -> Path:
    main(["convert", "join", *map(str, paths), "--output", str(output)])
    return output


@pytest.mark.parametrize("block", [1, 1000, joining.BLOCK])
def test_experts_are_side_by_side_and_all_else_is_the_mean(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(joining, "BLOCK", block)
    joined = load(join(tmp_path / "joined.pt", *models))
    one, other = (load(path)["model"] for path in models)
    assert joined["cfg"]["model"].moe_expert_count == 8
    dimensions = {
        "encoder.layers.1.moe.experts.fc1_weight": 0, "encoder.layers.1.moe.router.gate.weight": 0,
        "decoder.layers.1.moe.experts.fc2_bias": 0, "decoder.tasks.gates.weight": 1,
        "decoder.tasks.gates.head_start": 1,
    }  # fmt: skip
    for name, dimension in dimensions.items():
        assert torch.equal(joined["model"][name], torch.cat([one[name], other[name]], dim=dimension))
    shared = [name for name in one if ".moe." not in name and name not in dimensions]
    assert "decoder.tasks.gates.embedding" in shared
    for name in shared:
        assert torch.allclose(joined["model"][name], (one[name] + other[name]) / 2), name
    flat = [torch.cat([each[name].flatten().double() for name in shared if "output" not in name and
            name != "decoder.embed_tokens.weight"]) for each in (one, other)]  # fmt: skip
    cosine = torch.nn.functional.cosine_similarity(*flat, dim=0)
    assert f"the cosine of the other weights is {cosine:.3f};" in capsys.readouterr().out


def test_a_joined_model_translates_and_trains_on(corpus: Corpus, models: list[Path], tmp_path: Path) -> None:
    path = join(tmp_path / "joined.pt", *models)
    assert len(generate(corpus, path, "en-fr").hypotheses) == 3
    flags = (*FLAGS, "--moe-expert-count", 8, "--finetune-from-model", path, "--max-update", 1)
    train(corpus, tmp_path / "further", *flags, "--disable-validation", "--no-epoch-checkpoints")
    after = load(tmp_path / "further" / "checkpoint_last.pt")["model"]
    name = "encoder.layers.1.moe.router.gate.weight"
    assert after[name].shape == (8, 16)
    assert not torch.equal(after[name], load(path)["model"][name])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((*DEFAULT,), "encoder_moe_routing, which are token and source"),
        ((*FLAGS, "--moe-expert-count", 6), "moe_expert_count, which are 4 and 6"),
        ((*FLAGS, "--moe-expert-ffn-dim", 12), "in the shape of "),
        ((*FLAGS, "--moe-top-k", 1), "moe_top_k, which are 2 and 1"),
        ((*FLAGS, "--moe-route-scale", 2), "moe_route_scale, which are 1.0 and 2.0"),
        ((*FLAGS, "--moe-threshold", 0.5), "moe_threshold, which are 0.0 and 0.5"),
        ((*FLAGS, "--moe-language-experts", 2), "moe_language_experts, which are 0 and 2"),
        ((*FLAGS, "--moe-dense-training"), "moe_dense_training, which are False and True"),
        ((*FLAGS, "--moe-expert-bits", 8), "moe_expert_bits, which are None and 8"),
        ((*FLAGS, "--encoder-attention-heads", 4), "encoder_attention_heads, which are 2 and 4"),
        ((*FLAGS, "--no-scale-embedding"), "no_scale_embedding, which are False and True"),
        ((*FLAGS, "--activation-fn", "gelu"), "activation_fn, which are relu and gelu"),
        (FLAGS[1:], "encoder_normalize_before, which are True and False"),
        ((*DEFAULT, "--moe-combine", "weights"), "its gates choose no experts"),
        ((*FLAGS, "--moe-freq", 0), "is dense; upcycle it first"),
        ((*FLAGS, "--moe-task-gate", "static"), "its gates choose no experts"),
    ],
)
def test_models_of_other_flags_are_refused(
    corpus: Corpus, template: Path, models: list[Path], tmp_path: Path, capsys: Any, flags: Any, message: str
) -> None:
    other = write_model(corpus, template, tmp_path / "other.pt", *flags)
    with pytest.raises(SystemExit) as stopped:
        join(tmp_path / "joined.pt", models[0], other)
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert str(other) in error
    assert message in error
    assert not (tmp_path / "joined.pt").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cfg: setattr(cfg["model"], "taskmoe_langs", "en,fr,de"), "taskmoe_langs, which are en,de,fr and en,fr"),
        (
            lambda cfg: setattr(cfg["model"], "taskmoe_lang_pairs", "de-en,en-de,en-fr,fr-en,de-fr"),
            "taskmoe_lang_pairs, which are en-de,de-en,en-fr,fr-en,de-fr and de-en,en-de,en-fr,fr-en,de-fr",
        ),
        (lambda cfg: setattr(cfg["model"], "taskmoe_groups", '{"en-de": "x"}'), "taskmoe_groups, which are"),
        (lambda cfg: cfg["task"].taskmoe_trained["dictionaries"].update(source="other"), "in their dictionaries"),
        (lambda cfg: cfg["task"].taskmoe_trained.update(encoder_langtok="src"), "encoder_langtok, which are tgt and"),
    ],
)
def test_models_of_other_languages_and_dictionaries_are_refused(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, message: str
) -> None:
    other = rewrite(models[1], tmp_path / "other.pt", lambda state: change(state["cfg"]))
    with pytest.raises(SystemExit):
        join(tmp_path / "joined.pt", models[0], other)
    assert message in capsys.readouterr().err
