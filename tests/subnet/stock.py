"""What stock fairseq makes of subnets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tests.helpers.corpus import LANGS
from tests.helpers.tasks import LANGTOKS

SCRIPT = Path(__file__).with_name("stock_fairseq.py")
TOLERANCE = 1e-4
Hypotheses = dict[int, tuple[float, str]]


@cache
def _process() -> subprocess.Popen[str]:
    # It ends when nothing more can come, which is when this process ends.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-I", "-W", "ignore", str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, env=environment, cwd="/",
    )  # fmt: skip


def ask(requests: Sequence[Sequence[Any]], trusted: bool = False) -> list[Any]:
    """What ``stock_fairseq.py`` answers to some requests.

    Args:
        requests: what is wanted, and its arguments.
        trusted: whether to load unsafely, as stock fairseq needs it for the checkpoints that it has written itself.
    """
    process = _process()
    assert process.stdin is not None
    assert process.stdout is not None
    print(json.dumps({"requests": requests, "trusted": trusted}), file=process.stdin, flush=True)
    found = json.loads(process.stdout.readline())
    assert "answers" in found, found["error"]
    return found["answers"]  # type: ignore[no-any-return]


def stock_fairseq(commands: Sequence[tuple[Any, ...]], trusted: bool = False) -> list[Hypotheses]:
    """Run several of fairseq's commands without the plugin.

    Args:
        commands: the tools, their arguments, and what they read, if that is something.
        trusted: as for ``ask``.

    Returns:
        The hypotheses that each printed: score and text by sentence number.
    """
    return [
        {int(number): (float(score), text) for number, (score, text) in found.items()}
        for found in ask(commands, trusted)
    ]


def stock_generate_flags(data: Path, path: Any, pair: str, *flags: Any) -> list[str]:
    """Arguments of stock ``fairseq-generate`` for a subnet."""
    source, target = pair.split("-")
    common = (
        data, "--task", "translation_multi_simple_epoch", "--langs", ",".join(LANGS), "--lang-pairs", pair, *LANGTOKS,
        "--cpu", "--num-workers", 0, "--required-batch-size-multiple", 1,
    )  # fmt: skip
    fixed = ("--path", path, "--source-lang", source, "--target-lang", target, "--max-len-b", 12, "--beam", 2)
    return [str(each) for each in (*common, *fixed, *flags)]


def assert_equal(found: Hypotheses, expected: Hypotheses, tolerance: float = TOLERANCE) -> None:
    """The same hypotheses, and scores within a tolerance."""
    assert {number: text for number, (_, text) in found.items()} == {n: text for n, (_, text) in expected.items()}
    gap = max(abs(found[number][0] - score) for number, (score, _) in expected.items())
    assert gap <= tolerance, gap
