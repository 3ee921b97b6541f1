"""Metrics of pictures: draw or find the pictures, show them to the metric, read its result."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch

from star.evaluation.cards import Result
from star.evaluation.context import Context
from star.evaluation.pictures import Picture, batches
from star.evaluation.prompts import PromptSource

log = logging.getLogger(__name__)


class Item(Protocol):
    """One entry of `metric.items`."""

    def missing(self, context: Context) -> Iterator[str]:
        """What it lacks, one sentence each; nothing when it can run."""
        ...

    def run(self, context: Context) -> Result:
        """Compute it."""
        ...


def some(pictures: list[Picture], number: int = 16) -> list[tuple[Picture, str]]:
    """A few pictures, evenly spread, with their captions."""
    step = max(1, len(pictures) // number)
    return [(picture, str(picture.record.get("prompt", ""))) for picture in pictures[::step][:number]]
