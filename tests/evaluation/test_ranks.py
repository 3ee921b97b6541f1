from __future__ import annotations

from star.evaluation.ranks import Ranks


def test_shares_are_an_exact_partition() -> None:
    everything = list(range(11))
    shares = [Ranks(rank, 3).share(everything) for rank in range(3)]
    assert sorted(each for share in shares for each in share) == everything


def test_one_process_needs_nobody() -> None:
    ranks = Ranks.start("cpu")
    assert ranks == Ranks()
    assert ranks.gather([1, 2]) == [1, 2]
    assert ranks.agree("x") == "x"
    ranks.wait()
    ranks.stop()
