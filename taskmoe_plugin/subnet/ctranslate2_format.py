"""Writing a subnet as a CTranslate2 model, straight from its weights."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from fairseq.modules import SinusoidalPositionalEmbedding
from torch import Tensor

from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.subnet.plan import Plan
from taskmoe_plugin.subnet.vocabulary import Vocabularies, Vocabulary
from taskmoe_plugin.subnet.weights import Read, Recipe

if TYPE_CHECKING:
    from ctranslate2.specs import TransformerSpec
    from ctranslate2.specs.model_spec import Variable

# fairseq's names of activation functions, and those of CTranslate2's Activation.
ACTIVATIONS = {
    "relu": "RELU",
    "gelu": "GELU",
    "gelu_accurate": "GELUTanh",
    "gelu_fast": "GELUTanh",
    "swish": "SWISH",
    "tanh": "Tanh",
}


def check_supported(plan: Plan, args: Namespace, task: Namespace, format: str) -> None:
    """Refuse what CTranslate2 cannot compute.

    Args:
        plan: what becomes of the model.
        args, task: the full model's arguments and its task's.
        format: the format asked for, of which CTranslate2's is a part.

    Raises:
        TaskMoEError: the model has something that CTranslate2 lacks, or the package is not installed.
    """
    try:
        import ctranslate2  # noqa: F401
    except ImportError:
        raise TaskMoEError(f"--format {format}: needs a package that is not here; pip install ctranslate2") from None
    reasons = {
        "the low-rank matrices that a subnet of several pairs keeps": plan.keeps_matrices,
        "MoE layers, which this subnet keeps": not plan.dense,
        f"--activation-fn {args.activation_fn}": args.activation_fn not in ACTIVATIONS,
        "--no-token-positional-embeddings": args.no_token_positional_embeddings,
        "--adaptive-softmax-cutoff": args.adaptive_softmax_cutoff is not None,
        "--no-cross-attention": args.no_cross_attention,
        "--cross-self-attention": args.cross_self_attention,
        "--lang-tok-replacing-bos-eos": task.lang_tok_replacing_bos_eos,
        "embeddings of another width than the decoder's": {args.decoder_input_dim, args.decoder_output_dim}
        != {args.decoder_embed_dim},
    }
    for reason, found in reasons.items():
        if found:
            raise TaskMoEError(f"--format {format}: CTranslate2 does not support {reason}; use --format fairseq")


def write_model(
    directory: Path,
    args: Namespace,
    recipes: Mapping[str, Recipe],
    read: Read,
    vocabularies: Vocabularies,
    source_prefix: Sequence[str],
    quantization: str,
) -> None:
    """Write the files of a CTranslate2 model: ``model.bin``, ``config.json``, vocabularies.

    Weights are read one after the other, as they are written.

    Args:
        directory: where to; it exists.
        args: the full model's arguments.
        recipes: the tensors of a subnet without MoE layers, by name; each layer has its own width.
        read: reads the full model's tensors.
        vocabularies: the dictionaries.
        source_prefix: what sources begin with, at most one language token, which CTranslate2 will add.
        quantization: one of ``QUANTIZATIONS``.
    """
    spec = _Builder(args, recipes, read).build()
    for register, vocabulary in (
        (spec.register_source_vocabulary, vocabularies.source),
        (spec.register_target_vocabulary, vocabularies.target),
    ):
        register(_tokens(vocabulary))
    # fairseq's decoders begin with </s>, and its sources end with it.
    spec.config.decoder_start_token = spec.config.eos_token
    spec.config.add_source_eos = True
    for token in source_prefix:
        spec.config.bos_token = token
        spec.config.add_source_bos = True
    spec.validate()
    spec.optimize(quantization=quantization)
    spec.save(str(directory))


def _tokens(vocabulary: Vocabulary) -> list[str]:
    return ["<blank>" if symbol == "<pad>" else symbol for symbol in vocabulary.symbols]


class _Builder:
    """Fills the specification of a Transformer."""

    def __init__(self, args: Namespace, recipes: Mapping[str, Recipe], read: Read) -> None:
        self.args = args
        self.recipes = recipes
        self.read = read
        self.made: dict[Recipe, Variable] = {}

    def build(self) -> TransformerSpec:
        from ctranslate2.specs import TransformerSpec, common_spec, transformer_spec

        activation = getattr(common_spec.Activation, ACTIVATIONS[self.args.activation_fn])
        common = {"activation": activation, "layernorm_embedding": self.args.layernorm_embedding}
        stacks = []
        for name, kind in (
            ("encoder", transformer_spec.TransformerEncoderSpec),
            ("decoder", transformer_spec.TransformerDecoderSpec),
        ):
            stacks.append(
                kind(
                    self._arg(name, "layers"),
                    self._arg(name, "attention_heads"),
                    pre_norm=self._arg(name, "normalize_before"),
                    no_final_norm=f"{name}.layer_norm.weight" not in self.recipes,
                    **common,
                )
            )
        encoder, decoder = stacks
        self._fill_stack(encoder, "encoder", encoder.embeddings[0])
        self._fill_stack(decoder, "decoder", decoder.embeddings)
        self._linear(decoder.projection, "decoder.output_projection")
        return TransformerSpec(encoder, decoder)

    def _arg(self, stack: str, name: str) -> Any:
        return getattr(self.args, f"{stack}_{name}")

    def _fill_stack(self, spec: Any, name: str, embeddings: Any) -> None:
        embeddings.weight = self._tensor(f"{name}.embed_tokens.weight")
        spec.scale_embeddings = not self.args.no_scale_embedding
        spec.position_encodings.encodings = self._positions(name)
        for norm in ("layer_norm", "layernorm_embedding"):
            if f"{name}.{norm}.weight" in self.recipes:
                self._norm(getattr(spec, norm), f"{name}.{norm}")
        for index, layer in enumerate(spec.layer):
            self._fill_layer(layer, f"{name}.layers.{index}.")

    def _fill_layer(self, spec: Any, prefix: str) -> None:
        self._attention(spec.self_attention, prefix + "self_attn", fused=("qkv",))
        self._norm(spec.self_attention.layer_norm, prefix + "self_attn_layer_norm")
        if hasattr(spec, "attention"):
            self._attention(spec.attention, prefix + "encoder_attn", fused=("q", "kv"))
            self._norm(spec.attention.layer_norm, prefix + "encoder_attn_layer_norm")
        self._linear(spec.ffn.linear_0, prefix + "fc1")
        self._linear(spec.ffn.linear_1, prefix + "fc2")
        self._norm(spec.ffn.layer_norm, prefix + "final_layer_norm")

    def _attention(self, spec: Any, prefix: str, fused: tuple[str, ...]) -> None:
        for linear, letters in zip(spec.linear, fused):
            for part in ("weight", "bias"):
                setattr(linear, part, self._stacked([f"{prefix}.{letter}_proj.{part}" for letter in letters]))
        self._linear(spec.linear[-1], prefix + ".out_proj")

    def _linear(self, spec: Any, prefix: str) -> None:
        spec.weight = self._tensor(prefix + ".weight")
        if prefix + ".bias" in self.recipes:
            spec.bias = self._tensor(prefix + ".bias")

    def _norm(self, spec: Any, prefix: str) -> None:
        spec.gamma = self._tensor(prefix + ".weight")
        spec.beta = self._tensor(prefix + ".bias")

    def _positions(self, stack: str) -> Tensor | Variable:
        # fairseq counts positions from the padding index on; CTranslate2 from 0.
        first = 2
        learned = f"{stack}.embed_positions.weight"
        if learned in self.recipes:
            recipe = self.recipes[learned]
            shape = torch.Size((recipe.shape[0] - first, *recipe.shape[1:]))
            return self._variable(Recipe(shape, lambda read: recipe.make(read)[first:]))
        side = {"encoder": "source", "decoder": "target"}[stack]
        positions = getattr(self.args, f"max_{side}_positions")
        width = self._arg(stack, "embed_dim")
        table: Tensor = SinusoidalPositionalEmbedding.get_embedding(positions + first, width, padding_idx=first - 1)
        return table[first:]

    def _tensor(self, name: str) -> Variable:
        # Tensors that share weights are one variable.
        recipe = self._recipe(name)
        if recipe not in self.made:
            self.made[recipe] = self._variable(recipe)
        return self.made[recipe]

    def _stacked(self, names: Sequence[str]) -> Variable:
        parts = [self._recipe(name) for name in names]
        shape = torch.Size((sum(part.shape[0] for part in parts), *parts[0].shape[1:]))
        return self._variable(Recipe(shape, lambda read: torch.cat([part.make(read) for part in parts])))

    def _recipe(self, name: str) -> Recipe:
        if name not in self.recipes:
            self.read(name)  # raises what there is to say of a tensor that the checkpoint lacks
        return self.recipes[name]

    def _variable(self, recipe: Recipe) -> Variable:
        from taskmoe_plugin.subnet.ctranslate2_variables import ReadWhenNeeded

        return ReadWhenNeeded(recipe.shape, partial(recipe.make, self.read))
