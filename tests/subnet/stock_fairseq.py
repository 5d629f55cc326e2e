"""Run fairseq's commands without the plugin: reads tools and arguments as JSON, prints hypotheses as JSON."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys


def hypotheses(printed: str) -> dict[str, list[str]]:
    """Score and text of the lines that fairseq-generate marks with H, by sentence number."""
    lines = [line.split("\t") for line in printed.splitlines() if line.startswith("H-")]
    return {number.removeprefix("H-"): [score, text] for number, score, text in lines}


def main() -> None:
    found = []
    for tool, argv in json.load(sys.stdin):
        sys.argv = [f"fairseq-{tool}", *argv]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            importlib.import_module(f"fairseq_cli.{tool}").cli_main()
        found.append(hypotheses(printed.getvalue()))
    assert not any(name.startswith("taskmoe_plugin") for name in sys.modules)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
