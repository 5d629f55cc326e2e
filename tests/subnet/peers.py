"""Programs that subnets are made for, whose packages must not be in the environment of fairseq.

``make`` puts them into ``peers`` in the virtual environment. transformers cannot be in that of fairseq, which would
import it, and it fails where torchaudio is of another version than PyTorch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PEERS = Path(os.environ.get("TASKMOE_PEERS", Path(sys.prefix) / "peers"))


def require(package: str) -> None:
    """Skip the test where a program is not installed."""
    if not (PEERS / package).is_dir():
        pytest.skip(f"{package} is not in {PEERS}; make venv puts it there")


def run_peer(script: str, question: Any, **environment: str) -> Any:
    """Run a script with those programs and without fairseq; it reads JSON and prints JSON in its last line."""
    blocked = "import sys; sys.modules.update(dict.fromkeys(('fairseq', 'torchaudio', 'taskmoe_plugin')))\n"
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", blocked + script], input=json.dumps(question), capture_output=True,
        text=True, check=False, cwd="/",
        env={**os.environ, "PYTHONPATH": str(PEERS), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-4000:]
    return json.loads(finished.stdout.splitlines()[-1])
