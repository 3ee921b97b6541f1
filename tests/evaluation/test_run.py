from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from star.evaluation import run as module
from star.evaluation.datasets import MJHQ_CATEGORIES
from star.evaluation.run import evaluate
from star.metrics.assets import MissingAssetError
from star.metrics.features import FeatureNetwork

Settings = Callable[..., dict[str, Any]]
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:.*")


class Pixels(FeatureNetwork):
    """Features without weights, under the name of the chosen ones."""

    def __init__(self, name: str) -> None:
        self.protocol: str | None = "pytorch_fid"
        torch.nn.Module.__init__(self)
        self.name, self.width = name, 6

    def forward(self, images: Tensor) -> Tensor:
        if not len(images):
            return torch.zeros(0, 6, dtype=torch.float64)
        return torch.cat([images.mean((2, 3)), images.var((2, 3))], 1).double()

    def iterate_missing(self) -> Iterator[str]:
        return iter(())

    def deviations(self) -> list[str]:
        return [] if self.name == "pytorch_fid" else [f"{self.name} features instead of pytorch_fid"]

    def facts(self) -> dict[str, Any]:
        return {"features": self.name}


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(protocol: str, *, choice: str | None = None, **_: Any) -> Pixels:
        return Pixels(choice or protocol)

    monkeypatch.setattr("star.metrics.features.choose", choose)


def folder(path: Path, count: int, seed: int) -> Path:
    path.mkdir()
    rng = np.random.default_rng(seed)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(path / f"{i:03d}.png")
    return path


def card(path: Path) -> dict[str, Any]:
    return json.loads((path / "card.json").read_text())


def test_two_folders_need_no_checkpoint(tmp_path: Path, settings: Settings, no_weights: None) -> None:
    a, b = folder(tmp_path / "a", 20, 0), folder(tmp_path / "b", 15, 1)
    for reference, out in ((a, "same"), (b, "other")):
        evaluate(settings("metric=fid_folder", f"images={a}", f"reference={reference}", f"out={tmp_path / out}"))
    assert card(tmp_path / "same")["value"] == pytest.approx(0, abs=1e-9)
    found = card(tmp_path / "other")
    assert found["value"] > 0
    assert (found["count"], found["results"]["num_reference"]) == (20, 15)
    assert found["label"] == "fid/pytorch_fid@12"
    assert found["standard"]
    assert (tmp_path / "other" / "report.html").is_file()


def test_shards_are_compared_like_folders(
    tmp_path: Path, settings: Settings, shapes_shards: Path, no_weights: None
) -> None:
    (shard,) = shapes_shards.glob("*.tar")
    evaluate(settings("metric=fid_folder", f"images={shard}", f"reference={shapes_shards}"))
    assert card(tmp_path / "out")["value"] == pytest.approx(0, abs=1e-9)


def test_mjhq_of_a_folder_has_a_value_of_every_category(tmp_path: Path, settings: Settings, no_weights: None) -> None:
    rng = np.random.default_rng(0)
    entries = {f"{c}{i}": {"category": c, "prompt": f"{c} {i}"} for c in MJHQ_CATEGORIES for i in range(4)}
    (tmp_path / "meta_data.json").write_text(json.dumps(entries))
    for key, entry in entries.items():
        for side, name in (
            (40, f"data_meta/{entry['category']}/{key}.jpg"),
            (16, f"drawn/{entry['category']}/{key}.png"),
        ):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(tmp_path / name)
    arguments = (
        "metric=fid_mjhq",
        f"images={tmp_path / 'drawn'}",
        f"paths.mjhq={tmp_path}",
        f"paths.cache={tmp_path / 'c'}",
    )
    evaluate(settings(*arguments))
    first = card(tmp_path / "out")
    assert set(first["results"]["categories"]) == set(MJHQ_CATEGORIES)
    assert first["deviations"] == ["40 pictures instead of 30000"]
    assert first["results"]["num_reference"] == 40
    evaluate(settings(*arguments))  # with the kept statistics
    assert card(tmp_path / "out")["results"] == first["results"]
    (tmp_path / "drawn" / "art" / "art2.png").unlink()
    with pytest.raises(ValueError, match=r"39 of the 40 pictures: .*art/art2\.png is missing"):
        evaluate(settings(*arguments))


def test_other_features_can_not_be_mistaken(tmp_path: Path, settings: Settings, no_weights: None) -> None:
    a = folder(tmp_path / "a", 20, 0)
    evaluate(settings("metric=fid_folder", f"images={a}", f"reference={a}", "metric.features=cleanfid"))
    found = card(tmp_path / "out")
    assert found["label"] == "fid/cleanfid@12"
    assert not found["standard"]
    assert found["deviations"] == ["cleanfid features instead of pytorch_fid"]


