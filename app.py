"""A web page that draws: `python app.py ckpt=RUN`, see `python app.py --help`."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from star.utils.cli import plain, prepare, readable_errors


@hydra.main(version_base=None, config_path="conf", config_name="app")
def main(cfg: DictConfig) -> None:
    """Compose, open the checkpoint, serve."""
    with readable_errors():
        from star.page.serve import serve

        serve(plain(cfg))


if __name__ == "__main__":
    prepare()
    main()
