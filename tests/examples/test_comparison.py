"""The comparison of systems: small trainings that leave their figures, and the page made of them."""

import json
from pathlib import Path

import pytest
import torch

import taskmoe_plugin  # noqa: F401  allows what checkpoints hold to be loaded
from record_system import bootstrap
from recorded_model import describe
from taskmoe_plugin.models.stack import StackConfig
from taskmoe_plugin.moe import Usage
from taskmoe_plugin.report.usage import StackUsage
from tests.examples.commands import EXAMPLE, run_step
from tests.examples.test_pipeline import NOUNS, sentences
from tests.helpers.models import build_model
from text import TextError
from training_log import training

SYSTEMS = ("dense", "token_token", "merged", "distilled")
WIDTH = 8


def run_comparison(folder: Path, **changes: str):
    environment = {
        "INPUT_DIR": str(folder / "mine"),
        "WORK_DIR": str(folder / "work"),
        "RESULTS": str(folder / "results" / "small"),
        "LANGS": "en,de",
        "LANG_PAIRS": "en-de",
        "ZERO_SHOT_PAIRS": "",
        "VOCABULARY_SIZE": "38",
        "MAX_UPDATE": "2",
        "LOG_INTERVAL": "1",
        "WIDTH": str(WIDTH),
        "LEARNING_RATES": "0.003",
        "SYSTEMS": " ".join(SYSTEMS),
        "SEEDS": "1",
    }
    return run_step("comparison.sh", EXAMPLE / "settings" / "comparison_multi30k.sh", **environment | changes)


def render(results: Path, output: Path) -> str:
    finished = run_step("render_comparison.py", "--results-dir", results, "--output", output)
    assert finished.returncode == 0, finished.stderr
    return output.read_text(encoding="utf-8")


