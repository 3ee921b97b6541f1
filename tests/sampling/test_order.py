from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from star.sampling.order import choose_seeds, take_order

NOTHING = {"negative_prompt": "", "num_images": 1, "generator": None, "seeds": None}


def seeds(prompts: int, images: int, **given: Any) -> tuple[int, ...]:
    return choose_seeds(prompts, images, **{"generator": None, "seeds": None} | given)


def test_one_seed_counts_up_for_every_prompt() -> None:
    assert seeds(2, 3, seeds=5) == (5, 6, 7, 5, 6, 7)
    assert seeds(2, 2, seeds=[9, 1, 1, 3]) == (9, 1, 1, 3)
    assert seeds(1, 2, seeds=np.int64(5)) == (5, 6)


def test_a_generator_decides_the_seeds() -> None:
    assert seeds(1, 4, generator=torch.Generator().manual_seed(1)) == seeds(
        1, 4, generator=torch.Generator().manual_seed(1)
    )
    several = [torch.Generator().manual_seed(i) for i in (1, 2, 1)]
    drawn = seeds(3, 1, generator=several)
    assert drawn[0] == drawn[2] != drawn[1]
    torch.manual_seed(3)
    first = seeds(1, 2)
    torch.manual_seed(3)
    assert seeds(1, 2) == first != seeds(1, 2)


def test_prompts_and_negatives_are_spread_over_the_pictures() -> None:
    order = take_order(["a", "b"], **NOTHING | {"negative_prompt": ["x", "y"], "num_images": 2, "seeds": 0})
    assert order.prompts == ("a", "a", "b", "b")
    assert order.negative_prompts == ("x", "x", "y", "y")
    parts = list(order.parts(3))
    assert [part.seeds for part in parts] == [(0, 1, 0), (1,)]


@pytest.mark.parametrize(
    ("prompt", "changes", "message"),
    [
        ([], {}, "empty list"),
        (3, {}, "a text or a list of texts, got 3"),
        (["a", None], {}, "a text or a list of texts, got None"),
        (["a", "b"], {"negative_prompt": ["x", "y", "z"]}, "2 prompts need one negative prompt or as many, got 3"),
        ("a", {"num_images": 0}, "at least 1, got 0"),
        ("a", {"num_images": True}, "at least 1, got True"),
        ("a", {"seeds": [1, 2]}, "1 prompts with 1 pictures each need 1 seeds, not 2"),
        ("a", {"seeds": -1}, "between 0 and"),
        ("a", {"seeds": 2**63}, "between 0 and"),
        ("a", {"seeds": 1, "generator": torch.Generator()}, "not both"),
        ("a", {"generator": [torch.Generator()] * 2}, "need 1 generators, not 2"),
    ],
)
def test_what_does_not_fit_is_refused(prompt: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        take_order(prompt, **NOTHING | changes)
