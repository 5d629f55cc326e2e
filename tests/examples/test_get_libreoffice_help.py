"""LibreOffice's help as data, from made-up packages."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

import get_libreoffice_help as help_text
import text
from tests.examples.commands import EXAMPLE, error_line, run_step

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb makes and reads Debian's packages")
HELD_OUT = {"valid": ["b.html"], "test": ["c.html"]}


def page(*paragraphs: str) -> str:
    return f"<html><body><p>No id here at all.</p><div>{''.join(paragraphs)}</div></body></html>"


def paragraph(number: int, line: str, kind: str = "paragraph") -> str:
    return f'<p id="par_id{number}" class="{kind}" dir="auto">{line}</p>'


def package(directory: Path, lang: str, folder: str, pages: dict[str, str]) -> Path:
    """A package as Debian makes it, with some pages."""
    tree = directory / f"tree-{lang}"
    for name, content in pages.items():
        path = tree / "usr/share/libreoffice/help" / folder / "text" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    (tree / "DEBIAN").mkdir()
    control = f"Package: libreoffice-help-{lang}\nVersion: 4:25.2.3\nArchitecture: all\nMaintainer: x\nDescription: x\n"
    (tree / "DEBIAN" / "control").write_text(control, encoding="utf-8")
    path = directory / f"libreoffice-help-{lang}_4%3a25.2.3_all.deb"
    subprocess.run(["dpkg-deb", "--build", "-Znone", tree, path], check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(tree)
    return path


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """English and Brazilian Portuguese: a.html to train with, b.html for validation, c.html for testing."""
    folder = tmp_path / "packages"
    folder.mkdir()
    opens = "Opens the first window.", "Abre a primeira janela."
    closes = "Closes it again.", "Fecha outra vez."
    for column, (lang, directory) in enumerate((("en-us", "en-US"), ("pt-br", "pt-BR"))):
        lines = opens[column], closes[column]
        pages = {
            "a.html": page(paragraph(2, " ".join(lines)), paragraph(1, f"{lang} is the first one"), paragraph(3, lang)),
            "b.html": page(paragraph(1, f"{lang} is the second one")),
            "c.html": page(paragraph(1, lines[1])),
        }
        package(folder, lang, directory, pages)
    return folder


@needs_dpkg
def test_pages_become_lines_of_their_splits(packages: Path, tmp_path: Path) -> None:
    directions = text.parse_directions("en-pt,pt-en")
    help_text.write_pairs(packages, directions, tmp_path / "text", HELD_OUT)
    found = {path.name: path.read_text(encoding="utf-8").splitlines() for path in (tmp_path / "text").iterdir()}
    assert found == {
        # By page and id. What is in the test page as well is not trained on.
        "train.en-pt.en": ["en-us is the first one", "Opens the first window."],
        "train.en-pt.pt": ["pt-br is the first one", "Abre a primeira janela."],
        "valid.en-pt.en": ["en-us is the second one"],
        "valid.en-pt.pt": ["pt-br is the second one"],
        "test.en-pt.en": ["Closes it again."],
        "test.en-pt.pt": ["Fecha outra vez."],
    }


def test_a_page_has_its_own_paragraphs_in_plain_text() -> None:
    reader = help_text.Page()
    reader.feed(
        page(
            '<h1 id="hd_id1" dir="auto"><a name="x"></a>The  <b>first</b>\nheading &amp; more</h1>',
            '<div class="embedded"><div><p id="par_id2">Of another page</p></div></div>',
            paragraph(3, 'Click <img src="x" alt="not read"> here<br>and there'),
            paragraph(4, "Print x", kind="code"),
            paragraph(3, "The same id once more"),
        )
    )
    assert reader.paragraphs == {"hd_id1": "The first heading & more", "par_id3": "Click here and there"}


def test_a_paragraph_is_split_where_all_languages_have_as_many_sentences() -> None:
    english = "Press F1, e.g. here. Then wait! Überall?"
    assert help_text.sentences(english) == ["Press F1, e.g. here.", "Then wait!", "Überall?"]
    three = "Drücken Sie F1. Warten Sie. Überall."
    assert list(help_text.lines_of([english, three])) == list(
        zip(help_text.sentences(english), help_text.sentences(three))
    )
    assert list(help_text.lines_of([english, "Drücken Sie F1 und warten."])) == [
        (english, "Drücken Sie F1 und warten.")
    ]


@pytest.mark.parametrize(
    ("english", "german"),
    [
        ("Two words", "Zwei Wörter"),
        ("word " * 61, "Wort " * 61),
        ("Opens the window", ""),
        ("Opens the window", "Opens the window"),
        ("=SUM(1;2) returns 3", "=SUMME(1;2) ergibt 3"),
    ],
)
def test_lines_that_are_no_sentences_with_translations_are_left_out(english: str, german: str) -> None:
    assert not help_text.is_translated((english, german))
    assert help_text.is_translated(("Opens the window", "Öffnet das Fenster"))


def test_of_the_same_english_the_held_out_line_is_kept() -> None:
    english = {("a.html", "1"): "Opens the window", ("c.html", "1"): "Opens the window"}
    german = {("a.html", "1"): "Öffnet das Fenster", ("c.html", "1"): "Das Fenster geht auf"}
    rows = help_text.align([english, german], HELD_OUT)
    assert rows == {"train": [], "valid": [], "test": [("Opens the window", "Das Fenster geht auf")]}


@needs_dpkg
def test_what_packages_cannot_give_is_one_clear_line(packages: Path, tmp_path: Path) -> None:
    args = ("--deb-dir", packages, "--output-dir", tmp_path / "text", "--lang-pairs")
    assert "no libreoffice-help-de_*.deb for 'de'" in error_line(run_step("get_libreoffice_help.py", *args, "en-de"))
    assert "nothing for valid" in error_line(run_step("get_libreoffice_help.py", *args, "en-pt"))
    damaged = packages / "libreoffice-help-pt-br_4%3a25.2.3_all.deb"
    damaged.write_bytes(damaged.read_bytes()[:-600])
    assert "pt-br_4%3a25.2.3_all.deb: not a whole package" in error_line(
        run_step("get_libreoffice_help.py", *args, "en-pt")
    )
    (packages / "libreoffice-help-en-us_5_all.deb").touch()
    assert "keep one of them" in error_line(run_step("get_libreoffice_help.py", *args, "en-pt"))
    assert not (tmp_path / "text").exists()


@needs_dpkg
def test_packages_that_are_there_are_not_downloaded_again(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    apt_get = programs / "apt-get"
    apt_get.write_text('#!/bin/sh\necho "$@" >>asked\ntouch "$3"_5_all.deb\n', encoding="utf-8")
    apt_get.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    help_text.download(packages, ["en", "de", "pt"])
    assert (packages / "asked").read_text(encoding="utf-8") == "-qq download libreoffice-help-de\n"
    apt_get.write_text("#!/bin/sh\nexit 100\n", encoding="utf-8")
    with pytest.raises(text.TextError, match="libreoffice-help-el: apt-get could not download it"):
        help_text.download(packages, ["en", "el"])


def test_the_pages_that_are_held_out_are_in_one_split_each() -> None:
    held_out = json.loads((EXAMPLE / "libreoffice_help_pages.json").read_text(encoding="utf-8"))
    assert held_out.keys() == {"valid", "test"}
    assert len({page for pages in held_out.values() for page in pages}) == sum(map(len, held_out.values()))
