"""The pictures of the demo: samples beside real images, images growing scale by scale, training curves."""

from __future__ import annotations

import csv
import logging
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from star.pipeline import STARPipeline
from star.sampling.trace import film
from star.utils.files import write_atomically
from star.utils.png import to_pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
DPI = 110


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    write_atomically(path, lambda partial: figure.savefig(partial, format="png", dpi=DPI, bbox_inches="tight"))


def captioned_grid(
    captions: Sequence[str], columns: Mapping[str, Sequence[Pixels]], path: Path, *, per_row: int = 4
) -> None:
    """A grid with one cell per caption: its images side by side, titled in the first row.

    Args:
        captions: one per cell.
        columns: title -> images (H, W, 3), one per caption.
        path: the PNG.
        per_row: cells in a row.

    """
    from matplotlib.figure import Figure

    wide = len(columns)
    rows = -(-len(captions) // per_row)
    figure = Figure(figsize=(per_row * wide * 1.1, rows * 1.55))
    axes = figure.subplots(rows, per_row * wide, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for i, caption in enumerate(captions):
        for j, (title, images) in enumerate(columns.items()):
            axis = axes[i // per_row, i % per_row * wide + j]
            axis.imshow(images[i], interpolation="nearest")
            if i < per_row:
                axis.set_title(title, fontsize=7, color="0.4")
            if j == 0:
                wrapped = textwrap.fill(caption, 15 * wide)
                axis.text(0, 1.04 * images[i].shape[0], wrapped, fontsize=7, va="top", ha="left")
    figure.subplots_adjust(hspace=0.75, wspace=0.06)
    save_figure(figure, path)


def growing(pipeline: STARPipeline, captions: Sequence[str], seeds: Sequence[int], path: Path) -> None:
    """One row per caption: the picture after each scale."""
    from matplotlib.figure import Figure

    steps: list[Tensor] = [pipeline.paint(state) for state in pipeline.scales(captions, seeds)]
    figure = Figure(figsize=(len(steps) * 1.25, len(captions) * 1.45))
    axes = figure.subplots(len(captions), len(steps), squeeze=False)
    for row, caption in enumerate(captions):
        for k, images in enumerate(steps):
            axis = axes[row, k]
            axis.imshow(to_pixels(images[row]), interpolation="nearest")
            axis.axis("off")
            if row == 0:
                height, width = pipeline.schedule.sizes[k]
                axis.set_title(f"{height}x{width}", fontsize=8)
        axes[row, 0].text(0, 1.06 * steps[0].shape[2], caption, fontsize=8, va="top", ha="left")
    figure.subplots_adjust(hspace=0.4, wspace=0.05)
    save_figure(figure, path)


def revealing(pipeline: STARPipeline, captions: Sequence[str], seeds: Sequence[int], path: Path) -> None:
    """One row per caption: what is known of the last scale after each step, and the picture."""
    from matplotlib.figure import Figure

    sampler: Any = pipeline.decoder.sampler
    traced, sampler.return_trace = sampler.return_trace, True
    *_, state = pipeline.scales(captions, seeds)
    sampler.return_trace = traced
    trace, images = state.traces[-1], pipeline.paint(state)
    steps = len(trace.by_refiner)
    figure = Figure(figsize=((steps + 1) * 1.25, len(captions) * 1.45))
    rows = figure.subplots(len(captions), 2, squeeze=False, width_ratios=(steps, 1))
    for row, caption in enumerate(captions):
        shown = film(trace, pipeline.schedule.sizes[-1], image=row, side=images.shape[2])
        for axis, picture in zip(rows[row], (shown, images[row]), strict=True):
            axis.imshow(to_pixels(picture), interpolation="nearest")
            axis.axis("off")
        rows[row, 0].text(0, 1.06 * images.shape[2], caption, fontsize=8, va="top", ha="left")
    figure.subplots_adjust(hspace=0.4, wspace=0.05)
    save_figure(figure, path)


def curves(metrics: Path, wanted: Mapping[str, Sequence[str]], path: Path, *, logarithmic: Sequence[str] = ()) -> None:
    """Training curves of a run's metrics.csv; of a run whose folder is gone, a warning.

    Args:
        metrics: the file.
        wanted: title of a panel -> names (or beginnings of names) of the curves in it.
        path: the PNG.
        logarithmic: panels with a logarithmic axis.

    """
    from matplotlib.figure import Figure

    if not metrics.is_file():
        log.warning("%s is gone: no new curves of this training", metrics)
        return
    series = read_series(metrics)
    figure = Figure(figsize=(4.2 * len(wanted), 2.8))
    for axis, (title, names) in zip(figure.subplots(1, len(wanted), squeeze=False)[0], wanted.items(), strict=True):
        for name in sorted(series):
            if any(name == want or (want.endswith("*") and name.startswith(want[:-1])) for want in names):
                axis.plot(*zip(*series[name], strict=True), label=name.split("/", 1)[-1], linewidth=1)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=7)
        if title in logarithmic:
            axis.set_yscale("log")
        if axis.lines:
            axis.legend(fontsize=6)
    figure.tight_layout()
    save_figure(figure, path)


def read_series(metrics: Path) -> dict[str, list[tuple[int, float]]]:
    """Every column of a metrics.csv as (step, value) pairs."""
    series: dict[str, list[tuple[int, float]]] = {}
    with metrics.open() as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name not in ("step", "epoch"):
                    series.setdefault(name, []).append((int(row["step"]), float(value)))
    return series
