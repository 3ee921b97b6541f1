"""Whole trainings of two processes on one CPU, as train.py runs them, without the cost of starting Python anew."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from star.checkpoints import io
from star.checkpoints.consolidate import consolidate
from star.checkpoints.sharded import is_sharded
from star.data.shapes import ShapesSettings, write_shards
from star.evaluation.run import evaluate
from star.training.distributed import ShardedStrategy, blocks_of, has_weighted_norms, placed_like, trained_parts, whole
from star.training.run import Run
from star.utils.cli import compose, plain
from star.utils.instantiate import instantiate

Start = Callable[..., list[Any]]
TINY = [
    "stage=64",
    "resolution=16",
    "schedule.sizes=[1,2]",
    "data=shapes",
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
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.max_steps=4",
    "trainer.val_check_interval=2",
    "trainer.log_every_n_steps=1",
    "module.caption_dropout=0",
    "callbacks.checkpoint.every_n_train_steps=2",
    "callbacks.checkpoint.save_top_k=-1",
    "callbacks.pictures.every_n_steps=3",
    "callbacks.pictures.num_images=2",
    "callbacks.norms=null",
    "batch_size=4",
    "logger=csv",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and a tokenizer to learn the tokens of."""
    made = tmp_path_factory.mktemp("distributed")
    for name, split, seed in (("train", "train", 0), ("validation", "heldout", 1)):
        settings = ShapesSettings(num_images=48, split=split, seed=seed, samples_per_shard=12)
        write_shards(made / "shapes" / name, settings, workers=1, progress=False)
    config = plain(compose("train", TINY))
    torch.manual_seed(0)
    tokenizer = instantiate(config["tokenizer"])
    nn.init.normal_(tokenizer.quantizer.codebook.weight)
    state = {f"tokenizer.{name}": value for name, value in tokenizer.state_dict().items()}
    torch.save({"state_dict": state, "config": {}}, made / "tokenizer.ckpt")
    return made


@pytest.fixture
def train(folder: Path, start: Start) -> Callable[..., Path]:
    """Trains in one process or several."""

    def train(name: str, *overrides: str, count: int = 1) -> Path:
        run = folder / name
        paths = [f"paths.run_dir={run}", f"paths.data={folder}", f"paths.tokenizer={folder / 'tokenizer.ckpt'}"]
        # A global batch is the same two batches, whoever reads them.
        share = [f"data.num_workers={2 // count}", f"trainer.accumulate_grad_batches={2 // count}"]
        config = plain(compose("train", [*TINY, *paths, *share, *overrides]))
        processes = start(lambda: Run(config, run).fit(), count=count)
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0] * count
        return run

    return train


@pytest.fixture
def single(train: Callable[..., Path], folder: Path) -> Path:
    """The training of one process."""
    return folder / "single" if (folder / "single").exists() else train("single")


@pytest.fixture
def spread(train: Callable[..., Path], folder: Path) -> Path:
    """The same with its model spread over two."""
    if (folder / "spread").exists():
        return folder / "spread"
    return train("spread", "trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", PRECISION, count=2)


PRECISION = "trainer.precision=32-true"


