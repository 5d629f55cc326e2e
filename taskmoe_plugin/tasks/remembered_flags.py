"""Flags that a trained model's input depends on: its checkpoint remembers them, and whatever reads it takes them up.

A flag that is left out takes the trained value; one that says something else is an error, because the model would
translate into rubbish without a word. Training resolves the values first, so that they mean the same elsewhere.
"""

from __future__ import annotations

import hashlib
import logging
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fairseq import utils
from fairseq.checkpoint_utils import get_maybe_sharded_checkpoint_filename
from fairseq.data import Dictionary
from fairseq.data.multilingual.multilingual_data_manager import MultilingualDatasetManager

from taskmoe_plugin.errors import TaskMoEError, UsageError, raise_all
from taskmoe_plugin.files.loading import LoadError, MissingFile, load
from taskmoe_plugin.models.task_table import split_pair

MEMORY = "taskmoe_trained"
logger = logging.getLogger(__name__)
# fairseq's defaults of flags whose default, on a command line, cannot be told from a value that was given.
DEFAULTS: Mapping[str, Any] = {
    "lang_tok_style": "multilingual",
    "langtoks_specs": ["main"],
    "left_pad_source": "True",
    "left_pad_target": "False",
}
PADDING = ("left_pad_source", "left_pad_target")
LANGTOKS = ("encoder_langtok", "decoder_langtok")
COMPARED = ("langs", *LANGTOKS, "lang_tok_replacing_bos_eos", *DEFAULTS)
DICTIONARIES = ("source_dict", "target_dict", "fixed_dictionary")
# Other data may be translated, and dictionaries may have moved: these are taken up and not compared.
TAKEN_UP = ("lang_pairs", "extra_data")


def leave_defaults_open(parser: ArgumentParser) -> None:
    """Have a command line tell flags that were left out from those that were given."""
    parser.set_defaults(**dict.fromkeys(DEFAULTS))


def complete_flags(args: Namespace) -> None:
    """Complete the flags of a task before it is set up.

    Args:
        args: the task's flags: of a command line, which may name trained models in ``path``, or of a checkpoint.

    Raises:
        UsageError: a flag contradicts what a model was trained with, or models were trained with different ones.
    """
    if args.langs or args.lang_dict:
        args.langs, args.lang_dict = MultilingualDatasetManager.load_langs(args), None
    for name in PADDING:
        # fairseq evaluates text, and would take what it has evaluated already for False.
        if (value := getattr(args, name)) is not None:
            setattr(args, name, str(utils.eval_bool(value) if isinstance(value, str) else value))
    memories = list(_memories(args))
    # For fairseq what --langtoks says of the main data goes before these two; a checkpoint's flags have all three.
    overruled = not hasattr(args, MEMORY) and "main" in (args.langtoks or {})
    compared = [name for name in COMPARED if not (overruled and name in LANGTOKS)]
    for place, trained in memories:
        _check(args, compared, place, trained)
        _take_up(args, trained)
    if memories:
        _, trained = memories[0]
        setattr(args, MEMORY, trained)
        _check_ensemble(memories)
    for name, default in DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    if not args.langs and args.lang_pairs:
        args.langs = _langs_of(args)


def remember_flags(task: Any) -> None:
    """Note the flags of a task that was set up for training, or compare its dictionaries with those of training.

    Raises:
        UsageError: the dictionaries are not those that the model was trained with.
    """
    args = task.args
    if hasattr(args, MEMORY):
        _check_dictionaries(task, trained_fingerprints(args), "the checkpoint")
    elif task.training:
        args.langs = list(task.langs)
        for name in DICTIONARIES:
            if path := getattr(args, name):
                setattr(args, name, str(Path(path).absolute()))
        source, target = args.langtoks["main"]
        args.encoder_langtok, args.decoder_langtok = source, target is not None
        memory = {name: getattr(args, name) for name in (*COMPARED, *DICTIONARIES, *TAKEN_UP, "langtoks")}
        memory |= {name: str(memory[name]) for name in PADDING}
        setattr(args, MEMORY, memory | {"dictionaries": _fingerprints(task)})


def check_input(task: Any, trained: Namespace, name: str, finetuned: bool) -> None:
    """Refuse to train on with other input than a model was trained with, which would mean something else to it.

    Args:
        task: the task, set up for training.
        trained: the arguments of the trained model's task.
        name: what to call the checkpoint.
        finetuned: whether training begins anew with its weights; it may then learn other language tokens.

    Raises:
        UsageError: the dictionaries differ, or language tokens do where training goes on.
    """
    memory = getattr(trained, MEMORY, {})
    _check_dictionaries(task, trained_fingerprints(trained), name)
    own = getattr(task.args, MEMORY)
    problems = [
        _contradiction(each, own[each], name, memory[each])
        for each in COMPARED
        if each in memory and each != "langs" and _text(own[each]) != _text(memory[each])
    ]
    if finetuned:
        for problem in problems:
            logger.warning(problem)
    else:
        raise_all(problems)


def fingerprint(dictionary: Dictionary) -> str:
    """SHA-256, in hexadecimal, of the symbols, language tokens included, in their order."""
    return hashlib.sha256("\n".join(dictionary.symbols).encode()).hexdigest()


