"""``taskmoe_transformer`` and its sizes."""

from __future__ import annotations

import logging
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from typing import Any

from fairseq.models import register_model, register_model_architecture
from fairseq.models.transformer import TransformerConfig, TransformerModel
from fairseq.models.transformer import base_architecture as dense_architecture
from torch import Tensor, nn

from taskmoe_plugin.errors import UsageError, listed
from taskmoe_plugin.models.config import (
    STACKS,
    add_low_rank_args,
    add_moe_args,
    check_args,
    remember_languages,
    set_moe_defaults,
)
from taskmoe_plugin.models.continuing import check_languages
from taskmoe_plugin.models.decoder import TaskMoEDecoder
from taskmoe_plugin.models.encoder import TaskMoEEncoder
from taskmoe_plugin.models.low_rank import add_missing
from taskmoe_plugin.models.packed_experts import keep_packed, unpack_state
from taskmoe_plugin.models.task_table import split_pair
from taskmoe_plugin.models.upcycling import upcycle_state
from taskmoe_plugin.parallel.command_line import correct_flags
from taskmoe_plugin.parallel.group import ExpertGroup

logger = logging.getLogger(__name__)


@register_model("taskmoe_transformer")
class TaskMoETransformerModel(TransformerModel):
    """Transformer whose every n-th feed-forward network is a mixture of experts (TaskMoE, Kudugunta et al. 2021).

    Each stack routes by its own unit: the source language, target language, pair or group of pairs of a row (given
    as language ids in ``net_input``), the sentence, or the token.

    Attributes:
        keeps_packed: whether quantised experts that are loaded stay as they are, for translating.
    """

    keeps_packed = False

    @classmethod
    def add_args(cls, parser: ArgumentParser) -> None:
        super().add_args(parser)
        add_moe_args(parser)
        add_low_rank_args(parser)

    @classmethod
    def build_model(cls, args: Namespace, task: Any) -> TaskMoETransformerModel:
        """Build the model, or raise ``UsageError`` if its flags cannot work."""
        _set_defaults(args)
        if not hasattr(task, "routed_pairs"):
            raise UsageError("--task: taskmoe_transformer needs language ids; use --task taskmoe_translation")
        check_args(args)
        remember_languages(args, task.langs, task.routed_pairs)
        return super().build_model(args, task)  # type: ignore[no-any-return]

    @classmethod
    def build_encoder(cls, args: Any, src_dict: Any, embed_tokens: nn.Embedding) -> TaskMoEEncoder:
        return TaskMoEEncoder(TransformerConfig.from_namespace(args), src_dict, embed_tokens)

    @classmethod
    def build_decoder(cls, args: Any, tgt_dict: Any, embed_tokens: nn.Embedding) -> TaskMoEDecoder:
        cfg = TransformerConfig.from_namespace(args)
        return TaskMoEDecoder(cfg, tgt_dict, embed_tokens, no_encoder_attn=cfg.no_cross_attention)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor,
        prev_output_tokens: Tensor,
        return_all_hiddens: bool = True,
        features_only: bool = False,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
        src_lang_id: Tensor | None = None,
        tgt_lang_id: Tensor | None = None,
        filler: bool = False,
        target_padding: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Logits (B, T, V) of a batch, and a dictionary with the records of the MoE layers under ``moe``.

        Args:
            src_tokens: (B, S) int64.
            src_lengths: (B,) int64.
            prev_output_tokens: (B, T) int64, the target shifted right.
            return_all_hiddens: whether the encoder returns every layer's output.
            features_only: return features (B, T, C) rather than logits.
            alignment_layer, alignment_heads: which cross-attention to return.
            src_lang_id, tgt_lang_id: (B,) int64, the languages of each row, for task routing and low-rank matrices.
            filler: the batch is there only to keep this process in step with others that have one.
            target_padding: (B, T) bool, which of the target's padding symbols are padding; None: all.
        """
        encoder_out = self.encoder(
            src_tokens,
            src_lengths=src_lengths,
            return_all_hiddens=return_all_hiddens,
            src_lang_id=src_lang_id,
            tgt_lang_id=tgt_lang_id,
            filler=filler,
        )
        encoder_out["target_padding"] = [] if target_padding is None else [target_padding]
        return self.decoder(  # type: ignore[no-any-return]
            prev_output_tokens,
            encoder_out=encoder_out,
            features_only=features_only,
            alignment_layer=alignment_layer,
            alignment_heads=alignment_heads,
            src_lengths=src_lengths,
            return_all_hiddens=return_all_hiddens,
        )

    def upgrade_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Make what an older fairseq or a dense Transformer has trained, or was quantised, the state of this model.

        Where this model has experts and a state has none, they are made of its feed-forward networks, so that the model
        computes what the dense one did (see ``moe.upcycle``). Low-rank matrices are added that change nothing.

        Raises:
            UsageError: with this model's flags they cannot.
        """
        super().upgrade_state_dict(state_dict)
        if self.keeps_packed:
            keep_packed(state_dict, self)
        unpack_state(state_dict)
        configs = [stack.moe_config for stack in (self.encoder, self.decoder)]
        done = upcycle_state(state_dict, configs, self.state_dict())
        if done:
            logger.info(f"the checkpoint is dense: {done}; the model computes what that one does")
        if add_missing(state_dict, self.state_dict()):
            logger.info("the checkpoint has no low-rank matrices: they begin with a product of zero")

    @property
    def group(self) -> ExpertGroup | None:
        """The processes over which the experts are spread; None if every process has all of them."""
        return self.encoder.moe_config.group  # type: ignore[no-any-return]

    def wait_for_others(self) -> None:
        """After translating a batch: where experts are spread, go on until all processes are done; a collective."""
        self.decoder.wait_for_others()

    def set_training_tokens(self, pair_tokens: Mapping[tuple[int, int], tuple[int, int]]) -> None:
        """Tell the gates how much of the training data each pair is.

        Args:
            pair_tokens: source and target tokens of each (source language id, target language id).
        """
        for side, stack in enumerate((self.encoder, self.decoder)):
            stack.set_training_tokens({pair: tokens[side] for pair, tokens in pair_tokens.items()})

    def check_languages(self, langs: list[str]) -> None:
        """Raise ``UsageError`` if ``--langs`` differs from what the model was trained with."""
        check_languages(",".join(langs), self.args.taskmoe_langs)

    def warn_of_idle_experts(self) -> None:
        """Warn if a layer has more experts than all tasks together can use: they cost memory and never learn."""
        for name, stack in zip(STACKS, (self.encoder, self.decoder)):
            config = stack.moe_config
            if config.table is None or config.shape is not None:
                continue
            tasks = len(config.table.names)
            idle = config.experts - tasks * config.task_experts
            if idle > 0:
                logger.warning(
                    f"--moe-expert-count {config.experts}: the {name} has {tasks} tasks with {config.task_experts} "
                    f"experts each, so that {idle} experts of each layer are never used"
                )

    def check_pair(self, source: str, target: str) -> None:
        """Raise ``UsageError`` if a stack has no task for this pair, or no low-rank matrices that have learnt it."""
        langs = self.args.taskmoe_langs.split(",")
        ids = langs.index(source) + 1, langs.index(target) + 1
        for name, stack in zip(STACKS, (self.encoder, self.decoder)):
            if stack.tasks is None or stack.tasks.lookup[ids] >= 0:
                continue
            restriction = stack.moe_config.restriction
            if restriction is not None:
                raise UsageError(
                    f"--source-lang {source} --target-lang {target}: the {name} was pruned to the experts of other "
                    f"pairs: {listed(restriction.pairs)}"
                )
            raise UsageError(
                f"--source-lang {source} --target-lang {target}: the {name}'s {stack.moe_config.routing} routing "
                f"knows only the pairs it was trained on: {listed(self.args.taskmoe_lang_pairs.split(','))}"
            )
        if self.args.task_low_rank:
            seen = zip(*map(split_pair, self.args.taskmoe_lang_pairs.split(",")))
            for flag, lang, known in zip(("--source-lang", "--target-lang"), (source, target), seen):
                if lang not in known:
                    raise UsageError(
                        f"{flag} {lang}: the low-rank matrices know only the languages they were trained on, here "
                        f"{listed(dict.fromkeys(known))}"
                    )


