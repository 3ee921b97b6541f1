"""A small model trained through train.py, in a folder laid out as `make demo` leaves it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from star.checkpoints import io
from star.checkpoints.refiner import export_refiner
from star.data.shapes import ShapesSettings, write_shards
from star.demo.show import export

ROOT = Path(__file__).parents[2]
SMALL = [
    "experiment=demo",
    "trainer=cpu",
    "trainer.precision=32-true",
    "trainer.limit_val_batches=1",
    "trainer.val_check_interval=20",
    "data.num_workers=0",
    "data.shuffle_buffer=64",
    "model.depth=2",
    "model.width=64",
    "model.num_heads=2",
    "text_encoder.width=64",
    "text_encoder.depth=1",
    "text_encoder.num_heads=2",
    "text_encoder.vocabulary_size=256",
    "length.tokenizer.steps=40",
    "length.generator.steps=40",
    "length.tokenizer.batch=4",
    "length.generator.batch=8",
    "callbacks.pictures=null",
]


def run(arguments: Sequence[str], folder: Path) -> str:
    """Run Python in `folder` as a user would; returns all that it said."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def train(project: Path) -> None:
    """What `make demo` trains, at a hundredth of its length, and a refiner."""
    demo = project / "outputs" / "demo"
    for name, split, seed in (("train", "train", 0), ("validation", "heldout", 1)):
        settings = ShapesSettings(num_images=96, split=split, seed=seed, samples_per_shard=48)
        write_shards(demo / "data" / "shapes" / name, settings, workers=1, progress=False)
    words = ["train.py", *SMALL, f"paths.data={demo / 'data'}"]
    run([*words, "task=tokenizer", f"paths.run_dir={demo / 'tokenizer'}"], project)
    export(demo / "tokenizer", demo / "tokenizer.ckpt")
    words.append(f"paths.tokenizer={demo / 'tokenizer.ckpt'}")
    run([*words, f"paths.run_dir={demo / 'generator'}"], project)
    export(demo / "generator", demo / "star.ckpt")
    last = [
        "task=sampler",
        f"init_from={demo / 'star.ckpt'}",
        "sampling=demo_refined",
        "length.sampler.steps=10",
        "length.sampler.batch=8",
    ]
    last += ["module.objective.first_scale=-1", "module.refiner.depth=1"]
    run([*words, *last, f"paths.run_dir={demo / 'sampler'}"], project)
    torch.save(export_refiner(io.read(demo / "sampler")), demo / "refiner.ckpt")


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project's root after `make demo`: trained once, by whichever of pytest's processes comes first."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "project"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "notebooks").is_dir():
            for name in ("conf", "docs", "data", "train.py", "sample.py", "evaluate.py"):
                (folder / name).symlink_to(ROOT / name) if not (folder / name).exists() else None
            train(folder)
            (folder / "notebooks").mkdir()
    return folder
