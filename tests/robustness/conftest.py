"""The directory that every case gets a copy of."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.helpers.corpus import Corpus
from tests.helpers.training import group_file, train
from tests.parallel import launching
from tests.robustness.running import run

SHORT = ("--max-update", 2, "--no-epoch-checkpoints", "--disable-validation")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeds", type=int, default=1, help="how often every random case of tests/robustness is tried")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", range(metafunc.config.getoption("--seeds", 1)))


@pytest.fixture(scope="session")
def world(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Binarised data, checkpoints of all kinds, and a benchmark's report."""
    directory = tmp_path_factory.mktemp("world")
    shutil.copytree(corpus.bin, directory / "bin")
    train(corpus, directory / "model", *SHORT)
    train(corpus, directory / "token", *SHORT, "--encoder-moe-routing", "token", "--decoder-moe-routing", "sentence")
    with launching.start(corpus, directory / "spread", *SHORT, "--moe-expert-parallel") as process:
        assert "done training" in "\n".join(launching.finish(process))
    group_file(directory)
    (directory / "bench.json").write_text('{"name": "layer", "command": "", "environment": {}, "rows": []}\n')
    for path in directory.rglob(".training"):
        path.unlink()
    # Starts the process that all commands are forked from.
    assert run(("taskmoe", "user-dir"), tmp_path_factory.mktemp("first")).status == 0
    return directory
