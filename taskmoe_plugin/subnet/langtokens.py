"""The language tokens that a multilingual model's sentences begin with."""

from __future__ import annotations

from argparse import Namespace

from fairseq.data.multilingual.multilingual_utils import get_lang_tok

from taskmoe_plugin.models.task_table import split_pair


def prefixes(task_args: Namespace, pair: str) -> tuple[list[str], list[str]]:
    """What source and target begin with: a list of one language token, or an empty one.

    Args:
        task_args: arguments of the multilingual task.
        pair: the language pair.
    """
    source, target = split_pair(pair)
    source_spec, target_spec = (task_args.langtoks or {}).get("main") or (
        task_args.encoder_langtok,
        "tgt" if task_args.decoder_langtok else None,
    )
    style = task_args.lang_tok_style
    first = source if source_spec and source_spec.startswith("src") else target
    return (
        [get_lang_tok(first, style, source_spec)] if source_spec else [],
        [get_lang_tok(target, style, target_spec)] if target_spec else [],
    )
