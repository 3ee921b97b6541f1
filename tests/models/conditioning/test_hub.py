from __future__ import annotations

import sys
from pathlib import Path

import huggingface_hub
import pytest

from star.models.conditioning import hub
from star.models.conditioning.hub import fetch_file, find_folder, fingerprint

KEY = "text_encoder.weights"


@pytest.fixture(autouse=True)
def _empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No hub and nothing in its cache."""

    def no_network(*_: object, **__: object) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", no_network)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", no_network)


def test_a_cached_file_is_taken_without_asking_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    cached = {"b.bin": "/cache/b.bin"}
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda _, name: cached.get(name))
    assert fetch_file("owner/name", ["a.safetensors", "b.bin"], key=KEY) == Path("/cache/b.bin")


def test_a_missing_file_names_itself_its_source_and_the_key() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        fetch_file("owner/name", ["a.safetensors", "b.bin"], key=KEY)
    message = str(caught.value)
    for part in ("a.safetensors or b.bin", "owner/name", f"{KEY}=PATH", "Name or service not known"):
        assert part in message


def test_the_hub_is_asked_with_a_time_limit_before_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []

    def metadata(url: str, timeout: float) -> None:
        limits.append(timeout)
        if url.endswith("a.safetensors"):
            raise huggingface_hub.errors.EntryNotFoundError("404")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda _, name: f"/down/{name}")
    assert fetch_file("owner/name", ["a.safetensors", "b.bin"], key=KEY) == Path("/down/b.bin")
    assert limits == [hub._PROBE_SECONDS] * 2


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert find_folder(str(tmp_path), key=KEY) == tmp_path


def test_a_package_is_found_without_being_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "some_model" / "model"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "config.json").write_text("{}")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_folder("package:some_model", key=KEY) == folder
    assert "some_model" not in sys.modules


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("package:no_such_model", "pip install no-such-model"),
        ("owner/name", "hf download owner/name"),
        ("owner/name/text_encoder", "text_encoder/config.json of owner/name"),
        ("./nowhere", f"set {KEY}=FOLDER"),
        ("/no/where/at/all", f"set {KEY}=FOLDER"),
    ],
)
def test_a_missing_folder_says_what_to_do(path: str, told: str) -> None:
    with pytest.raises(FileNotFoundError, match=told):
        find_folder(path, key=KEY)


def test_a_dotted_package_is_refused_because_looking_for_it_would_import() -> None:
    with pytest.raises(ValueError, match="top-level"):
        find_folder("package:some.model", key=KEY)


def test_a_folder_of_a_cached_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    cached = {"text_encoder/config.json": "/cache/snapshot/text_encoder/config.json"}
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda _, name: cached.get(name))
    assert find_folder("owner/name/text_encoder", key=KEY) == Path("/cache/snapshot/text_encoder")


def test_fingerprint_sees_contents_and_not_places(tmp_path: Path) -> None:
    for name, content in (("x", b"1" * 5_000_000), ("y", b"1" * 5_000_000), ("z", b"1" * 4_999_999 + b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(content)
    x, y, z = (fingerprint([tmp_path / name / "weights"]) for name in "xyz")
    assert x == y != z
    assert len(x) == 12
