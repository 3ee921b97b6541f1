from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.objectives.teacher_forcing import TeacherForcing
from star.objectives.train_tokens import AllTokens, LocalWindow, RandomTail
from star.schedule import ScaleSchedule, concatenate
from star.types import Condition

S1024 = ScaleSchedule.square(1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)
S512 = ScaleSchedule.square(1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
S256 = ScaleSchedule.square(1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
S64 = ScaleSchedule.square(1, 2, 4, 8)
WIDE = ScaleSchedule(((1, 1), (2, 3), (4, 7), (6, 11), (9, 16)))
DEEP = LocalWindow(((20, 27), (24, 36), (26, 48), (31, 64)))


def inside(kept: Tensor, schedule: ScaleSchedule, k: int) -> list[list[tuple[int, int]]]:
    """Row and column of the kept tokens of scale k, for each sample."""
    part, width = schedule.slice(k), schedule.sizes[k][1]
    rows = kept if kept.dim() == 2 else kept[None]
    return [[divmod(int(i) - part.start, width) for i in row if part.start <= i < part.stop] for row in rows]


def box(places: Sequence[tuple[int, int]]) -> tuple[int, int, int, int]:
    """Top, bottom, left, right; the tokens fill them."""
    ys, xs = zip(*places, strict=True)
    found = min(ys), max(ys) + 1, min(xs), max(xs) + 1
    assert len(set(places)) == len(places) == (found[1] - found[0]) * (found[3] - found[2])
    return found


@pytest.mark.parametrize(
    ("schedule", "sizes", "total"),
    [
        (S1024, ((26, 26), (31, 31)), 4688),
        (S512, ((13, 13), (16, 16)), 1065),
        (S256, ((7, 7), (8, 8)), 368),
        (S64, ((2, 2), (4, 4)), 25),
        (WIDE, ((3, 6), (4, 8)), 85),
    ],
)
def test_windows_have_the_papers_sizes_at_1024_and_follow_other_schedules(
    schedule: ScaleSchedule, sizes: tuple[tuple[int, int], ...], total: int
) -> None:
    window = LocalWindow()
    assert window.sizes(schedule) == sizes
    kept = window(schedule, 3)
    assert kept is not None
    assert kept.shape == (3, total)
    for k, size in zip(range(len(schedule) - 2, len(schedule)), sizes, strict=True):
        for places in inside(kept, schedule, k):
            top, bottom, left, right = box(places)
            assert (bottom - top, right - left) == size


@pytest.mark.parametrize("schedule", [S1024, S512, S256, S64, WIDE], ids=str)
@pytest.mark.parametrize("window", [LocalWindow(), LocalWindow(((1, 2), (1, 2), (1, 2))), DEEP], ids=["2", "3", "4"])
def test_windows_are_nested_from_scale_to_scale(schedule: ScaleSchedule, window: LocalWindow) -> None:
    """The centre of every token lies in the window of the scale before, in relative coordinates."""
    kept = window(schedule, 8)
    assert kept is not None
    late = range(len(schedule) - len(window.windows), len(schedule))
    for before, after in itertools.pairwise(late):
        for outer, inner in zip(inside(kept, schedule, before), inside(kept, schedule, after), strict=True):
            top, bottom, left, right = box(outer)
            ratios = [b / a for a, b in zip(schedule.sizes[before], schedule.sizes[after], strict=True)]
            for y, x in inner:
                assert top * ratios[0] <= y + 0.5 <= bottom * ratios[0]
                assert left * ratios[1] <= x + 0.5 <= right * ratios[1]


def test_windows_lie_anywhere() -> None:
    """Also in the corners; and rows and columns are drawn independently."""
    kept = LocalWindow()(S64, 400)
    assert kept is not None
    boxes = [box(places) for places in inside(kept, S64, 2)]
    assert {(top, left) for top, _, left, _ in boxes} == set(itertools.product(range(3), range(3)))
    counts = torch.bincount(kept.flatten(), minlength=S64.total)
    assert (counts > 0).all()


@pytest.mark.parametrize("train_tokens", [LocalWindow(), RandomTail(per_sample=True)])
def test_samples_differ_and_chance_is_torchs(train_tokens: LocalWindow | RandomTail) -> None:
    torch.manual_seed(3)
    kept = train_tokens(S256, 8)
    torch.manual_seed(3)
    again = train_tokens(S256, 8)
    assert kept is not None
    assert again is not None
    assert torch.equal(kept, again)
    assert len({tuple(row.tolist()) for row in kept}) > 1
    assert (kept.diff() > 0).all()
    assert torch.equal(kept[:, : S256.offsets[-3]], torch.arange(S256.offsets[-3]).expand(8, -1))


def test_one_window_for_the_batch_is_a_row() -> None:
    kept = LocalWindow(per_sample=False)(S256, 8)
    assert kept is not None
    assert kept.shape == (368,)
    tail = RandomTail()(S256, 8)
    assert tail is not None
    assert tail.shape == (633,)


def test_the_tail_has_the_releases_length_at_1024_and_follows_other_schedules() -> None:
    assert RandomTail().count(S1024) == RandomTail(share=None, length=8800).count(S1024) == 8800
    assert RandomTail(share=0.9311184).count(S1024) == 8800
    kept = RandomTail()(S1024, 1)
    assert kept is not None
    assert kept.shape == (8800,)
    assert (kept.diff() > 0).all()
    assert torch.equal(kept[: S1024.offsets[-2]], torch.arange(S1024.offsets[-2]))
    assert [RandomTail().count(schedule) for schedule in (S512, S256, S64)] == [2086, 633, 79]


def test_every_token_of_the_tail_is_equally_likely() -> None:
    kept = RandomTail(share=None, length=53, per_sample=True)(S64, 4000)
    assert kept is not None
    share = torch.bincount(kept.flatten(), minlength=85)[21:] / 4000
    torch.testing.assert_close(share, torch.full((64,), 0.5), atol=0.05, rtol=0)


@pytest.mark.parametrize(
    "train_tokens",
    [AllTokens(), RandomTail(share=1.0), RandomTail(share=None, length=85), LocalWindow(((4, 4), (8, 8)))],
)
def test_keeping_everything_is_training_all(train_tokens: Callable[[ScaleSchedule, int], Tensor | None]) -> None:
    assert train_tokens(S64, 2) is None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RandomTail(share=0.5, length=3), "other null"),
        (lambda: RandomTail(share=None), "other null"),
        (lambda: RandomTail(share=1.5), r"share .* got 1.5"),
        (lambda: RandomTail(share=None, length=0), "got 0"),
        (lambda: RandomTail(share=0.1).count(S64), "22 to 85 can stay, got 8"),
        (lambda: RandomTail(share=None, length=8800)(S256, 1), "got 8800"),
        (lambda: LocalWindow([]), "a window has"),
        (lambda: LocalWindow([26, 31]), "pairs"),  # type: ignore[list-item]
        (lambda: LocalWindow([[49, 48]]), "49"),
        (lambda: LocalWindow([[1, 4], [1, 2]]), "inside the one before"),
        (lambda: DEEP.sizes(ScaleSchedule.square(1, 2)), "4 windows"),
        (lambda: LocalWindow(((1, 8), (1, 8))).sizes(ScaleSchedule.square(8, 4)), "shrink"),
    ],
)
def test_what_cant_be_is_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def given(kept: Tensor) -> Callable[[ScaleSchedule, int], Tensor]:
    return lambda schedule, batch: kept


