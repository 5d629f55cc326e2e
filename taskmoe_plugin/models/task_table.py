"""From the languages of a sentence to its task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TASK_ROUTINGS = ("source", "target", "pair", "group")
ROUTINGS = (*TASK_ROUTINGS, "sentence", "token")


def split_pair(pair: str) -> tuple[str, str]:
    """Source and target of ``en-de``; a lone language (denoising data) is its own pair."""
    source, _, target = pair.partition("-")
    return source, target or source


@dataclass(frozen=True)
class TaskTable:
    """The tasks that a stack routes by.

    Attributes:
        names: the tasks, in the order of their ids.
        lookup: (L + 1, L + 1) int64, the task of source language id × target language id, -1 where there is none.
            Language ids count from 1 in the order of ``--langs``.
    """

    names: tuple[str, ...]
    lookup: Tensor

    @classmethod
    def build(
        cls, routing: str, langs: Sequence[str], pairs: Sequence[str], groups: Mapping[str, str] | None = None
    ) -> TaskTable:
        """Tasks of a task-level routing, in the order in which the languages or pairs are given.

        ``source`` and ``target`` routing know every combination of a language trained as a source with one trained
        as a target; ``pair`` and ``group`` know the trained pairs alone.

        Args:
            routing: one of ``TASK_ROUTINGS``.
            langs: all languages, in the order that fixes their ids.
            pairs: the trained pairs, ``en-de``.
            groups: for ``group``, the group of each pair.

        Raises:
            KeyError: ``group`` routing and a pair without a group.
        """
        trained = [split_pair(pair) for pair in pairs]
        sources, targets = {source for source, _ in trained}, {target for _, target in trained}
        ids = {lang: index for index, lang in enumerate(langs, 1)}
        lookup = torch.full((len(langs) + 1, len(langs) + 1), -1)
        if routing in ("source", "target"):
            names = [lang for lang in langs if lang in (sources if routing == "source" else targets)]
            for task, lang in enumerate(names):
                own = lookup[ids[lang], 1:] if routing == "source" else lookup[1:, ids[lang]]
                own.fill_(task)
            return cls(tuple(names), lookup)
        of_pairs = [f"{source}-{target}" for source, target in trained]
        if routing == "group":
            of_pairs = [(groups or {})[pair] for pair in of_pairs]
        place = {name: task for task, name in enumerate(dict.fromkeys(of_pairs))}
        rows, columns = [ids[source] for source, _ in trained], [ids[target] for _, target in trained]
        lookup[rows, columns] = torch.tensor([place[name] for name in of_pairs], dtype=lookup.dtype)
        return cls(tuple(place), lookup)
