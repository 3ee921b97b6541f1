from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from star.checkpoints.describe import describe
from star.checkpoints.pretrained import write_pretrained
from star.checkpoints.var_to_star import star_from_var
from star.models.conditioning.word_transformer import WordTransformer
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.nn.position import AbsolutePosition
from star.objectives.teacher_forcing import TeacherForcing
from star.schedule import ScaleSchedule
from star.training.generator_module import GeneratorModule
from star.training.optim import AdamW
from star.training.run import Run


@pytest.fixture
def module(
    schedule: ScaleSchedule, tokenizer: MultiScaleTokenizer, build_transformer: Callable[..., STARTransformer]
) -> GeneratorModule:
    return GeneratorModule(
        transformer=build_transformer(pooled_width=8, context_width=8),
        tokenizer=tokenizer,
        text_encoder=WordTransformer(width=8, depth=1, num_heads=2, vocabulary_size=50),
        objective=TeacherForcing(),
        schedule=schedule,
        optimizer=AdamW(1e-3),
    )


def initialise(module: GeneratorModule, source: Path) -> None:
    Run({"task": "generator", "init_from": str(source)}, source.parent).initialise(module)


def folder(path: Path, schedule: ScaleSchedule, **parts: torch.nn.Module) -> Path:
    state = {f"{part}.{name}": value for part, own in parts.items() for name, value in own.state_dict().items()}
    config = {"module": {name: describe(part) for name, part in {**parts, "schedule": schedule}.items()}}
    write_pretrained(path, {"state_dict": state, "config": config})
    return path


def test_a_training_begins_with_a_converted_generator_alone(
    module: GeneratorModule,
    build_transformer: Callable[..., STARTransformer],
    schedule: ScaleSchedule,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """VAR's weights as the beginning of a text-conditional generator; tokenizer and text encoder stay the run's own."""
    position = AbsolutePosition(32, schedule=schedule)
    var = build_transformer(pooled_width=32, context_width=None, adaptive_norm="own", position=position)
    star, _ = star_from_var(var, schedule=schedule, pooled_width=8, context_width=8)
    kept = {name: value.clone() for name, value in module.state_dict().items() if not name.startswith("transformer.")}
    with caplog.at_level(logging.INFO):
        initialise(module, folder(tmp_path / "star", schedule, transformer=star))
    found = module.state_dict()
    assert all(torch.equal(found[f"transformer.{name}"], value) for name, value in star.state_dict().items())
    assert all(torch.equal(found[name], value) for name, value in kept.items())
    for part in ("tokenizer", "text_encoder"):
        assert f"has no {part}: it stays as it is" in caplog.text


def test_what_a_folder_has_besides_is_not_used(
    module: GeneratorModule, schedule: ScaleSchedule, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = {"transformer": module.transformer, "tokenizer": module.tokenizer}
    source = folder(tmp_path / "star", schedule, **parts, refiner=module.transformer)
    with caplog.at_level(logging.INFO):
        initialise(module, source)
    assert "has a refiner, which isn't used" in caplog.text


def test_a_generator_that_does_not_fit_is_refused_whole(
    module: GeneratorModule,
    build_transformer: Callable[..., STARTransformer],
    schedule: ScaleSchedule,
    tmp_path: Path,
) -> None:
    other = build_transformer(pooled_width=8, context_width=None)
    before = module.transformer.embed.weight.clone()
    with pytest.raises(ValueError, match=r"init_from=.*missing"):
        initialise(module, folder(tmp_path / "star", schedule, transformer=other))
    assert torch.equal(module.transformer.embed.weight, before)
