"""Shards of pictures into a cache of tokens and text features: `python -m star.data.cache --help`."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from star.checkpoints import io
from star.checkpoints.identity import identify
from star.data.cache_header import HEADER, SPLITS, CacheHeader, read_header
from star.data.cache_request import HELP, PRECISIONS, Request
from star.data.cache_writer import CacheTask, ShardCacher, describe_all, tasks_of
from star.data.datamodule import ShardDataModule
from star.data.stream import BatchStream
from star.schedule import concatenate
from star.utils.cli import compose, plain, readable_errors
from star.utils.command import run_command, split_arguments
from star.utils.devices import choose_device
from star.utils.instantiate import instantiate

log = logging.getLogger("cache")


class Parts:
    """Tokenizer, text encoder and data of a request, as train.py would build them.

    Args:
        request: what is asked for.
        device: where they run.

    """

    def __init__(self, request: Request, device: torch.device) -> None:
        config = plain(compose("train", request.overrides))
        self.request, self.device, self.config = request, device, config
        if (given := config["paths"]["tokenizer"]) is None:
            raise ValueError("set paths.tokenizer to a run directory or checkpoint of task=tokenizer")
        self.data = instantiate(config["data"])
        if not isinstance(self.data, ShardDataModule):
            raise ValueError("data= must be shards of pictures, not a cache")
        self.schedule = instantiate(config["schedule"])
        self.tokenizer = instantiate(config["tokenizer"])
        io.load(self.tokenizer, io.part(io.weights(io.read(given)), "tokenizer."), what=f"tokenizer of {given}")
        self.tokenizer.eval().requires_grad_(False).to(device)
        self.text_encoder = instantiate(config["text_encoder"])
        self.keeps_text = request.text == "auto" and not self.text_encoder.trainable
        if self.keeps_text:
            self.text_encoder.to(device).load()

    def header(self) -> CacheHeader:
        """What the cache will say about itself."""
        data, transform = self.config["data"], self.data.train_stream.transform
        if int(self.request.copies) > 1 and transform.crop == "center" and not transform.flip:
            raise ValueError(
                f"copies={self.request.copies} of a picture would all be the same: "
                "set data.crop=random or data.flip=true"
            )
        module = SimpleNamespace(tokenizer=self.tokenizer, text_encoder=self.text_encoder, schedule=self.schedule)
        names = ("filters", "crop", "flip", "interpolation", "background", "max_pixels", "seed")
        prepared = {name: data[name] for name in names if name in data}
        streams = self._streams()
        prepared["captions"] = {
            split: {one.name: dict(one.captions.fields) for one in stream.sources} for split, stream in streams.items()
        }
        return CacheHeader(
            kind=self.request.kind,
            copies=int(self.request.copies),
            tokenizer=str(identify(module, "tokenizer")),
            schedule=str(self.schedule if self.request.kind == "codes" else self.schedule.only(len(self.schedule) - 1)),
            prepared=prepared | {"resolution": self.config["resolution"], "precision": self.request.precision},
            sources={split: {one.name: one.weight for one in stream.sources} for split, stream in streams.items()},
            text_encoder=identify(module, "text_encoder") if self.keeps_text else None,
            empty=describe_all(self.text_encoder, [""])[""] if self.keeps_text else None,
        )

    def tasks(self) -> list[tuple[CacheTask, ShardCacher]]:
        """Every shard of this part with what writes it; validation has one copy, as it is prepared."""
        found = []
        for split, stream in self._streams().items():
            copies = int(self.request.copies) if split == "train" else 1
            for source in stream.sources:
                cacher = ShardCacher(
                    reader=stream.reader(source),
                    encode=self.encode,
                    describe=self.text_encoder if self.keeps_text else None,
                    batch_size=int(self.request.batch),
                    copies=copies,
                    seed=stream.seed,
                )
                found += [(task, cacher) for task in tasks_of([source], Path(self.request.out) / split)]
        number, count = map(int, self.request.part.split("/"))
        return found[number - 1 :: count]

    def _streams(self) -> dict[str, BatchStream]:
        return {name: getattr(self.data, f"{name}_stream") for name in SPLITS}

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Codes (N, L) long or features (N, D, h_K, w_K) of pictures (N, 3, H, W)."""
        dtype = PRECISIONS[self.request.precision]
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32):
            images = images.to(self.device)
            if self.request.kind == "latents":
                return self.tokenizer.features(images)
            return concatenate(self.tokenizer.encode(images, self.schedule))


