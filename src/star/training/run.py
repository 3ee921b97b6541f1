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
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, distributed

from star.callbacks.run_record import RunRecord
from star.callbacks.step_seed import StepSeed
from star.checkpoints import io
from star.checkpoints.fingerprint import fingerprint
from star.checkpoints.pretrained import PARTS
from star.checkpoints.stages import Carried, carry_over, check_resumable, schedule_of, table
from star.training.blocks import BlockExecution
from star.training.checks import check_trainer, check_validation, choose_precision, device_kind, in_batches
from star.training.from_generator import check_generator, load_generator
from star.training.generator_module import GeneratorModule
from star.training.sampler_module import SamplerModule
from star.utils.files import tidy
from star.utils.heap import keep_freed_memory
from star.utils.instantiate import build_all, instantiate

log = logging.getLogger(__name__)

EXPECTED_WARNINGS = (
    ".*does not have many workers.*",  # data.num_workers is the user's choice
    ".*IterableDataset.*has `__len__` defined.*",  # and the length is an epoch's
    ".*isinstance.treespec, LeafSpec.. is deprecated.*",  # inside Lightning
    ".*Checkpoint directory .* exists and is not empty.*",  # a resumed run
    ".*The dirpath has changed from.*",
    ".*in eval mode at the start of training.*",  # a sampler's frozen generator
    ".*FSDP2-wrapped module .* returned a view tensor.*",  # which nobody writes to
)

HELPERS = ("discriminator", "revival")  # of a tokenizer's training, and no part of the tokenizer


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
        choose_precision(config)
        check_trainer(config)
        if device_kind(config["trainer"]["accelerator"]) == "cpu":
            keep_freed_memory()
        lightning.seed_everything(config["seed"], workers=True, verbose=False)
        resume_from = self.resume_from()
        self.mention_stage_before()
        if config["task"] == "sampler" and resume_from is None:
            check_generator(config)
        data: LightningDataModule = instantiate(config["data"])
        check_validation(data, config)
        tokenizer = self.tokenizer_weights()
        trainer: Trainer = instantiate(
            in_batches(config["trainer"]),
            callbacks=[
                StepSeed(config["seed"]),
                RunRecord(config, self.directory),
                *build_all(config["callbacks"]),
            ],
            logger=build_all(config["logger"]),
        )
        check_resolution(config)
        module: LightningModule = instantiate(config["module"])
        if tokenizer is not None:
            io.load(module.get_submodule("tokenizer"), tokenizer, what=f"tokenizer of {config['paths']['tokenizer']}")
        if isinstance(module, SamplerModule) and resume_from is None:
            load_generator(module, config)
        elif resume_from is None:
            self.initialise(module)
        else:
            check_resumable(resume_from, module)
        BlockExecution(config["activation_checkpointing"], config["compile"]).apply(module)
        if getattr(rank_zero_only, "rank", 0) == 0:
            tidy(self.directory / "checkpoints")
        log.info("run directory: %s", self.directory)
        with warnings.catch_warnings():
            for message in EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            trainer.fit(module, datamodule=data, ckpt_path=resume_from, weights_only=True)
        value = trainer.callback_metrics.get(config["optimized_metric"])
        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()  # left to the interpreter's end, its threads may abort the process
        return None if value is None else float(value)

    def resume_from(self) -> Path | None:
        """The checkpoint to go on with: `auto` takes the run directory's own, if there is one."""
        given = self.config["resume_from"]
        if given is None:
            return None
        if self.config["init_from"] is not None and given != "auto":
            raise ValueError(
                "init_from starts a new training from old weights, resume_from goes on with an old one: set one of "
                "them (resume_from=auto goes with init_from: it goes on with what the run directory has, once it has)"
            )
        if given == "auto":
            try:
                return io.find(self.directory)
            except FileNotFoundError:
                return None
        return io.find(given)

    def tokenizer_weights(self) -> dict[str, Any] | None:
        """Weights of the generator's frozen tokenizer; a sampler's comes with its generator."""
        if self.config["task"] != "generator":
            return None
        given = self.config["paths"]["tokenizer"]
        if given is None:
            raise ValueError(
                "the generator learns the tokens of a trained tokenizer: "
                "set paths.tokenizer to a run directory or checkpoint of task=tokenizer"
            )
        return io.part(io.weights(io.read(given)), "tokenizer.")

    def initialise(self, module: LightningModule) -> None:
        """Start from the weights of another run, if `init_from` says so, else from scratch."""
        given = self.config["init_from"]
        if given is None:
            if isinstance(module, GeneratorModule):
                module.begin()
            return
        checkpoint = io.read(given, mmap=True)
        weights, own = fitted(module, io.weights(checkpoint), what=f"init_from={given}")
        weights, rows = carry_over(module, weights, before=schedule_of(checkpoint), rule=self.config["init_rule"])
        held = module.state_dict()
        io.load(
            module, {**weights, **{name: held[name] for name in own}}, what=f"{self.config['task']} (init_from={given})"
        )
        rows += [Carried(name, held[name].numel(), "own", "as this run made or found it") for name in own]
        log.info("weights of %s\n%s", io.find(given), table(rows))

    def mention_stage_before(self) -> None:
        """Warn that a later stage starts from scratch."""
        config = self.config
        if (
            config["previous_stage"] is not None
            and config["task"] == "generator"
            and not (config["init_from"] or config["resume_from"])
        ):
            log.warning(
                "stage %s is meant to continue a run of stage %s (init_from=RUN_OR_CKPT); training from scratch",
                config["stage"],
                config["previous_stage"],
            )


