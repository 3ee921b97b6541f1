"""One training from a resolved configuration: what train.py does behind its one decorator."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning import LightningDataModule, LightningModule, Trainer
from torch import Tensor

from star.callbacks.run_record import RunRecord
from star.checkpoints import io
from star.checkpoints.pretrained import PARTS
from star.utils.instantiate import build_all, instantiate

log = logging.getLogger(__name__)

EXPECTED_WARNINGS = (
    ".*does not have many workers.*",  # data.num_workers is the user's choice
    ".*IterableDataset.*has `__len__` defined.*",  # and the length is an epoch's
    ".*isinstance.treespec, LeafSpec.. is deprecated.*",  # inside Lightning
    ".*Checkpoint directory .* exists and is not empty.*",  # a resumed run
    ".*The dirpath has changed from.*",
)


class Run:
    """Builds data, module and trainer, cheapest checks first, and fits.

    Args:
        config: resolved plain containers, as train.yaml describes them.
        directory: the run directory.

    """

    def __init__(self, config: dict[str, Any], directory: Path) -> None:
        self.config = config
        self.directory = directory

    def fit(self) -> float | None:
        """Train; returns `optimized_metric`'s last value, or None if it was never measured."""
        config = self.config
        quieten()
        lightning.seed_everything(config["seed"], workers=True, verbose=False)
        resume_from = self.resume_from()
        self.mention_stage_before()
        data: LightningDataModule = instantiate(config["data"])
        tokenizer = self.tokenizer_weights()
        trainer: Trainer = instantiate(
            config["trainer"],
            callbacks=[*build_all(config["callbacks"]), RunRecord(config, self.directory)],
            logger=build_all(config["logger"]),
        )
        check_resolution(config)
        module: LightningModule = instantiate(config["module"])
        if tokenizer is not None:
            io.load(module.get_submodule("tokenizer"), tokenizer, what=f"tokenizer of {config['paths']['tokenizer']}")
        if resume_from is None:
            self.initialise(module)
        log.info("run directory: %s", self.directory)
        with warnings.catch_warnings():
            for message in EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            trainer.fit(module, datamodule=data, ckpt_path=resume_from, weights_only=True)
        value = trainer.callback_metrics.get(config["optimized_metric"])
        return None if value is None else float(value)

    def resume_from(self) -> Path | None:
        """The checkpoint to go on with: `auto` takes the run directory's own, if there is one."""
        given = self.config["resume_from"]
        if given is None:
            return None
        if self.config["init_from"] is not None:
            raise ValueError(
                "init_from starts a new training from old weights, resume_from goes on with an old one: set one of them"
            )
        if given == "auto":
            last = self.directory / "checkpoints" / "last.ckpt"
            return last if last.is_file() else None
        return io.find(given)

    def tokenizer_weights(self) -> dict[str, Any] | None:
        """Weights of the generator's frozen tokenizer."""
        if self.config["task"] == "tokenizer":
            return None
        given = self.config["paths"]["tokenizer"]
        if given is None:
            raise ValueError(
                "the generator learns the tokens of a trained tokenizer: "
                "set paths.tokenizer to a run directory or checkpoint of task=tokenizer"
            )
        return io.part(io.weights(io.read(given)), "tokenizer.")

    def initialise(self, module: LightningModule) -> None:
        """Start from the weights of another run, if `init_from` says so."""
        given = self.config["init_from"]
        if given is not None:
            state = fitted(module, io.weights(io.read(given, mmap=True)), what=f"init_from={given}")
            io.load(module, state, what=f"{self.config['task']} (init_from={given})")
            log.info("weights of %s", io.find(given))

    def mention_stage_before(self) -> None:
        """Warn that a later stage starts from scratch."""
        config = self.config
        if (
            config["previous_stage"] is not None
            and config["task"] != "tokenizer"
            and not (config["init_from"] or config["resume_from"])
        ):
            log.warning(
                "stage %s is meant to continue a run of stage %s (init_from=RUN_OR_CKPT); training from scratch",
                config["stage"],
                config["previous_stage"],
            )


def fitted(module: LightningModule, state: Mapping[str, Tensor], *, what: str) -> dict[str, Tensor]:
    """Weights for all of a module: without a tokenizer or text encoder of their own, those stay as they are.

    Converted weights have a generator and perhaps no more; what they have beyond the module's parts isn't used.
    """
    own = module.state_dict()
    parts = {name.partition(".")[0] for name in own}
    found = {name.partition(".")[0] for name in state}
    for part in sorted((parts - found) & {"tokenizer", "text_encoder"}):
        log.info("%s has no %s: it stays as it is", what, part)
        state = {**state, **{name: value for name, value in own.items() if name.startswith(f"{part}.")}}
    for part in sorted((found - parts) & set(PARTS)):
        log.info("%s has a %s, which isn't used", what, part)
        state = {name: value for name, value in state.items() if not name.startswith(f"{part}.")}
    return dict(state)


def check_resolution(config: dict[str, Any]) -> None:
    """Raise a ValueError unless the schedule ends where the tokenizer does at this resolution; costs no memory."""
    resolution = config["resolution"]
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    with torch.device("meta"):
        instantiate(config["tokenizer"]).check((height, width), instantiate(config["schedule"]))


def quieten() -> None:
    """Lightning's messages once, through the root logger, and without its advertisements."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).handlers.clear()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
