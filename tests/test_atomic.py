"""Files and folders that are whole or not there."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from clipstem.atomic import new_file, new_folder, require_new
from clipstem.question import ClipstemError

Opener = Callable[[Path], AbstractContextManager[Path]]


def write(partial: Path, text: str) -> None:
    (partial / "inside" if partial.is_dir() else partial).write_text(text)


def text_of(path: Path) -> str:
    return (path / "inside" if path.is_dir() else path).read_text()


both = pytest.mark.parametrize("make", [new_file, new_folder])


@both
def test_it_appears_whole_when_the_block_ends(make: Opener, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down" / "name.txt"
    with make(path) as partial:
        write(partial, "all")
        assert partial.parent == path.parent
        assert not path.exists()
    assert text_of(path) == "all"
    assert list(path.parent.iterdir()) == [path]


@both
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_of_a_broken_block(
    make: Opener, error: type[BaseException], tmp_path: Path
) -> None:
    with pytest.raises(error), make(tmp_path / "name") as partial:
        write(partial, "half")
        raise error
    assert list(tmp_path.iterdir()) == []


@both
def test_what_exists_is_refused_and_kept(make: Opener, tmp_path: Path) -> None:
    path = tmp_path / "name"
    path.write_text("old")
    with (
        pytest.raises(ClipstemError, match="name exists and is never overwritten; choose another"),
        make(path) as partial,
    ):
        write(partial, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@both
def test_of_two_at_a_time_the_first_to_end_stays(make: Opener, tmp_path: Path) -> None:
    path = tmp_path / "name"
    with pytest.raises(ClipstemError, match="never overwritten"), make(path) as slow:
        with make(path) as fast:
            assert fast != slow
            write(fast, "fast")
        write(slow, "slow")
    assert text_of(path) == "fast"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_can_be_replaced_and_survives_a_broken_replacement(tmp_path: Path) -> None:
    path = tmp_path / "name"
    for text in ("old", "new"):
        with new_file(path, replace=True) as partial:
            write(partial, text)
    assert path.read_text() == "new"
    with pytest.raises(RuntimeError), new_file(path, replace=True) as partial:
        write(partial, "half")
        raise RuntimeError
    assert path.read_text() == "new"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file/under/it", "file/under/it: cannot be made, .*/file is no folder; give another out="),
        ("new/" + "x" * 300 + "/name", "cannot be made .File name too long.; give another out="),
        ("x" * 240, "cannot be made .File name too long.; give another out="),
        (
            "locked/deep/name",
            "cannot be made, .*/locked cannot be written to; give another out=",
        ),
        ("nowhere", "nowhere exists and is never overwritten; give another out=<file>"),
    ],
)
def test_what_could_not_be_made_is_refused_before_any_work(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "locked").mkdir()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    # Root may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path / "locked")
    with pytest.raises(ClipstemError, match=message):
        require_new(tmp_path / name, "out=<file>")
    require_new(tmp_path / "new" / "deep" / "name", "out=<file>")
    assert not (tmp_path / "new").exists()


def test_others_may_read_what_is_made(tmp_path: Path) -> None:
    with new_file(tmp_path / "file") as partial:
        write(partial, "")
    with new_folder(tmp_path / "folder") as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "inside").write_text("")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o755
    assert (tmp_path / "folder" / "sub" / "inside").is_file()
