from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from star.utils.progress import StepBar


def test_the_bar_moves_with_scales_and_steps() -> None:
    progress = Progress(console=Console(file=io.StringIO()))
    bar = StepBar(progress, batches=2, scales=4)
    seen = []
    for step in ((0, 1, 1), (3, 2, 8), (3, 8, 8)):
        bar(*step)
        seen.append((progress.tasks[0].completed, progress.tasks[0].description))
    assert [completed for completed, _ in seen] == pytest.approx([0.25, 0.8125, 1.0])
    assert [words for _, words in seen] == [
        "drawing, scale 1/4",
        "drawing, scale 4/4, step 2/8",
        "drawing, scale 4/4, step 8/8",
    ]
    bar.next()
    bar(0, 1, 2)
    assert progress.tasks[0].completed == pytest.approx(1.125)
