"""``--task-low-rank``: starts as the model without it; each row goes by its own pair, however it is computed."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator

from taskmoe_plugin.errors import UsageError
from taskmoe_plugin.moe import LowRankLinear, low_rank
from tests.helpers.models import PAIRS, StubTask, build_model, dictionary, kept, net_input, rows

PLAIN = ("src_tokens", "src_lengths", "prev_output_tokens")
# The stock model's modules, and how many linear maps of 2 + 2 layers get matrices.
DENSE = {"moe_freq": 0, "task_low_rank": 3}
MAPS = 2 * 6 + 2 * 10
MIXED = {"moe_freq": 2, "moe_expert_count": 4, "task_low_rank": 3}
BY_LANGUAGE = {**DENSE, "task_low_rank_by": "language"}
TOKEN = {**MIXED, "encoder_moe_routing": "token", "decoder_moe_routing": "token"}
KINDS = pytest.mark.parametrize(
    "flags", [DENSE, MIXED, TOKEN, BY_LANGUAGE], ids=["dense", "with experts", "token", "by language"]
)


def low_rank_name(name: str) -> bool:
    return ".low_rank_" in name


def build(**flags: Any) -> Any:
    """A model whose low-rank matrices have learnt something."""
    model = build_model(**flags).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if low_rank_name(name):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def outputs_and_gradients(model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(5)
    output = torch.cat(kept(model(**batch)[0], batch))
    model.zero_grad()
    output.square().sum().backward()
    return output, {name: each.grad for name, each in model.named_parameters()}


@pytest.mark.parametrize("training", [False, True])
def test_at_the_start_it_is_the_stock_transformer(training: bool) -> None:
    model = build_model(**DENSE).double().train(training)
    dense = build_model("transformer").double().train(training)
    assert sum(isinstance(each, LowRankLinear) for each in model.modules()) == MAPS
    # With the same seed, also the same weights.
    own = {name: each for name, each in model.state_dict().items() if not low_rank_name(name)}
    torch.testing.assert_close(own, dict(dense.state_dict()), rtol=0, atol=0)
    batch = net_input(rows())
    output, gradients = outputs_and_gradients(model, batch)
    expected, expected_gradients = outputs_and_gradients(dense, {name: batch[name] for name in PLAIN})
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    found = {name: each for name, each in gradients.items() if not low_rank_name(name)}
    torch.testing.assert_close(found, expected_gradients, rtol=1e-9, atol=1e-11)


def test_a_model_with_experts_starts_as_without_it_too() -> None:
    model, without = build_model(**MIXED), build_model(**{**MIXED, "task_low_rank": 0})
    own = {name: each for name, each in model.state_dict().items() if not low_rank_name(name)}
    torch.testing.assert_close(own, dict(without.state_dict()), rtol=0, atol=0)
    batch = net_input(rows())
    torch.testing.assert_close(model(**batch)[0], without(**batch)[0])
    # Experts keep to what their gates say.
    assert not any(low_rank_name(name) and "layers.1.fc" in name for name in model.state_dict())


def folded_by_hand(model: Any, pair: str, by: str) -> dict[str, torch.Tensor]:
    """The stock model's weights for a pair."""
    state = model.state_dict()
    languages = [("en", "de", "fr").index(lang) for lang in pair.split("-")]
    for name in [name for name in state if name.endswith("low_rank_source")]:
        stem = name.removesuffix("low_rank_source")
        of_stack = [languages[name.startswith("decoder.")]] * 2
        source, target = languages if by == "pair" else of_stack
        addition = state.pop(name)[source] @ state.pop(stem + "low_rank_target")[target]
        state[stem + "weight"] = state[stem + "weight"] + addition
    return dict(state)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm", [False, True], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("by", ["pair", "language"])
def test_each_row_goes_by_its_own_pair(training: bool, norm: bool, by: str) -> None:
    norms = {"encoder_normalize_before": norm, "decoder_normalize_before": norm}
    model = build(**DENSE, task_low_rank_by=by, **norms).train(training)
    # fr-de was not trained, but both languages were.
    batch = net_input(rows(12, pairs=(*PAIRS, "fr-de")))
    found = model(**batch)[0]
    dense = build_model("transformer", **norms).double().train(training)
    for index, pair in enumerate((*PAIRS, "fr-de")):
        dense.load_state_dict(folded_by_hand(model, pair, by))
        own = {name: batch[name] for name in PLAIN}
        expected = dense(**own)[0]
        mask = batch["prev_output_tokens"].ne(dictionary().pad())
        for row in (index, index + 6):
            torch.testing.assert_close(found[row][mask[row]], expected[row][mask[row]])


@KINDS
def test_a_batch_of_one_pair_is_folded_in_evaluation_and_gives_the_same(flags: dict[str, Any]) -> None:
    model = build(**flags)
    batch = net_input(rows(3, pairs=["en-de"]), extra=1)
    # Row by row in training: no dropout.
    folded, by_row = (kept(model.train(training)(**batch)[0], batch) for training in (False, True))
    torch.testing.assert_close(folded, by_row, atol=1e-6, rtol=1e-6)


