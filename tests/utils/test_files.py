from __future__ import annotations

from pathlib import Path

import pytest

from star.utils.files import write_atomically


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
