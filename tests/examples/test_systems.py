"""The systems of the comparison: what sets them apart, and what they have in common."""

import subprocess
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from fairseq import options

from recorded_model import parameters
from tests.examples.commands import EXAMPLE
from tests.helpers.models import StubTask, build_model_of

WIDTH, LANGS = 8, ("en", "cs", "de")
SCRIPT = """
EXAMPLE=$1
fail() { echo "$1" >&2; exit 2; }
source "$EXAMPLE/settings/comparison_homeassistant.sh"
source "$EXAMPLE/settings/systems.sh"
for SYSTEM in $ALL_SYSTEMS; do
    source "$EXAMPLE/settings/systems.sh"
    echo "$SYSTEM" "${MODEL_FLAGS[@]}"
done
"""


@pytest.fixture(scope="module")
def flags_of() -> dict[str, list[str]]:
    """The flags of each system's model, of width 8 and for three languages."""
    environment = {"WIDTH": str(WIDTH), "LANGS": ",".join(LANGS), "PATH": "/usr/bin:/bin", "DATA_DIR": "/data"}
    command = ["bash", "-euc", SCRIPT, "bash", str(EXAMPLE)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return {system: flags for system, *flags in map(str.split, finished.stdout.splitlines())}


def build(flags: list[str]) -> torch.nn.Module:
    args: Namespace = options.parse_args_and_arch(options.get_training_parser(), ["data", *flags])
    pairs = [f"{one}-{other}" for one in LANGS for other in LANGS if "en" in (one, other) and one != other]
    return build_model_of(args, task=StubTask(LANGS, pairs))


def test_a_token_passes_as_many_feed_forward_weights_in_all_systems_but_one(
    flags_of: dict[str, list[str]], tmp_path: Path
) -> None:
    active = {}
    for system, flags in flags_of.items():
        weights = build(flags).state_dict()
        torch.save({"model": weights}, tmp_path / "model.pt")
        choosing = [each for name, each in weights.items() if ".tasks." in name or ".router." in name]
        gates = sum(each.numel() for each in choosing if each.is_floating_point())
        active[system] = parameters(tmp_path / "model.pt", flags, has_subnets=False)["active"] - gates
    dense = active.pop("dense")
    assert active.pop("dense_wide") > 2 * dense
    # A second expert has an output bias of its own, in six layers.
    assert {system for system, count in active.items() if count - dense not in (0, 6 * WIDTH)} == set()
