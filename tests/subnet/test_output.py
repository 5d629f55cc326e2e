"""What is in the place of a subnet stays, and a run that fails or is interrupted leaves nothing."""

from __future__ import annotations

import resource
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from taskmoe_plugin.cli.arguments import lang_pairs
from taskmoe_plugin.formats import subnet_name
from taskmoe_plugin.subnet import extract as extraction
from tests.helpers.corpus import Corpus
from tests.subnet.helpers import DEFAULT, error_of, extract, write_model


def test_a_directory_with_something_in_it_is_left_alone(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "en-de"
    directory.mkdir()
    (directory / "model.pt").write_text("precious")
    line = error_of(capsys, tmp_path, corpus.bin, full, "de-en,en-de")
    assert f"{directory}: exists and is not empty; give --force to replace it" in line
    assert (directory / "model.pt").read_text() == "precious"
    extract(corpus, full, tmp_path, "en-de", "--force")
    assert sorted(path.name for path in directory.iterdir()) == [
        "README.md",
        "dict.de.txt",
        "dict.en.txt",
        "model.pt",
        "subnet.json",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["en-de"]


def test_an_empty_directory_is_used_and_a_file_in_its_place_refused(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "en-de").mkdir()
    extract(corpus, full, tmp_path, "en-de")
    capsys.readouterr()
    (tmp_path / "de-en").write_text("")
    assert "exists and is no directory" in error_of(capsys, tmp_path, corpus.bin, full, "de-en", "--force")


def test_what_was_there_stays_when_replacing_it_fails(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = extract(corpus, full, tmp_path, "en-de")
    before = (directory / "subnet.json").read_text()
    capsys.readouterr()

    def full_disk(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(extraction, "write_json", full_disk)
    line = error_of(capsys, tmp_path, corpus.bin, full, "en-de", "--force")
    assert f"{directory}: cannot be written (No space left on device); nothing was kept of it" in line
    assert (directory / "subnet.json").read_text() == before


EXTRACT = "import sys; from taskmoe_plugin.cli.extract_subnet import main; main(sys.argv[1:])"


@pytest.mark.parametrize("form", [("--format", "fairseq"), ("--format", "ctranslate2")], ids=lambda form: form[1])
def test_running_out_of_space_leaves_nothing(corpus: Corpus, full: Path, tmp_path: Path, form: tuple[str, ...]) -> None:
    # No file may grow beyond 20 kB, as on a disk that is full by then.
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EXTRACT, str(corpus.bin), "--path", str(full), "--lang-pairs", "en-de",
         "--output-dir", str(tmp_path), *form],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode == 1
    [line] = [line for line in result.stderr.splitlines() if "error: " in line]
    assert f"{tmp_path / 'en-de'}: cannot be written" in line
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_an_interrupted_run_leaves_nothing(corpus: Corpus, full: Path, tmp_path: Path, kind: signal.Signals) -> None:
    # Verification is where most of the time goes; here it never ends.
    script = f"""
import time
from taskmoe_plugin.subnet import extract
extract.Verifier.verify = lambda *args: (print("verifying", flush=True), time.sleep(60))
{EXTRACT}"""
    argv = [corpus.bin, "--path", full, "--lang-pairs", "en-de", "--output-dir", tmp_path, "--verify"]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script, *map(str, argv)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background, a shell has them ignore SIGINT, which children inherit.
        preexec_fn=partial(signal.signal, kind, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "verifying\n"
    assert [path.name.startswith(".en-de") for path in tmp_path.iterdir()] == [True]
    process.send_signal(kind)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "interrupted; the unfinished subnet was not kept" in errors
    assert "Traceback" not in errors
    assert not list(tmp_path.iterdir())


def test_an_interrupted_extraction_goes_on(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(corpus, full, tmp_path, "en-de")
    first = tmp_path / "en-de" / "model.pt"
    before = first.stat().st_ino
    capsys.readouterr()
    write = extraction.write_json

    def stop(path: Path, content: dict[str, Any]) -> None:
        if content["pairs"] == ["en-fr"]:
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(extraction, "write_json", stop)
    with pytest.raises(SystemExit):
        extract(corpus, full, tmp_path, "en-de,de-en,en-fr", "--skip-existing")
    printed = capsys.readouterr()
    assert printed.err.endswith("the unfinished subnet was not kept, run again with --skip-existing\n")
    assert [row.split()[0] for row in printed.out.splitlines()[1:]] == ["en-de", "de-en"]
    monkeypatch.undo()
    extract(corpus, full, tmp_path, "en-de,de-en,en-fr", "--skip-existing")
    table = capsys.readouterr().out
    assert [row.split()[0] for row in table.splitlines()[1:4]] == ["en-de", "de-en", "en-fr"]
    assert first.stat().st_ino == before


def test_what_was_finished_is_told_before_an_error(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = extraction.write_json

    def fill(path: Path, content: dict[str, Any]) -> None:
        if content["pairs"] == ["de-en"]:
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(extraction, "write_json", fill)
    with pytest.raises(SystemExit):
        extract(corpus, full, tmp_path, "en-de,de-en")
    assert "en-de  " in capsys.readouterr().out


NOT_SAME = "was not made by the same command of the same checkpoint; give --force to replace it"
OTHERWISE = [
    ("--unpadded",), ("--half", "bf16"), ("--trim-vocabulary",), ("--license", "mit"), ("--verify", "2"),
    ("--format", "ctranslate2"),
]  # fmt: skip


@pytest.mark.parametrize("flags", OTHERWISE, ids=str)
def test_a_subnet_that_was_made_otherwise_is_not_skipped(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    extract(corpus, full, tmp_path, "en-de")
    capsys.readouterr()
    # Before others are made.
    assert NOT_SAME in error_of(capsys, tmp_path, corpus.bin, full, "de-en,en-de", "--skip-existing", *flags)
    extract(corpus, full, tmp_path, "en-de", "--skip-existing", "--force", *flags)
    before = (tmp_path / "en-de" / "subnet.json").stat().st_ino
    capsys.readouterr()
    extract(corpus, full, tmp_path, "en-de", "--skip-existing", *flags)
    assert (tmp_path / "en-de" / "subnet.json").stat().st_ino == before
    assert capsys.readouterr().out.splitlines()[1].endswith("kept")


@pytest.mark.parametrize("first", ["int8", "float16"])
def test_a_subnet_of_other_bits_is_not_skipped(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], first: str
) -> None:
    flags = ("--format", "ctranslate2", "--skip-existing")
    extract(corpus, full, tmp_path, "en-de", *flags, "--quantization", first)
    capsys.readouterr()
    assert NOT_SAME in error_of(capsys, tmp_path, corpus.bin, full, "en-de", *flags)


def test_a_subnet_of_another_checkpoint_or_without_its_model_is_not_skipped(
    corpus: Corpus, full: Path, template: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_model(corpus, template, tmp_path / full.name, *DEFAULT, seed=9)
    output = tmp_path / "out"
    extract(corpus, full, output, "en-de")
    capsys.readouterr()
    assert NOT_SAME in error_of(capsys, output, corpus.bin, other, "en-de", "--skip-existing")
    (output / "en-de" / "model.pt").unlink()
    assert NOT_SAME in error_of(capsys, output, corpus.bin, full, "en-de", "--skip-existing")


def test_another_sentencepiece_model_makes_another_subnet(corpus: Corpus, tmp_path: Path) -> None:
    described = []
    for number, content in enumerate(("one", "other", "one")):
        path = tmp_path / f"{number}.model"
        path.write_text(content)
        options = extraction.Options((corpus.bin,), tmp_path, sentencepiece_model=path)
        described.append(options.described(["en-de"]))
    assert described[0] == described[2] != described[1]


@pytest.mark.parametrize("flags", [("--verify", "3"), ("--verify", "2", "--gen-subset", "valid")])
def test_a_subnet_that_was_verified_with_less_is_not_skipped(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    extract(corpus, full, tmp_path, "en-de", "--verify", "2")
    capsys.readouterr()
    assert NOT_SAME in error_of(capsys, tmp_path, corpus.bin, full, "en-de", "--skip-existing", *flags)
    extract(corpus, full, tmp_path, "en-de", "--skip-existing", "--verify", "2")
    assert "en-de verified: 2 of 2 hypotheses equal" in capsys.readouterr().out


def test_a_trimmed_subnet_of_other_data_is_not_skipped(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = tmp_path / "data", tmp_path / "out"
    shutil.copytree(corpus.bin, data)
    flags = ("--trim-vocabulary", "--skip-existing")
    extract(corpus, full, output, "en-de", *flags)
    capsys.readouterr()
    for suffix in ("de.bin", "de.idx", "en.bin", "en.idx"):
        shutil.copy(corpus.bin / f"valid.en-de.{suffix}", data / f"train.en-de.{suffix}")
    assert NOT_SAME in error_of(capsys, output, data, full, "en-de", *flags)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--verify", "--gen-subset", "rare"), "no rare set of fr-en; binarise one"),
        (("--trim-vocabulary",), "no training data of fr-en"),
    ],
)
def test_data_that_a_later_pair_lacks_is_missed_before_anything_is_written(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple, expected: str
) -> None:
    data, output = tmp_path / "data", tmp_path / "output"
    data.mkdir()
    for file in corpus.bin.iterdir():
        if file.suffix == ".txt" or ".de-en." in file.name or ".en-de." in file.name:
            (data / file.name).symlink_to(file)
            (data / file.name.replace("test.", "rare.")).exists() or (
                data / file.name.replace("test.", "rare.")
            ).symlink_to(file)
    assert expected in error_of(capsys, output, data, full, "en-de,fr-en", *flags)
    assert not output.exists()


def test_pairs_may_stand_in_a_file(corpus: Corpus, full: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("en-de,\nde-en en-fr+fr-en\n")
    extract(corpus, full, tmp_path / "out", str(pairs))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["de-en", "en-de", "en-fr+fr-en"]


def test_a_file_of_pairs_that_is_not_there_is_named(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = str(tmp_path / "nowhere")
    line = error_of(capsys, tmp_path, corpus.bin, full, nowhere, status=2)
    assert f"--lang-pairs {nowhere}: no such file; give a file of pairs" in line


@pytest.mark.parametrize("count", [1, 20, 300, 10_000])
def test_many_pairs_are_no_file(tmp_path: Path, count: int) -> None:
    pairs = [f"eng_Latn-{number:05}" for number in range(count)]
    assert lang_pairs(",".join(pairs)) == pairs
    file = tmp_path / "pairs"
    file.write_text("\ufeff" + "\n".join(pairs), encoding="utf-8")
    assert lang_pairs(str(file)) == pairs


def test_a_subnet_of_many_pairs_has_a_short_name() -> None:
    pairs = [f"eng_Latn-{number:03}_Latn" for number in range(60)]
    name = subnet_name(pairs)
    assert name.startswith("eng_Latn-000_Latn+59-more-")
    assert len(name) < 100
    assert subnet_name([*pairs[:59], "eng_Latn-999_Latn"]) != name
    assert subnet_name(pairs[:2]) == "eng_Latn-000_Latn+eng_Latn-001_Latn"
