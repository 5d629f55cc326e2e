"""The WMT set-up, from a small download to scores."""

import json
import os
import subprocess
from pathlib import Path

import pytest

import text
import wmt
from tests.examples import wmt_standin
from tests.examples.commands import EXAMPLE, run_step
from translate_ctranslate2 import translate

DIRECTIONS = ["cs-en", "en-cs", "en-zh"]
GROUPS = ["xx-en", "en-xx", "high-resource", "low-resource"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A download of Czech, with more than one shard of 25 lines, and Chinese, with less."""
    directory = tmp_path_factory.mktemp("wmt")
    for lang, lines in (("cs", slice(6, None)), ("zh", slice(6, 18))):
        rows = wmt_standin.rows(lang)
        wmt_standin.write_language(directory / "download", lang, rows[lines], rows[:6])
    return directory


def run(folder: Path, **changes: str):
    environment = {
        "WORK_DIR": str(folder / "work"),
        "DOWNLOAD_DIR": str(folder / "download"),
        "HIGH_RESOURCE": "cs",
        "LOW_RESOURCE": "zh",
        "LANG_PAIRS": ",".join(DIRECTIONS),
        "VOCABULARY_SIZE": "50",
        "VOCABULARY_LINES": "300",
        "SHARD_LINES": "25",
        "EPOCH_SENTENCES": "60",
        "ARCH": "taskmoe_transformer_tiny",
        "PRECISION": "",
        "WARMUP_UPDATES": "2",
        "MAX_UPDATE": "6",
        "MAX_TOKENS": "200",
        "UPDATE_FREQ": "1",
        "WORKERS": "1",
        "JOBS": "2",
        "OMP_NUM_THREADS": "1",
        "UNTIL": "scores",
    }
    return run_step("run.sh", EXAMPLE / "settings" / "wmt.sh", **environment | changes)


def test_a_download_becomes_scores_by_group_and_then_subnets(folder: Path) -> None:
    finished = run(folder)
    assert finished.returncode == 0, finished.stderr
    work = folder / "work"
    shards = {path.parent.name for path in (work / "binary").rglob("train.cs-en.cs.bin")}
    assert shards == {"binary", "shard2"}
    assert {path.parent.name for path in (work / "binary").rglob("train.en-zh.zh.bin")} == {"binary"}
    assert f"loaded 21 examples from: {work}/binary/shard2/train.cs-en.cs" in finished.stdout
    assert json.loads((work / "text" / "cleaning.json").read_text()).keys() == {"cs-en", "en-zh"}

    table = [line.split() for line in finished.stdout.splitlines()[-9:]]
    assert [row[0] for row in table] == ["direction", *DIRECTIONS, *GROUPS, "average"]
    scores = json.loads((work / "scores.json").read_text())
    assert {each["sentences"] for each in scores["directions"].values()} == {6}
    tokenizers = [scores["directions"][each]["bleu_signature"].split("|")[3] for each in DIRECTIONS]
    assert tokenizers == ["tok:intl", "tok:intl", "tok:zh"]
    assert not (work / "subnets").exists()

    rest = run(folder, GPUS="8", MAX_TOKENS="4096", UNTIL="")
    assert rest.returncode == 0, rest.stderr
    assert [line for line in rest.stdout.splitlines() if line.startswith("==") and "done already" not in line] == [
        "== scores",
        "== subnets",
        "== translations of the subnets",
        "== full model, its subnets in stock fairseq, and in CTranslate2 with 8-bit weights",
    ]
    # The test sets of the two directions of Czech have the same sentences in another order.
    own, other = (translated_by_subnet(work, "en-cs", work / "text" / f"test.{each}.en") for each in ("en-cs", "cs-en"))
    assert (work / "ctranslate2_translations" / "en-cs.txt").read_text().splitlines() == own != other


def translated_by_subnet(work: Path, direction: str, source: Path) -> list[str]:
    model, pieces = work / "ctranslate2" / direction, work / "vocabulary" / "spm.model"
    return translate(model, pieces, source.read_text(encoding="utf-8").splitlines(), beam=4, max_batch=8192)


def setting(variable: str, **environment: str) -> str:
    """What the settings make of a variable, the elements of an array with spaces between them."""
    script = f'set -eu; EXAMPLE=/example; source "$1"; echo "${{{variable}[*]}}"'
    command = ["bash", "-c", script, "bash", str(EXAMPLE / "settings" / "wmt.sh")]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True).stdout


def test_the_paper_has_thirty_directions() -> None:
    directions = text.parse_directions(setting("LANG_PAIRS").strip())
    assert len(set(directions)) == 30
    assert {lang for direction in directions for lang in direction} == {"en", *wmt.LANGUAGES}
    resources = {name: setting(f"{name}_RESOURCE").strip().split(",") for name in ("HIGH", "LOW")}
    assert all(wmt.LANGUAGES[lang].sentences > 1_000_000 for lang in resources["HIGH"])
    assert all(wmt.LANGUAGES[lang].sentences < 1_000_000 for lang in resources["LOW"])


@pytest.mark.parametrize(("gpus", "nodes", "freq"), [(1, 1, 32), (8, 1, 4), (8, 4, 1), (8, 8, 1), (3, 1, 11)])
def test_an_update_has_the_same_number_of_batches_on_any_number_of_gpus(gpus: int, nodes: int, freq: int) -> None:
    assert f"--update-freq {freq} " in setting("MACHINE_FLAGS", GPUS=str(gpus), NODES=str(nodes))


@pytest.mark.parametrize("variable", ["TEXT_COMMAND", "TRAIN_FLAGS", "VOCABULARY_FLAGS", "ENCODE_FLAGS"])
def test_a_run_goes_on_with_another_machine(variable: str) -> None:
    machine = {"GPUS": "8", "NODES": "2", "WORKERS": "3", "JOBS": "4", "MAX_TOKENS": "4096"}
    assert setting(variable, WORK_DIR="work", **machine) == setting(variable, WORK_DIR="work")


def test_several_gpus_and_machines_are_launched() -> None:
    assert setting("LAUNCHER").strip() == ""
    environment = {"GPUS": "8", "NODES": "2", "NODE_RANK": "1", "MASTER": "first:29500"}
    command = "taskmoe launch --processes 8 --nodes 2 --node-rank 1 --master first:29500 --"
    assert setting("LAUNCHER", **environment).strip() == command


def test_a_run_stops_only_after_a_step_that_there_is(folder: Path) -> None:
    finished = run(folder, UNTIL="score")
    assert finished.returncode == 2
    assert finished.stderr == "run.sh: error: UNTIL=score: no such step (see --help)\n"
