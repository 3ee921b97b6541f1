from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from star.callbacks.pictures import Pictures
from star.types import Batch


class Module(torch.nn.Module):
    def sample_images(self, batch: Batch) -> dict[str, torch.Tensor]:
        assert not self.training
        return {"samples": batch.images.add(1).div(2)}


def test_pictures_appear_on_time_and_training_goes_on(tmp_path: Path) -> None:
    logged: list[tuple[str, int]] = []
    logger = SimpleNamespace(log_image=lambda key, images, step, caption: logged.append((key, step)))
    trainer: Any = SimpleNamespace(
        global_step=0,
        is_global_zero=True,
        callbacks=[],
        loggers=[logger],
        precision_plugin=SimpleNamespace(val_step_context=nullcontext),
    )
    module: Any = Module().train()
    pictures = Pictures(every_n_steps=2, num_images=2, directory=tmp_path / "pictures")
    for step in range(1, 5):
        trainer.global_step = step
        pictures.on_train_batch_end(trainer, module, None, Batch(torch.ones(3, 3, 4, 4), ["a", "b", "c"]), 0)
    assert module.training
    assert logged == [("samples", 2), ("samples", 4)]
    grid = np.asarray(Image.open(tmp_path / "pictures" / "samples_00000004.png"))
    assert grid.shape == (8, 14, 3)  # two images of 4 pixels and a border of 2
    assert grid.max() == 255


@pytest.mark.parametrize("wrong", [{"every_n_steps": 0}, {"every_n_steps": 1, "num_images": 0}])
def test_no_steps_or_pictures_are_refused(wrong: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pictures=null"):
        Pictures(**wrong, directory=tmp_path)
