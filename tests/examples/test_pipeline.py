"""All steps, from the user's own text to scores."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.examples.commands import EXAMPLE, run_step, shorter_settings

NOUNS = {"en": ["dog", "cat", "bird", "horse"], "de": ["Hund", "Kater", "Vogel", "Gaul"]}
VERBS = {"en": ["sees", "hears", "follows"], "de": ["sieht", "hört", "verfolgt"]}
ARTICLES = {"en": "the", "de": "den"}


def sentences(lang: str) -> list[str]:
    """Every noun with every verb and every noun: 48 sentences, in the same order in each language."""
    article, nouns, verbs = ARTICLES[lang], NOUNS[lang], VERBS[lang]
    return [f"{article} {a} {verb} {article} {b}" for a in nouns for verb in verbs for b in nouns]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pipeline")
    (directory / "mine").mkdir()
    for lang in NOUNS:
        lines = sentences(lang)
        for split, part in (("train", lines), ("valid", lines[:5]), ("test", lines[:13])):
            (directory / "mine" / f"{split}.{lang}").write_text("\n".join(part) + "\n", encoding="utf-8")
    return directory


def run_all(folder: Path, step: str = "run.sh", **changes: str):
    environment = {
        "INPUT_DIR": str(folder / "mine"),
        "WORK_DIR": str(folder / "work"),
        "LANGS": "en,de",
        "LANG_PAIRS": "en-de,de-en",
        "VOCABULARY_SIZE": "38",
        "MAX_UPDATE": "3",
        "OMP_NUM_THREADS": "1",
    }
    settings = shorter_settings(folder / "settings.sh", "files")
    return run_step(step, settings, cwd=folder, **environment | changes)


def test_a_folder_of_text_becomes_scores_and_a_second_run_does_nothing_again(folder: Path) -> None:
    first = run_all(folder)
    assert first.returncode == 0, first.stderr
    scores = json.loads((folder / "work" / "scores.json").read_text())
    assert {name: each["sentences"] for name, each in scores["directions"].items()} == {"en-de": 13, "de-en": 13}
    tables = {"scores.json", "comparison.json"}
    written = {path: path.stat().st_mtime_ns for path in (folder / "work").rglob("*") if path.name not in tables}

    second = run_all(folder)
    assert second.returncode == 0, second.stderr
    again = [line for line in second.stdout.splitlines() if line.startswith("== ") and "done already" not in line]
    assert [line.split()[1] for line in again] == ["scores", "full"]
    assert second.stdout.splitlines()[-4:] == first.stdout.splitlines()[-4:]
    assert written == {path: path.stat().st_mtime_ns for path in written}

    other = run_all(folder, VOCABULARY_SIZE="36")
    assert other.returncode == 1
    assert other.stderr.splitlines()[-1].startswith(
        f"run.sh: error: {folder}/work: made with other settings (see made_with there): vocabulary pieces binary model/"
    )


def test_the_same_settings_said_in_another_way_make_nothing_again(folder: Path, tmp_path: Path) -> None:
    made = {"WORK_DIR": str(tmp_path / "work"), "UNTIL": "pieces"}
    assert run_all(folder, **made).returncode == 0
    clone = tmp_path / "clone"
    shutil.copytree(EXAMPLE, clone, ignore=shutil.ignore_patterns("out", "__pycache__"))
    settings = tmp_path / "settings.sh"
    settings.write_text(
        'LANGS=en,de LANG_PAIRS=en-de,de-en VOCABULARY_SIZE=38\nsource "$EXAMPLE/settings/files.sh"\n', encoding="utf-8"
    )
    for finished in (
        run_all(folder, **made | {"INPUT_DIR": "mine"}),
        run_all(folder, str(clone / "run.sh"), **made),
        run_step("run.sh", settings, cwd=tmp_path, INPUT_DIR=str(folder / "mine"), **made | {"WORK_DIR": "work"}),
    ):
        assert finished.returncode == 0, finished.stderr
        steps = [line for line in finished.stdout.splitlines() if line.startswith("== ")]
        assert steps
        assert all("done already" in line for line in steps)


def test_checkpoints_are_averaged_with_any_settings(folder: Path, tmp_path: Path) -> None:
    shorter = {"AVERAGE": "2", "MAX_UPDATE": "3", "MAX_TOKENS": "100", "UNTIL": "translations"}
    settings = shorter_settings(tmp_path / "settings.sh", "files")
    with settings.open("a") as file:
        file.write("TRAIN_FLAGS+=(--save-interval-updates 1)\n")
    environment = {"INPUT_DIR": str(folder / "mine"), "LANGS": "en,de", "LANG_PAIRS": "en-de", "VOCABULARY_SIZE": "38"}
    finished = run_step("run.sh", settings, WORK_DIR=str(tmp_path / "work"), **environment, **shorter)
    assert finished.returncode == 0, finished.stderr
    assert len(list((tmp_path / "work" / "model").glob("checkpoint_*_*.pt"))) == 2
    assert "averaged.pt" in (tmp_path / "work" / "translations" / "en-de.log").read_text()


def test_what_subnets_need_is_missed_before_anything_is_made(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "ctranslate2.py").write_text("raise ImportError\n")
    missing = run_all(folder, WORK_DIR=str(tmp_path / "work"), PYTHONPATH=str(tmp_path))
    assert missing.stderr == (
        "run.sh: error: ctranslate2: not installed, and subnets need it; pip install ctranslate2, or stop before with "
        "UNTIL=scores\n"
    )
    assert not (tmp_path / "work").exists()


def test_no_translation_at_a_time_is_refused(folder: Path, tmp_path: Path) -> None:
    finished = run_all(folder, "translate.sh", WORK_DIR=str(tmp_path / "work"), JOBS="0")
    assert (finished.returncode, finished.stderr) == (2, "translate.sh: error: JOBS=0: give at least 1\n")


def test_the_commands_to_try_next_work_as_they_are_printed(folder: Path) -> None:
    printed = run_all(folder, "next_steps.sh").stdout.replace("\\\n", "")
    commands = re.findall(r"^    (.+)$", printed, re.MULTILINE)
    assert [re.search(r"taskmoe (\w+)", command)[1] for command in commands] == ["translate", "report", "extract"]
    for command in commands:
        finished = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, (command, finished.stderr)
    assert (folder / "work" / "report" / "report.json").exists()
    assert (folder / "work" / "more" / "en-de" / "subnet.json").exists()


def test_the_demo_has_a_direction_left_to_extract() -> None:
    printed = run_step("next_steps.sh", EXAMPLE / "settings" / "demo.sh", WORK_DIR="/tmp/demo").stdout
    assert "--lang-pairs de-es --output-dir" in printed


def test_an_empty_record_of_settings_blocks_no_step_that_has_made_nothing(folder: Path, tmp_path: Path) -> None:
    # What a run leaves that is killed before it has written anything.
    (tmp_path / "work" / "made_with").mkdir(parents=True)
    record = tmp_path / "work" / "made_with" / "text"
    record.touch()
    finished = run_all(tmp_path, INPUT_DIR=str(folder / "mine"), UNTIL="text")
    assert finished.returncode == 0, finished.stderr
    assert record.stat().st_size > 0


@pytest.mark.parametrize("step", ["run.sh", "binarize.sh", "train.sh", "translate.sh", "next_steps.sh"])
def test_a_step_explains_itself_and_refuses_wrong_usage(step: str, tmp_path: Path) -> None:
    assert run_step(step, "--help").stdout.startswith(f"Usage: {step} SETTINGS\n\n")
    without = run_step(step)
    assert (without.returncode, len(without.stderr.splitlines())) == (2, 1)
    missing = run_step(step, tmp_path / "missing.sh")
    assert (missing.returncode, missing.stderr) == (2, f"{step}: error: {tmp_path}/missing.sh: no such settings file\n")


def test_a_failing_direction_is_one_line_that_names_it(tmp_path: Path) -> None:
    environment = {"INPUT_DIR": str(tmp_path), "WORK_DIR": str(tmp_path / "work"), "LANG_PAIRS": "en-de,de-en"}
    finished = run_step("translate.sh", EXAMPLE / "settings" / "files.sh", **environment)
    assert finished.returncode == 1
    assert finished.stderr.splitlines()[-1].startswith("translate.sh: error: en-de: ")
    assert not (tmp_path / "work" / "translations" / "en-de.txt").exists()
