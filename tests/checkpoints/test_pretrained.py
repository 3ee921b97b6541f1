from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from star.checkpoints import io
from star.checkpoints.describe import describe
from star.checkpoints.fingerprint import fingerprint
from star.checkpoints.pretrained import is_pretrained, read_pretrained, write_pretrained
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.schedule import ScaleSchedule

Checkpoint = dict[str, Any]


def checkpoint(schedule: ScaleSchedule, **parts: torch.nn.Module) -> Checkpoint:
    state = {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}
    module = {name: describe(part) for name, part in {**parts, "schedule": schedule}.items()}
    return {"state_dict": state, "config": {"task": "generator", "module": module, "sampling": {"top": 1}}}


@pytest.fixture
def generator(schedule: ScaleSchedule, build_transformer: Callable[..., STARTransformer]) -> Checkpoint:
    return checkpoint(schedule, transformer=build_transformer())


@pytest.fixture
def images(schedule: ScaleSchedule, tokenizer: MultiScaleTokenizer) -> Checkpoint:
    return checkpoint(schedule, tokenizer=tokenizer)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_what_is_written_is_read_back(tmp_path: Path, generator: Checkpoint) -> None:
    write_pretrained(tmp_path / "new", generator, text_encoder_id="who/reads")
    assert is_pretrained(tmp_path / "new")
    found = read_pretrained(tmp_path / "new")
    assert equal(found["state_dict"], generator["state_dict"])
    assert found["config"]["module"] == generator["config"]["module"]
    assert found["config"]["sampling"] == {"top": 1}
    record = json.loads((tmp_path / "new" / "config.json").read_text())
    assert record["kind"] == "star"
    assert record["text_encoder_id"] == "who/reads"
    assert record["position"]["coordinates"] == "normalized"
    assert "position" not in record["transformer"]


def test_it_is_a_checkpoint_to_whoever_reads_checkpoints(tmp_path: Path, generator: Checkpoint) -> None:
    write_pretrained(tmp_path, generator)
    assert io.find(tmp_path) == tmp_path
    assert io.is_ours(tmp_path)
    assert equal(io.weights(io.read(tmp_path)), generator["state_dict"])
    assert io.config(io.read(tmp_path), tmp_path)["task"] == "generator"


def test_parts_are_added_to_a_folder(tmp_path: Path, generator: Checkpoint, images: Checkpoint) -> None:
    write_pretrained(tmp_path, images)
    assert read_pretrained(tmp_path)["config"]["task"] == "tokenizer"
    write_pretrained(tmp_path, generator)
    both = read_pretrained(tmp_path)
    assert equal(both["state_dict"], images["state_dict"] | generator["state_dict"])
    assert both["config"]["task"] == "generator"
    assert both["config"]["tokenizer_hash"] == fingerprint(io.part(images["state_dict"], "tokenizer."))


def test_a_dtype_narrows_the_generator_alone(tmp_path: Path, generator: Checkpoint, images: Checkpoint) -> None:
    write_pretrained(tmp_path, generator, dtype=torch.float16)
    write_pretrained(tmp_path, images, dtype=torch.float16)
    for name, value in read_pretrained(tmp_path)["state_dict"].items():
        assert value.dtype == (torch.float16 if name.startswith("transformer.") else torch.float32)


def test_nothing_is_overwritten(tmp_path: Path, generator: Checkpoint, images: Checkpoint) -> None:
    write_pretrained(tmp_path, generator)
    with pytest.raises(FileExistsError, match=r"already has transformer\.safetensors"):
        write_pretrained(tmp_path, generator)
    other = {**images, "config": {**images["config"], "module": {**images["config"]["module"]}}}
    other["config"]["module"]["schedule"] = describe(ScaleSchedule.square(1, 2))
    with pytest.raises(ValueError, match="is of the schedule '1 2 2x3 4', what is added of '1 2'"):
        write_pretrained(tmp_path, other)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text('{"config": {}}')
    with pytest.raises(FileExistsError, match="something else's"):
        write_pretrained(run, generator)
    with pytest.raises(FileExistsError, match="is a file"):
        write_pretrained(run / "config.json", generator)


def test_half_a_folder_is_none(tmp_path: Path, generator: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("star.checkpoints.pretrained._merged", fail)
        with pytest.raises(KeyboardInterrupt):
            write_pretrained(tmp_path, generator)
    assert not is_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder of converted weights"):
        read_pretrained(tmp_path)


def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path, generator: Checkpoint) -> None:
    write_pretrained(tmp_path, generator)
    file = tmp_path / "config.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"format_version": 2}))
    with pytest.raises(ValueError, match="version 2 of the format, this code reads version 1"):
        read_pretrained(tmp_path)
    file.write_text(json.dumps({name: value for name, value in record.items() if name != "schedule"}))
    with pytest.raises(ValueError, match="has no schedule"):
        read_pretrained(tmp_path)
    file.write_text(json.dumps(record | {"schedule": None, "position": None, "files": None}))
    with pytest.raises(ValueError, match="has no schedule, files, position"):
        read_pretrained(tmp_path)
    file.write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        read_pretrained(tmp_path)
    file.write_text(json.dumps(record))
    (tmp_path / "transformer.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"transformer\.safetensors does not exist"):
        read_pretrained(tmp_path)
