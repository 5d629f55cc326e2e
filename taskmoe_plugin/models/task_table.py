"""From the languages of a sentence to its task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
        name_of: Callable[[str, str], str]
        if routing == "source":
            known, name_of = [(s, t) for s in langs for t in langs if s in sources], lambda s, t: s
        elif routing == "target":
            known, name_of = [(s, t) for t in langs for s in langs if t in targets], lambda s, t: t
        elif routing == "pair":
            known, name_of = trained, lambda s, t: f"{s}-{t}"
        else:
            known, name_of = trained, lambda s, t: (groups or {})[f"{s}-{t}"]
        names = tuple(dict.fromkeys(name_of(*pair) for pair in known))
        ids = {lang: index for index, lang in enumerate(langs, 1)}
        lookup = torch.full((len(langs) + 1, len(langs) + 1), -1)
        for source, target in known:
            lookup[ids[source], ids[target]] = names.index(name_of(source, target))
        return cls(names, lookup)
