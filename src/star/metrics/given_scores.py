"""Scores that another program computed, one per picture: ImageReward's package, say, in an environment of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from star.metrics.base import Prompts, ScoreMean, bootstrap, concatenated


class GivenScores(ScoreMean):
    """The mean of scores in a file, per picture or the mean over prompts of their pictures' mean.

    Args:
        file: JSON `{path: score}`, paths as in the folder of pictures.
        name: of the score.
        by_prompt: average each prompt's pictures first.
        hint: how to get the scores, for messages.
        categories: names that prompts carry as `category`.

    """

    higher_is_better = True
    indices: list[Tensor]

    def __init__(
        self,
        *,
        file: str | Path | None,
        name: str,
        by_prompt: bool = False,
        hint: str = "",
        categories: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(categories=categories, **kwargs)
        self.file = None if file is None else Path(file)
        self.name = name
        self.by_prompt = by_prompt
        self.hint = hint
        self._scores: dict[str, float] | None = None
        self.add_state("indices", default=[], dist_reduce_fx="cat")

    def update(self, images: Tensor, prompts: Prompts) -> None:
        """Look the pictures' scores up."""
        super().update(images, prompts)
        self.indices.append(torch.tensor([prompt["index"] for prompt in prompts], dtype=torch.long, device=self.device))

    def score(self, images: Tensor, prompts: Prompts) -> Tensor:
        """Scores (B,) of the pictures, whose `file` prompts carry.

        Raises:
            ValueError: for a picture without a score; names it.

        """
        scores = self.scores_of_file()
        missing = [prompt["file"] for prompt in prompts if prompt["file"] not in scores]
        if missing:
            raise ValueError(f"{self.file} has no score of {missing[0]}")
        return torch.tensor([scores[prompt["file"]] for prompt in prompts], dtype=torch.float64)

    def compute(self) -> dict[str, Any]:
        """`value`, `interval`, `num_images`, `categories`."""
        result = super().compute()
        if self.by_prompt:
            scores, indices = concatenated(self.scores), concatenated(self.indices)
            _, place = indices.unique(return_inverse=True)
            sums = torch.zeros(int(place.max()) + 1, dtype=torch.float64).index_add_(0, place.cpu(), scores.cpu())
            means = sums / place.cpu().bincount()
            # a prompt's pictures aren't independent: prompts are resampled
            result |= {"value": float(means.mean()), "interval": bootstrap(means)}
        return result

    def scores_of_file(self) -> dict[str, float]:
        """The file's content.

        Raises:
            ValueError: when it isn't a JSON object of numbers.

        """
        if self._scores is None:
            if self.file is None:
                raise ValueError(next(self.iterate_missing()))
            try:
                content = json.loads(self.file.read_text(encoding="utf-8"))
                self._scores = {str(path): float(score) for path, score in content.items()}
            except (json.JSONDecodeError, AttributeError, TypeError, ValueError) as error:
                raise ValueError(f"{self.file} is no JSON object of path and score: {error}") from error
        return self._scores

    @property
    def label(self) -> str:
        """What exactly the score is."""
        return f"{self.name}/given"

    def iterate_missing(self) -> Iterator[str]:
        """The file."""
        if self.file is None:
            yield f"{self.name} is computed by its own package: {self.hint}"
        elif not self.file.is_file():
            yield f"no file {self.file} of {self.name}'s scores"
