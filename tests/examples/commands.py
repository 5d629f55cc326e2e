"""Runs the example's steps as a user does."""

import os
import subprocess
import sys
from pathlib import Path

from tests.examples.serving import serve

EXAMPLE = Path(__file__).parents[2] / "examples" / "wmt_multilingual"


def run_step(step: str, *args: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a step, in a directory if given, with the tools of this Python environment first on the path."""
    path = os.pathsep.join([str(serve()), str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        [EXAMPLE / step, *map(str, args)],
        cwd=cwd,
        env=os.environ | {"PATH": path} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def shorter_settings(path: Path, name: str) -> Path:
    """Write settings that are a name's, with a model of a layer, short translations, and no process that reads data."""
    path.write_text(f"""source "$EXAMPLE/settings/{name}.sh"
MODEL_FLAGS+=(--encoder-layers 1 --decoder-layers 1 --moe-freq 1)
TRAIN_FLAGS+=(--num-workers 0)
MACHINE_FLAGS+=(--num-workers 0)
GENERATE_FLAGS+=(--max-len-b 20)
""")
    return path


def error_line(finished: subprocess.CompletedProcess[str]) -> str:
    """The one line on standard error of a step that failed with exit code 1."""
    assert finished.returncode == 1
    lines = finished.stderr.splitlines()
    assert len(lines) == 1
    return lines[0]
