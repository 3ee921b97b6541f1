from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor

from star.data.datamodule import ShardDataModule
from star.types import Batch
from star.utils.cli import register_resolvers

MakeShard = Callable[..., str]
ROOT = Path(__file__).parents[2]


class Recorder(lightning.LightningModule):
    """Notes which samples it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained: list[list[str]] = []
        self.validated: list[str] = []

    def training_step(self, batch: Batch, _: int) -> Tensor:
        self.trained.append(batch.keys)
        return self.weight * batch.images.mean()

    def validation_step(self, batch: Batch, _: int) -> None:
        self.validated += batch.keys

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class SaveEveryStep(lightning.Callback):
    """Checkpoints after every step, and once more at the end of each epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")

    def on_train_epoch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}_epoch.ckpt")


@pytest.fixture
def settings(make_shard: MakeShard) -> dict[str, Any]:
    train = [make_shard(f"{n:05d}", range(20 * n, 20 * n + 20)) for n in range(2)]
    return {
        "sources": {"mine": {"urls": train}},
        "validation_sources": {"mine": {"urls": make_shard("validation", range(100, 110))}},
        "resolution": 4,
        "batch_size": 4,
        "num_workers": 0,
        "shuffle_buffer": 10,
    }


def fit(data: ShardDataModule, checkpoint: Path | None = None, **options: Any) -> Recorder:
    recorder = Recorder()
    defaults = {"max_steps": 9, "num_sanity_val_steps": 0}
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **(defaults | options),
    )
    trainer.fit(recorder, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return recorder


# Lightning's own, about PyTorch's internals.
@pytest.mark.filterwarnings(
    "ignore:.*isinstance.treespec:FutureWarning", "ignore:.*isinstance.treespec:DeprecationWarning"
)
@pytest.mark.parametrize("options", [{}, {"max_steps": -1, "max_epochs": 3}])
def test_a_lightning_run_resumes_with_the_very_next_batch(
    settings: dict[str, Any], tmp_path: Path, options: dict[str, Any]
) -> None:
    settings["epoch_size"] = 16
    straight = fit(ShardDataModule(**settings), callbacks=SaveEveryStep(tmp_path), **options)
    assert len(straight.trained) == (12 if "max_epochs" in options else 9)
    assert Counter(straight.validated).keys() == {f"mine/validation/{n:09d}" for n in range(100, 110)}
    for step in ("2", "4", "4_epoch", "5", "8_epoch"):
        resumed = fit(ShardDataModule(**settings), tmp_path / f"{step}.ckpt", **options)
        assert resumed.trained == straight.trained[int(step[0]) :]


@pytest.mark.filterwarnings(
    "ignore:.*isinstance.treespec:FutureWarning", "ignore:.*isinstance.treespec:DeprecationWarning"
)
def test_training_without_validation_and_on_repeated_batches(settings: dict[str, Any]) -> None:
    settings["validation_sources"] = None
    plain = fit(ShardDataModule(**settings))
    assert (len(plain.trained), plain.validated) == (9, [])
    overfit = fit(ShardDataModule(**settings), overfit_batches=1)
    assert overfit.trained == 9 * plain.trained[:1]
    with pytest.raises(ValueError, match=r"data\.validation_sources is null"):
        ShardDataModule(**settings).val_dataloader()


def test_validation_takes_the_centre_and_flips_nothing(settings: dict[str, Any]) -> None:
    data = ShardDataModule(**settings, crop="random", flip=True, background="#000000")
    assert data.train_stream.transform.crop == "random"
    assert data.validation_stream.transform.crop == "center"
    assert not data.validation_stream.transform.flip
    assert data.validation_stream.transform.background == (0, 0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": {}}, r"data\.sources has no source"),
        ({"sources": {"laion": {"urls": None, "weight": 0.0}}}, r"data\.sources has no source with a weight above 0"),
        ({"sources": {"laion": {"urls": None}}}, r"data\.sources\.laion\.urls"),
        ({"sources": {"laion": {"urls": "/nowhere/*.tar"}}}, r"data\.sources\.laion\.urls: no shard matches"),
        ({"validation_sources": {"v": {"urls": None}}}, r"data\.validation_sources\.v\.urls"),
        ({"batch_size": 0}, r"data\.batch_size.*at least 1, got 0"),
        ({"num_workers": -1}, r"data\.num_workers.*at least 0, got -1"),
        ({"epoch_size": 0}, r"data\.epoch_size"),
        ({"shuffle_buffer": 1.5}, r"data\.shuffle_buffer"),
        ({"resolution": [4]}, "resolution"),
        ({"crop": "middle"}, "crop"),
        ({"flip": "no"}, "flip must be true or false, got 'no'"),
        ({"resolution": None}, "resolution"),
        ({"resolution": 64.0}, "resolution"),
        ({"filters": {"aesthetic": {}}}, r"filters\.aesthetic"),
    ],
)
def test_what_cannot_work_fails_at_once_and_names_the_key(
    settings: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ShardDataModule(**(settings | change))


@pytest.mark.parametrize("name", ["laion", "folder", "shapes", "emoji"])
def test_the_configurations_can_be_instantiated(make_shard: MakeShard, name: str, tmp_path: Path) -> None:
    hydra_utils = pytest.importorskip("hydra.utils")
    omegaconf = pytest.importorskip("omegaconf")
    register_resolvers()
    url = make_shard("a", range(4))
    data = omegaconf.OmegaConf.load(ROOT / "conf" / "data" / f"{name}.yaml")
    for sources in filter(None, (data.sources, data.validation_sources)):
        for source in sources.values():
            source.urls = url
    top = {"data": data, "resolution": 8, "batch_size": 4, "seed": 0, "paths": {"data": str(tmp_path)}}
    module = hydra_utils.instantiate(omegaconf.OmegaConf.create(top).data, num_workers=0)
    assert isinstance(module, ShardDataModule)
    module.train_stream.filters.check_size(8, 8)


def test_validation_keeps_the_order_and_teardown_ends_the_reading(settings: dict[str, Any]) -> None:
    data = ShardDataModule(**settings)
    keys = [key for batch in data.val_dataloader() for key in batch.keys]
    assert keys == [f"mine/validation/{number:09d}" for number in range(100, 110)]
    loader = data.train_dataloader()
    next(iter(loader))
    assert loader._iterator is not None  # type: ignore[union-attr]
    data.teardown("fit")
    assert loader._iterator is None  # type: ignore[union-attr]
