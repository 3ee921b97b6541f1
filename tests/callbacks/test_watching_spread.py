"""Norms, throughput and the guard where one model is spread over two processes."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from star.checkpoints import io
from star.data.shapes import ShapesSettings, write_shards
from star.training.generator_module import GeneratorModule
from star.training.run import Run
from star.utils.cli import compose, plain
from star.utils.instantiate import instantiate

ROOT = Path(__file__).parents[2]
TINY = [
    "stage=64",
    "resolution=16",
    "schedule.sizes=[1,2]",
    "data=shapes",
    "data.num_workers=0",
    "data.shuffle_buffer=16",
    "data.validation_size=8",
    "tokenizer=nano",
    "tokenizer.encoder.channels=16",
    "tokenizer.quantizer.codebook_size=16",
    "model=nano",
    "model.depth=2",
    "model.width=32",
    "model.num_heads=2",
    "text_encoder=word_transformer",
    "text_encoder.width=32",
    "text_encoder.depth=1",
    "text_encoder.num_heads=2",
    "text_encoder.vocabulary_size=64",
    "trainer.max_steps=6",
    "trainer.val_check_interval=3",
    "trainer.log_every_n_steps=1",
    "callbacks.checkpoint.every_n_train_steps=2",
    "callbacks.nan_guard.action=rollback",
    "callbacks.pictures=null",
    "callbacks.throughput.peak_tflops=1.0",
    "batch_size=4",
    "logger=csv",
]


def sabotaged(module: GeneratorModule, batch: Any, number: int) -> torch.Tensor:
    """A training step, the fifth of which makes nan in one of the processes."""
    report = module.loss(batch, 0.0)
    module.log_dict(report.report("train"))
    hurt = number == 4 and module.global_rank == module.trainer.world_size - 1
    return report.total * float("nan") if hurt else report.total


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_two_processes_agree_and_go_back_together(
    trainer: str, start: Callable[..., list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAR_CONF", str(ROOT / "conf"))
    for name, split in (("train", "train"), ("validation", "heldout")):
        settings = ShapesSettings(num_images=24, split=split, samples_per_shard=12)
        write_shards(tmp_path / "shapes" / name, settings, workers=1, progress=False)
    config = plain(compose("train", TINY))
    state = {f"tokenizer.{name}": value for name, value in instantiate(config["tokenizer"]).state_dict().items()}
    torch.save({"state_dict": state, "config": config}, tmp_path / "tokenizer.ckpt")
    run = tmp_path / "run"
    paths = [f"paths.run_dir={run}", f"paths.data={tmp_path}", f"paths.tokenizer={tmp_path / 'tokenizer.ckpt'}"]
    device = [f"trainer={trainer}", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]
    config = plain(compose("train", [*TINY, *device, *paths]))
    monkeypatch.setattr(GeneratorModule, "training_step", sabotaged)
    processes = start(lambda: Run(config, run).fit(), count=2)
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    with (run / "metrics.csv").open(newline="") as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file) if row.get("gradient_norm")}
    assert not float(rows[4]["gradient_norm"]) < float("inf")
    for step in (0, 1, 2, 3, 5):
        parts = {
            name: float(value) for name, value in rows[step].items() if name.startswith("gradient_norm/") and value
        }
        assert sum(value**2 for value in parts.values()) ** 0.5 == pytest.approx(float(rows[step]["gradient_norm"]))
        assert {"gradient_norm/transformer/block_00", "gradient_norm/transformer/head"} < set(parts)
        assert float(rows[step]["activation_rms/transformer/block_01"]) > 0
        assert float(rows[step]["mfu"]) == pytest.approx(float(rows[step]["tflops_per_device"]))
    held = io.read(run)
    assert all(value.isfinite().all() for value in held["state_dict"].values() if value.is_floating_point())
    assert all(value.isfinite().all() for value in held["averaged"]["weights"].values())
