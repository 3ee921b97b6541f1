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


@pytest.mark.slow
def test_torchrun_s_processes_train_together(tmp_path: Path) -> None:
    settings = ShapesSettings(num_images=24, samples_per_shard=12)
    write_shards(tmp_path / "shapes" / "train", settings, workers=1, progress=False)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    data = [f"paths.data={tmp_path}", "data.validation_sources=null"]
    done = subprocess.run(
        [sys.executable, *torchrun, "train.py", *TINY, *data, f"paths.run_dir={tmp_path / 'run'}"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    held = io.read(tmp_path / "run")
    assert held["global_step"] == 2
    assert len(held["ShardDataModule"]["train"]["ranks"]) == 2


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
