"""The directory that every case gets a copy of."""

from __future__ import annotations

import os
import shutil
from multiprocessing import forkserver
from pathlib import Path

import pytest
from sentencepiece import sentencepiece_model_pb2

from tests.helpers.corpus import Corpus
from tests.helpers.training import group_file, train
from tests.parallel import launching
from tests.robustness.cases import ENTRY_POINTS, MODEL_FILE, PIECES
from tests.robustness.running import run

SHORT = ("--max-update", 2, "--no-epoch-checkpoints", "--disable-validation")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeds", type=int, default=1, help="how often every random case of tests/robustness is tried")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", range(metafunc.config.getoption("--seeds", 1)))


def write_pieces(path: Path, dictionary: Path) -> None:
    """A SentencePiece model that takes every word of a dictionary for a piece."""
    proto = sentencepiece_model_pb2.ModelProto()
    for number, piece in enumerate(("<unk>", "<s>", "</s>")):
        proto.pieces.add(piece=piece, score=0, type=3 if number else 2)
    for line in dictionary.read_text().splitlines():
        proto.pieces.add(piece=line.split()[0], score=-1, type=1)
    path.write_bytes(proto.SerializeToString())


@pytest.fixture(scope="session")
def world(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Binarised data, checkpoints of all kinds, and a benchmark's report."""
    forkserver.ensure_running()  # here, where the tests can be imported; elsewhere it would import nothing
    directory = tmp_path_factory.mktemp("world")
    shutil.copytree(corpus.bin, directory / "bin")
    train(corpus, directory / "model", *SHORT)
    train(corpus, directory / "token", *SHORT, "--encoder-moe-routing", "token", "--decoder-moe-routing", "sentence")
    train(corpus, directory / "dense", *SHORT, "--moe-freq", 0)
    with launching.start(corpus, directory / "spread", *SHORT, "--moe-expert-parallel") as process:
        assert "done training" in "\n".join(launching.finish(process))
    group_file(directory)
    (directory / "bench.json").write_text('{"name": "layer", "command": "", "environment": {}, "rows": []}\n')
    shutil.copy(directory / MODEL_FILE, directory / "model" / "other.pt")
    write_pieces(directory / PIECES, directory / "bin" / "dict.en.txt")
    shutil.copy(corpus.raw / "test.en-de.en", directory / "text.txt")
    for path in directory.rglob(".training"):
        path.unlink()
    before = Path.cwd()
    os.chdir(directory)
    try:
        extract = (*ENTRY_POINTS["extract ctranslate2"].command, "--output-dir", "subnet")
        ended = run((*extract, "--sentencepiece-model", PIECES), tmp_path_factory.mktemp("first"))
    finally:
        os.chdir(before)
    assert ended.status == 0, ended.errors
    return directory