@register_model_architecture("taskmoe_transformer", "taskmoe_transformer")
def base_architecture(args: Namespace) -> None:
    """fairseq's ``transformer`` with 8 experts in every second layer."""
    correct_flags(args)
    _set_defaults(args)


@register_model_architecture("taskmoe_transformer", "taskmoe_transformer_tiny")
def tiny_architecture(args: Namespace) -> None:
    """4+4 layers, width 128, feed-forward 256, 4 heads."""
    _set_shape(args, layers=4, width=128, ffn=256, heads=4)
    base_architecture(args)


@register_model_architecture("taskmoe_transformer", "taskmoe_transformer_base")
def paper_architecture(args: Namespace) -> None:
    """The WMT model of TaskMoE (section 4 and table 7): Transformer Base with 32 experts in every second layer."""
    _set_shape(args, layers=6, width=512, ffn=2048, heads=8)
    args.moe_expert_count = getattr(args, "moe_expert_count", 32)
    base_architecture(args)


@register_model_architecture("taskmoe_transformer", "taskmoe_transformer_big")
def big_architecture(args: Namespace) -> None:
    """The large model of TaskMoE (appendix, table 8): 6+6 layers, width 1024, 128 experts in every second layer."""
    _set_shape(args, layers=6, width=1024, ffn=8192, heads=16)
    args.moe_expert_count = getattr(args, "moe_expert_count", 128)
    base_architecture(args)


def _set_defaults(args: Namespace) -> None:
    set_moe_defaults(args)
    dense_architecture(args)


def _set_shape(args: Namespace, layers: int, width: int, ffn: int, heads: int) -> None:
    shape = {"layers": layers, "embed_dim": width, "ffn_embed_dim": ffn, "attention_heads": heads}
    for stack in STACKS:
        for name, value in shape.items():
            setattr(args, f"{stack}_{name}", getattr(args, f"{stack}_{name}", value))
