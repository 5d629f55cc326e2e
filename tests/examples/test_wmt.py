"""The WMT set-up, from a small download to scores."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.optim.fp16_optimizer import FP16Optimizer

import text
import wmt
from tests.examples import wmt_standin
from tests.examples.commands import EXAMPLE, run_step, shorter_settings
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
    czech = wmt_standin.rows("cs")[6:13]
    wmt_standin.write_wmt22(directory / "download", "cs", "en", czech, "B")
    wmt_standin.write_wmt22(directory / "download", "en", "cs", [row[::-1] for row in czech[:4]], "B")
    wmt_standin.write_wmt22(directory / "download", "en", "zh", [row[::-1] for row in wmt_standin.rows("zh")[:3]], "A")
    for lang, code in (("cs", "ces"), ("zh", "zho_Hans")):
        wmt_standin.write_flores(directory / "download", code, wmt_standin.rows(lang)[:5])
    return directory


# What makes a training on a CPU short.
SMALL = {
    "VOCABULARY_LINES": "300",
    "SHARD_LINES": "25",
    "EPOCH_SENTENCES": "60",
    "ARCH": "taskmoe_transformer_tiny",
    "PRECISION": "",
    "WARMUP_UPDATES": "2",
    "MAX_UPDATE": "6",
    "SAVE_UPDATES": "2",
    "AVERAGE": "2",
    "MAX_TOKENS": "200",
    "UPDATE_FREQ": "1",
    "WORKERS": "1",
    "JOBS": "2",
    "OMP_NUM_THREADS": "1",
}


def run(folder: Path, **changes: str):
    environment = SMALL | {
        "WORK_DIR": str(folder / "work"),
        "DOWNLOAD_DIR": str(folder / "download"),
        "HIGH_RESOURCE": "cs",
        "LOW_RESOURCE": "zh",
        "LANG_PAIRS": ",".join(DIRECTIONS),
        "VOCABULARY_SIZE": "50",
        "UNTIL": "scores",
    }
    return run_step("run.sh", shorter_settings(folder / "settings.sh", "wmt"), **environment | changes)


def test_a_download_becomes_scores_by_group_and_then_subnets_and_changes_make_what_depends_on_them(
    folder: Path,
) -> None:
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

    averaged = torch.load(work / "model" / "averaged.pt", weights_only=True)["model"]
    kept = [torch.load(path, weights_only=True)["model"] for path in (work / "model").glob("checkpoint_*_*.pt")]
    name = "encoder.layers.0.self_attn.k_proj.weight"
    torch.testing.assert_close(averaged[name], sum(each[name] for each in kept) / 2)

    rest = run(folder, GPUS="8", MAX_TOKENS="4096", UNTIL="", TEST_SETS="wmt22,flores200")
    assert rest.returncode == 0, rest.stderr
    assert [line for line in rest.stdout.splitlines() if line.startswith("==") and "done already" not in line] == [
        "== scores",
        "== test set wmt22",
        "== test set flores200",
        "== subnets",
        "== subnet_translations",
        "== full model, its subnets in stock fairseq, and in CTranslate2 with 8-bit weights",
    ]
    for test_set, expected in (
        ("wmt22", {"cs-en": 7, "en-cs": 4, "en-zh": 3}),
        ("flores200", dict.fromkeys(DIRECTIONS, 5)),
    ):
        found = json.loads((work / "test_sets" / test_set / "scores.json").read_text())["directions"]
        assert {direction: each["sentences"] for direction, each in found.items()} == expected
    czech = (work / "test_sets" / "wmt22" / "text" / "test.en-cs.cs").read_text().splitlines()
    assert czech == [foreign for foreign, _ in wmt_standin.rows("cs")[6:10]]
    # The test sets of the two directions of Czech have the same sentences in another order.
    own, other = (translated_by_subnet(work, "en-cs", work / "text" / f"test.{each}.en") for each in ("en-cs", "cs-en"))
    assert (work / "ctranslate2_translations" / "en-cs.txt").read_text().splitlines() == own != other
    check_what_other_settings_make_again(folder)


def stale(finished: subprocess.CompletedProcess[str]) -> list[str]:
    """What a run says was made with other settings."""
    assert finished.returncode == 1
    (line,) = finished.stderr.splitlines()
    named = line.partition("made with other settings (see made_with there): ")[2].partition("; delete these")[0]
    return named.split()


def check_what_other_settings_make_again(folder: Path) -> None:
    """In a folder where everything is made: what depends on a setting, and nothing else."""
    work, subnets = folder / "work", ["ctranslate2", "subnets"]
    translated = ["ctranslate2_translations", "subnet_translations"]
    assert stale(run(folder, BEAM="2")) == ["translations", "test_sets", *translated]
    model = ["model/finished", "model/averaged.pt", "translations", "test_sets", *subnets, *translated]
    assert stale(run(folder, MAX_UPDATE="8")) == model
    assert stale(run(folder, AVERAGE="1")) == model[1:]
    for name in model:
        path = work / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = run(folder, MAX_UPDATE="8")
    assert again.returncode == 0, again.stderr
    assert f"Loaded checkpoint {work}/model/checkpoint_last.pt" in again.stdout
    last = torch.load(work / "model" / "averaged.pt", weights_only=True)["optimizer_history"][-1]
    assert last["num_updates"] == 8
    assert len(list((work / "translations").glob("*.txt"))) == len(DIRECTIONS)


def test_two_small_languages_run_from_download_to_scores(tmp_path: Path) -> None:
    for lang in ("ro", "tr"):
        rows = wmt_standin.rows(lang)
        wmt_standin.write_language(tmp_path / "download", lang, rows[6:], rows[:6])
    environment = SMALL | {
        "WORK_DIR": str(tmp_path / "work"), "DOWNLOAD_DIR": str(tmp_path / "download"), "VOCABULARY_SIZE": "50",
    }  # fmt: skip
    finished = run_step("run.sh", shorter_settings(tmp_path / "settings.sh", "wmt_small"), **environment)
    assert finished.returncode == 0, finished.stderr
    comparison = json.loads((tmp_path / "work" / "comparison.json").read_text())
    assert comparison.keys() == {"ro-en", "en-ro", "tr-en", "en-tr"}


@pytest.mark.parametrize("optimizer", ["adafactor", "adam"])
def test_sixteen_bits_work_with_both_optimizers(optimizer: str) -> None:
    """fairseq refuses to build Adafactor on gradients that are one vector, which --fp16 makes of them."""
    flags = setting("TRAIN_FLAGS", PRECISION="fp16", OPTIMIZER=optimizer).replace('"', "").split()
    adam_betas = flags.index("--adam-betas") if optimizer == "adam" else None
    if adam_betas is not None:
        flags[adam_betas + 1 : adam_betas + 3] = [" ".join(flags[adam_betas + 1 : adam_betas + 3])]
    parser = options.get_training_parser()
    args = options.parse_args_and_arch(parser, ["data", "--task", "translation", "--arch", "transformer", *flags])
    parameters = [torch.nn.Parameter(torch.ones(2, 3, dtype=torch.float16)) for _ in range(2)]
    assert FP16Optimizer.build_optimizer(convert_namespace_to_omegaconf(args), parameters)


def test_the_default_routing_is_an_option() -> None:
    assert "--encoder-moe-routing target --decoder-moe-routing target" in setting("MODEL_FLAGS")
    routing = setting("MODEL_FLAGS", ENCODER_ROUTING="source")
    assert "--encoder-moe-routing source --decoder-moe-routing target" in routing


def test_settings_that_are_documented_are_read() -> None:
    for name in ("wmt", "wmt_small"):
        path = EXAMPLE / "settings" / f"{name}.sh"
        header = path.read_text().split("\n\n")[0]
        code = (EXAMPLE / "settings" / "wmt.sh").read_text().split("\n\n", 1)[1]
        variables = re.findall(r"\b([A-Z_]{4,})=", header)
        assert variables
        assert [each for each in variables if f"${each}" not in code and f"{{{each}" not in code] == []


@pytest.mark.parametrize(("visible", "expected"), [(None, {"0", "1"}), ("3,5", {"3", "5"})])
def test_jobs_that_run_at_once_have_a_gpu_each(tmp_path: Path, visible: str | None, expected: set[str]) -> None:
    script = """
    EXAMPLE=$1 JOBS=2 GPUS=2 LANG_PAIRS=a-b,b-a,c-d,d-c
    fail() { echo "$1"; exit 1; }
    source "$EXAMPLE/generate.sh"
    job() { echo "$CUDA_VISIBLE_DEVICES" >"$2"; sleep 0.5; }
    translate_all "$2" job
    """
    environment = os.environ | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    subprocess.run(["bash", "-euc", script, "bash", EXAMPLE, tmp_path], env=environment, check=True)
    used = [(tmp_path / f"{each}.txt").read_text().strip() for each in ("a-b", "b-a", "c-d", "d-c")]
    assert set(used[:2]) == set(used[2:]) == expected


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


def test_one_of_the_groups_of_languages_may_be_empty() -> None:
    few = {"HIGH_RESOURCE": "cs", "LOW_RESOURCE": ""}
    assert setting("LANGS", **few).strip() == "en,cs"
    assert setting("LANG_PAIRS", **few).strip() == "cs-en,en-cs"
    assert "low-resource" not in setting("GROUP_FLAGS", **few)
    assert "high-resource=cs-*,*-cs" in setting("GROUP_FLAGS", **few)


@pytest.mark.parametrize(
    ("gpus", "nodes", "freq"), [(0, 1, 32), (1, 1, 32), (8, 1, 4), (8, 4, 1), (8, 8, 1), (3, 1, 11)]
)
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
