from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from star.training.from_generator import check_generator, differences, load_generator
from star.utils.cli import compose, plain
from star.utils.instantiate import instantiate

TINY = (
    "stage=64",
    "resolution=16",
    "schedule.sizes=[1,2]",
    "model=nano",
    "model.depth=1",
    "model.width=32",
    "model.num_heads=2",
    "tokenizer=nano",
    "tokenizer.encoder.channels=16",
    "tokenizer.quantizer.codebook_size=16",
    "text_encoder=word_transformer",
    "text_encoder.width=32",
    "text_encoder.depth=1",
    "text_encoder.vocabulary_size=64",
)
Checkpoint = dict[str, Any]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAR_CONF", str(Path(__file__).parents[2] / "conf"))


def resolved(task: str, *overrides: str) -> Checkpoint:
    return plain(compose("train", [f"task={task}", *TINY, "paths.run_dir=x", *overrides]))


@pytest.fixture
def generator() -> Checkpoint:
    """A generator's training with averages that differ from its last weights."""
    config = resolved("generator")
    module = instantiate(config["module"])
    averaged = {name: value + 1 for name, value in module.state_dict().items() if name.startswith("transformer.")}
    return {"state_dict": module.state_dict(), "config": config, "averaged": {"weights": averaged}}


def save(held: Checkpoint, path: Path) -> Path:
    torch.save(held, path)
    return path


def loaded(path: Path, *overrides: str) -> Any:
    config = resolved("sampler", f"init_from={path}", *overrides)
    check_generator(config)
    module = instantiate(config["module"])
    load_generator(module, config)
    return module


def test_averaged_weights_are_taken_and_the_refiner_begins_with_the_head(tmp_path: Path, generator: Checkpoint) -> None:
    module = loaded(save(generator, tmp_path / "g.ckpt"))
    expected = generator["state_dict"] | generator["averaged"]["weights"]
    own = module.state_dict()
    assert all(torch.equal(own[name], value) for name, value in expected.items())
    assert torch.equal(module.refiner.head.logits.weight, module.transformer.head.logits.weight)
    fresh = loaded(tmp_path / "g.ckpt", "module.adopt_head=false")
    assert not torch.equal(fresh.refiner.head.logits.weight, module.transformer.head.logits.weight)


def test_a_samplers_training_gives_its_refiner_too(tmp_path: Path, generator: Checkpoint) -> None:
    first = loaded(save(generator, tmp_path / "g.ckpt"))
    held = {"state_dict": first.state_dict(), "config": resolved("sampler", "init_from=x")}
    held["state_dict"]["refiner.join.bias"] = torch.full((32,), 3.0)
    again = loaded(save(held, tmp_path / "s.ckpt"))
    assert torch.equal(again.refiner.join.bias, torch.full((32,), 3.0))


def test_a_generator_without_its_tokenizer_needs_to_be_told(tmp_path: Path, generator: Checkpoint) -> None:
    state = generator["state_dict"]
    whole = save(generator, tmp_path / "whole.ckpt")
    part = {**generator, "state_dict": {name: v for name, v in state.items() if not name.startswith("tokenizer.")}}
    lacking = save(part, tmp_path / "part.ckpt")
    with pytest.raises(ValueError, match="has no tokenizer: set paths.tokenizer"):
        loaded(lacking)
    module = loaded(lacking, f"paths.tokenizer={whole}")
    assert torch.equal(module.tokenizer.quantizer.codebook.weight, state["tokenizer.quantizer.codebook.weight"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("model.depth=2", "transformer.depth: 1, not 2"),
        ("position=axial", "transformer.position.coordinates: normalized, not axial"),
        ("model.first_sample_text=true", "transformer.first_sample_text: False, not True"),
        ("mask=markov", "transformer.mask.order: None, not 1"),
        ("schedule.sizes=[1,3]", "schedule: 1 2, not 1 3"),
        ("text_encoder.width=16", "text_encoder.pooled_width: 32, not 16"),
    ],
)
def test_what_no_tensor_shows_has_to_be_the_same(tmp_path: Path, generator: Checkpoint, change: str, said: str) -> None:
    with pytest.raises(ValueError, match="another generator than this run describes") as caught:
        loaded(save(generator, tmp_path / "g.ckpt"), change)
    assert said in str(caught.value)


def test_what_changes_nothing_may_differ(generator: Checkpoint) -> None:
    ours = resolved("sampler", "model.drop_path=0.3", "model.backend=dense")["module"]
    assert differences(ours, generator["config"]["module"]) == []
    assert differences(ours, {}) == []


def test_a_refiner_that_goes_on_has_to_be_the_same() -> None:
    ours = resolved("sampler", "refiner_training=small")["module"]
    held = resolved("sampler")["module"]
    assert differences(ours, held) == ["refiner.neighbourhood: 1, not 3"]


def test_a_generator_has_to_be_there(tmp_path: Path, generator: Checkpoint) -> None:
    with pytest.raises(ValueError, match="set init_from to a run directory"):
        check_generator(resolved("sampler"))
    config = {**generator["config"], "task": "tokenizer", "module": {"tokenizer": {}}}
    path = save({"state_dict": {}, "config": config}, tmp_path / "t.ckpt")
    with pytest.raises(ValueError, match="of task=tokenizer and has no generator"):
        check_generator(resolved("sampler", f"init_from={path}"))
