"""Reading, checking and writing line-aligned text."""

from pathlib import Path

import pytest

import text
from text import Direction, TextError


def test_directions_are_read_in_their_order() -> None:
    assert text.parse_directions("en-de,de-en") == [Direction("en", "de"), Direction("de", "en")]


@pytest.mark.parametrize("wrong", ["", "en", "en-de,", "en-de-fr", "en-en", "-de"])
def test_what_is_no_list_of_directions_is_refused(wrong: str) -> None:
    with pytest.raises(TextError, match="--lang-pairs"):
        text.parse_directions(wrong)


def test_lines_lose_white_space_of_every_kind_and_the_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes("\ufeffa\u00a0 b\r\n\tc\u2028d\n".encode())
    assert list(text.read_lines(path)) == ["a b", "c d"]


def test_an_empty_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("a\n \nb\n")
    with pytest.raises(TextError, match=r"text:2: empty line"):
        list(text.read_lines(path))


def test_a_line_in_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes("gut\nmüde\n".encode("latin-1"))
    with pytest.raises(TextError, match=r"text:2: not UTF-8"):
        list(text.read_lines(path))


@pytest.mark.parametrize(("first", "second"), [("a\nb\nc\n", "x\ny\n"), ("x\ny\n", "a\nb\nc\n")])
def test_the_file_that_ends_early_is_named(tmp_path: Path, first: str, second: str) -> None:
    paths = [tmp_path / "first", tmp_path / "second"]
    paths[0].write_text(first)
    paths[1].write_text(second)
    short = "second" if len(second) < len(first) else "first"
    with pytest.raises(TextError, match=rf"{short}:3: the file ends before line 3"):
        list(text.read_aligned(paths))


def test_files_without_a_line_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / "first", tmp_path / "second"]
    for path in paths:
        path.touch()
    with pytest.raises(TextError, match="first:1: the file is empty"):
        list(text.read_aligned(paths))


def test_text_is_found_under_the_name_of_either_direction_but_rather_of_its_own(tmp_path: Path) -> None:
    def create(name: str) -> None:
        for lang in name.split("-"):
            (tmp_path / f"test.{name}.{lang}").touch()

    german_english = Direction("de", "en")
    assert text.find_name(tmp_path, "test", german_english) is None
    create("en-de")
    assert text.find_name(tmp_path, "test", german_english) == Direction("en", "de")
    create("de-en")
    assert text.find_name(tmp_path, "test", german_english) == german_english


def test_a_directory_appears_only_when_all_went_well(tmp_path: Path) -> None:
    def fail_halfway() -> None:
        with text.new_directory(tmp_path / "out") as partial:
            (partial / "file").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert list(tmp_path.iterdir()) == []
    with text.new_directory(tmp_path / "out") as partial:
        (partial / "file").touch()
        assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "file"]


def test_what_an_interrupted_run_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "old").touch()
    with text.new_directory(tmp_path / "out"):
        pass
    assert list(tmp_path.rglob("*")) == [tmp_path / "out"]


def test_a_directory_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(TextError, match="out: exists already"), text.new_directory(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
