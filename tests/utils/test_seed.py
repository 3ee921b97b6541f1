from __future__ import annotations

from star.utils.seed import derive


def test_seeds_differ_by_use_and_repeat() -> None:
    assert derive(0, "prompt", 3) == derive(0, "prompt", 3)
    assert len({derive(seed, name, i) for seed in range(3) for name in "ab" for i in range(10)}) == 60
    assert 0 <= derive(7) < 2**63
