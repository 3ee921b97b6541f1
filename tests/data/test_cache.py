"""The cache command with real (small) models, and training from what it writes."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from star.data.cache import cache, main, parse
from star.data.shapes import ShapesSettings, write_shards
from star.training.run import Run, check_resolution
from star.types import Batch
from star.utils.cli import compose, plain
from star.utils.instantiate import instantiate

ROOT = Path(__file__).parents[2]
TINY = [
    "stage=64",
    "resolution=16",
    "schedule.sizes=[1,2]",
    "data.num_workers=0",
    "data.shuffle_buffer=8",
    "tokenizer=nano",
    "tokenizer.encoder.channels=16",
    "tokenizer.quantizer.codebook_size=64",
    "model=nano",
    "model.depth=1",
    "model.width=32",
    "model.num_heads=2",
    "batch_size=4",
]
WORDS = [
    "text_encoder=word_transformer",
    "text_encoder.width=32",
    "text_encoder.depth=1",
    "text_encoder.num_heads=2",
    "text_encoder.vocabulary_size=64",
]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAR_CONF", str(ROOT / "conf"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, split, seed in (("train", "train", 0), ("validation", "heldout", 1)):
        settings = ShapesSettings(num_images=16, split=split, seed=seed, samples_per_shard=8)
        write_shards(folder / "shapes" / name, settings, workers=1, progress=False)
    return folder


@pytest.fixture
def tiny_clip(tmp_path: Path) -> list[str]:
    """A text encoder with random weights, the same ones every time."""
    folder = tmp_path / "clip"
    folder.mkdir()
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    config = {
        "embed_dim": 16,
        "vision_cfg": {"layers": 1, "width": 16, "patch_size": 8, "image_size": 16},
        "text_cfg": text,
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    return [
        "text_encoder=openclip_vit_l14",
        f"text_encoder.name=local-dir:{folder}",
        "text_encoder.weights=null",
        "text_encoder.layers=1",
        "text_encoder.pooled_width=16",
        "text_encoder.context_width=16",
    ]


def write_tokenizer(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    config = plain(compose("train", [*TINY, *WORDS]))
    tokenizer = instantiate(config["tokenizer"])
    torch.nn.init.normal_(tokenizer.quantizer.codebook.weight, std=0.3)
    state = {f"tokenizer.{name}": value for name, value in tokenizer.state_dict().items()}
    torch.save({"state_dict": state, "config": config}, path)
    return path


@pytest.fixture
def common(data: Path, tmp_path: Path) -> list[str]:
    tokenizer = write_tokenizer(tmp_path / "tokenizer.ckpt", 0)
    return [*TINY, f"paths.data={data}", f"paths.tokenizer={tokenizer}"]


def train(folder: Path, *overrides: str, steps: int = 6) -> list[float]:
    """The loss of every step, through the real trainer in full precision."""
    settings = [
        "trainer=cpu",
        "trainer.precision=32-true",
        f"trainer.max_steps={steps}",
        "trainer.val_check_interval=3",
        "trainer.log_every_n_steps=1",
        "trainer.limit_val_batches=1",
        "callbacks.checkpoint.every_n_train_steps=3",
        "callbacks.pictures.every_n_steps=3",
        "callbacks.pictures.num_images=2",
        "logger=csv",
        f"paths.run_dir={folder}",
    ]
    config = plain(compose("train", [*overrides, *settings]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger(), "level", logging.WARNING)
        Run(config, folder).fit()
    rows = (folder / "metrics.csv").read_text().splitlines()
    names = rows[0].split(",")
    values = [row.split(",")[names.index("train/loss")] for row in rows[1:]]
    return [float(value) for value in values if value]


def test_training_from_the_cache_is_training_on_the_pictures(common: list[str], tmp_path: Path) -> None:
    """Codes alone, since the text encoder learns along: the same losses from the same seeds."""
    out = tmp_path / "a cache, with = and commas"
    cache(parse([f"out={out}", "batch=3", *common, *WORDS, "data=shapes"]))
    header = json.loads((out / "cache.json").read_text())
    assert (header["text_encoder"], header["schedule"]) == (None, "1 2")
    straight = train(tmp_path / "images", *common, *WORDS, "data=shapes")
    cached = train(tmp_path / "cached", *common, *WORDS, "data=cached", f"data.directory={out}")
    assert cached == pytest.approx(straight, rel=1e-4)
    assert len(set(straight)) == 6
    assert (tmp_path / "cached" / "pictures" / "real_00000003.png").is_file()


@pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode")  # the text encoder, which is frozen
def test_a_frozen_text_encoder_is_not_even_loaded(
    common: list[str], tiny_clip: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "cache"
    cache(parse([f"out={out}", *common, *tiny_clip, "data=shapes"]))
    straight = train(tmp_path / "images", *common, *tiny_clip, "data=shapes")

    from star.models.conditioning.openclip import OpenCLIPTextEncoder

    monkeypatch.setattr(OpenCLIPTextEncoder, "build", lambda self: pytest.fail("the text encoder was loaded"))
    cached = train(tmp_path / "cached", *common, *tiny_clip, "data=cached", f"data.directory={out}")
    assert cached == pytest.approx(straight, rel=1e-2)  # fp16 features


def test_another_tokenizer_or_text_encoder_is_an_error_with_both_hashes(
    common: list[str], tiny_clip: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "cache"
    cache(parse([f"out={out}", *common, *tiny_clip, "data=shapes"]))
    held = json.loads((out / "cache.json").read_text())
    other = write_tokenizer(tmp_path / "other.ckpt", 1)
    cached = ["data=cached", f"data.directory={out}"]
    with pytest.raises(ValueError, match=rf"tokenizer {held['tokenizer']}, this run has [0-9a-f]{{16}}: set paths"):
        train(tmp_path / "a", *common, f"paths.tokenizer={other}", *tiny_clip, *cached)
    with pytest.raises(ValueError, match=rf"text_encoder {held['text_encoder'][:16]} .*this run has [0-9a-f]{{16}} "):
        train(tmp_path / "b", *common, *tiny_clip, "text_encoder.layers=2", *cached)
    with pytest.raises(ValueError, match=r"text_encoder .*word_transformer.*trained along.*data\.text=captions"):
        train(tmp_path / "c", *common, *WORDS, *cached)
    train(tmp_path / "d", *common, *WORDS, *cached, "data.text=captions", steps=1)


def test_latents_give_nearly_the_codes_of_the_pictures(common: list[str], tmp_path: Path) -> None:
    out = tmp_path / "cache"
    cache(parse([f"out={out}", "kind=latents", *common, *WORDS, "data=shapes"]))
    config = plain(compose("train", [*common, *WORDS, "data=cached", f"data.directory={out}"]))
    check_resolution(config)
    module = instantiate(config["module"])
    module.tokenizer.load_state_dict(
        {
            name.removeprefix("tokenizer."): value
            for name, value in torch.load(tmp_path / "tokenizer.ckpt")["state_dict"].items()
        }
    )
    pictures = plain(compose("train", [*common, *WORDS, "data=shapes"]))
    ours, theirs = (instantiate(one["data"]).val_dataloader() for one in (config, pictures))
    pairs: list[tuple[Batch, Batch]] = list(zip(ours, theirs, strict=True))
    same = torch.cat([(torch.cat(module.codes(a), 1) == torch.cat(module.codes(b), 1)).float() for a, b in pairs])
    assert same.mean() > 0.95


def test_what_is_there_is_kept_and_other_settings_are_refused(common: list[str], tmp_path: Path) -> None:
    out = tmp_path / "cache"
    arguments = [f"out={out}", *common, *WORDS, "data=shapes"]
    cache(parse([*arguments, "part=1/2"]))
    times = {file: file.stat().st_mtime_ns for file in out.rglob("*.tar")}
    assert len(times) == 2
    cache(parse(arguments))
    assert len(list(out.rglob("*.tar"))) == 4
    assert all(file.stat().st_mtime_ns == changed for file, changed in times.items())
    with pytest.raises(ValueError, match=r"different: kind, schedule.*overwrite=true"):
        cache(parse([*arguments, "kind=latents"]))
    with pytest.raises(ValueError, match=r"different: prepared"):
        cache(parse([*arguments, "data.crop=random"]))
    cache(parse([*arguments, "kind=latents", "overwrite=true"]))
    assert json.loads((out / "cache.json").read_text())["kind"] == "latents"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").touch()
    with pytest.raises(ValueError, match="holds something that is no cache"):
        cache(parse([f"out={tmp_path / 'other'}", *common, *WORDS, "data=shapes", "overwrite=true"]))


def test_shards_that_are_missing_fail_the_command_after_the_others(
    common: list[str], data: Path, tmp_path: Path
) -> None:
    shards = [str(next((data / "shapes" / "train").glob("*.tar"))), str(tmp_path / "lost.tar")]
    arguments = [*common, *WORDS, "data=folder", f"data.sources.folder.urls=[{','.join(shards)}]"]
    arguments += ["data.sources.folder.captions.txt=1"]
    with pytest.raises(OSError, match="1 shards could not be opened"):
        cache(parse([f"out={tmp_path / 'cache'}", *arguments]))
    assert len(list((tmp_path / "cache").rglob("*.tar"))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kind=codes"], "set out="),
        (["out=a", "kind=tokens"], "kind is one of codes, latents, got 'tokens'"),
        (["out=a", "copies=0"], "copies is a number of at least 1"),
        (["out=a", "part=5/4"], "part is I/N"),
        (["out=a", "workers"], r"KEY=VALUE, got 'workers'; workers=\.\.\.\?"),
        (["out=a", "text=words"], "text is one of auto, captions"),
    ],
)
def test_requests_are_checked_before_anything_is_opened(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(arguments)


def test_copies_need_a_transform_that_differs(common: list[str], tmp_path: Path) -> None:
    arguments = [f"out={tmp_path / 'cache'}", "copies=2", *common, *WORDS, "data=shapes"]
    with pytest.raises(ValueError, match=r"data\.crop=random"):
        cache(parse(arguments))
    with pytest.raises(ValueError, match=r"set paths\.tokenizer"):
        cache(parse([*arguments, "paths.tokenizer=null"]))


def test_help_explains(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    main(["--help"])
    assert "python -m star.data.cache out=" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_bytes(data: Path, common: list[str], tmp_path: Path) -> None:
    """kill -9 of the command and its two workers; then the same command again."""
    arguments = ["batch=1", *common, *WORDS, "data=shapes"]
    cache(parse([*arguments, f"out={tmp_path / 'straight'}"]))
    killed = subprocess.Popen(
        [sys.executable, "-m", "star.data.cache", *arguments, "workers=2", f"out={tmp_path / 'killed'}"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: list((tmp_path / "killed").rglob("*.tar")), 120)
    children = Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text().split()
    killed.kill()
    killed.wait()
    wait_for(lambda: not any(working(child) for child in children), 60)
    cache(parse([*arguments, f"out={tmp_path / 'killed'}"]))
    whole, resumed = (
        {file.relative_to(out): file.read_bytes() for file in out.rglob("*.tar")}
        for out in (tmp_path / "straight", tmp_path / "killed")
    )
    assert len(whole) == 4
    assert whole == resumed


def working(process: str) -> bool:
    """Whether a process still runs; one that nobody buried has no command line."""
    try:
        return bool(Path(f"/proc/{process}/cmdline").read_bytes())
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], Any], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
