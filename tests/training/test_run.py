from __future__ import annotations

import logging
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from star.checkpoints.describe import describe
from star.checkpoints.pretrained import write_pretrained
from star.checkpoints.var_to_star import star_from_var
from star.models.conditioning.word_transformer import WordTransformer
from star.models.tokenizer.discriminator import PatchDiscriminator
from star.models.tokenizer.revival import CodebookRevival
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.nn.position import AbsolutePosition
from star.objectives.teacher_forcing import TeacherForcing
from star.objectives.vqgan import VQGANObjective
from star.schedule import ScaleSchedule
from star.training.generator_module import GeneratorModule
from star.training.optim import AdamW
from star.training.run import Run
from star.training.tokenizer_module import TokenizerModule


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
    config = {"task": "generator", "init_from": str(source), "init_rule": "position"}
    Run(config, source.parent).initialise(module)


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


def test_a_generator_keeps_the_tokenizer_it_was_given(
    module: GeneratorModule, schedule: ScaleSchedule, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not the one of the checkpoint it begins with; and is told when they differ."""
    parts = {"transformer": module.transformer, "text_encoder": module.text_encoder}
    same = folder(tmp_path / "same", schedule, **parts, tokenizer=module.tokenizer)
    with caplog.at_level(logging.INFO):
        initialise(module, same)
    assert "another tokenizer" not in caplog.text
    assert "as this run made or found it" in caplog.text
    codebook = module.tokenizer.quantizer.codebook.weight.data
    before = codebook.clone()
    codebook.add_(1)
    other = folder(tmp_path / "other", schedule, **parts, tokenizer=module.tokenizer)
    codebook.copy_(before)
    with caplog.at_level(logging.INFO):
        initialise(module, other)
    assert "another tokenizer than paths.tokenizer" in caplog.text
    assert torch.equal(codebook, before)


@pytest.mark.parametrize("rule", ["position", "index"])
def test_a_longer_schedule_begins_with_a_shorter_one(
    module: GeneratorModule,
    build_transformer: Callable[..., STARTransformer],
    tokenizer: MultiScaleTokenizer,
    schedule: ScaleSchedule,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    rule: str,
) -> None:
    """The table says what was copied, grown and fresh."""
    longer = ScaleSchedule((*schedule.sizes, (8, 8)))
    later = GeneratorModule(
        transformer=build_transformer(pooled_width=8, context_width=8, num_levels=5),
        tokenizer=tokenizer,
        text_encoder=WordTransformer(width=8, depth=1, num_heads=2, vocabulary_size=50),
        objective=TeacherForcing(),
        schedule=longer,
        optimizer=AdamW(1e-3),
    )
    fresh = later.transformer.level.weight[4].clone()  # type: ignore[union-attr]
    source = folder(tmp_path / "shorter", schedule, transformer=module.transformer, text_encoder=module.text_encoder)
    config = {"task": "generator", "init_from": str(source), "init_rule": rule}
    with caplog.at_level(logging.INFO):
        Run(config, tmp_path).initialise(later)
    old, new = (m.transformer.state_dict() for m in (module, later))
    assert all(torch.equal(new[name], value) for name, value in old.items() if name != "level.weight")
    ends = new["level.weight"][[0, 4]]
    expected = old["level.weight"][[0, 3]] if rule == "position" else torch.stack([old["level.weight"][0], fresh])
    assert torch.equal(ends, expected)
    assert caplog.text.count("copied") >= 1
    assert ("4 to 5 levels, by relative position" if rule == "position" else "levels 4 to 4") in caplog.text
    assert sum("tensors" in record.message for record in caplog.records) == 1


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


def tokenizer_module(tokenizer: MultiScaleTokenizer, schedule: ScaleSchedule, **helpers: int) -> TokenizerModule:
    """A copy of the tokenizer with other weights, in training; helpers by their size."""
    own = deepcopy(tokenizer)
    for parameter in own.parameters():
        parameter.data.normal_()
    parts: dict[str, Any] = {}
    if "revival" in helpers:
        parts["revival"] = CodebookRevival(codebook_size=32, num_scales=helpers["revival"])
    if "discriminator" in helpers:
        parts["discriminator"] = PatchDiscriminator(channels=helpers["discriminator"], num_layers=1, groups=4)
    if helpers.get("revival", len(schedule)) > len(schedule):
        schedule = ScaleSchedule((*schedule.sizes, (8, 8)))
    return TokenizerModule(tokenizer=own, schedule=schedule, objective=VQGANObjective(), optimizer=AdamW(1e-3), **parts)


def begin(module: TokenizerModule, source: TokenizerModule, folder: Path) -> None:
    torch.save({"state_dict": source.state_dict(), "config": {"module": {}}}, folder / "before.ckpt")
    config = {"task": "tokenizer", "init_from": str(folder / "before.ckpt"), "init_rule": "position"}
    Run(config, folder).initialise(module)


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({}, {"revival": 4}),
        ({}, {"discriminator": 8}),
        ({"revival": 4, "discriminator": 8}, {}),
        ({"revival": 4}, {"revival": 5, "discriminator": 8}),
        ({"discriminator": 8}, {"discriminator": 16}),
    ],
    ids=["adds a revival", "adds a critic", "leaves both out", "has more scales", "has another critic"],
)
def test_a_tokenizer_is_trained_further_with_other_help(
    tokenizer: MultiScaleTokenizer, schedule: ScaleSchedule, tmp_path: Path, before: dict[str, int], now: dict[str, int]
) -> None:
    source, later = (tokenizer_module(tokenizer, schedule, **helpers) for helpers in (before, now))
    fresh = {name: value.clone() for name, value in later.state_dict().items() if not name.startswith("tokenizer.")}
    begin(later, source, tmp_path)
    found = later.state_dict()
    tokens = {name: value for name, value in source.state_dict().items() if name.startswith("tokenizer.")}
    assert all(torch.equal(found[name], value) for name, value in tokens.items())
    assert all(torch.equal(found[name], value) for name, value in fresh.items() if name != "revival.fitted")
    if later.revival is not None:  # a codebook whose own training hadn't come to fit it is fitted, any other stays
        assert bool(later.revival.fitted) is ("revival" not in before)


def test_a_tokenizer_is_trained_further_with_the_same_help(
    tokenizer: MultiScaleTokenizer, schedule: ScaleSchedule, tmp_path: Path
) -> None:
    source, later = (tokenizer_module(tokenizer, schedule, revival=4, discriminator=8) for _ in range(2))
    assert source.revival is not None
    source.revival.fitted.fill_(True)
    source.revival.usage.uniform_()
    begin(later, source, tmp_path)
    assert all(torch.equal(later.state_dict()[name], value) for name, value in source.state_dict().items())


def test_a_tokenizer_does_not_begin_with_a_generator_alone(
    module: GeneratorModule, tokenizer: MultiScaleTokenizer, schedule: ScaleSchedule, tmp_path: Path
) -> None:
    source = folder(tmp_path / "star", schedule, transformer=module.transformer)
    config = {"task": "tokenizer", "init_from": str(source), "init_rule": "position"}
    with pytest.raises(ValueError, match="has no tokenizer to begin with"):
        Run(config, tmp_path).initialise(tokenizer_module(tokenizer, schedule))