def trained_fingerprints(args: Namespace) -> Mapping[str, str]:
    """Of the dictionaries that a model was trained with, by side; empty where they are not known."""
    return getattr(args, MEMORY, {}).get("dictionaries", {})  # type: ignore[no-any-return]


def remember_stock_flags(args: Namespace) -> None:
    """Make the flags of a trained ``translation_multi_simple_epoch`` those of this task, as training remembers them.

    What its dictionaries were is not known: nothing is compared with them.
    """
    args.task = "taskmoe_translation"
    if hasattr(args, MEMORY):
        return
    named = args.langs or args.lang_dict
    args.langs, args.lang_dict = MultilingualDatasetManager.load_langs(args) if named else _langs_of(args), None
    memory = {name: getattr(args, name, None) for name in (*COMPARED, *DICTIONARIES, *TAKEN_UP)}
    memory |= {name: str(memory[name]) for name in PADDING}
    source, target = args.encoder_langtok, args.decoder_langtok
    memory["langtoks"] = getattr(args, "langtoks", None) or {"main": (source, "tgt" if target else None)}
    setattr(args, MEMORY, memory | {"dictionaries": {}})


def forget_dictionaries(args: Namespace) -> None:
    """Leave it to the data directory what dictionaries a model has: its own are not those that it was trained with."""
    for flags in (vars(args), getattr(args, MEMORY, {})):
        flags.update(dict.fromkeys(DICTIONARIES))
    getattr(args, MEMORY, {})["dictionaries"] = {}


def _memories(args: Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """What models remember, each with what to call it: the one whose flags these are, or those that ``path`` names."""
    if hasattr(args, MEMORY):
        yield "the checkpoint", getattr(args, MEMORY)
        return
    for path in filter(None, utils.split_paths(getattr(args, "path", None) or "")):
        suffix, shards = (getattr(args, f"checkpoint_{name}", None) for name in ("suffix", "shard_count"))
        path = get_maybe_sharded_checkpoint_filename(path, suffix or "", 0, shards or 1)
        try:
            cfg = load(Path(path)).get("cfg")
        except MissingFile:
            continue  # of which fairseq speaks
        except LoadError as error:
            raise TaskMoEError(error.of(path)) from error
        if cfg and hasattr(cfg["task"], MEMORY):
            yield path, getattr(cfg["task"], MEMORY)


def _check(args: Namespace, compared: Sequence[str], place: str, trained: Mapping[str, Any]) -> None:
    problems = [
        _contradiction(name, getattr(args, name), place, trained[name])
        for name in compared
        if not _left_out(getattr(args, name)) and _text(getattr(args, name)) != _text(trained[name])
    ]
    problems += [
        _contradiction("langtoks", {kind: specs}, place, {kind: trained["langtoks"][kind]})
        for kind, specs in (args.langtoks or {}).items()
        if kind in trained["langtoks"] and tuple(specs) != tuple(trained["langtoks"][kind])
    ]
    raise_all(problems)


def _check_ensemble(memories: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    (first, known), *others = [(place, each["dictionaries"]) for place, each in memories]
    for place, dictionaries in others:
        if any(dictionaries[side] != known[side] for side in dictionaries.keys() & known.keys()):
            raise UsageError(f"--path: {place} was trained with other dictionaries than {first}; give one of them")


def _langs_of(args: Namespace) -> list[str]:
    """The languages of all pairs, sorted. fairseq itself leaves out those of ``--extra-lang-pairs``."""
    pairs = args.lang_pairs if isinstance(args.lang_pairs, list) else args.lang_pairs.split(",")
    extra = [pair for pairs in (args.extra_lang_pairs or {}).values() for pair in pairs.split(",")]
    return sorted({lang for pair in (*pairs, *extra) for lang in split_pair(pair)})


def _left_out(value: Any) -> bool:
    # A flag without a value is False where it was not given; those with one are None, or text.
    return value is None or value is False


def _contradiction(name: str, given: Any, place: str, trained: Any) -> str:
    flag = "--" + name.replace("_", "-")
    was = "without it" if _left_out(trained) else f"with {_shown(flag, trained)}"
    return f"{_shown(flag, given)}: {place} was trained {was}; leave it out"


def _shown(flag: str, value: Any) -> str:
    return flag if value is True else f"{flag} {_text(value)}"


def _text(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)


def _take_up(args: Namespace, trained: Mapping[str, Any]) -> None:
    for name in (*COMPARED, *DICTIONARIES, *TAKEN_UP):
        value = trained[name]
        moved = name in DICTIONARIES and value is not None and not Path(value).is_file()
        if _left_out(getattr(args, name, None)) and not moved:
            setattr(args, name, value)
    args.langtoks = dict(trained["langtoks"])


def _fingerprints(task: Any) -> dict[str, str]:
    return {"source": fingerprint(task.source_dictionary), "target": fingerprint(task.target_dictionary)}


def _check_dictionaries(task: Any, trained: Mapping[str, str], name: str) -> None:
    args = task.args
    for side, found in _fingerprints(task).items():
        if trained.get(side, found) != found:
            lang = (task.source_langs if side == "source" else task.target_langs)[0]
            file = args.fixed_dictionary or getattr(args, f"{side}_dict")
            file = file or Path(utils.split_paths(args.data)[0], f"dict.{lang}.txt")
            raise UsageError(
                f"{file}: is not the dictionary that {name} was trained with; "
                f"give the data directory, or the --{side}-dict, of its training"
            )
