"""Ways in which a file is spoiled. Each is a function of a path and a random generator; another is another function."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch

Damage = Callable[[Path, Random], None]


class Foreign:
    """Its unpickling would leave a trace beside the file, by what safe loading forbids more than anything."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {shlex.quote(str(self.path))}",)


def trace(path: Path) -> Path:
    """What is there if a pickle was run."""
    return path.with_name("TRACE")


def _changed(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def truncated(path: Path, random: Random) -> None:
    content = path.read_bytes()
    _changed(path, content[: int(random.uniform(0.02, 0.98) * len(content))])


def lacks_its_last_byte(path: Path, random: Random) -> None:
    _changed(path, path.read_bytes()[:-1])


def empty(path: Path, random: Random) -> None:
    _changed(path, b"")


def removed(path: Path, random: Random) -> None:
    path.unlink()


def directory(path: Path, random: Random) -> None:
    path.unlink()
    path.mkdir()


def unreadable(path: Path, random: Random) -> None:
    """Opening works and reading is an I/O error, for any user: the start of a process's memory."""
    path.unlink()
    path.symlink_to("/proc/self/mem")


def noise(path: Path, random: Random) -> None:
    _changed(path, random.randbytes(path.stat().st_size))


def text(path: Path, random: Random) -> None:
    _changed(path, b"neither a model nor data\n" * 20)


def flipped(path: Path, random: Random) -> None:
    """One bit, anywhere."""
    _flip(path, random, 0, path.stat().st_size)


def flipped_in_pickle(path: Path, random: Random) -> None:
    """One bit of what says which tensors and flags there are."""
    start = path.read_bytes().index(b"data.pkl") + len(b"data.pkl")
    _flip(path, random, start, start + 3000)


def flipped_in_directory(path: Path, random: Random) -> None:
    """One bit of the archive's list of its members."""
    content = path.read_bytes()
    _flip(path, random, content.index(b"PK\x01\x02"), len(content))


def _flip(path: Path, random: Random, start: int, end: int) -> None:
    content = bytearray(path.read_bytes())
    content[random.randrange(start, min(end, len(content)))] ^= 1 << random.randrange(8)
    _changed(path, bytes(content))


def foreign(path: Path, random: Random) -> None:
    """A foreign object somewhere among what it holds."""
    state = torch.load(path, weights_only=True)
    places = [state, *(value for value in state.values() if isinstance(value, dict) and value)]
    random.choice(places)["foreign"] = Foreign(trace(path))
    path.unlink()
    torch.save(state, path)


def other_contents(path: Path, random: Random) -> None:
    """A file of PyTorch's that is no checkpoint."""
    path.unlink()
    torch.save({"a": torch.zeros(2), "b": [1, 2]}, path)


def lacks_a_tensor(path: Path, random: Random) -> None:
    state = torch.load(path, weights_only=True)
    del state["model"][random.choice(_weights(state))]
    path.unlink()
    torch.save(state, path)


def other_shape(path: Path, random: Random) -> None:
    """A tensor that is larger than the flags say."""
    state = torch.load(path, weights_only=True)
    name = random.choice(_weights(state))
    state["model"][name] = torch.cat([state["model"][name]] * 2)
    path.unlink()
    torch.save(state, path)


def _weights(state: dict[str, Any]) -> list[str]:
    """Names of weights that are in any model once, and without which no command can do."""
    return [name for name in state["model"] if name.endswith(("attn.k_proj.weight", "fc1.weight", "gates.weight"))]


def thousand_million_experts(path: Path, random: Random) -> None:
    _change_manifest(path, {"experts": 10**9})


def wrong_manifest(path: Path, random: Random) -> None:
    """What the checkpoint says of its experts is of another type."""
    _change_manifest(path, {random.choice(["experts", "files", "parameters"]): random.choice([None, "text", [1], {}])})


def _change_manifest(path: Path, changes: dict[str, Any]) -> None:
    state = torch.load(path, weights_only=True)
    state["model"]["expert_shards"].update(changes)
    path.unlink()
    torch.save(state, path)


def lacks_a_part(path: Path, random: Random) -> None:
    """A file of experts without something that belongs in it."""
    state = torch.load(path, weights_only=True)
    part = state[random.choice(["model", "optimizer", "numbers"])]
    del part[random.choice(list(part))]
    path.unlink()
    torch.save(state, path)


def other_rows(path: Path, random: Random) -> None:
    report = json.loads(path.read_text())
    report[random.choice(["rows", "name"])] = random.choice([[{"a": 1}], "nonsense", None, 1])
    _changed(path, json.dumps(report).encode())


def other_values(path: Path, random: Random) -> None:
    """One value of a JSON file is of another type, or is not there."""
    content = json.loads(path.read_text())
    name = random.choice(sorted(content))
    others: list[Any] = [None, 1, "text", [], {}, [1]]
    content[name] = random.choice([each for each in others if type(each) is not type(content[name])])
    if random.random() < 0.3:
        del content[name]
    _changed(path, json.dumps(content).encode())


def longer(path: Path, random: Random) -> None:
    _changed(path, path.read_bytes() + b"\0" * 100)


def other_set(path: Path, random: Random) -> None:
    """The file of another set, which does not belong to its companion."""
    name = (
        path.name.replace("test.", "train.") if path.name.startswith("test.") else path.name.replace("train.", "test.")
    )
    source = path.with_name(name.replace("valid.", "train."))
    path.unlink()
    shutil.copyfile(source, path)


def no_sentence(path: Path, random: Random) -> None:
    """A set as fairseq-preprocess makes it of an empty text."""
    index = path.with_suffix(".idx")
    _changed(index, index.read_bytes()[:18] + (0).to_bytes(8, "little"))
    _changed(path.with_suffix(".bin"), b"")


def other_dictionary(path: Path, random: Random) -> None:
    """Pieces of a dictionary that has more of them."""
    data = path.with_suffix(".bin")
    content = bytearray(data.read_bytes())
    content[1::2] = b"\x70" * len(content[1::2])  # the high bytes of its numbers, uint16
    _changed(data, bytes(content))


def line_without_count(path: Path, random: Random) -> None:
    lines = path.read_text().splitlines()
    lines[random.randrange(len(lines))] = "piece"
    _changed(path, ("\n".join(lines) + "\n").encode())


def line_again(path: Path, random: Random) -> None:
    lines = path.read_text().splitlines()
    _changed(path, ("\n".join([*lines, random.choice(lines)]) + "\n").encode())


def not_utf8(path: Path, random: Random) -> None:
    _changed(path, b"\xff\xfe 1\n" + path.read_bytes())