def test_each_system_leaves_its_figures_once(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for lang in NOUNS:
        lines = sentences(lang)
        for split, part in (("train", lines), ("valid", lines[:5]), ("test", lines[:13])):
            (tmp_path / "mine" / f"{split}.{lang}").write_text("\n".join(part) + "\n", encoding="utf-8")
    chosen = run_comparison(tmp_path, SYSTEMS="dense", LEARNING_RATES="0.001 0.01")
    assert chosen.returncode == 0, chosen.stderr
    finished = run_comparison(tmp_path)
    assert finished.returncode == 0, finished.stderr

    runs = {system: json.loads((tmp_path / "results" / "small" / f"{system}-1.json").read_text()) for system in SYSTEMS}
    assert {run["training"]["updates"] for run in runs.values()} == {2}
    dense, routed, merged = runs["dense"], runs["token_token"], runs["merged"]
    trials = dense["learning_rate"]["valid_nll_loss"]
    assert dense["learning_rate"]["chosen"] == min(trials, key=trials.get) == flag_of(dense, "--lr")
    assert trials.keys() == {"0.001", "0.01"}
    assert flag_of(merged, "--lr") == "0.003"
    assert_parameters_are_counted(dense, routed, merged)

    assert routed["directions"]["en-de"]["sentences"] == 13
    tested = merged["against"]["token_token"]["en-de"]
    assert tested["difference"] == merged["directions"]["en-de"]["bleu"] - routed["directions"]["en-de"]["bleu"]
    assert 0 < tested["p"] <= 1
    assert [set(run["against"]) for run in (dense, routed, merged)] == [set(), {"dense"}, {"dense", "token_token"}]
    assert merged["subnets"]["en-de"]["bleu"] == merged["directions"]["en-de"]["bleu"]
    assert "subnets" not in dense
    assert dense["task_gates"] == {}
    assert merged["task_gates"].keys() == {"encoder", "decoder"}
    assert merged["task_gates"]["decoder"].keys() == {"unused", "first_weight"}  # of the only task
    assert len(routed["training"]["curve"]) == 2
    assert routed["training"]["curve"][-1]["tokens"] == routed["training"]["tokens"]
    assert routed["training"]["valid_nll_loss_by_direction"].keys() == {"en-de"}
    assert str(tmp_path) not in json.dumps(runs)
    assert_student_begins_as_its_teacher(tmp_path / "work")

    again = run_comparison(tmp_path)
    assert again.returncode == 0
    assert all("done already" in line for line in again.stdout.splitlines())


def flag_of(run: dict, name: str) -> str:
    return run["flags"][run["flags"].index(name) + 1]


def assert_parameters_are_counted(dense: dict, routed: dict, merged: dict) -> None:
    sizes, ffn = [run["parameters"] for run in (dense, routed, merged)], 4 * WIDTH
    assert sizes[0]["total"] == sizes[0]["active"] == sizes[0]["served"]
    # A token passes more than in a dense model: gates, and the second expert's bias.
    gates = [6 * (4 * WIDTH + WIDTH), 2 * (128 * 8 * 3 + 2 * 128)]
    for size, most in zip(sizes[1:], gates):
        assert 0 < size["active"] - sizes[0]["active"] <= most
    # Six layers: with four experts, of which a token passes two; with eight, of which it passes one made of them.
    assert sizes[1]["total"] - sizes[1]["active"] == 6 * 2 * (WIDTH * ffn + ffn // 2 + WIDTH)
    assert sizes[2]["total"] - sizes[2]["active"] == 6 * 7 * (2 * WIDTH * ffn + ffn + WIDTH)
    assert sizes[1]["served"] == sizes[1]["total"]
    # fairseq keeps a number in each dense stack that is no parameter.
    assert sizes[2]["served"] == sizes[0]["total"] - 2


def test_a_difference_is_tested_and_equal_systems_have_none(tmp_path: Path) -> None:
    sources, reference = sentences("en"), sentences("de")
    for name, lines in (("reference", reference), ("right", reference), ("wrong", sources), ("other_wrong", sources)):
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    right, wrong, other_wrong = (tmp_path / name for name in ("right", "wrong", "other_wrong"))

    def tested(system: Path) -> dict:
        return bootstrap(system, wrong, tmp_path / "reference", "de")

    assert tested(other_wrong) == {"difference": 0.0, "p": 1.0}
    assert tested(right)["difference"] > 50
    assert tested(right)["p"] < 0.01


def test_related_languages_are_held_against_others() -> None:
    weight = torch.tensor([[1.0, 1.0, 0.0], [0.5, 1.5, 0.0], [2.0, 0.0, 0.0]])
    layer = Usage(weight, load=weight / 2, share=torch.ones(3) / 3)
    config = StackConfig.from_args(build_model().args, "encoder")
    found = describe(StackUsage(config, ("de", "nl", "fr"), {0: layer}), [["de", "nl"], ["fr"]])
    expected = {"unused": 1 / 3, "first_weight": 0.75, "similarity": 0.5, "related": 0.75, "unrelated": 0.375}
    assert found == pytest.approx(expected)


def test_the_loss_is_that_of_the_checkpoint_that_translates(tmp_path: Path) -> None:
    names = ("experts_in_use", "gate_entropy", "balance_loss")
    gates = {f"{stack}_{name}": "0.5" for stack in ("encoder", "decoder") for name in names}
    events = [
        ("train_inner", {"num_updates": "10", "wpb": "100", "nll_loss": "5"} | gates),
        ("valid", {"valid_num_updates": "13", "valid_nll_loss": "3.5", "valid_en-de_nll_loss": "3.25"}),
        ("train_inner", {"num_updates": "20", "wpb": "300", "nll_loss": "9"} | gates),  # again after an interruption
        ("train_inner", {"num_updates": "20", "wpb": "200", "nll_loss": "4"} | gates),
        ("valid", {"valid_num_updates": "26", "valid_nll_loss": "3.7"}),
    ]
    log = "".join(f"2026-01-01 00:00:00 | INFO | {kind} | {json.dumps(event)}\n" for kind, event in events)
    (tmp_path / "train.out").write_text(log, encoding="utf-8")
    (tmp_path / "train.seconds").write_text("started\n5\n", encoding="utf-8")
    best = training(tmp_path, 13)
    assert best["updates"] == 13
    assert best["valid_nll_loss"] == 3.5
    assert best["valid_nll_loss_by_direction"] == {"en-de": 3.25}
    assert best["words_per_processor_second"] == 600
    assert best["curve"] == [{"tokens": 1000.0, "nll_loss": 5.0}, {"tokens": 3000.0, "nll_loss": 4.0}]
    with pytest.raises(TextError, match="no training in it"):
        training(tmp_path, 14)


def assert_student_begins_as_its_teacher(work: Path) -> None:
    student, dense = (
        torch.load(work / name, weights_only=True)["model"]
        for name in ("distilled-1/student.pt", "dense-1/model/checkpoint_last.pt")
    )
    teacher = torch.load(work / "token_token-1" / "model" / "checkpoint_last.pt", weights_only=True)["model"]
    assert student.keys() == dense.keys()
    assert {name for name in student if name not in teacher} == {
        f"{stack}.layers.{layer}.{part}"
        for stack in ("encoder", "decoder")
        for layer in (0, 1, 2)
        for part in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
    }
    assert all(torch.equal(student[name], teacher[name]) for name in student if name in teacher)
    learned, references, translations = (
        (work / name).read_text().splitlines()
        for name in (
            "distilled-1/pieces/train.en-de.de",
            "pieces/train.de-en.de",
            "token_token-1/training_translations/en-de.txt",
        )
    )
    assert len(learned) == len(translations) == len(sentences("de"))
    assert all(line in pair for line, pair in zip(learned, zip(references, translations)))


def test_a_student_learns_no_translation_that_loops(tmp_path: Path) -> None:
    translations = [
        "▁ein ▁Haus",
        "▁so ▁so ▁so ▁so",
        "▁ja ▁ja ▁ja",
        "",
        "▁a , ▁ b , ▁ b , ▁ b , ▁ b",
        "▁so ▁so ▁so ▁sorge",
    ]
    files = {
        "pieces/train.de-en.en": [f"▁source ▁{number}" for number in range(6)],
        "pieces/train.de-en.de": [f"▁reference ▁{number}" for number in range(6)],
        "translations/en-de.txt": translations,
    }
    for name, lines in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")

    def run(output: Path):
        flags = ("--pieces-dir", tmp_path / "pieces", "--translations-dir", tmp_path / "translations")
        return run_step("student_text.py", *flags, "--lang-pairs", "en-de", "--output-dir", output)

    finished = run(tmp_path / "student")
    assert finished.returncode == 0, finished.stderr
    assert "en-de: 3 of 6 translations loop or are empty" in finished.stdout
    learned = (tmp_path / "student" / "train.en-de.de").read_text(encoding="utf-8").splitlines()
    references = files["pieces/train.de-en.de"]
    assert learned == [translations[0], references[1], translations[2], references[3], references[4], translations[5]]
    sources = (tmp_path / "student" / "train.en-de.en").read_text(encoding="utf-8").splitlines()
    assert sources == files["pieces/train.de-en.en"]

    short = tmp_path / "translations" / "en-de.txt"
    short.write_text("▁ein ▁Haus\n", encoding="utf-8")
    failed = run(tmp_path / "other")
    assert failed.returncode == 1
    assert failed.stderr == (
        f"student_text.py: error: {short}: 1 lines, the training text has 6; delete it and run again\n"
    )
    assert not (tmp_path / "other").exists()


def run_of(system: str, seed: int, bleu: float, p: float = 1.0) -> dict:
    gates = {"experts_in_use": 0.5, "gate_entropy": 1.0, "balance_loss": 1.0}
    directions = ("en-de", "de-en")
    tested = {each: {"difference": bleu - 20.0, "p": p} for each in directions}
    score = {"bleu": bleu, "chrf": 50.0, "length_ratio": 0.75, "sentences": 10}
    return {
        "system": system,
        "seed": seed,
        "flags": ["--seed", str(seed), "--lr", "0.006"],
        "learning_rate": {"chosen": "0.006", "valid_nll_loss": {"0.012": 3.5, "0.006": 3.25}},
        "parameters": {"total": 3_000_000, "active": 2_000_000, "served": 1_000_000},
        "training": {
            "updates": 10,
            "tokens": 2_000_000.0,
            "words_per_processor_second": 1000.0,
            "valid_nll_loss": 2.0,
            "valid_nll_loss_by_direction": {"en-de": 1.5, "de-en": 2.5},
            "curve": [{"tokens": million * 1e6, "nll_loss": 10 - bleu / 10} for million in (1, 2)],
            "gates": {"encoder": gates, "decoder": gates},
        },
        "task_gates": {
            "encoder": {"unused": 0.25, "similarity": 0.2, "related": 0.4, "unrelated": 0.1, "first_weight": 0.75}
        },
        "directions": dict.fromkeys(directions, score),
        "against": {} if system == "dense" else {"dense": tested},
        "zero_shot": {"fr-de": score},
    }


def page_of(folder: Path, runs: list[dict], data: str = "made-up") -> str:
    (folder / "results" / data).mkdir(parents=True)
    for run in runs:
        path = folder / "results" / data / f"{run['system']}-{run['seed']}.json"
        path.write_text(json.dumps(run), encoding="utf-8")
    return render(folder / "results", folder / "page.md")


@pytest.fixture
def page(tmp_path: Path) -> str:
    return page_of(tmp_path, [run_of("dense", 1, 20), run_of("better", 1, 22, 0.01), run_of("better", 2, 24, 0.06)])


def test_the_page_in_the_documentation_is_that_of_the_results_beside_it(tmp_path: Path) -> None:
    docs = Path(__file__).parents[2] / "docs"
    assert (docs / "comparison.md").read_text(encoding="utf-8") == render(docs / "comparison", tmp_path / "page.md")


NAMES = {
    "dense": "dense",
    "dense, as many parameters": "dense_large",
    "token / token": "token_token",
    "token / token, one expert": "switch",
    "sentence / sentence": "sentence_sentence",
    "pair / pair": "pair_pair",
    "target / target": "target_target",
    "source / target": "source_target",
    "source / target, static gates": "static",
    "token / target": "token_target",
    "dense student of token / token": "distilled",
    "the same, with word distributions": "distilled_words",
}


HEAD = """\
| encoder / decoder | Home Assistant: BLEU | chrF | loss | Multi30k: BLEU | chrF | loss |
|---|---|---|---|---|---|---|
"""


def cells_of_page(section: str, system: str) -> list[str]:
    """BLEU, chrF and loss of a system on a data set."""
    start = f"| {system} | "
    overview, costs = [line.split(" | ") for line in section.splitlines() if line.startswith(start)][:2]
    return [overview[2], overview[5], costs[6]]


def test_the_table_of_routings_has_the_figures_of_the_page() -> None:
    docs = Path(__file__).parents[2] / "docs"
    routing, page = ((docs / f"{name}.md").read_text(encoding="utf-8") for name in ("routing", "comparison"))
    page = page.split("\n# Earlier\n")[1]
    sections = [page.split(f"\n## {data}\n")[1].split("\n## ")[0] for data in ("homeassistant", "multi30k")]
    rows = routing.split(HEAD)[1].split("\n\n")[0].splitlines()
    assert rows
    for name, *cells in ([each.strip() for each in row.strip("|").split("|")] for row in rows):
        assert cells == [cell for section in sections for cell in cells_of_page(section, NAMES[name])], name


def test_the_page_has_means_and_ranges_over_seeds_best_system_first(page: str) -> None:
    better, dense = (line for line in page.splitlines() if line.startswith(("| better | 2 |", "| dense | 1 |")))
    assert "| 23.00 [22.00, 24.00] | 23.00 [22.00, 24.00] |" in better
    assert "| 20.00 | 20.00 |" in dense
    assert page.index(better) < page.index(dense)


def test_the_page_counts_the_directions_in_which_a_difference_is_significant(page: str) -> None:
    assert "| 2 of 4 | 0 of 4 |" in page


def test_the_page_says_what_the_gates_learnt(page: str) -> None:
    cells = (f"{each} [{each}, {each}]" for each in ("0.25", "0.20", "0.40", "0.10", "0.75"))
    assert f"| better, encoder | {' | '.join(cells)} |\n" in page


def test_the_page_says_what_a_direction_stores_and_loses(page: str) -> None:
    assert "| dense | 0.006 | 3.00 | 2.00 | 4.00 | 1000 | 2.000 | 1.500 | 2.500 | 0.50 | 0.50 | no subnets |\n" in page
    assert "| dense | **3.250** | 3.500 |\n" in page  # of learning rates, the smaller first


def test_the_page_follows_the_gain_during_training(page: str) -> None:
    table = page.split("Loss of the training text (bits), less that of dense")[1]
    assert "| system | 2.0 |\n" in table
    assert "| better | -0.200 |\n" in table


def test_directions_that_were_not_trained_have_a_table_of_their_own(page: str) -> None:
    table = page.split("BLEU in directions that were not trained:")[1]
    assert "| system | fr-de |" in table
    assert "| better | 23.0 |" in table


def test_every_direction_has_its_chrf(page: str) -> None:
    table = page.split("chrF by direction:")[1]
    assert "| better | 50.0 | 50.0 |" in table.split("chrF in directions")[0]


def test_the_page_gives_a_students_share_of_its_teachers_gain(tmp_path: Path) -> None:
    runs = [run_of("dense", 1, 20), run_of("token_token", 1, 24), run_of("distilled", 1, 21)]
    worse = [run_of("dense", 3, 20), run_of("token_token", 3, 24), run_of("distilled", 3, 19)]
    page = page_of(tmp_path, [*runs, *worse, run_of("distilled_words", 2, 30)])
    assert "- distilled, seed 1: +1.00 BLEU on dense, 25% of its teacher's gain (+4.00).\n" in page
    assert "- distilled, seed 3: -1.00 BLEU on dense, nothing of its teacher's gain (+4.00).\n" in page
    assert "- distilled_words" not in page  # its teacher was not trained with this seed


def test_earlier_runs_have_sections_of_their_own_at_the_end(tmp_path: Path) -> None:
    page_of(tmp_path, [run_of("dense", 1, 20)], "earlier/made-up")
    (tmp_path / "results" / "earlier" / "made-up" / "note.md").write_text("Said of it.\n", encoding="utf-8")
    page = page_of(tmp_path, [run_of("dense", 1, 30)], "made-up")
    assert page.split("# Earlier")[1].split("## made-up\n\n")[1].startswith("Said of it.\n\n1 training of")
    assert page.index("| 30.00 |") < page.index("\n# Earlier\n") < page.index("| 20.00 |")
    assert "## earlier" not in page


def test_systems_that_did_not_translate_are_sorted_by_their_losses(tmp_path: Path) -> None:
    runs = [run_of("dense", 1, 20), run_of("better", 1, 30), run_of("distilled", 1, 25)]
    for run, loss in zip(runs, (3.0, 2.5, 3.5)):
        run["training"]["valid_nll_loss"] = loss
        del run["directions"], run["zero_shot"], run["against"]
    page = page_of(tmp_path, runs)
    assert "3 trainings of 10 updates, 2.0 million target tokens, too short to translate with. dense was" in page
    assert "BLEU |" not in page.split("## made-up")[1].split("largest difference")[0]
    lines = [line for line in page.splitlines() if " | 1.500 | 2.500 | 0.50 | 0.50 |  |" in line]
    assert [line.split(" | ")[0] for line in lines] == ["| better", "| dense", "| distilled"]


def test_of_several_learning_rates_the_one_with_the_lowest_last_loss_is_chosen(tmp_path: Path) -> None:
    for rate, losses in (("0.1", (2, "NaN")), ("0.01", (9, 4)), ("0.001", (3, 5))):
        events = ({"valid_num_updates": str(number), "valid_nll_loss": str(loss)} for number, loss in enumerate(losses))
        (tmp_path / rate).mkdir()
        log = "".join(f"2026-01-01 00:00:00 | INFO | valid | {json.dumps(event)}\n" for event in events)
        (tmp_path / rate / "train.out").write_text(log, encoding="utf-8")
    trials = [tmp_path / rate for rate in ("0.1", "0.01", "0.001")]
    finished = run_step("choose_learning_rate.py", "--output", tmp_path / "rate.json", *trials)
    assert finished.returncode == 0, finished.stderr
    found = json.loads((tmp_path / "rate.json").read_text(encoding="utf-8"))
    assert found["chosen"] == "0.01"
    assert found["valid_nll_loss"] == {"0.1": None, "0.01": 4.0, "0.001": 5.0}


@pytest.mark.parametrize("name", ["comparison_multi30k", "comparison_homeassistant", "comparison_libreoffice"])
def test_an_unknown_system_is_one_line(name: str, tmp_path: Path) -> None:
    work = {"SYSTEM": "best", "WORK_DIR": str(tmp_path), "INPUT_DIR": str(tmp_path)}
    finished = run_step("comparison.sh", EXAMPLE / "settings" / f"{name}.sh", **work)
    assert finished.returncode == 2
    assert finished.stderr.startswith("comparison.sh: error: SYSTEM=best: no such system; choose from ")
