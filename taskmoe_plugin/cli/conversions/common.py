"""What the command lines of all conversions have in common."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskmoe_plugin.convert.conversion import Conversion


class ConversionParser(ArgumentParser):
    """The parser of a conversion, which may add flags of the model when they are needed: they take PyTorch to load.

    Attributes:
        late_flags: adds them.
    """

    late_flags: Callable[[ArgumentParser], None] | None = None

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        if self.late_flags is not None:
            self.late_flags(self)
        return super().parse_known_args(*args, **kwargs)


def add_conversion(
    conversions: Any, name: str, help: str, description: str, conversion: Callable[[Namespace], Conversion]
) -> ConversionParser:
    """Add a conversion to those of ``taskmoe convert``.

    Args:
        conversions: the subparsers of ``taskmoe convert``.
        name: what it is called.
        help: a line of what it does.
        description: what it does, and the paper that it is from.
        conversion: makes it of the parsed arguments; imports what needs PyTorch only when it is called.

    Returns:
        Its parser, for the flags that it has besides the common ones.
    """
    parser: ConversionParser = conversions.add_parser(name, help=help, description=description)
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CKPT", help="the trained model, e.g. checkpoint_best.pt")
    add("--output", type=Path, required=True, metavar="FILE", help="the checkpoint to write")
    add("--force", action="store_true", help="replace FILE if it exists")
    parser.set_defaults(run=_run, conversion=conversion)
    return parser


def _run(args: Namespace) -> None:
    """Convert, and say what has changed."""
    conversion = args.conversion(args)
    from taskmoe_plugin.convert.conversion import run_conversion

    print(run_conversion(args.checkpoint, args.output, args.force, conversion))