@KINDS
@pytest.mark.parametrize("pairs", [["en-de"], list(PAIRS)], ids=["one pair", "several"])
def test_step_by_step_and_reordered_it_gives_what_it_gives_at_once(flags: dict[str, Any], pairs: list[str]) -> None:
    model = build(**flags)
    batch = net_input(rows(pairs=pairs), left=False)
    prefixes = batch.pop("prev_output_tokens")
    prefixes[prefixes.eq(dictionary().pad())] = 7
    order = torch.tensor([4, 4, 2, 0])
    with torch.no_grad():
        encoder_out = model.encoder(**batch)
        at_once, _ = model.decoder(prefixes, encoder_out)
        state: dict = {}
        for step in range(1, prefixes.size(1)):
            found, _ = model.decoder(prefixes[:, :step], encoder_out, state)
            torch.testing.assert_close(found[:, -1], at_once[:, step - 1], atol=1e-6, rtol=1e-5)
        model.decoder.reorder_incremental_state_scripting(state, order)
        encoder_out = model.encoder.reorder_encoder_out(encoder_out, order)
        found, _ = model.decoder(prefixes[order], encoder_out, state)
    torch.testing.assert_close(found[:, -1], at_once[order, -1], atol=1e-6, rtol=1e-5)


@KINDS
def test_a_pair_is_folded_once_for_a_batch_and_not_for_each_step(flags: dict[str, Any], monkeypatch: Any) -> None:
    model = build(**flags).float()
    folded: list[int] = []
    fold = low_rank.fold_low_rank
    monkeypatch.setattr(low_rank, "fold_low_rank", lambda *args: folded.append(1) or fold(*args))
    generator = SequenceGenerator([model], dictionary(), beam_size=3, max_len_b=8, min_len=6)
    maps = sum(isinstance(each, LowRankLinear) for each in model.modules())
    for pairs, expected in ((["en-de"], maps), (list(PAIRS), maps)):
        inputs = net_input(rows(5, pairs=pairs))
        del inputs["prev_output_tokens"]
        generator.generate([model], {"net_input": inputs})
        assert len(folded) == expected


@KINDS
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointed_activations_change_nothing(flags: dict[str, Any], dropout: float) -> None:
    batch = net_input(rows(), extra=1)
    dropouts = {"dropout": dropout, "activation_dropout": dropout, "attention_dropout": dropout}
    passes, found = [], []
    for checkpointed in (False, True):
        model = build(checkpoint_activations=checkpointed, **flags, **dropouts).train()
        model.encoder.layers[0].fc1.register_forward_pre_hook(lambda *_: passes.append(1))
        found.append(outputs_and_gradients(model, batch))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=0, atol=0)
    torch.testing.assert_close(found[1][1], found[0][1])
    assert len(passes) == 1 + 2


@KINDS
def test_every_matrix_has_a_gradient_also_where_a_batch_leaves_languages_out(flags: dict[str, Any]) -> None:
    model = build(**flags).train()
    _, gradients = outputs_and_gradients(model, net_input(rows(3, pairs=["en-de"])))
    matrices = {name: each for name, each in gradients.items() if low_rank_name(name)}
    for name, gradient in matrices.items():
        # Of en-de, German is the target's factor; by language, both factors of the decoder are.
        german = name.startswith("decoder.") if flags is BY_LANGUAGE else name.endswith("target")
        used = 1 if german else 0
        assert [bool(each.any()) for each in gradient] == [index == used for index in range(3)], name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype: torch.dtype) -> None:
    model, batch = build(**MIXED), net_input(rows())
    exact = torch.cat(kept(model(**batch)[0], batch))
    half = deepcopy(model).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        automatic = torch.cat(kept(model.float()(**batch)[0], batch))
    for found in (torch.cat(kept(half(**batch)[0], batch)), automatic):
        assert (found.double() - exact).abs().mean() < 0.03 * exact.abs().max()
    torch.cat(kept(half.train()(**batch)[0], batch)).float().square().sum().backward()
    for name, parameter in half.named_parameters():
        if low_rank_name(name):
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("experts", [False, True])
def test_it_begins_with_a_model_that_has_none(experts: bool) -> None:
    flags = {"moe_freq": 2, "moe_expert_count": 4} if experts else {"moe_freq": 0}
    trained, model = build_model(seed=7, **flags), build_model(task_low_rank=3, **flags)
    model.load_state_dict(trained.state_dict())
    batch = net_input(rows())
    torch.testing.assert_close(model(**batch)[0], trained(**batch)[0])
    learnt = build(task_low_rank=3, **flags)
    model.load_state_dict(learnt.state_dict())
    torch.testing.assert_close(model.state_dict(), learnt.float().state_dict())


def test_without_language_ids_it_says_what_is_missing() -> None:
    batch = net_input(rows(3))
    del batch["src_lang_id"]
    with pytest.raises(ValueError, match="--source-lang and --target-lang"):
        build(**DENSE)(**batch)


def test_a_language_that_was_never_trained_on_its_side_is_refused() -> None:
    model = build_model(task=StubTask(pairs=["en-de", "de-fr"]), **DENSE)
    model.check_pair("en", "fr")
    with pytest.raises(UsageError, match=r"--source-lang fr: the low-rank matrices know only .* en, de"):
        model.check_pair("fr", "de")
    with pytest.raises(UsageError, match=r"--target-lang en: .* de, fr"):
        model.check_pair("de", "en")


@pytest.mark.parametrize("pairs", [("en-de", "en-fr"), ("en-fr", "de-fr")], ids=["one source", "one target"])
def test_rows_that_share_one_of_their_languages_have_the_other_of_their_own(pairs: tuple[str, ...]) -> None:
    model = build(**DENSE).eval()
    batch = rows(4, pairs=pairs)
    together = kept(model(**net_input(batch))[0], net_input(batch))
    for row, found in zip(batch, together, strict=True):
        alone = net_input([row])
        torch.testing.assert_close(found, *kept(model(**alone)[0], alone), rtol=1e-9, atol=1e-9)


def test_attention_has_its_dropout() -> None:
    model, batch = build_model(**DENSE, attention_dropout=0.5).train(), net_input(rows())
    assert not torch.equal(model(**batch)[0], model(**batch)[0])
    model.eval()
    assert torch.equal(model(**batch)[0], model(**batch)[0])
