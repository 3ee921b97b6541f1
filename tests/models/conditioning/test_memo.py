from __future__ import annotations

import pytest
import torch

from star.models.conditioning.memo import FeatureMemo, Features


def features(value: float) -> Features:
    return Features(torch.full((2,), value), torch.full((3, 2), value))


def test_the_least_recently_used_goes_first() -> None:
    memo = FeatureMemo(limit=2)
    memo.put("a", features(1.0))
    memo.put("b", features(2.0))
    memo.get("a")
    memo.put("c", features(3.0))
    assert memo.get("b") is None
    assert memo.get("a") is not None
    assert len(memo) == 2


def test_a_copy_in_main_memory_keeps_no_batch_alive() -> None:
    batch = torch.arange(12.0).view(2, 3, 2)
    kept = Features(batch[0, 0], batch[0]).cpu()
    assert kept.context.untyped_storage().nbytes() == 6 * 4
    assert torch.equal(kept.context, batch[0])


def test_refuses_an_empty_memo() -> None:
    with pytest.raises(ValueError, match="memo_limit=0"):
        FeatureMemo(limit=0)
