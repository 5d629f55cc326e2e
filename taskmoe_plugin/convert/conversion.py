"""What all conversions have in common: they are checked, written in one step, and say what they changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from taskmoe_plugin.convert.source import Source
from taskmoe_plugin.subnet.checkpoint import MappedTensors
from taskmoe_plugin.subnet.report import Size, readable
from taskmoe_plugin.subnet.scratch import Scratch, check_free, save_mapped


@dataclass(frozen=True)
class Converted:
    """What a conversion makes.

    Attributes:
        cfg: fairseq's configuration, with ``model`` and ``task`` as Namespaces.
        model: all tensors of the new model, as its checkpoint has them; those that stay are still in the old file.
        done: what was done, for the line that is printed.
        changes: what else of the checkpoint changes. The state of the optimizer is left out unless it is here.
    """

    cfg: dict[str, Any]
    model: Mapping[str, Any]
    done: str
    changes: Mapping[str, Any] = field(default_factory=dict)


# Makes the new checkpoint; large tensors with the scratch, slice by slice, and not in memory.
Conversion = Callable[[Source, Scratch], Converted]


def run_conversion(path: Path, output: Path, force: bool, conversion: Conversion) -> str:
    """Convert a checkpoint.

    Args:
        path: the checkpoint.
        output: the file to write, under a temporary name until it is complete.
        force: whether it may be replaced.
        conversion: what to do.

    Returns:
        A line that says what has changed.

    Raises:
        TaskMoEError: the checkpoint cannot be converted, or the new one cannot be written.
    """
    check_free(output, force)
    source = Source.open(path)
    lines: list[str] = []
    # Shown after a second, on a terminal.
    with tqdm(desc=output.name, unit="B", unit_scale=True, delay=1, leave=False, disable=None) as bar:

        def make(scratch: Scratch) -> dict[str, Any]:
            scratch.take(source.state)
            converted = conversion(source, scratch)
            made = MappedTensors.of_model(path, str(path), converted.cfg["model"], converted.model)
            made.check(converted.cfg["model"])
            lines.append(_line(output, source, converted, made))
            return _state(source, converted)

        save_mapped(make, output, force, bar.update)
    return lines[0]


def _state(source: Source, converted: Converted) -> dict[str, Any]:
    extra = {name: each for name, each in source.state.get("extra_state", {}).items() if not name.startswith("ema")}
    return {
        **source.state,
        "cfg": converted.cfg,
        "model": dict(converted.model),
        "extra_state": extra,
        "last_optimizer_state": None,
        **converted.changes,
    }


def _line(output: Path, source: Source, converted: Converted, made: MappedTensors) -> str:
    before, after = source.tensors.names(), converted.model
    kept = sum(tensor is source.state["model"].get(name) for name, tensor in after.items())
    sizes = [readable(Size.of_model(tensors).bytes) for tensors in (source.tensors, made)]
    return (
        f"{output}: {converted.done}; {kept} tensors stay, {len(before) - kept} became {len(after) - kept}; "
        f"weights of {sizes[0]} became {sizes[1]}"
    )
