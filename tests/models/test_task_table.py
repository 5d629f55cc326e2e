"""Which task a pair of languages has under each routing."""

from __future__ import annotations

import pytest

from taskmoe_plugin.models.task_table import TASK_ROUTINGS, TaskTable, split_pair

LANGS = ("en", "de", "fr", "cs")
PAIRS = ("de-en", "en-de", "fr-en")


def task_of(table: TaskTable, pair: str) -> str | None:
    """The name of a pair's task, None if it has none."""
    source, target = (LANGS.index(lang) + 1 for lang in split_pair(pair))
    index = int(table.lookup[source, target])
    return table.names[index] if index >= 0 else None


def test_source_routing_knows_every_target_of_a_trained_source() -> None:
    table = TaskTable.build("source", LANGS, PAIRS)
    assert table.names == ("en", "de", "fr")
    assert task_of(table, "fr-en") == task_of(table, "fr-cs") == "fr"
    assert task_of(table, "cs-en") is None


def test_target_routing_knows_every_source_of_a_trained_target() -> None:
    table = TaskTable.build("target", LANGS, PAIRS)
    assert table.names == ("en", "de")
    assert task_of(table, "cs-de") == "de"
    assert task_of(table, "en-fr") is None


def test_pair_routing_knows_the_trained_pairs_alone() -> None:
    table = TaskTable.build("pair", LANGS, PAIRS)
    assert table.names == PAIRS
    assert [task_of(table, pair) for pair in PAIRS] == list(PAIRS)
    assert task_of(table, "en-fr") is None


def test_group_routing_knows_the_groups_of_the_trained_pairs() -> None:
    table = TaskTable.build("group", LANGS, PAIRS, {"de-en": "in", "fr-en": "in", "en-de": "out"})
    assert table.names == ("in", "out")
    assert [task_of(table, pair) for pair in PAIRS] == ["in", "out", "in"]
    assert task_of(table, "en-fr") is None


def test_a_pair_without_a_group_is_an_error() -> None:
    with pytest.raises(KeyError, match="fr-en"):
        TaskTable.build("group", LANGS, PAIRS, {"de-en": "in", "en-de": "out"})


@pytest.mark.parametrize("routing", TASK_ROUTINGS)
def test_no_row_of_unknown_language_has_a_task(routing: str) -> None:
    table = TaskTable.build(routing, LANGS, PAIRS, dict.fromkeys(PAIRS, "all"))
    assert (table.lookup[0] == -1).all()
    assert (table.lookup[:, 0] == -1).all()


def test_a_lone_language_is_its_own_pair() -> None:
    assert split_pair("cs") == ("cs", "cs")
    assert split_pair("en-de") == ("en", "de")


def test_the_tasks_of_many_pairs_are_those_that_one_after_the_other_finds() -> None:
    langs = [f"l{number}" for number in range(30)]
    pairs = [f"{a}-{b}" for a in langs[3:] for b in langs[:-2] if a != b]
    groups = {pair: f"g{number % 7}" for number, pair in enumerate(pairs)}
    for routing, name_of in {
        "source": lambda s, t: s, "target": lambda s, t: t,
        "pair": lambda s, t: f"{s}-{t}", "group": lambda s, t: groups[f"{s}-{t}"],
    }.items():  # fmt: skip
        table = TaskTable.build(routing, langs, pairs, groups)
        found = {
            (langs[s - 1], langs[t - 1]): table.names[table.lookup[s, t]]
            for s, t in (table.lookup >= 0).nonzero().tolist()
        }
        by_language = {"source": langs[3:], "target": langs[:-2]}.get(routing)
        known = [tuple(pair.split("-")) for pair in pairs]
        if by_language:
            known = [(s, t) for s in langs for t in langs if (s if routing == "source" else t) in by_language]
        assert found == {pair: name_of(*pair) for pair in known}
        assert list(table.names) == list(dict.fromkeys(by_language or [name_of(*pair) for pair in known]))
