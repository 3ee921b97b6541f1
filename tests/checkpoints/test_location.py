from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest

from star.checkpoints.location import find_pretrained


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository `owner/name` in the hub's cache, and no network."""

    def no_network(*_: object, **__: object) -> None:
        raise ConnectionError("Name or service not known")

    def cached(repository: str, name: str) -> str | None:
        return str(folder / name) if repository == "owner/name" and (folder / name).is_file() else None

    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"format": "star", "files": ["transformer.safetensors"]}))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    for name in ("get_hf_file_metadata", "hf_hub_download", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, no_network)
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_whole_snapshot_is_taken_without_asking_the_hub(snapshot: Path) -> None:
    (snapshot / "transformer.safetensors").touch()
    assert find_pretrained("owner/name") == snapshot


def test_a_folder_that_exists_is_never_looked_up(snapshot: Path) -> None:
    Path("owner/name").mkdir(parents=True)
    assert find_pretrained("owner/name") == Path("owner/name")
    assert find_pretrained(Path("no/such")) == Path("no/such")
    assert find_pretrained("just_a_name") == Path("just_a_name")


def test_without_a_network_the_message_says_what_to_do(snapshot: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json of owner/other is not in the hub cache .*ConnectionEr"):
        find_pretrained("owner/other")
    with pytest.raises(FileNotFoundError, match=r"owner/name is in the hub's cache only in part .*hf download owner/n"):
        find_pretrained("owner/name")


def test_the_rest_of_a_repository_is_downloaded(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repository: str, allow_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find_pretrained("owner/name") == snapshot
    assert asked[0][0] == "owner/name"
    assert {"config.json", "transformer.safetensors", "tokenizer.safetensors"} <= set(asked[0][1])
