"""Imports point one way: moe needs torch alone, and cli stands above everything."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import taskmoe_plugin

PACKAGE = Path(taskmoe_plugin.__file__).parent
MAY_IMPORT = {
    "moe": {"moe"},
    "parallel": {"moe", "parallel", "files", "errors"},
    "models": {"moe", "parallel", "models", "errors"},
    "criterions": {"moe", "parallel", "models", "criterions", "files", "errors"},
    "tasks": {"moe", "parallel", "models", "optim", "tasks", "scoring", "memory", "files", "errors"},
    "optim": {"optim", "errors"},
    "files": {"files", "errors"},
    "report": {"moe", "models", "subnet", "report", "files", "errors"},
    "translate": {"translate", "formats", "errors"},
    "subnet": {"moe", "parallel", "models", "tasks", "subnet", "formats", "files", "errors"},
    "bench": {
        "moe",
        "parallel",
        "models",
        "tasks",
        "subnet",
        "convert",
        "bench",
        "memory",
        "formats",
        "files",
        "errors",
    },
    "convert": {"moe", "parallel", "models", "tasks", "subnet", "convert", "files", "errors"},
}
# Importing any other part registers all with fairseq.
WITHOUT_FAIRSEQ = {"moe", "files", "translate"}


def imported(path: Path) -> set[str]:
    """The modules that a file imports, dotted."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_a_part_imports_only_the_parts_below_it(part: str) -> None:
    for path in (PACKAGE / part).rglob("*.py"):
        parts = {name.split(".")[1] for name in imported(path) if name.startswith("taskmoe_plugin.")}
        assert parts - (set() if part in WITHOUT_FAIRSEQ else {"registration"}) <= MAY_IMPORT[part], path


def test_translating_needs_ctranslate2_and_sentencepiece_alone() -> None:
    allowed = {*sys.stdlib_module_names, "ctranslate2", "sentencepiece", "tqdm"}
    cli = [PACKAGE / "cli" / name for name in ("translate.py", "arguments.py")]
    waiting = [*(PACKAGE / "translate").rglob("*.py"), *cli, PACKAGE / "__init__.py"]
    for path in waiting:
        names = imported(path)
        ours = {name for name in names if name.startswith("taskmoe_plugin.")}
        assert {name.split(".")[0] for name in names - ours} <= allowed, path
        ours -= {"taskmoe_plugin.cli.arguments", "taskmoe_plugin.cli.arguments.positive"}
        assert {name.split(".")[1] for name in ours} <= {"translate", "formats", "errors", "registration"}, path


def test_no_module_imports_another_ones_private_names() -> None:
    for path in PACKAGE.rglob("*.py"):
        private = [name for name in imported(path) if name.startswith("taskmoe_plugin.") and "._" in name]
        assert not private, path


def test_moe_works_where_fairseq_is_not_installed() -> None:
    script = """
import sys
sys.modules["fairseq"] = sys.modules["fairscale"] = None
import torch
from taskmoe_plugin.moe import Experts, MoELayer, TokenRouter, Tokens
layer = MoELayer(2, Experts(2, 4, 8, torch.relu), TokenRouter(4, 2, 1))
tokens = Tokens.from_padding(torch.zeros(2, 3, dtype=torch.bool))
print(tuple(layer(torch.randn(3, 2, 4), tokens)[0].shape))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "(3, 2, 4)", result.stderr
