"""The WMT data, from a folder that is as mtdata and sacrebleu leave it."""

import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

import get_wmt
import text
import wmt
from tests.examples import wmt_standin
from tests.examples.commands import error_line, run_step

PAIRS = "cs-en,en-cs,hi-en,en-hi"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for lang in ("cs", "hi"):
        rows = wmt_standin.rows(lang)
        wmt_standin.write_language(tmp_path / "download", lang, rows[6:], rows[:6])
    return tmp_path


def run(folder: Path, *more: object, pairs: str = PAIRS) -> subprocess.CompletedProcess[str]:
    directories = ("--download-dir", folder / "download", "--output-dir", folder / "corpora")
    return run_step("get_wmt.py", "--lang-pairs", pairs, *directories, *more)


def test_every_corpus_and_test_set_is_found_under_its_pair(folder: Path) -> None:
    finished = run(folder)
    assert finished.returncode == 0, finished.stderr
    corpora = folder / "corpora"
    folders = ["test.cs-en", "test.en-cs", "test.en-hi", "test.hi-en"]
    folders += ["train.cs-en", "train.en-hi", "valid.cs-en", "valid.en-hi"]
    assert sorted(path.name for path in corpora.iterdir()) == folders
    names = {path.name for path in (corpora / "train.cs-en").iterdir()}
    assert names == {f"{corpus}.{lang}" for corpus in wmt.LANGUAGES["cs"].corpora for lang in ("cs", "en")}
    czech, english = wmt_standin.rows("cs")[0]
    assert (corpora / "test.cs-en" / "wmt18.cs").read_text().splitlines()[0] == czech
    assert (corpora / "test.en-cs" / "wmt18.en").read_text().splitlines()[-1] == english
    assert (corpora / "valid.en-hi" / "IITB-hien_dev-1.5-hin-eng.hi").is_file()


def test_the_corpora_are_found_after_the_folder_was_moved(folder: Path) -> None:
    run(folder)
    moved = folder.rename(folder.with_name("moved"))
    assert (moved / "corpora" / "test.cs-en" / "wmt18.cs").is_file()


def test_a_corpus_that_was_put_there_by_hand_is_taken_too(folder: Path) -> None:
    parts = folder / "download" / "mtdata" / "cs-en" / "train-parts"
    for code in ("ces", "eng"):
        (parts / f"CzEng.{code}").write_text("word\n")
    run(folder)
    assert (folder / "corpora" / "train.cs-en" / "CzEng.cs").is_file()


def test_checksums_are_those_of_sha256sum(folder: Path) -> None:
    run(folder)
    command = ["sha256sum", "--check", "--strict", get_wmt.CHECKSUMS]
    assert subprocess.run(command, cwd=folder / "download", capture_output=True).returncode == 0


def test_a_file_that_has_changed_since_is_named(folder: Path) -> None:
    run(folder)
    changed = folder / "download" / "sacrebleu" / "wmt18" / "wmt18.cs-en.ref"
    changed.write_text(changed.read_text() + "one more\n")
    again = run(folder)
    assert again.returncode == 1
    line = again.stderr.splitlines()[-1]
    assert line.startswith(f"get_wmt.py: error: {changed}: is not the file that {folder}/download/SHA256SUMS has")


