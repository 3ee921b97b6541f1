"""Opens the model and serves the page."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from star.drawing import open_pipeline
from star.page.layout import Page, build
from star.page.limits import Limits
from star.page.presets import collect
from star.page.studio import Studio

log = logging.getLogger(__name__)


def serve(config: Mapping[str, Any]) -> None:
    """Serve the page of a resolved app.yaml until somebody ends it; visitors' pictures are gone then.

    Raises:
        ModuleNotFoundError: without gradio.
        FileNotFoundError: when weights are missing.
        ValueError: for settings that can't be.

    """
    limits = Limits(**config["limits"])
    pipeline, settings = open_pipeline(config)
    presets = collect(settings["sampling"], refiner=pipeline.refiner is not None, trusted=config["trusted"])
    first = {"prompt": config["prompt"] or "", "negative_prompt": config["negative_prompt"], "seed": config["seed"]}
    with tempfile.TemporaryDirectory(prefix="star_page_") as folder:
        page = Page(Studio(pipeline, presets, limits), Path(folder))
        blocks = start(page, address=config["address"], port=config["port"], first=first)
        log.info("the page is at %s (ctrl-C ends it)", blocks.local_url)
        blocks.block_thread()


def start(
    page: Page, *, address: str = "127.0.0.1", port: int | None = None, first: Mapping[str, Any] | None = None
) -> Any:
    """Serve a page in threads of its own.

    Args:
        page: what it does.
        address: who may visit; 127.0.0.1 is this machine alone.
        port: None takes a free one.
        first: the fields' first values, see `build`.

    Returns:
        Gradio's `Blocks`: `local_url` is the page's address, `close()` ends it.

    Raises:
        ModuleNotFoundError: without gradio.
        OSError: when the port is taken.

    """
    # said before gradio is imported: nothing is fetched from outside or told to it
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio as gr
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the page needs gradio: pip install -e '.[app]'") from error
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it asks the page itself whether it runs
    blocks = build(page, **(first or {}))
    blocks.launch(
        server_name=address,
        server_port=port,
        share=False,
        quiet=True,
        show_error=True,
        allowed_paths=[str(page.folder)],
        prevent_thread_lock=True,
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        footer_links=[],
        ssr_mode=False,
        enable_monitoring=False,
        max_file_size="1mb",
    )
    return blocks
