from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from star.metrics.base import ScoreMean, as_uint8, bootstrap, bootstrap_tasks, check


class Brightness(ScoreMean):
    def score(self, images: Tensor, prompts: Sequence[Any]) -> Tensor:
        return images.mean((1, 2, 3))


def test_uint8_is_what_a_file_holds() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(as_uint8(pixels.float() / 255), pixels)


@pytest.mark.parametrize("images", [torch.zeros(3, 8, 8), torch.zeros(1, 1, 8, 8), torch.full((1, 3, 8, 8), 1.5)])
def test_images_of_another_shape_or_range_are_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match="images must"):
        check(images)


def test_interval_holds_the_mean_and_shrinks_with_more_values() -> None:
    values = torch.randn(400)
    wide, narrow = bootstrap(values[:40]), bootstrap(values)
    assert narrow[0] < values.mean() < narrow[1]
    assert narrow[1] - narrow[0] < wide[1] - wide[0]


def test_interval_does_not_depend_on_the_order() -> None:
    values, groups = torch.randn(50), torch.arange(50) % 3
    order = torch.randperm(50)
    assert bootstrap(values, groups) == pytest.approx(bootstrap(values[order], groups[order]), rel=1e-12)
    rows = [{"tag": "ab"[i % 2], "prompt": str(i // 4), "correct": i % 3 == 0} for i in range(40)]
    assert bootstrap_tasks(rows) == pytest.approx(bootstrap_tasks(rows[::-1]), rel=1e-12)


def test_groups_weigh_the_same_whatever_their_size() -> None:
    values = torch.cat([torch.zeros(90), torch.ones(10)])
    assert bootstrap(values, (values > 0).long()) == [0.5, 0.5]


def test_order_and_batches_do_not_matter_and_categories_have_their_own_means() -> None:
    images = torch.rand(10, 3, 4, 4)
    prompts = [{"category": "ab"[i % 2]} for i in range(10)]
    results = []
    for order, size in ((range(10), 10), (reversed(range(10)), 3)):
        metric = Brightness(categories=("a", "b"))
        rows = list(order)
        for part in (rows[i : i + size] for i in range(0, 10, size)):
            metric.update(images[part], [prompts[i] for i in part])
        metric.update(torch.zeros(0, 3, 1, 1), [])
        results.append(metric.compute())
    assert results[0]["value"] == pytest.approx(results[1]["value"])
    assert results[0]["value"] == pytest.approx(sum(results[0]["categories"].values()) / 2)
    assert results[0]["num_images"] == 10


def test_unknown_category_is_named() -> None:
    with pytest.raises(ValueError, match="unknown category cars, known: a, b"):
        Brightness(categories=("a", "b")).update(torch.zeros(1, 3, 4, 4), [{"category": "cars"}])
