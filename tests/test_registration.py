"""fairseq knows of the plugin whichever way it is imported; our own commands do not wait for fairseq."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import taskmoe_plugin

PACKAGE = Path(taskmoe_plugin.__file__).parent
HEAVY = ("fairseq", "torch", "ctranslate2", "numpy")
MAIN = "import sys; from taskmoe_plugin.cli.main import main; main(sys.argv[1:])"
KNOWN = """
from argparse import Namespace
from fairseq import utils
from fairseq.tasks import TASK_REGISTRY
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.optim import OPTIMIZER_REGISTRY
import torch
utils.import_user_module(Namespace(user_dir=sys.argv[1]))
assert "taskmoe_translation" in TASK_REGISTRY
assert {"taskmoe_transformer", "taskmoe_transformer_big"} <= set(ARCH_MODEL_REGISTRY)
assert {"taskmoe_label_smoothed_cross_entropy", "taskmoe_word_distillation"} <= set(CRITERION_REGISTRY)
assert "taskmoe_adam" in OPTIMIZER_REGISTRY
assert Namespace in torch.serialization.get_safe_globals()
"""


def run(script: str, *argv: str, text: str = "", isolated: bool = False) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": "" if isolated else str(PACKAGE.parent)}
    return subprocess.run(
        [sys.executable, "-c", script, *argv], input=text, capture_output=True, text=True, env=environment, cwd="/",
        check=False,
    )  # fmt: skip


# Parts that do without fairseq; every other one registers when it is imported first.
LIGHT = {"cli", "files", "moe", "translate"}
PARTS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py") if path.parent.name not in LIGHT)
FIRST = [
    "import fairseq, taskmoe_plugin",
    "import taskmoe_plugin",
    "import taskmoe_plugin, fairseq",
    *(f"import taskmoe_plugin.{part}" for part in PARTS),
    "from taskmoe_plugin.models.task_table import split_pair",
    "import taskmoe_plugin.bench.workers, taskmoe_plugin.parallel.shards",
]
# A process for each, which starts with what fairseq needs, but without fairseq and the plugin.
FORKS = f"""
import json, os, sys
import hydra, omegaconf, sacrebleu, sklearn.base, torch.distributed.fsdp
assert not {{"fairseq", "taskmoe_plugin"}} & set(sys.modules)
found = {{}}
for first in json.load(sys.stdin):
    if not (child := os.fork()):
        try:
            exec(first + {KNOWN!r})
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    found[first] = os.waitpid(child, 0)[1]
print(json.dumps(found))
"""


def test_fairseq_knows_the_plugin_whatever_a_program_imports_first() -> None:
    finished = run(FORKS, str(PACKAGE), text=json.dumps(FIRST))
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout.splitlines()[-1]) == dict.fromkeys(FIRST, 0), finished.stderr


def test_fairseq_knows_the_plugin_by_its_path_alone() -> None:
    finished = run(f"import sys, fairseq\n{KNOWN}", str(PACKAGE), isolated=True)
    assert finished.returncode == 0, finished.stderr


def test_user_dir_prints_one_line_at_once() -> None:
    finished = run(MAIN, "user-dir")
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout == f"{PACKAGE}\n"


def test_user_dir_takes_no_longer_than_an_interpreter_and_a_little() -> None:
    # The least of a few, because the machine has other things to do.
    def seconds(script: str) -> float:
        start = time.perf_counter()
        run(script, "user-dir")
        return time.perf_counter() - start

    assert min(seconds(MAIN) for _ in range(5)) - min(seconds("pass") for _ in range(5)) < 0.2


@pytest.mark.parametrize(
    "command",
    ["user-dir", "--help", "extract --help", "translate --help", "report --help", "bench train --help",
     "consolidate --help", "launch --help"],
)  # fmt: skip
def test_no_command_imports_what_it_does_not_need_yet(command: str) -> None:
    script = f"""
import sys, atexit
atexit.register(lambda: print("loaded", *(name for name in {HEAVY} if name in sys.modules), file=sys.stderr))
{MAIN}"""
    finished = run(script, *command.split())
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == "loaded\n"
