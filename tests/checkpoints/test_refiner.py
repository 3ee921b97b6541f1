from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from star.checkpoints import io
from star.checkpoints.describe import describe
from star.checkpoints.fingerprint import fingerprint
from star.checkpoints.parts import drawn_with
from star.checkpoints.pretrained import write_pretrained
from star.checkpoints.refiner import beside, export_refiner, generator_of, with_refiner
from star.models.refiner import Refiner
from star.models.transformer import STARTransformer
from star.nn.position import Rotary2D
from star.schedule import ScaleSchedule

Checkpoint = dict[str, Any]


def checkpoint(task: str, schedule: ScaleSchedule, **parts: torch.nn.Module) -> Checkpoint:
    state = {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}
    module = {name: describe(part) for name, part in {**parts, "schedule": schedule}.items()}
    return {"state_dict": state, "config": {"task": task, "module": module, "sampling": {"top": 1}}}


@pytest.fixture
def refiner() -> Refiner:
    sizes = {"width": 32, "num_heads": 4, "codebook_size": 32, "code_width": 8, "pooled_width": 12, "num_levels": 4}
    return Refiner(**sizes, position=Rotary2D())  # type: ignore[arg-type]


@pytest.fixture
def generator(schedule: ScaleSchedule, build_transformer: Callable[..., STARTransformer]) -> Checkpoint:
    return checkpoint("generator", schedule, transformer=build_transformer())


@pytest.fixture
def sampler(schedule: ScaleSchedule, generator: Checkpoint, refiner: Refiner) -> Checkpoint:
    """What a sampler's training of that generator saves."""
    alone = checkpoint("sampler", schedule, refiner=refiner)
    module = alone["config"]["module"] | generator["config"]["module"]
    averaged = {f"refiner.{name}": value + 1 for name, value in refiner.state_dict().items()}
    return {
        "state_dict": generator["state_dict"] | alone["state_dict"],
        "config": {**alone["config"], "module": module},
        "averaged": {"weights": averaged},
        "global_step": 3,
    }


def save(path: Path, held: Checkpoint) -> Path:
    path.parent.mkdir(exist_ok=True)
    torch.save(held, path)
    return path


def test_the_file_has_the_refiners_average_and_nothing_else(sampler: Checkpoint, generator: Checkpoint) -> None:
    kept = export_refiner(sampler)
    assert set(kept["state_dict"]) == set(sampler["averaged"]["weights"])
    assert all(torch.equal(value, sampler["averaged"]["weights"][name]) for name, value in kept["state_dict"].items())
    assert set(kept["config"]["module"]) == {"refiner", "schedule"}
    assert kept["config"]["generator_hash"] == fingerprint(drawn_with(generator["state_dict"]))
    assert kept["config"]["sampling"] == {"top": 1}
    assert export_refiner(kept)["config"] == kept["config"]
    with pytest.raises(ValueError, match="task=generator has no refiner to export"):
        export_refiner(generator)


@pytest.mark.parametrize("complete", [True, False])
def test_its_own_generator_takes_it(tmp_path: Path, sampler: Checkpoint, generator: Checkpoint, complete: bool) -> None:
    file = save(tmp_path / "refiner.ckpt", sampler if complete else export_refiner(sampler))
    whole = with_refiner(generator, file, what="g")
    assert whole["config"]["task"] == "generator"
    assert whole["config"]["module"]["refiner"] == sampler["config"]["module"]["refiner"]
    expected = generator["state_dict"] | sampler["averaged"]["weights"]
    assert whole["state_dict"].keys() == expected.keys()
    assert all(torch.equal(whole["state_dict"][name], value) for name, value in expected.items())


def test_another_generator_does_not_and_both_are_named(
    tmp_path: Path,
    sampler: Checkpoint,
    schedule: ScaleSchedule,
    build_transformer: Callable[..., STARTransformer],
    generator: Checkpoint,
) -> None:
    file = save(tmp_path / "refiner.ckpt", export_refiner(sampler))
    other = checkpoint("generator", schedule, transformer=build_transformer())
    ours, theirs = (fingerprint(drawn_with(each["state_dict"])) for each in (other, generator))
    with pytest.raises(ValueError, match=f"trained on the generator {theirs}, but g is {ours}: .*belong together"):
        with_refiner(other, file, what="g")
    with pytest.raises(ValueError, match="task=generator and has no refiner"):
        with_refiner(generator, save(tmp_path / "x.ckpt", other), what="g")


def test_sixteen_bits_are_their_fp32_copy(
    tmp_path: Path, schedule: ScaleSchedule, generator: Checkpoint, sampler: Checkpoint
) -> None:
    """Begun from an fp16 folder, a training holds fp32 weights; its refiner still is that folder's."""
    write_pretrained(tmp_path / "half", generator, dtype=torch.float16)
    half = io.read(tmp_path / "half")
    wide = {name: value.float() for name, value in half["state_dict"].items()}
    file = save(tmp_path / "refiner.ckpt", export_refiner({**sampler, "state_dict": sampler["state_dict"] | wide}))
    assert with_refiner(half, file, what="half")["config"]["module"]["refiner"]


def test_a_released_refiner_says_nothing_of_its_generator(
    tmp_path: Path, schedule: ScaleSchedule, refiner: Refiner, generator: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    released = checkpoint("sampler", schedule, refiner=refiner)
    assert generator_of(released) is None
    with caplog.at_level(logging.INFO):
        with_refiner(generator, save(tmp_path / "released.ckpt", released), what="g")
    assert "doesn't say which generator" in caplog.text


def test_a_folder_remembers_whose_refiner_was_added(tmp_path: Path, sampler: Checkpoint, generator: Checkpoint) -> None:
    write_pretrained(tmp_path, generator)
    write_pretrained(tmp_path, export_refiner(sampler))
    assert generator_of(io.read(tmp_path)) == fingerprint(drawn_with(generator["state_dict"]))


def test_beside_is_in_the_same_folder(tmp_path: Path, sampler: Checkpoint) -> None:
    assert beside(tmp_path / "star.ckpt") is None
    file = save(tmp_path / "refiner.ckpt", sampler)
    assert beside(tmp_path / "star.ckpt") == beside(str(tmp_path / "generator")) == file