def test_damaged_folders_are_errors_that_name_the_file(tmp_path: Path, settings: Settings, no_weights: None) -> None:
    a = folder(tmp_path / "a", 4, 0)
    arguments = ("metric=fid_folder", f"images={a}", f"reference={folder(tmp_path / 'b', 4, 1)}")
    Image.new("RGB", (8, 8)).save(a / "zz.png")
    with pytest.raises(ValueError, match=r"different sizes: .*zz\.png"):
        evaluate(settings(*arguments))
    (a / "zz.png").write_bytes((a / "000.png").read_bytes()[:80])
    with pytest.raises(ValueError, match=r"zz\.png can't be read as a picture"):
        evaluate(settings(*arguments))
    (a / "zz.png").unlink()
    Image.new("RGB", (12, 12)).save(a / "zz.jpg")
    with pytest.raises(ValueError, match=r"zz\.jpg is a JPG file, the protocol asks for PNG"):
        evaluate(settings(*arguments))
    evaluate(settings(*arguments, "format=null"))


def test_missing_things_are_listed_before_anything_is_drawn(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("STAR_ASSETS", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(MissingAssetError) as caught:
        evaluate(settings("metric=fid_mjhq", "check=true"))
    for part in ("pt_inception-2015-12-05-6726825d.pth", "6726825d0af5", "MJHQ-30K", "set ckpt="):
        assert part in str(caught.value)
    with pytest.raises(ValueError, match="choose what to measure"):
        evaluate(settings())
    with pytest.raises(ValueError, match="on_missing is skip or error, got 'stop'"):
        evaluate(settings("metric=fid_mjhq", "on_missing=stop"))


def test_one_of_several_may_lack_files(
    tmp_path: Path,
    settings: Settings,
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("STAR_ASSETS", raising=False)
    arguments = ("metric=[likelihood,latency,clip_score]", f"ckpt={tiny_checkpoint}", "metric.items.latency.runs=1")
    prompts = tmp_path / "captions.txt"
    prompts.write_text("a cat\n")
    with caplog.at_level("INFO"):
        evaluate(settings(*arguments, f"prompts={prompts}"))
    found = card(tmp_path / "out")
    assert f"likelihood: {found['cards']['likelihood']['label']} {found['values']['likelihood']:.6g}" in caplog.text
    assert "clip_score: not computed" in caplog.text
    assert found["values"]["clip_score"] is None
    assert found["cards"]["clip_score"]["status"] == "missing"
    assert found["values"]["likelihood"] == found["cards"]["likelihood"]["value"]
    assert {path.stem for path in (tmp_path / "out" / "cards").iterdir()} == {"likelihood", "latency", "clip_score"}
    with pytest.raises(MissingAssetError, match=r"ViT-L-14\.pt"):
        evaluate(settings(*arguments, f"prompts={prompts}", "on_missing=error"))


@pytest.fixture
def short_run(
    tmp_path: Path, settings: Settings, tiny_checkpoint: Path, shapes_shards: Path, no_weights: None
) -> Callable[..., Any]:
    """Draws 24 pictures for the captions of shards and compares them with those shards."""

    def run(out: str, *overrides: str) -> dict[str, Any]:
        arguments = [f"ckpt={tiny_checkpoint}", f"reference={shapes_shards}", f"out={tmp_path / out}", "batch=5"]
        evaluate(
            settings("metric=[fid_folder,kid]", "metric.items.kid.metric.subset_size=null", *arguments, *overrides)
        )
        return card(tmp_path / out)

    return run


def drawn(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.rglob("images/**/*.png"))}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_killed_run_goes_on_and_gives_the_same_card(
    short_run: Callable[..., Any], tmp_path: Path, precision: str
) -> None:
    whole = short_run("whole", f"precision={precision}")
    (folder_of_whole,) = (tmp_path / "whole" / "images").iterdir()
    cut = tmp_path / "cut" / "images" / folder_of_whole.name
    shutil.copytree(folder_of_whole, cut)
    for path in [*cut.glob("*[13579].png"), cut / "00016.png"]:
        path.unlink()
    kept = {path: path.stat().st_mtime_ns for path in cut.glob("*.png")}
    assert None not in whole["values"].values()
    assert short_run("cut", f"precision={precision}")["values"] == whole["values"]
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert drawn(tmp_path / "cut") == drawn(tmp_path / "whole")


def test_index_holds_every_seed_and_other_settings_draw_other_pictures(
    short_run: Callable[..., Any], tmp_path: Path
) -> None:
    short_run("out")
    short_run("out", "sampling.guidance.scale=1")
    folders = list((tmp_path / "out" / "images").iterdir())
    assert len(folders) == 2
    rows = [json.loads(line) for line in (folders[0] / "index.jsonl").read_text().splitlines()]
    assert len({row["seed"] for row in rows}) == len(rows) == 24
    assert set(rows[0]) == {"file", "prompt", "seed"}


def test_dated_runs_share_their_pictures_and_named_ones_keep_theirs(settings: Settings) -> None:
    from star.evaluation.context import Context

    stores = [Context(settings(*words)).store for words in ((), ("out=outputs/evaluation/x",), ("paths.pictures=p",))]
    assert stores[0].parent.name == "out"
    assert stores[1:] == [Path("outputs/evaluation/images"), Path("p")]


def test_presets_of_protocol_command_and_checkpoint(tiny_checkpoint: Path, settings: Settings) -> None:
    from star.evaluation.context import Context

    protocol = {
        "_target_": "star.sampling.decoder.ScaleWiseDecoder",
        "sampler": {"_target_": "star.sampling.samplers.Greedy"},
        "guidance": {"_target_": "star.sampling.guidance.ClassifierFreeGuidance", "scale": 2.0},
    }
    context = Context(settings(f"ckpt={tiny_checkpoint}", "sampling.guidance.scale=3"))
    assert context.settings(None)["sampling"]["sampler"]["top_k"] == 600
    assert context.settings(protocol)["sampling"]["guidance"]["scale"] == 3
    assert type(context.pipeline.decoder.sampler).__name__ == "Greedy"
    fast = Context(settings(f"ckpt={tiny_checkpoint}", "speed.decoder_dtype=bf16", "negative_prompt=null"))
    assert fast.settings(None)["speed"] == {"decoder_dtype": "bf16"}
    assert fast.settings(None)["negative_prompt"] == ""
    assert "speed" not in context.settings(None)
    whole = Context(settings(f"ckpt={tiny_checkpoint}", "sampling=topk600"))
    assert whole.settings(protocol)["sampling"]["sampler"]["top_k"] == 600


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path: Path, tiny_checkpoint: Path, shapes_shards: Path) -> None:
    arguments = [
        "evaluate.py",
        "metric=[likelihood,reconstruction,fid_folder,kid]",
        f"ckpt={tiny_checkpoint}",
        f"reference={shapes_shards}",
        "metric.features=effnet_lite0_b320@128",
        "metric.items.kid.metric.subset_size=5",
        "paths.cache=null",
        "batch=5",
        "device=cpu",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    commands = {
        "one": [sys.executable, *arguments],
        "two": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *arguments],
    }
    for name, command in commands.items():
        subprocess.run([*command, f"out={tmp_path / name}"], cwd=ROOT, env=environment, check=True, capture_output=True)
    one, two = (card(tmp_path / name) for name in commands)
    assert one["values"] == pytest.approx(two["values"], rel=1e-6)
    for name in one["values"]:
        bounds = [found["cards"][name]["interval"] or [] for found in (one, two)]
        assert bounds[0] == pytest.approx(bounds[1], rel=1e-6)


def test_a_fixed_size_is_part_of_the_protocol_and_too_few_pictures_are_told_before(
    tmp_path: Path, settings: Settings, no_weights: None
) -> None:
    a = folder(tmp_path / "a", 4, 0)
    fixed = "metric.items.fid_folder.reference.fit.size=8"
    evaluate(settings("metric=fid_folder", f"images={a}", f"reference={a}", fixed))
    assert "pictures of 12x12 pixels, compared with real ones of 8x8" in card(tmp_path / "out")["deviations"]
    (tmp_path / "captions.txt").write_text("a\nb\n")
    few = ("metric=kid", f"images={a}", f"reference={a}", f"prompts={tmp_path / 'captions.txt'}", "check=true")
    with pytest.raises(MissingAssetError, match="needs at least 1000 pictures, the prompts make 2: .*subset_size=null"):
        evaluate(settings(*few))


def test_the_value_is_the_first_metrics_or_none(tmp_path: Path, settings: Settings, tiny_checkpoint: Path) -> None:
    a = folder(tmp_path / "a", 4, 0)
    few = ("metric.items.latency.runs=1", "metric.items.latency.warmup=0", "metric.items.latency.batches=[1]")
    words = ("metric=[image_reward,latency]", f"ckpt={tiny_checkpoint}", f"images={a}", *few)
    assert evaluate(settings(*words)) is None
    found = card(tmp_path / "out")
    assert list(found["cards"]) == ["image_reward", "latency"]
    assert found["cards"]["latency"]["weights"]


def test_given_pictures_have_no_weights_that_we_know(
    tmp_path: Path, settings: Settings, tiny_checkpoint: Path, no_weights: None
) -> None:
    a = folder(tmp_path / "a", 4, 0)
    evaluate(settings("metric=fid_folder", f"images={a}", f"reference={a}", f"ckpt={tiny_checkpoint}"))
    assert card(tmp_path / "out")["weights"] is None


def test_a_published_model_is_looked_for_before_anything_is_drawn(tmp_path: Path, settings: Settings) -> None:
    words = ("metric=shapes", "check=true", "pretrained=star_256")
    with pytest.raises(MissingAssetError, match="pretrained=star_256 needs weights=DIR"):
        evaluate(settings(*words))
    with pytest.raises(MissingAssetError, match=r"star_rope_d30_256"):
        evaluate(settings(*words, f"weights={tmp_path}"))
    with pytest.raises(MissingAssetError, match="both are set"):
        evaluate(settings(*words, f"weights={tmp_path}", "ckpt=run"))


def test_every_option_composes_and_builds(settings: Settings) -> None:
    for path in sorted((ROOT / "conf" / "metric").glob("*.yaml")):
        items = settings(f"metric={path.stem}")["metric"]["items"]
        for item in items.values():
            built = module.build(item)
            assert callable(built.run)
            assert callable(built.missing)
