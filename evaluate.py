"""Score a model, or a folder of pictures: `python evaluate.py --help`."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from star.utils.cli import plain, prepare, readable_errors


@hydra.main(version_base=None, config_path="conf", config_name="evaluate")
def main(cfg: DictConfig) -> float | None:
    """Compose, instantiate, score; returns the first metric's value for sweeps."""
    with readable_errors():
        from star.evaluation.run import evaluate

        return evaluate(plain(cfg))


if __name__ == "__main__":
    prepare()
    main()