def test_in_expectation_the_balanced_loss_of_a_tail_is_that_of_all_tokens(
    tokenizer: MultiScaleTokenizer, schedule: ScaleSchedule, condition: Condition
) -> None:
    """The mean over all tails there are, exactly, for logits that don't depend on what is kept."""
    codes = tokenizer.encode(torch.rand(3, 3, 8, 8) * 2 - 1, schedule)
    table = torch.randn(3, schedule.total, 32)

    def fixed(x_in: Tensor, condition: Condition, schedule: ScaleSchedule, kept: Tensor | None) -> Tensor:
        return table if kept is None else table[:, kept]

    everything = TeacherForcing()(fixed, tokenizer, codes, condition, schedule).total
    torch.testing.assert_close(everything, F.cross_entropy(table.transpose(1, 2), concatenate(codes)))
    first = torch.arange(schedule.offsets[3])
    tails = [
        torch.cat([first, torch.tensor(tail) + schedule.offsets[3]]) for tail in itertools.combinations(range(16), 2)
    ]
    losses = {
        balance: torch.stack(
            [
                TeacherForcing(train_tokens=given(kept), balance=balance)(
                    fixed, tokenizer, codes, condition, schedule
                ).total
                for kept in tails
            ]
        ).mean()
        for balance in ("scales", "tokens")
    }
    torch.testing.assert_close(losses["scales"], everything, atol=1e-5, rtol=1e-5)
    assert (losses["tokens"] - everything).abs() > 1e-2


@pytest.mark.parametrize("balance", ["tokens", "scales"])
@pytest.mark.parametrize("train_tokens", [LocalWindow(((2, 4),), per_sample=False), RandomTail(share=None, length=20)])
def test_the_loss_does_not_grow_with_the_batch(
    build_transformer: Callable[..., STARTransformer],
    tokenizer: MultiScaleTokenizer,
    schedule: ScaleSchedule,
    condition: Condition,
    train_tokens: LocalWindow | RandomTail,
    balance: str,
) -> None:
    """The release's loss under dropping was as many times too large as the batch had samples."""
    model = build_transformer()
    image = torch.rand(1, 3, 8, 8) * 2 - 1
    one = condition.select(torch.tensor([0]))
    norms, totals = [], []
    for batch in (1, 4):
        torch.manual_seed(1)
        codes = tokenizer.encode(image.expand(batch, -1, -1, -1), schedule)
        objective = TeacherForcing(train_tokens=train_tokens, balance=balance)
        report = objective(model, tokenizer, codes, one.repeat(batch), schedule)
        gradients = torch.autograd.grad(report.total, list(model.parameters()), allow_unused=True)
        totals.append(report.total.detach())
        norms.append(torch.stack([g.norm() for g in gradients if g is not None]).norm())
    torch.testing.assert_close(totals[0], totals[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(norms[0], norms[1], atol=1e-4, rtol=1e-4)


def test_validation_measures_every_token(
    build_transformer: Callable[..., STARTransformer],
    tokenizer: MultiScaleTokenizer,
    schedule: ScaleSchedule,
    condition: Condition,
) -> None:
    model = build_transformer()
    codes = tokenizer.encode(torch.rand(3, 3, 8, 8) * 2 - 1, schedule)
    plain = TeacherForcing()(model, tokenizer, codes, condition, schedule)
    thinned = TeacherForcing(train_tokens=RandomTail(share=None, length=12), balance="scales")
    report = thinned(model, tokenizer, codes, condition, schedule, every_token=True)
    assert torch.equal(report.total, plain.total)
    assert torch.equal(report.per_scale["loss"], plain.per_scale["loss"])
    with pytest.raises(ValueError, match="'samples'"):
        TeacherForcing(balance="samples")