def fitted(module: LightningModule, state: Mapping[str, Tensor], *, what: str) -> tuple[dict[str, Tensor], list[str]]:
    """The weights that a module takes from a checkpoint, and the names of those that stay as they are.

    Converted weights have a generator and perhaps no more: without a tokenizer or text encoder of their own, those
    stay. A generator's tokenizer is always the run's (`paths.tokenizer`), never the checkpoint's. What helps a
    tokenizer in training is taken where it fits and otherwise begins anew. What a checkpoint has beyond the module's
    parts isn't used.

    Raises:
        ValueError: when a tokenizer shall be trained further and there is none.

    """
    own = module.state_dict()
    parts = {name.partition(".")[0] for name in own}
    found = {name.partition(".")[0] for name in state}
    if "transformer" not in parts and "tokenizer" in parts - found:
        raise ValueError(f"{what} has no tokenizer to begin with: give a run, checkpoint or converted folder with one")
    staying = (parts - found) & {"tokenizer", "text_encoder", *HELPERS}
    for part in sorted(staying):
        log.info("%s has no %s: it stays as it is", what, part)
    if "transformer" in parts and "tokenizer" in parts & found:
        staying.add("tokenizer")
        if fingerprint(io.part(own, "tokenizer.")) != fingerprint(io.part(state, "tokenizer.")):
            log.warning(
                "%s learned the tokens of another tokenizer than paths.tokenizer, whose codes mean something else", what
            )
    for part in sorted(parts & found & set(HELPERS)):
        if _shapes(own, part) != _shapes(state, part):
            log.info("%s has another %s: this run's begins anew", what, part)
            staying.add(part)
    surplus = (found - parts) & {*PARTS, *HELPERS}
    for part in sorted(surplus):
        log.info("%s has a %s, which isn't used", what, part)
    unused = staying | surplus
    kept = {name: value for name, value in state.items() if name.partition(".")[0] not in unused}
    if "revival" in staying:  # a codebook that comes with the weights isn't fitted again
        kept["revival.fitted"] = state.get("revival.fitted", torch.tensor(True))
    return kept, [name for name in own if name.partition(".")[0] in staying and name not in kept]


def _shapes(state: Mapping[str, Tensor], part: str) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in io.part(state, f"{part}.").items()}


def check_resolution(config: dict[str, Any]) -> None:
    """Raise a ValueError unless the schedule ends where the tokenizer does at this resolution; costs no memory."""
    resolution = config["resolution"]
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    with torch.device("meta"):
        instantiate(config["tokenizer"]).check((height, width), instantiate(config["schedule"]))


def quieten() -> None:
    """Lightning's messages once, through the root logger, without its advertisements; one process speaks for all."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).handlers.clear()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    if getattr(rank_zero_only, "rank", 0) != 0:
        logging.getLogger().setLevel(logging.WARNING)
