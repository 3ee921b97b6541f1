"""The pictures of concepts.md: `python docs/pictures.py [tokenizer=outputs/demo/tokenizer.ckpt] [out=docs/images]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from star.checkpoints import io
from star.checkpoints.build import build
from star.data.shapes import ShapesSettings, draw_sample
from star.demo.figures import save_figure
from star.figures import draw
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.nn.masks import ScaleMask
from star.nn.position import Rotary2D
from star.objectives.train_tokens import LocalWindow, RandomTail
from star.sampling.guidance import ClassifierFreeGuidance
from star.sampling.reveal import RevealSchedule
from star.schedule import ScaleSchedule
from star.utils.cli import readable_errors
from star.utils.instantiate import instantiate_trusted

PUBLISHED = ScaleSchedule.square(1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw them all."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(f"{__doc__}\n")
        return
    given = dict(argument.partition("=")[::2] for argument in arguments)
    if unknown := sorted(given.keys() - {"tokenizer", "out"}):
        raise ValueError(f"unknown argument {unknown[0]!r}: expected tokenizer= or out=")
    out = Path(given.get("out", "docs/images"))
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    save_figure(token_maps(Path(given.get("tokenizer", "outputs/demo/tokenizer.ckpt"))), out / "token_maps.png")
    save_figure(masks(), out / "masks.png")
    save_figure(positions(), out / "positions.png")
    save_figure(trained(), out / "trained.png")
    save_figure(strengths(), out / "strengths.png")


def open_tokenizer(path: Path) -> tuple[MultiScaleTokenizer, ScaleSchedule]:
    """A tokenizer and its scales."""
    checkpoint = io.read(path)
    module = io.config(checkpoint, path)["module"]
    own = io.part(io.weights(checkpoint), "tokenizer.")
    return build(module["tokenizer"], own, what=str(path)).eval(), instantiate_trusted(module["schedule"])


def token_maps(path: Path) -> Figure:
    """A picture's codes of every scale, and what the tokenizer shows of it by then."""
    tokenizer, schedule = open_tokenizer(path)
    side = schedule.sizes[-1][0] * tokenizer.factor
    pixels = torch.from_numpy(draw(draw_sample(ShapesSettings(num_images=8), index=4).scene, size=side))
    codes = tokenizer.encode(pixels.permute(2, 0, 1)[None] / 127.5 - 1, schedule)
    figure = Figure(figsize=(1.5 * len(schedule) + 1.5, 3.2))
    axes = figure.subplots(2, len(schedule) + 1)
    for k, (height, width) in enumerate(schedule.sizes):
        shown = tokenizer.decode_codes(codes[: k + 1], schedule)[0].add(1).div(2).permute(1, 2, 0).numpy()
        axes[0, k].imshow(
            codes[k][0].view(height, width).numpy(), cmap="viridis", vmin=0, vmax=tokenizer.quantizer.codebook_size
        )
        axes[0, k].set_title(f"{height}x{width} codes", fontsize=8)
        axes[1, k].imshow(shown)
        axes[1, k].set_title(f"after scale {k}", fontsize=8)
    axes[0, -1].imshow(pixels.numpy())
    axes[0, -1].set_title("the picture", fontsize=8)
    for axis in axes.flat:
        axis.axis("off")
    return figure


def masks() -> Figure:
    """Who sees whom: rows look at columns."""
    schedule = ScaleSchedule.square(1, 2, 3, 4)
    figure = Figure(figsize=(6.4, 3.2))
    for axis, (order, name) in zip(figure.subplots(1, 2), ((None, "block_causal"), (1, "markov")), strict=True):
        axis.imshow((ScaleMask(order).bias(schedule) == 0).numpy(), cmap="Blues", vmin=0, vmax=1.6)
        for offset in schedule.offsets[1:-1]:
            axis.axhline(offset - 0.5, color="0.6", linewidth=0.6)
            axis.axvline(offset - 0.5, color="0.6", linewidth=0.6)
        axis.set_title(f"mask={name}", fontsize=9)
        axis.set_xticks([]), axis.set_yticks([])
    return figure


def positions() -> Figure:
    """Where the rows of every scale lie under each kind of rotary position."""
    kinds = ("axial", "normalized", "normalized_length")
    figure = Figure(figsize=(10, 2.6))
    for axis, kind in zip(figure.subplots(1, 3, sharey=True), kinds, strict=True):
        for k, (height, _) in enumerate(PUBLISHED.sizes):
            axis.plot(Rotary2D(kind).axis(height).numpy(), [k] * height, "|", markersize=9, color="tab:blue")
        axis.set_title(f"position={kind}", fontsize=9)
        axis.set_xlabel("position of a row", fontsize=8)
    figure.axes[0].set_ylabel("scale", fontsize=8)
    figure.axes[0].invert_yaxis()
    return figure


def trained() -> Figure:
    """Which tokens of the last two scales a step trains."""
    schedule = ScaleSchedule.square(1, 2, 4, 8, 12, 16)
    figure = Figure(figsize=(6.4, 3.4))
    axes = figure.subplots(2, 2)
    kinds = (("random_tail", RandomTail(share=0.8)), ("local_window", LocalWindow(((7, 12), (8, 16)))))
    for row, (name, choose) in zip(axes, kinds, strict=True):
        kept = choose(schedule, 1)
        for axis, k in zip(row, (4, 5), strict=True):
            axis.imshow(_present(kept, schedule, k).numpy(), cmap="Blues", vmin=0, vmax=1.6)
            axis.set_title(f"{name}, scale {k}", fontsize=8)
            axis.set_xticks([]), axis.set_yticks([])
    figure.subplots_adjust(hspace=0.35)
    return figure


def _present(kept: Tensor | None, schedule: ScaleSchedule, k: int) -> Tensor:
    """Which tokens of scale `k` are kept, (h_k, w_k) bool."""
    present = torch.ones(schedule.total, dtype=torch.bool) if kept is None else torch.zeros(schedule.total) > 0
    if kept is not None:
        present[kept.flatten()] = True
    return present[schedule.slice(k)].view(*schedule.sizes[k])


def strengths() -> Figure:
    """How strongly each scale is guided, and how many tokens each step of a refined scale reveals."""
    figure = Figure(figsize=(8, 2.6))
    left, right = figure.subplots(1, 2)
    for name, guidance in (
        ("ramp: linear", ClassifierFreeGuidance(4.0)),
        ("ramp: constant", ClassifierFreeGuidance(4.0, ramp="constant")),
        ("linear, off_after: -3", ClassifierFreeGuidance(4.0, off_after=-3)),
    ):
        left.plot([guidance.strength(k, PUBLISHED) for k in range(len(PUBLISHED))], ".-", label=name)
    left.set_xlabel("scale", fontsize=8)
    left.set_ylabel("guidance t", fontsize=8)
    for shape in ("arccos", "cosine", "linear"):
        right.plot(torch.tensor(RevealSchedule(8, shape).counts(256)).cumsum(0).numpy(), ".-", label=shape)
    right.set_xlabel("step", fontsize=8)
    right.set_ylabel("tokens known, of 256", fontsize=8)
    for axis in (left, right):
        axis.legend(fontsize=7)
    return figure


if __name__ == "__main__":
    with readable_errors():
        main()
