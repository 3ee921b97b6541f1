"""What the demo leaves behind: checkpoints to keep, figures, report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from star.checkpoints import io
from star.checkpoints.refiner import export_refiner
from star.demo.figures import Pixels, captioned_grid, curves, growing, revealing
from star.demo.recipes import Recipe
from star.demo.report import write
from star.demo.steps import Steps
from star.drawing import open_pipeline
from star.metrics.shapes import TASKS, load_suite, render_suite
from star.pipeline import STARPipeline
from star.utils.cli import compose, plain
from star.utils.files import write_atomically
from star.utils.png import to_pixels

GROWING = 5


def export(run: Path, to: Path) -> None:
    """Keep a run's model without its optimiser."""
    slim = io.export(io.read(run))
    write_atomically(to, lambda path: torch.save(slim, path))


def keep_refiner(recipe: Recipe) -> None:
    """Keep the refiner alone, beside its generator."""
    slim = export_refiner(io.read(recipe.refiner_run))
    write_atomically(recipe.refiner_checkpoint, lambda path: torch.save(slim, path))


def open_model(recipe: Recipe, *preset: str) -> STARPipeline:
    """What `sample.py ckpt=star.ckpt` draws with, by the model's own preset or by the one given."""
    pipeline, _ = open_pipeline(plain(compose("sample", [f"ckpt={recipe.generator_checkpoint}", *preset])))
    return pipeline


def draw_figures(recipe: Recipe) -> None:
    """samples.png, scales.png, reveal.png and the training curves."""
    pipeline = open_model(recipe)
    captions, real = shapes_captions() if recipe.scored else real_pairs(recipe)
    drawn = [to_pixels(image) for image in pipeline.draw(captions, list(range(len(captions))))]
    captioned_grid(captions, {"drawn": drawn, "real": real}, recipe.out / "samples.png")
    few = range(0, len(captions), -(-len(captions) // GROWING))
    growing(pipeline, [captions[i] for i in few], list(few), recipe.out / "scales.png")
    if recipe.refined is not None:
        refined = open_model(recipe, *recipe.preset)
        revealing(refined, [captions[i] for i in few], list(few), recipe.out / "reveal.png")
        curves(
            recipe.refiner_run / "metrics.csv",
            {"loss": ["train/loss", "val/loss"], "accuracy, half known": ["val/accuracy", "val/generator_accuracy"]},
            recipe.out / "refiner_curves.png",
        )
    curves(
        recipe.tokenizer_run / "metrics.csv",
        {
            "pixel loss": ["train/l1", "train/l2"],
            "validation PSNR (dB)": ["val/psnr"],
            "codebook usage": ["val/usage/*"],
        },
        recipe.out / "tokenizer_curves.png",
    )
    curves(
        recipe.generator_run / "metrics.csv",
        {
            "loss": ["train/loss", "val/loss"],
            "loss by scale": ["train/loss/*"],
            "accuracy by scale": ["train/accuracy/*"],
        },
        recipe.out / "generator_curves.png",
    )


def shapes_captions(per_task: int = 4) -> tuple[list[str], list[Pixels]]:
    """A few captions of each task of the frozen suite, and true renders of them."""
    suite = load_suite("shapes")
    chosen = [record for task in TASKS for record in [r for r in suite if r["tag"] == task][:per_task]]
    real = [to_pixels(images[0]) for images, _ in render_suite(chosen, num_images=1)]
    return [record["prompt"] for record in chosen], real


def real_pairs(recipe: Recipe, count: int = 12) -> tuple[list[str], list[Pixels]]:
    """Pairs of the training and of the validation shards: seen captions first, then new ones."""
    from star.demo.recipes import configuration
    from star.utils.instantiate import instantiate

    config = configuration(recipe.training("generator"))["data"] | {"num_workers": 0, "batch_size": count}
    data = instantiate(config)
    captions: list[str] = []
    images: list[Pixels] = []
    for loader in (data.train_dataloader(), data.val_dataloader()):
        batch = next(iter(loader))
        captions += batch.captions[:count]
        images += [to_pixels(image.add(1).div(2)) for image in batch.images[:count]]
    return captions, images


def write_report(recipe: Recipe, steps: Steps) -> None:
    """report.json and report.html."""
    write(recipe, steps, figures=figure_files(recipe))


def drawings(recipe: Recipe) -> list[tuple[str, Path]]:
    """Title and file of every figure that the model draws."""
    figures = [
        ("Drawn from captions, beside real images", recipe.out / "samples.png"),
        ("Growing scale by scale", recipe.out / "scales.png"),
    ]
    if recipe.refined is not None:
        title = "Revealing the last scale, step by step: yellow is sure, blue unsure, grey unknown"
        figures.append((title, recipe.out / "reveal.png"))
    return figures


def figure_files(recipe: Recipe) -> Sequence[tuple[str, Path]]:
    """Title and file of every figure."""
    return (
        *drawings(recipe),
        ("Tokenizer", recipe.out / "tokenizer_curves.png"),
        ("Generator", recipe.out / "generator_curves.png"),
        ("Refiner", recipe.out / "refiner_curves.png"),
    )