def test_checksums_of_somebody_else_are_compared_with(folder: Path) -> None:
    theirs = folder / "theirs"
    theirs.write_text(f"{'0' * 64}  sacrebleu/wmt18/wmt18.cs-en.ref\n")
    line = run(folder, "--checksums", theirs).stderr.splitlines()[-1]
    assert f"wmt18.cs-en.ref: is not the file that {theirs} has the checksum of" in line
    assert not (folder / "corpora").exists()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The arguments that mtdata is called with; each call leaves what mtdata leaves of a corpus, but for ParaCrawl."""
    commands: list[list[str]] = []

    def run_mtdata(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        assert command[1:4] == ["-m", "mtdata", "get"]
        commands.append(command[4:])
        folders = {"--train": "train-parts", "--dev": "tests"}
        for flag, corpus in pairwise(command):
            if flag in folders and not corpus.startswith("ParaCrawl"):
                (Path(command[-1]) / folders[flag] / f".valid.{corpus}").touch()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(get_wmt.subprocess, "run", run_mtdata)
    monkeypatch.setattr(get_wmt.importlib.util, "find_spec", lambda name: name)
    return commands


def test_mtdata_is_asked_only_for_what_is_missing(folder: Path, asked: list[list[str]]) -> None:
    download = folder / "download"
    get_wmt.run_mtdata(download, "cs", jobs=3)
    assert asked == []
    for path in ("cs-en/train-parts/.valid.Statmt-europarl-9-ces-eng", "en-hi/tests/.valid.IITB-hien_dev-1.5-hin-eng"):
        (download / "mtdata" / path).unlink()
    get_wmt.run_mtdata(download, "cs", jobs=3)
    get_wmt.run_mtdata(download, "hi", jobs=3)
    out = ["--n-jobs", "3", "--out"]
    assert asked == [
        ["--langs", "ces-eng", "--train", "Statmt-europarl-9-ces-eng", *out, str(download / "mtdata" / "cs-en")],
        ["--langs", "hin-eng", "--dev", "IITB-hien_dev-1.5-hin-eng", *out, str(download / "mtdata" / "en-hi")],
    ]


def test_a_corpus_that_mtdata_cannot_get_can_be_done_without(folder: Path, asked: list[list[str]]) -> None:
    parts = folder / "download" / "mtdata" / "cs-en" / "train-parts"
    for path in parts.glob("*ParaCrawl*"):
        path.unlink()
    message = f"could not get ParaCrawl-paracrawl-3-eng-ces .* touch {parts}/.valid.CORPUS first"
    with pytest.raises(get_wmt.TextError, match=message):
        get_wmt.run_mtdata(folder / "download", "cs", jobs=1)
    (parts / ".valid.ParaCrawl-paracrawl-3-eng-ces").touch()
    found = get_wmt.get_language(folder / "download", "cs", [], jobs=1)
    assert found["train.cs-en"].keys() == set(wmt.LANGUAGES["cs"].corpora) - {"ParaCrawl-paracrawl-3-eng-ces"}


def test_all_thirty_directions_are_got_and_cleaned(tmp_path: Path) -> None:
    for lang in wmt.LANGUAGES:
        rows = [(f"{lang} {foreign}", english) for foreign, english in wmt_standin.rows("cs")]
        wmt_standin.write_language(tmp_path / "download", lang, rows[6:], rows[:6])
    pairs = ",".join(f"{lang}-en,en-{lang}" for lang in wmt.LANGUAGES)
    assert run(tmp_path, pairs=pairs).returncode == 0
    directories = ("--input-dir", tmp_path / "corpora", "--output-dir", tmp_path / "text")
    cleaned = run_step("clean.py", "--lang-pairs", pairs, *directories)
    assert cleaned.returncode == 0, cleaned.stderr
    assert cleaned.stdout.splitlines()[-1].split()[:3] == ["total", str(15 * 42), str(15 * 42)]
    counts = {split: len(list((tmp_path / "text").glob(f"{split}.*"))) for split in text.SPLITS}
    assert counts == {"train": 30, "valid": 30, "test": 60}


def test_a_missing_test_set_is_asked_of_sacrebleu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], env: dict[str, str], **options: object) -> subprocess.CompletedProcess[str]:
        assert command[2:] == ["sacrebleu", "-t", "wmt18/dev", "-l", "et-en", "--echo", "src"]
        assert env["SACREBLEU"] == str(tmp_path / "sacrebleu")
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(get_wmt.subprocess, "run", fail)
    with pytest.raises(get_wmt.TextError, match="sacrebleu could not get wmt18/dev et-en"):
        get_wmt.run_sacrebleu(tmp_path, "wmt18/dev", get_wmt.Direction("et", "en"))


def test_the_names_of_all_test_sets_are_known_to_sacrebleu() -> None:
    from sacrebleu.dataset import DATASETS

    for lang, language in wmt.LANGUAGES.items():
        assert {f"{lang}-en", f"en-{lang}"} <= DATASETS[language.test].langpairs.keys()
        if get_wmt.is_test_set(language.valid):
            assert f"{lang}-en" in DATASETS[language.valid].langpairs


@pytest.mark.parametrize("pairs", ["de-cs", "xx-en"])
def test_a_direction_that_the_paper_does_not_have_is_one_clear_line(tmp_path: Path, pairs: str) -> None:
    assert f"--lang-pairs: no WMT data for {pairs}" in error_line(run(tmp_path, pairs=pairs))
    assert list(tmp_path.iterdir()) == []
