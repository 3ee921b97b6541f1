from __future__ import annotations

import pytest
import torch

from star.types import Batch, Condition, LossReport


def test_stacking_pads_and_masks(condition: Condition, empty: Condition) -> None:
    both = condition.stack(empty)
    assert len(both) == 4
    assert both.context is not None
    assert both.context_mask is not None
    assert both.context.shape == (4, 5, 10)
    assert both.context_mask[3].tolist() == [True, True, False, False, False]


def test_selecting_and_repeating_move_all_parts(condition: Condition) -> None:
    rows = torch.tensor([2, 0, 0])
    picked = condition.select(rows)
    assert torch.equal(picked.pooled, condition.pooled[rows])
    assert picked.context_mask is not None
    assert condition.context_mask is not None
    assert torch.equal(picked.context_mask, condition.context_mask[rows])
    assert torch.equal(condition.repeat(2).pooled[1], condition.pooled[0])


def test_dropping_replaces_whole_texts(condition: Condition, empty: Condition) -> None:
    dropped = condition.drop(1.0, empty)
    assert torch.equal(dropped.pooled, empty.pooled.expand(3, -1))
    assert torch.equal(condition.drop(0.0, empty).pooled, condition.pooled)
    generator = torch.Generator().manual_seed(0)
    many = condition.select(torch.zeros(2000, dtype=torch.long)).drop(0.1, empty, generator)
    share = (many.pooled == empty.pooled).all(1).float().mean()
    assert 0.07 < share < 0.13


def test_trimming_cuts_only_padding(condition: Condition) -> None:
    trimmed = condition.select(torch.tensor([0, 2])).trim()
    assert trimmed.context is not None
    assert trimmed.context.shape[1] == 3


def test_a_dtype_changes_features_but_not_the_mask(condition: Condition) -> None:
    half = condition.to(torch.bfloat16)
    assert half.pooled.dtype == torch.bfloat16
    assert half.context_mask is not None
    assert half.context_mask.dtype == torch.bool


def test_parts_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="come together"):
        Condition(torch.zeros(2, 3), torch.zeros(2, 4, 5))
    with pytest.raises(ValueError, match="different sizes"):
        Condition(torch.zeros(2, 3), torch.zeros(2, 4, 5), torch.ones(2, 3, dtype=torch.bool))


def test_a_report_names_scales_in_order() -> None:
    report = LossReport(torch.tensor(2.0), {"accuracy": torch.tensor(0.5)}, {"loss": torch.tensor([3.0, 1.0])}).report(
        "train"
    )
    assert {name: float(value) for name, value in report.items()} == {
        "train/loss": 2.0,
        "train/accuracy": 0.5,
        "train/loss/scale_00": 3.0,
        "train/loss/scale_01": 1.0,
    }


def test_the_first_samples_of_a_batch_have_all_that_belongs_to_them() -> None:
    text = (torch.rand(4, 2), torch.rand(4, 3, 2), torch.ones(4, 3, dtype=torch.bool))
    batch = Batch(
        torch.rand(4, 3, 2, 2),
        list("abcd"),
        list("efgh"),
        codes=torch.arange(8).view(4, 2),
        features=torch.rand(4, 1, 1, 1),
        text=text,
        empty=text,
    )
    few = batch.first(2)
    assert (len(few), few.captions, few.keys) == (2, ["a", "b"], ["e", "f"])
    assert few.codes is not None
    assert few.codes.tolist() == [[0, 1], [2, 3]]
    assert few.features is not None
    assert few.text is not None
    assert [len(part) for part in (few.features, *few.text)] == [2] * 4
    assert few.empty is text
    assert len(Batch(torch.rand(4, 3, 2, 2), list("abcd")).first(9)) == 4
