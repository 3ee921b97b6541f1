from __future__ import annotations

import pytest
import torch

from star.sampling.trace import RevealTrace, film, paint, picture
from star.schedule import ScaleSchedule

SCHEDULE = ScaleSchedule(((1, 1), (2, 3), (2, 2)))


def trace(images: int, steps: int, length: int) -> RevealTrace:
    generator = torch.Generator().manual_seed(images + steps)
    order = torch.stack([torch.randperm(length, generator=generator) % steps for _ in range(images)])
    revealed = order[:, None] == torch.arange(steps)[:, None]
    return RevealTrace(
        revealed, torch.rand(images, steps, length, generator=generator), (False,) + (True,) * (steps - 1)
    )


def test_order_and_certainty_are_those_of_the_revealing_step() -> None:
    made = trace(2, 3, 6)
    for image in range(2):
        for position in range(6):
            step = int(made.order[image, position])
            assert made.revealed[image, step, position]
            assert made.certainty[image, position] == made.confidence[image, step, position]


def test_stacked_traces_are_selected_apart_again() -> None:
    short, long = trace(2, 3, 6), trace(1, 5, 6)
    both = short.stack(long)
    assert both.by_refiner == long.by_refiner
    for rows, alone in ((torch.tensor([0, 1]), short), (torch.tensor([2]), long)):
        assert torch.equal(both.select(rows).order, alone.order)
        assert torch.equal(both.select(rows).certainty, alone.certainty)


def test_pictures_show_order_and_certainty_of_every_refined_scale() -> None:
    traces = [None, trace(2, 3, 6), trace(2, 2, 4)]
    shown = picture(traces, SCHEDULE, image=1, side=20)
    assert shown.shape == (3, 20 + 4 + 20, 30 + 4 + 20)
    assert shown.min() >= 0
    assert shown.max() <= 1
    first = paint(torch.tensor([0.0]), (1, 1), 1).flatten()
    where = traces[1].order[1].view(2, 3).eq(0).nonzero()[0] * 10  # type: ignore[union-attr]
    assert torch.equal(shown[:, where[0] + 5, where[1] + 5], first)
    with pytest.raises(ValueError, match="no scale was traced"):
        picture([None, None, None], SCHEDULE)


def test_a_film_goes_from_grey_to_colour() -> None:
    made = trace(1, 3, 6)
    frames = film(made, (2, 3), side=20)
    assert frames.shape == (3, 20, 3 * 30 + 2 * 4)
    grey = (frames == 0.85).all(0)
    shares = [grey[:, 34 * step : 34 * step + 30].float().mean().item() for step in range(3)]
    known = made.revealed[0].cumsum(0).bool().float().mean(1)
    torch.testing.assert_close(torch.tensor(shares), 1 - known)
    assert shares[-1] == 0
