"""The language tokens that a multilingual model's sentences begin with."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from fairseq.data.multilingual.multilingual_utils import get_lang_tok

from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.models.task_table import split_pair

# The sides on which a model in a format puts the language token first itself; on others whoever uses it does.
BUILT_IN = {
    "fairseq": (),
    "ctranslate2": ("source",),
    "huggingface": ("source", "target"),
    "argos": ("source", "target"),
}


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


def left_open(task_args: Namespace, pairs: Sequence[str], format: str) -> dict[str, dict[str, list[str]]]:
    """What whoever uses a model must put before source and target: pair → side → tokens.

    Args:
        task_args: arguments of the multilingual task.
        pairs: the model's pairs.
        format: one of ``FORMATS``.
    """
    return {
        pair: {
            side: [] if side in BUILT_IN[format] else tokens
            for side, tokens in zip(("source", "target"), prefixes(task_args, pair))
        }
        for pair in pairs
    }


def check_built_in(task_args: Namespace, pairs: Sequence[str], format: str) -> None:
    """Refuse pairs that need different tokens of a format that puts in the same one always.

    Args:
        task_args, pairs, format: as for ``left_open``.

    Raises:
        TaskMoEError: the pairs cannot be in one model.
    """
    for side, tokens in zip(("source", "target"), zip(*(prefixes(task_args, pair) for pair in pairs))):
        if side in BUILT_IN[format] and any(each != tokens[0] for each in tokens):
            raise TaskMoEError(
                f"--format {format}: puts the same language token before every {side}, and {'+'.join(pairs)} need "
                "different ones; extract them one by one"
            )
