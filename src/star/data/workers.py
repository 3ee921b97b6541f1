"""Reading processes: which share of the data each one takes, and how their batches come in."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import distributed
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from star.data.sequence import Share
from star.data.stream import SampleStream, WorkerBatch


def rank_and_world_size() -> tuple[int, int]:
    """This process and how many train together, from torch.distributed or what a launcher set in the environment."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class WorkerStreams(IterableDataset[WorkerBatch]):
    """The data set object that goes to the workers: each finds out its share and runs the stream.

    Args:
        stream: what every worker does.
        num_workers: of this rank; 0 means that the rank's own process reads.
        first_worker: whose batch comes first: DataLoader asks its processes in turn, so process 0 plays this worker.
        states: worker -> the state it goes on from.
        batches: how many batches all workers of the rank make together; None for as many as the stream has.

    """

    def __init__(
        self,
        stream: SampleStream,
        *,
        num_workers: int,
        first_worker: int = 0,
        states: Mapping[int, dict[str, Any]] | None = None,
        batches: int | None = None,
    ) -> None:
        super().__init__()
        self.stream = stream
        self.num_workers = max(1, num_workers)
        self.first_worker = first_worker
        self.states = dict(states or {})
        self.batches = batches
        # Asked here, in the main process: a spawned worker has no process group.
        self.rank, self.world_size = rank_and_world_size()

    def __iter__(self) -> Iterator[WorkerBatch]:
        """The batches of the worker this runs in."""
        info = get_worker_info()
        worker = (self.first_worker + (0 if info is None else info.id)) % self.num_workers
        share = Share(self.rank * self.num_workers + worker, self.world_size * self.num_workers)
        limit = None if self.batches is None else len(range(worker, self.batches, self.num_workers))
        for batch in islice(self.stream.batches(share, self.states.get(worker)), limit):
            yield batch._replace(worker=worker)


def open_loader(
    streams: WorkerStreams, *, num_workers: int, prefetch: int, pin_memory: bool, persistent: bool
) -> DataLoader[WorkerBatch]:
    """A DataLoader that passes on the workers' batches as they are."""
    return DataLoader(
        streams,
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_as_is,
        pin_memory=pin_memory and torch.cuda.is_available(),
        prefetch_factor=prefetch if num_workers else None,
        persistent_workers=persistent and num_workers > 0,
        worker_init_fn=_ignore_interrupts,
        # A generator of its own: DataLoader would otherwise draw from the one that dropout and noise come from.
        generator=torch.Generator(),
    )


def _as_is(batch: Any) -> Any:
    return batch


def _ignore_interrupts(_: int) -> None:
    # Ctrl-C reaches every process of the terminal, a scheduler's signals every one of the job. The main process
    # finishes its step, for which it needs the workers, saves a checkpoint, and then ends them: by SIGTERM in the end.
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_told, args=(os.getppid(),), daemon=True).start()


def _end_when_told(parent: int) -> None:
    """End this process when the parent sends SIGTERM, and not when anybody else does."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
