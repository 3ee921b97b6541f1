from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from star.evaluation.context import Context
from star.evaluation.likelihood import LikelihoodItem
from star.evaluation.shards import RealPictures
from star.objectives.teacher_forcing import TeacherForcing

Settings = Callable[..., dict[str, Any]]


def test_loss_is_the_objectives_and_batches_do_not_matter(tiny_checkpoint: Path, settings: Settings) -> None:
    values = []
    for batch in (24, 7):
        context = Context(settings(f"ckpt={tiny_checkpoint}", f"batch={batch}"))
        values.append(LikelihoodItem(real=RealPictures()).run(context))
    assert values[0].value == pytest.approx(values[1].value, rel=1e-6)
    context = Context(settings(f"ckpt={tiny_checkpoint}", "batch=24"))
    (pairs,) = RealPictures().batches(context, (32, 32))
    pipeline = context.pipeline
    codes = pipeline.tokenizer.encode(pairs.images, pipeline.schedule)
    with torch.no_grad():
        condition = pipeline.text_encoder(pairs.captions)
        report = TeacherForcing()(pipeline.transformer, pipeline.tokenizer, codes, condition, pipeline.schedule)
    assert values[0].value == pytest.approx(float(report.total), rel=1e-5)
    assert values[0].results["accuracy_per_scale"] == pytest.approx(report.per_scale["accuracy"].tolist(), abs=1e-6)
    assert values[0].results["loss_per_scale"] == pytest.approx(report.per_scale["loss"].tolist(), rel=1e-5)
    assert values[0].results["bits_per_picture"] == pytest.approx(values[0].value * 21 / math.log(2))


def test_a_tokenizer_has_no_likelihood(tiny_tokenizer: Path, settings: Settings) -> None:
    context = Context(settings(f"ckpt={tiny_tokenizer}"))
    assert "needs one of task=generator" in next(LikelihoodItem(real=RealPictures()).missing(context))
