#!/usr/bin/env python3
"""Write the first weights of a dense student: the teacher's, without its experts.

The feed-forward networks that take the place of MoE layers get random weights. Give the file that is written to
fairseq-train's --finetune-from-model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from fairseq import options, tasks

import taskmoe_plugin  # noqa: F401  registers the student's architecture
import text
from text import TextError


def new_student(
    teacher: dict[str, torch.Tensor], flags: list[str]
) -> tuple[dict[str, torch.Tensor], argparse.Namespace]:
    """The weights of a new student, with the teacher's wherever it has a tensor of that name, and its arguments.

    Raises TextError where the two differ in shape.
    """
    args = options.parse_args_and_arch(options.get_training_parser(), flags)
    args.finetune_from_model = None  # it may be the file that these weights are for
    args.no_save = True  # nothing is trained here, and --save-dir may be in use
    torch.manual_seed(args.seed)
    weights: dict[str, torch.Tensor] = tasks.setup_task(args).build_model(args).state_dict()
    for name in weights.keys() & teacher.keys():
        if weights[name].shape != teacher[name].shape:
            shapes = f"{tuple(weights[name].shape)}, and the teacher's {tuple(teacher[name].shape)}"
            raise TextError(f"{name}: the student's shape is {shapes}; give the student the teacher's widths")
        weights[name] = teacher[name]
    return weights, args


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True, help="checkpoint of the teacher")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint to write")
    parser.add_argument("flags", nargs="*", help="after --: what fairseq-train will be called with")
    args = parser.parse_args()
    state = torch.load(args.teacher, map_location="cpu", weights_only=True)
    state["model"], state["cfg"]["model"] = new_student(state["model"], args.flags)
    state["last_optimizer_state"] = None
    partial = args.output.with_name(args.output.name + ".partial")
    torch.save(state, partial)
    partial.rename(args.output)


if __name__ == "__main__":
    text.run(main)