def claim(out: Path, header: CacheHeader, *, overwrite: bool) -> None:
    """Write the header into the folder, or make sure that what lies there goes on with it.

    Raises:
        ValueError: when the folder holds a cache of other settings, or something else.

    """
    if (out / HEADER).is_file():
        changed = header.differences(read_header(out))
        if changed and not overwrite:
            raise ValueError(
                f"{out} holds a cache of other settings (different: {', '.join(changed)}); "
                "choose another out=, or overwrite=true"
            )
        for split in SPLITS if changed else ():
            shutil.rmtree(out / split, ignore_errors=True)
    elif out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} holds something that is no cache: choose another out=")
    out.mkdir(parents=True, exist_ok=True)
    header.write(out)


def work(request: Request, number: int, targets: Sequence[Path]) -> None:
    """One worker of several: writes the shards it was given."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(request.workers)))
    with readable_errors():
        write_all(Parts(request, place(request.device, number)), targets)


def write_all(parts: Parts, targets: Sequence[Path]) -> None:
    """Write shards, and say so after each; what can't be opened is left out."""
    parent = multiprocessing.parent_process()
    alive: Callable[[], bool] = (lambda: True) if parent is None else parent.is_alive
    wanted = set(targets)
    for task, cacher in parts.tasks():
        if task.target not in wanted:
            continue
        report = cacher.write(task, alive=alive)
        if report.missing is None:
            rate = report.samples / max(report.seconds, 1e-9)
            log.info("%s: %d samples, %.0f a second", task.target, report.samples, rate)
        else:
            log.warning("%s could not be opened (%s): not written", task.url, report.missing)


def share(request: Request, targets: Sequence[Path], workers: int) -> None:
    """Let several processes write the shards.

    Raises:
        OSError: when one of them fails; it has said why.

    """
    # A fresh interpreter per worker: a fork would copy locks, and CUDA can't be forked. No pool: its processes would
    # wait for work for ever when this one is killed.
    context = multiprocessing.get_context("spawn")
    jobs = [(request, number, targets[number::workers]) for number in range(workers)]
    processes = [context.Process(target=work, args=job, daemon=True) for job in jobs]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if failed := [process for process in processes if process.exitcode]:
        raise OSError(f"{len(failed)} of {workers} workers failed, the first with status {failed[0].exitcode}")


def place(device: str, number: int) -> torch.device:
    """Where a worker computes: on GPUs in turn, if there are any."""
    if device == "auto" and torch.cuda.is_available():
        return torch.device(f"cuda:{number % torch.cuda.device_count()}")
    return torch.device(choose_device(device))


def cache(request: Request) -> None:
    """Do what the request asks for.

    Raises:
        OSError: when shards could not be opened; the others are written.

    """
    begun = time.monotonic()
    parts = Parts(request, place(request.device, 0))
    claim(Path(request.out), parts.header(), overwrite=request.overwrite == "true")
    targets = [task.target for task, _ in parts.tasks() if not task.target.exists()]
    workers = min(int(request.workers), len(targets))
    if workers <= 1:
        write_all(parts, targets)
    else:
        del parts
        share(request, targets, workers)
    summarize(request, targets, time.monotonic() - begun)


def summarize(request: Request, targets: Sequence[Path], seconds: float) -> None:
    """Say what the folder holds now, what was lost by cause, and which of the targets are missing."""
    files = [file for split in SPLITS for file in Path(request.out).glob(f"{split}/*/*.json")]
    records: list[dict[str, Any]] = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    samples = sum(record["samples"] for record in records)
    missing = sum(not target.exists() for target in targets)
    new = len(targets) - missing
    log.info("%s: %d samples in %d shards, %d of them new in %.0f s", request.out, samples, len(files), new, seconds)
    skipped = sum((Counter(record["skipped"]) for record in records), Counter[str]())
    if skipped:
        causes = ", ".join(f"{cause} {count}" for cause, count in skipped.most_common())
        log.warning("%d samples were skipped: %s", skipped.total(), causes)
    if missing:
        raise OSError(f"{missing} shards could not be opened; the same command tries them again")


def parse(arguments: Sequence[str]) -> Request:
    """A command line as a request.

    Raises:
        ValueError: for an argument that isn't KEY=VALUE.

    """
    given, overrides = split_arguments(arguments, [one.name for one in fields(Request) if one.name != "overrides"])
    return Request(**given, overrides=overrides)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    run_command(HELP, lambda given: cache(parse(given)), arguments)


if __name__ == "__main__":
    main()
