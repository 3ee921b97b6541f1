"""Train a tokenizer, a generator or a sampler: `python train.py --help`."""

from __future__ import annotations

import logging
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from star.utils.cli import plain, prepare, readable_errors
from star.utils.launch import prepare_launch

log = logging.getLogger("train")


@hydra.main(version_base=None, config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Compose, seed, instantiate, fit; returns the metric that sweeps optimise."""
    with readable_errors():
        prepare_launch(HydraConfig.get(), cfg.trainer)
        from star.training.run import Run

        cfg.paths.run_dir = HydraConfig.get().runtime.output_dir
        return Run(plain(cfg), Path(cfg.paths.run_dir)).fit()


if __name__ == "__main__":
    prepare()
    main()
