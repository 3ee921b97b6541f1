"""Draw pictures from captions: `python sample.py --help`."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from star.utils.cli import plain, prepare, readable_errors


@hydra.main(version_base=None, config_path="conf", config_name="sample")
def main(cfg: DictConfig) -> None:
    """Compose, open the checkpoint, draw."""
    with readable_errors():
        from star.drawing import draw, open_pipeline, plan
        from star.sampling.prompts import read_prompts

        config = plain(cfg)
        if (config["prompt"] is None) == (config["prompts"] is None):
            raise ValueError("set either prompt=CAPTION or prompts=FILE")
        prompts = [{"prompt": config["prompt"]}] if config["prompts"] is None else read_prompts(config["prompts"])
        requests = plan(prompts, num_images=config["num_images"], seed=config["seed"], layout=config["layout"])
        pipeline, settings = open_pipeline(config)
        draw(pipeline, requests, Path(config["out"]), batch=config["batch"], settings=settings, layout=config["layout"])


if __name__ == "__main__":
    prepare()
    main()
