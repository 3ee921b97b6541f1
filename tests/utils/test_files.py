from __future__ import annotations

from pathlib import Path

import pytest

from star.utils.files import put_in_place, set_aside, tidy, write_atomically


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "last.ckpt"
    write_atomically(target, lambda path: path.write_text("old") and None)

    def full_disk(path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="the file that was there before is untouched"):
        write_atomically(target, full_disk)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_folders_are_made(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b.txt", lambda path: path.write_text("x") and None)
    assert (tmp_path / "a" / "b.txt").read_text() == "x"


def test_a_folder_takes_the_place_of_a_folder_or_a_file(tmp_path: Path) -> None:
    target = tmp_path / "last.ckpt"
    target.write_text("a file")
    for content in ("first", "second"):
        partial = tmp_path / ".last.ckpt.partial"
        partial.mkdir()
        (partial / "part").write_text(content)
        put_in_place(partial, target)
        assert (target / "part").read_text() == content
    write_atomically(target, lambda path: path.write_text("a file again") and None)
    assert target.read_text() == "a file again"
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_what_died_halfway_is_tidied_away_but_never_the_last_good_one(tmp_path: Path) -> None:
    (tmp_path / ".last.ckpt.4711.partial").write_text("half")
    (tmp_path / ".last.ckpt.partial").mkdir()
    aside = set_aside(tmp_path / "last.ckpt")
    aside.mkdir()  # died between the two renamings
    tidy(tmp_path)
    assert list(tmp_path.iterdir()) == [aside]
    (tmp_path / "last.ckpt").mkdir()
    tidy(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
