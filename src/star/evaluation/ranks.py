"""Several processes that share one evaluation, as torchrun or Slurm start them."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import distributed

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among all.

    Attributes:
        rank: this one.
        world: how many there are.

    """

    rank: int = 0
    world: int = 1

    @classmethod
    def start(cls, device: str) -> Ranks:
        """Join the processes that a launcher started; alone without a launcher."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return cls()
        if not distributed.is_initialized():
            if device.startswith("cuda"):
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        if distributed.get_rank() > 0:
            logging.getLogger().setLevel(logging.WARNING)  # one voice is enough
        return cls(distributed.get_rank(), distributed.get_world_size())

    def agree(self, value: T) -> T:
        """Rank 0's value, on all."""
        if self.world == 1:
            return value
        held = [value]
        distributed.broadcast_object_list(held)
        return held[0]

    def share(self, everything: Sequence[T]) -> Sequence[T]:
        """This process's part: every `world`-th, an exact partition without padding."""
        return everything[self.rank :: self.world]

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            distributed.barrier()

    def gather(self, rows: Sequence[T]) -> list[T]:
        """The rows of all processes, on each of them."""
        if self.world == 1:
            return list(rows)
        parts: list[Any] = [None] * self.world
        distributed.all_gather_object(parts, list(rows))
        return [row for part in parts for row in part]

    def stop(self) -> None:
        """Leave the others."""
        if self.world > 1 and distributed.is_initialized():
            distributed.destroy_process_group()