def curve(run: Path, name: str) -> list[float]:
    with (run / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def tensors(run: Path) -> Iterator[tuple[str, torch.Tensor]]:
    checkpoint = io.read(run)
    yield from checkpoint["state_dict"].items()
    yield from ((f"averaged.{name}", value) for name, value in checkpoint["averaged"]["weights"].items())
    for number, state in checkpoint["optimizer_states"][0]["state"].items():
        yield from ((f"optimizer.{number}.{name}", torch.as_tensor(value)) for name, value in state.items())


def assert_same(one: Path, other: Path, *, bits: bool, curves: tuple[str, ...] = ("train/loss", "val/loss")) -> None:
    tolerance = {"atol": 0, "rtol": 0} if bits else {"atol": 1e-5, "rtol": 1e-4}
    found = dict(tensors(other))
    for name, value in tensors(one):
        torch.testing.assert_close(found.pop(name), value, msg=lambda said, name=name: f"{name}: {said}", **tolerance)
    assert not found
    for name in curves:
        assert curve(other, name) == pytest.approx(
            curve(one, name)[-len(curve(other, name)) :], abs=0 if bits else 1e-5
        )


@pytest.mark.slow
def test_ddp_learns_what_one_process_learns(train: Callable[..., Path], single: Path) -> None:
    ranks = train("ddp", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", PRECISION, count=2)
    assert len(curve(single, "train/loss")) == 4
    assert_same(single, ranks, bits=False)


@pytest.mark.slow
def test_fsdp_learns_what_one_process_learns_and_resumes_to_the_bit(
    train: Callable[..., Path], single: Path, spread: Path
) -> None:
    assert_same(single, spread, bits=False)
    middle = spread / "checkpoints" / "step_00000002.ckpt"
    assert is_sharded(middle)
    one_file = ["trainer.strategy.save_sharded=false", f"resume_from={middle}", PRECISION]
    resumed = train("resumed", "trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", *one_file, count=2)
    assert (resumed / "checkpoints" / "last.ckpt").is_file()
    assert_same(spread, resumed, bits=True)


@pytest.mark.slow
def test_a_consolidated_checkpoint_goes_on_in_one_process_and_in_replicas(
    train: Callable[..., Path], single: Path, spread: Path, folder: Path
) -> None:
    file = folder / "middle.ckpt"
    consolidate(spread / "checkpoints" / "step_00000002.ckpt", file)
    # Lightning counts batches, of which one process has twice as many to a step: it validates at other steps.
    alone = train("alone", f"resume_from={file}")
    assert_same(single, alone, bits=False, curves=("train/loss",))
    few = ["num_images=1", "seen=false", "renders=false", "ceiling=false", "shuffled=false"]
    shapes = [f"metric.items.shapes.{word}" for word in few]
    score = evaluate(plain(compose("evaluate", ["metric=shapes", f"ckpt={file}", f"out={folder / 'scored'}", *shapes])))
    assert score is not None
    assert 0 <= score <= 1
    hybrid = ["trainer=fsdp_hybrid", "trainer.strategy.replicas=2", "trainer.accelerator=cpu", "trainer.devices=2"]
    assert_same(single, train("hybrid", *hybrid, f"resume_from={file}", PRECISION, count=2), bits=False)


@pytest.mark.slow
def test_bf16_muon_and_recomputed_blocks_work_spread(train: Callable[..., Path], folder: Path) -> None:
    settings = ["trainer.precision=bf16-mixed", "optim=muon", "activation_checkpointing=full", "trainer.max_steps=2"]
    settings += ["callbacks.norms={_target_: star.callbacks.norms.Norms, every_n_steps: 2}"]
    run = train("narrow", "trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", *settings, count=2)
    assert {value.dtype for _, value in tensors(run) if value.is_floating_point()} == {torch.float32}
    shutil.rmtree(run)


def test_processes_have_to_divide_into_replicas() -> None:
    strategy = ShardedStrategy(replicas=3)
    strategy.parallel_devices = [torch.device("cpu")] * 4
    with pytest.raises(ValueError, match=r"4 processes .* trainer\.strategy\.replicas=3"):
        strategy.setup_environment()


def test_only_trained_parts_are_spread() -> None:
    trained, frozen = nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)
    trained.blocks = nn.ModuleList([nn.Linear(2, 2), nn.LayerNorm(2)])
    assert list(trained_parts(nn.ModuleList([trained, frozen]))) == [trained]
    assert blocks_of(trained) == list(trained.blocks)
    assert blocks_of(frozen) == []
    assert [has_weighted_norms(block) for block in blocks_of(trained)] == [False, True]


def test_tensors_in_one_piece_stay_so() -> None:
    value = torch.ones(2, requires_grad=True)
    assert torch.equal(whole(value), torch.ones(2))
    assert not whole(value).requires_grad
    assert torch.equal(placed_like(value.detach(), torch.zeros(3)), torch.ones(2))
