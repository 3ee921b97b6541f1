"""Several processes through the real entry point."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from star.checkpoints import io
from star.data.shapes import ShapesSettings, write_shards
from star.utils.cli import compose, plain

ROOT = Path(__file__).parents[1]
TINY = [
    "task=tokenizer",
    "stage=64",
    "resolution=16",
    "schedule.sizes=[1,2]",
    "data=shapes",
    "data.num_workers=0",
    "data.shuffle_buffer=16",
    "tokenizer=nano",
    "tokenizer.encoder.channels=16",
    "tokenizer.quantizer.codebook_size=16",
    "trainer=ddp",
    "trainer.accelerator=cpu",
    "trainer.devices=2",
    "trainer.max_steps=2",
    "callbacks.pictures=null",
    "batch_size=4",
    "logger=csv",
]


def train(tmp_path: Path, before: list[str], *words: str) -> None:
    """Run Python with train.py and what comes before its words, as a user would, on a few shapes, into `run`."""
    settings = ShapesSettings(num_images=24, samples_per_shard=12)
    write_shards(tmp_path / "shapes" / "train", settings, workers=1, progress=False)
    data = [f"paths.data={tmp_path}", "data.validation_sources=null", f"paths.run_dir={tmp_path / 'run'}"]
    done = subprocess.run(
        [sys.executable, *before, *TINY, *data, *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_torchrun_s_processes_train_together(tmp_path: Path) -> None:
    train(tmp_path, ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"])
    held = io.read(tmp_path / "run")
    assert held["global_step"] == 2
    assert len(held["ShardDataModule"]["train"]["ranks"]) == 2


ALONE = ("trainer=cpu", "trainer.devices=1", "seed=0,1")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "words", "jobs"),
    [
        ("joblib", ("hydra.launcher.n_jobs=2", *ALONE), 2),
        ("submitit_local", ALONE, 2),
        ("submitit_local", ("hydra.launcher.tasks_per_node=2",), 1),
    ],
    ids=["joblib", "submitit_local", "submitit_local, two tasks a job"],
)
def test_launchers_train_every_job_of_a_sweep(launcher: str, words: tuple[str, ...], jobs: int, tmp_path: Path) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher", reason="needs .[cluster]")
    train(tmp_path, ["train.py", "-m"], f"hydra/launcher={launcher}", *words)
    for job in range(jobs):
        held = io.read(tmp_path / "run" / str(job))
        assert held["global_step"] == 2
        assert len(held["ShardDataModule"]["train"]["ranks"]) == 3 - jobs


@pytest.mark.parametrize("launcher", ["slurm", "submitit_local", "submitit_slurm"])
def test_launchers_compose_and_take_the_trainer_s_numbers(launcher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    import hydra

    monkeypatch.setenv("STAR_CONF", str(ROOT / "conf"))
    with hydra.initialize_config_dir(version_base=None, config_dir=str(ROOT / "conf")):
        overrides = [f"hydra/launcher={launcher}", "trainer=ddp", "trainer.devices=8", "trainer.num_nodes=2"]
        config = hydra.compose("train", overrides, return_hydra_config=True)
    assert "submitit" in config.hydra.launcher._target_
    if launcher == "slurm":
        assert (config.hydra.launcher.nodes, config.hydra.launcher.tasks_per_node) == (2, 8)


@pytest.mark.parametrize(("trainer", "replicas"), [("fsdp", 1), ("fsdp_hybrid", 4)])
def test_the_documented_commands_compose(trainer: str, replicas: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAR_CONF", str(ROOT / "conf"))
    words = ["stage=1024", "model=d30", "train_tokens=local_window", f"trainer={trainer}", "trainer.num_nodes=4"]
    config = plain(compose("train", words))
    assert config["trainer"]["strategy"]["replicas"] == replicas
    assert config["trainer"]["strategy"]["save_sharded"]
