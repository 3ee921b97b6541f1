from __future__ import annotations

import pytest
import torch

from star.models.conditioning.class_label import ClassLabelEncoder


def test_numbers_and_their_digits_mean_the_same_class() -> None:
    encoder = ClassLabelEncoder(10, 4)
    condition = encoder(["7", 7, "", " 0 "])
    assert torch.equal(condition.pooled, encoder.embedding.weight[[7, 7, 10, 0]])
    assert condition.context is None
    assert condition.context_mask is None


def test_is_trained_and_saved() -> None:
    encoder = ClassLabelEncoder(10, 4)
    encoder(["1"]).pooled.sum().backward()
    assert encoder.trainable
    assert list(encoder.state_dict()) == ["embedding.weight"]
    assert encoder.embedding.weight.grad is not None


@pytest.mark.parametrize("bad", ["dog", "10", "-1", 10, None, "1.5"])
def test_refuses_what_is_no_class(bad: object) -> None:
    with pytest.raises(ValueError, match="class"):
        ClassLabelEncoder(10, 4)([bad])  # type: ignore[list-item]


@pytest.mark.parametrize("bad", ["207", []])
def test_refuses_what_is_no_list(bad: object) -> None:
    with pytest.raises(ValueError, match="sequence"):
        ClassLabelEncoder(10, 4)(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("sizes", [{"num_classes": 0}, {"width": 0}, {"pooled_width": 5}, {"context_width": 4}])
def test_refuses_sizes_that_do_not_fit(sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(sizes))):
        ClassLabelEncoder(**{"num_classes": 10, "width": 4, **sizes})  # type: ignore[arg-type]
