from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from star.data.shapes import ShapesSettings, write_shards
from star.drawing import open_pipeline
from star.sampling.causal_driven import CausalDriven
from star.sampling.samplers import Gumbel, TopKTopP
from star.studies import sampler_table, samplers
from star.studies.refiner_accuracy import measure_accuracy
from star.studies.refiner_cost import measure_cost
from star.studies.sampler_table import Comparison
from star.studies.samplers import markdown, study
from star.utils.cli import compose, plain
from star.utils.instantiate import instantiate

ROOT = Path(__file__).parents[2]
TINY = (
    "stage=64",
    "resolution=32",
    "schedule.sizes=[1,2,4]",
    "model=nano",
    "model.depth=1",
    "model.width=32",
    "model.num_heads=2",
    "tokenizer=nano",
    "tokenizer.encoder.channels=8",
    "tokenizer.encoder.groups=4",
    "tokenizer.quantizer.codebook_size=16",
    "tokenizer.quantizer.code_width=8",
    "text_encoder=word_transformer",
    "text_encoder.width=32",
    "text_encoder.depth=1",
    "text_encoder.vocabulary_size=128",
    "data=shapes",
    "data.num_workers=0",
    "logger=csv",
)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAR_CONF", str(ROOT / "conf"))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """What a sampler's training saves, at toy size, with shards to score it on."""
    settings = ShapesSettings(num_images=24, size=32, split="heldout", samples_per_shard=24)
    write_shards(tmp_path / "shards", settings, workers=1, progress=False)
    config = plain(compose("train", ["task=sampler", *TINY, f"paths.run_dir={tmp_path}"]))
    config["data"]["validation_sources"] = {
        "shapes": {"urls": f"{tmp_path / 'shards'}/*.tar", "captions": {"txt": 1.0}}
    }
    torch.manual_seed(0)
    module = instantiate(config["module"])
    module.begin()
    torch.save({"state_dict": module.state_dict(), "config": config}, tmp_path / "sampler.ckpt")
    return tmp_path / "sampler.ckpt"


def comparison(checkpoint: Path, **changes: Any) -> Comparison:
    return Comparison(str(checkpoint), None, checkpoint.parent / "study", **{"seeds": (0, 1), "images": 1} | changes)


def test_each_sampler_is_what_its_name_says(checkpoint: Path) -> None:
    made = comparison(checkpoint, steps="[2,3]", first_scale=-1)
    found: dict[str, Any] = {}
    for name, overrides in made.samplers().items():
        pipeline, _ = open_pipeline(plain(compose("sample", [*made.model, *overrides])))
        found[name] = pipeline.decoder.sampler
        assert pipeline.decoder.guidance.scale == 4.0  # type: ignore[union-attr]
    assert [type(found[name]) for name in ("topk small", "topk large", "smooth")] == [TopKTopP, TopKTopP, Gumbel]
    assert [found[name].top_k for name in ("topk small", "topk large", "ours small", "ours large")] == [2, 16, 2, 16]
    ours = [found[name] for name in ("ours small", "ours large", "ours* large")]
    assert all(isinstance(each, CausalDriven) and each.steps == [2, 3] and each.first_scale == -1 for each in ours)
    assert [each.random_steps for each in ours] == [None, None, 5]


def test_scores_are_computed_once(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Mapping[str, Any]] = []

    def evaluate(config: Mapping[str, Any]) -> None:
        asked.append(config)
        values = {"shapes": 0.5 + len(asked), "fid_folder": 3.0, "cmmd": 0.25}
        Path(config["out"]).mkdir(parents=True, exist_ok=True)
        (Path(config["out"]) / "card.json").write_text(json.dumps({"values": values}))

    monkeypatch.setattr(sampler_table, "evaluate", evaluate)
    monkeypatch.setattr(Comparison, "reference", lambda self: self.out / "reference")
    made = comparison(checkpoint)
    name, overrides = next(iter(made.samplers().items()))
    first = made.score(name, overrides, 0)
    assert first == {"alignment": 1.5, "fid": 3.0, "cmmd": 0.25}
    assert made.score(name, overrides, 0) == first
    made.score(name, overrides, 1)
    made.score(name, [*overrides, "sampling.sampler.temperature=0.9"], 0)
    assert [config["metric"]["items"]["shapes"]["seed"] for config in asked] == [0, 1, 0]
    assert {config["metric"]["features"] for config in asked} == {"effnet_lite0_b320@128"}


def test_seconds_of_every_sampler(checkpoint: Path) -> None:
    made = comparison(checkpoint)
    few = {name: made.samplers()[name] for name in ("topk small", "ours* large")}
    seconds = made.seconds(few, repeats=1)
    assert all(value > 0 for value in seconds.values())
    assert seconds["ours* large"] > seconds["topk small"]


def test_accuracy_knows_both_networks(checkpoint: Path) -> None:
    rows = measure_accuracy([f"ckpt={checkpoint}", "batch=12"], shares=(0.0, 0.5), count=24)
    assert [row["known"] for row in rows] == [0.0, 0.5]
    for row in rows:
        # the refiner has only begun where the generator is
        assert row["refiner"] == pytest.approx(row["generator"], abs=0.1)
        assert row["loss"] > 0


def test_cost_by_part() -> None:
    cost = measure_cost(model="nano", stage="64", repeats=1, steps=3, overrides=["tokenizer=nano"])
    assert cost["refined"] == ["4x4", "8x8"]
    assert cost["operations"]["drawing"] == 0
    assert cost["ratio"] == pytest.approx(
        (cost["seconds"]["refiner"] + cost["seconds"]["drawing"]) / cost["seconds"]["generator"]
    )
    assert cost["bar"] == pytest.approx(1.3 * cost["operations"]["refiner"] / cost["operations"]["generator"])
    more = measure_cost(model="nano", stage="64", repeats=1, steps=6, overrides=["tokenizer=nano"])
    assert more["operations"]["refiner"] == 2 * cost["operations"]["refiner"]
    assert more["operations"]["generator"] == cost["operations"]["generator"]


def test_the_command_writes_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "measure_cost", partial(measure_cost, overrides=["tokenizer=nano"]))
    study([f"out={tmp_path}", "parts=cost", "model=nano", "stage=64", "repeats=1"])
    held = json.loads((tmp_path / "samplers.json").read_text())
    assert (tmp_path / "samplers.md").read_text() == markdown(held)
    assert "| refiner |" in markdown(held)
    rows = [{"sampler": "smooth", "alignment": 0.5, "fid": 3.25, "cmmd": 0.125, "seconds": 0.01, "seeds": {}}]
    assert "| smooth | 0.5 | 3.25 | 0.125 | 0.01 |" in markdown({"table": rows})
    with pytest.raises(ValueError, match="parts are some of table, accuracy, cost, got 'coffee'"):
        study(["parts=coffee"])
    with pytest.raises(ValueError, match="unknown argument 'colour=red'"):
        study(["colour=red"])
