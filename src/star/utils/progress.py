"""A progress bar that shows steps within steps."""

from __future__ import annotations

from rich.progress import Progress


class StepBar:
    """A progress bar that moves with every scale of a batch, and with every step of one that is revealed in steps.

    Args:
        progress: where it is shown.
        batches: how many there are.
        scales: of a picture.

    """

    def __init__(self, progress: Progress, *, batches: int, scales: int) -> None:
        self.progress = progress
        self.scales = scales
        self.done = 0
        self.task = progress.add_task("drawing", total=batches)

    def __call__(self, k: int, step: int, steps: int) -> None:
        """Scale `k` has done `step` of its `steps`."""
        where = f"drawing, scale {k + 1}/{self.scales}" + (f", step {step}/{steps}" if steps > 1 else "")
        self.progress.update(self.task, completed=self.done + (k + step / steps) / self.scales, description=where)

    def next(self) -> None:
        """A batch is drawn."""
        self.done += 1
        self.progress.update(self.task, completed=self.done, description="drawing")
