from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from star.metrics.assets import ASSETS, AssetFile, MissingAssetError, file_hash, read_tensors

INCEPTION = ASSETS["inception_fid"]


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No library's cache, no folder of assets."""
    for name in ("STAR_ASSETS", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_missing_file_is_one_message_with_all_that_is_needed() -> None:
    file = AssetFile("inception_fid", needed_by="metric=fid_mjhq", hint="Or else.")
    with pytest.raises(MissingAssetError) as caught:
        file.path()
    for part in ("metric=fid_mjhq", *INCEPTION.files[:1], INCEPTION.sha256, "95,628,359", INCEPTION.source):
        assert part in str(caught.value)
    assert "STAR_ASSETS" in str(caught.value)
    assert "metric.weights=PATH" in str(caught.value)
    assert list(file.iterate_missing()) == [str(caught.value)]


def test_folder_of_assets_and_given_folder_are_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / INCEPTION.files[1]
    torch.save({INCEPTION.marker: torch.zeros(1)}, path)
    assert AssetFile("inception_fid", tmp_path, verify_hash=False).path() == path
    monkeypatch.setenv("STAR_ASSETS", str(tmp_path))
    assert AssetFile("inception_fid", verify_hash=False).path() == path


def test_another_file_than_the_published_one_is_refused_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "own.pth"
    torch.save({INCEPTION.marker: torch.zeros(1)}, path)
    file = AssetFile("inception_fid", path)
    with pytest.raises(ValueError, match=r"not the published .*verify_hash=false"):
        file.path()
    assert "not the published" in next(file.iterate_missing())
    lenient = AssetFile("inception_fid", path, verify_hash=False)
    assert lenient.path() == path
    assert not lenient.verified(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_file_for_another_metric_is_passed_over(tmp_path: Path, legacy: bool, caplog: pytest.LogCaptureFixture) -> None:
    clip, inception = tmp_path / "clip.pt", tmp_path / "assets" / INCEPTION.files[0]
    inception.parent.mkdir()
    torch.save({"visual.conv1.weight": torch.zeros(1)}, clip, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(MissingAssetError, match="another kind of file: it has no tensor"):
        AssetFile("inception_fid", clip, verify_hash=False).path()


def test_hash_is_remembered_until_the_file_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "file"
    path.write_bytes(b"one")
    first = file_hash(path)
    assert (tmp_path / "file.sha256.ok").is_file()
    assert file_hash(path) == first
    path.write_bytes(b"other")
    assert file_hash(path) != first


def test_unknown_asset() -> None:
    with pytest.raises(ValueError, match="unknown asset 'x'"):
        AssetFile("x").find()


def test_a_given_path_that_is_not_there_and_a_file_that_is_no_weights_are_told(tmp_path: Path) -> None:
    assert "absent.pth is not there" in AssetFile("inception_fid", tmp_path / "absent.pth").message()
    assert "holds no such file" in AssetFile("inception_fid", tmp_path).message()
    (tmp_path / "notes.pth").write_text("no weights")
    with pytest.raises(ValueError, match=r"notes\.pth is no file of tensors that torch\.save wrote"):
        read_tensors(tmp_path / "notes.pth")
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds no named tensors but a list"):
        read_tensors(tmp_path / "list.pth")
