"""What is published: complete, well-formed, and in step with the rest of the repository."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SOURCES = ("taskmoe_plugin", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def metadata() -> dict[str, str]:
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return dict(parser["metadata"])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the sdist and the wheel, built from a copy, as building leaves files beside the sources."""
    directory = tmp_path_factory.mktemp("package")
    for name in SOURCES:
        path = ROOT / name
        copy = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, directory / name)
    finished = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation"], cwd=directory, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return directory / "dist"


def test_the_distributions_pass_the_checks_of_pypi(built: Path) -> None:
    files = sorted(built.iterdir())
    assert [path.suffix for path in files] == [".whl", ".gz"]
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, files)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout


def test_the_wheel_has_every_module_and_the_mark_of_types(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "taskmoe_plugin").rglob("*.py")}
    assert packed == modules | {"taskmoe_plugin/py.typed"}


def test_the_python_versions_are_those_that_the_tests_run_on(metadata: dict[str, str]) -> None:
    stated = set(re.findall(r"Python :: (3)\.(\d+)", metadata["classifiers"]))
    assert stated == set(re.findall(r"\((3), (\d+)\)", (ROOT / "Makefile").read_text()))


def test_the_citation_is_of_this_version(metadata: dict[str, str]) -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert (str(citation["version"]), citation["license"]) == (metadata["version"], metadata["license"])
