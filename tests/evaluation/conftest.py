"""A checkpoint that opens in milliseconds, shards for it, and evaluate.py's configuration for both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from star.data.shapes import ShapesSettings, write_shards
from star.utils.cli import compose, plain
from star.utils.instantiate import instantiate

TINY = (
    "stage=64",
    "model=nano",
    "tokenizer=nano",
    "text_encoder=word_transformer",
    "optim=adamw",
    "data=shapes",
    "callbacks=default",
    "logger=csv",
    "text_encoder.width=32",
    "text_encoder.depth=1",
    "text_encoder.vocabulary_size=128",
    "model.depth=1",
    "model.width=32",
    "model.num_heads=2",
    "tokenizer.encoder.channels=8",
    "tokenizer.encoder.groups=4",
    "tokenizer.encoder.attention=false",
    "tokenizer.quantizer.codebook_size=16",
    "tokenizer.quantizer.code_width=8",
    "schedule.sizes=[1,2,4]",
    "resolution=32",
)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def shapes_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one shard of 24 drawn pictures."""
    folder = tmp_path_factory.mktemp("shapes")
    settings = ShapesSettings(num_images=24, size=32, split="heldout", samples_per_shard=24)
    write_shards(folder, settings, workers=1, progress=False)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, shapes_shards: Path) -> Path:
    """A generator of random weights at 32 pixels."""
    return _write(tmp_path_factory.mktemp("generator"), shapes_shards, task="generator")


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory, shapes_shards: Path) -> Path:
    """Its tokenizer alone, as task=tokenizer saves it."""
    return _write(tmp_path_factory.mktemp("tokenizer"), shapes_shards, task="tokenizer")


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The resolved evaluate.yaml with overrides; results go to the test's own folder."""

    def compose_settings(*overrides: str) -> dict[str, Any]:
        return plain(compose("evaluate", [f"out={tmp_path / 'out'}", *overrides]))

    return compose_settings


def _write(folder: Path, shards: Path, *, task: str) -> Path:
    config = plain(compose("train", [*TINY, f"paths.run_dir={folder}", "data.num_workers=0"]))
    config["data"]["validation_sources"] = {"shapes": {"urls": f"{shards}/*.tar", "captions": {"txt": 1.0}}}
    torch.manual_seed(0)
    module = instantiate(config["module"])
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    state = module.state_dict()
    if task == "tokenizer":
        state = {name: value for name, value in state.items() if name.startswith("tokenizer.")}
    path = folder / "tiny.ckpt"
    torch.save({"state_dict": state, "config": {**config, "task": task}}, path)
    return path
