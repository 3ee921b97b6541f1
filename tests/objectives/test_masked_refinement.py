from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from star.models.refiner import Refiner, first_refined, refined_scales
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.nn.position import Rotary2D
from star.objectives.masked_refinement import MaskedRefinement
from star.schedule import ScaleSchedule, concatenate
from star.types import Condition, LossReport

Build = Callable[..., STARTransformer]
Score = Callable[..., LossReport]


def make_refiner(**changes: Any) -> Refiner:
    sizes = {"width": 32, "num_heads": 4, "codebook_size": 32, "code_width": 8, "pooled_width": 12, "num_levels": 4}
    return Refiner(**sizes | {"position": Rotary2D()} | changes)


@pytest.fixture
def codes(schedule: ScaleSchedule) -> list[Tensor]:
    return [torch.randint(32, (3, length)) for length in schedule.lengths]


@pytest.fixture
def score(
    build_transformer: Build,
    tokenizer: MultiScaleTokenizer,
    schedule: ScaleSchedule,
    condition: Condition,
    codes: list[Tensor],
) -> Score:
    """What an objective says of a refiner beside an untrained generator."""
    model = build_transformer()
    return lambda objective, refiner, **given: objective(refiner, model, tokenizer, codes, condition, schedule, **given)


class Fixed:
    """Logits that are what they are, and what the objective asked with, in one call or one per scale."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits.requires_grad_()
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, hidden: Tensor, embeddings: Tensor, known: Tensor, *others: Any) -> Tensor:
        if sum(call[2].shape[1] for call in self.calls) == self.logits.shape[1]:
            self.calls.clear()  # a batch before
        begin = sum(call[2].shape[1] for call in self.calls)
        self.calls.append((hidden, embeddings, known, others[-1]))
        return self.logits[:, begin : begin + known.shape[1]]

    @property
    def hidden(self) -> Tensor:
        return torch.cat([call[0] for call in self.calls], 1)

    @property
    def embeddings(self) -> Tensor:
        return torch.cat([call[1] for call in self.calls], 1)

    @property
    def known(self) -> Tensor:
        return torch.cat([call[2] for call in self.calls], 1)

    @property
    def scales(self) -> list[tuple[int, ...]]:
        return [call[3] for call in self.calls]


def test_balanced_scales_weigh_the_same_however_few_their_unknown_tokens(
    score: Score, schedule: ScaleSchedule, codes: list[Tensor]
) -> None:
    fixed = Fixed(torch.randn(3, 22, 32))
    objective = MaskedRefinement(first_scale=2, balance="scales")
    report = score(objective, fixed)
    target, length = concatenate(codes[2:]), schedule.lengths[2]
    expected = torch.stack(
        [
            torch.nn.functional.cross_entropy(fixed.logits[:, part][unknown], target[:, part][unknown])
            for part in (slice(length), slice(length, None))
            for unknown in [~fixed.known[:, part]]
        ]
    ).mean()
    torch.testing.assert_close(report.total, expected)
    report.total.backward()
    assert not fixed.logits.grad[fixed.known].any()
    nothing = score(objective, fixed, known_share=1.0)
    assert nothing.total == 0


def test_a_scale_without_unknown_tokens_has_no_part_in_the_balance(schedule: ScaleSchedule) -> None:
    logits, target = torch.randn(5, 32, requires_grad=True), torch.randint(32, (5,))
    objective = MaskedRefinement(first_scale=2, balance="scales")
    report = objective._compare(logits, target, torch.full((5,), 3), schedule)
    torch.testing.assert_close(report.total, torch.nn.functional.cross_entropy(logits, target))
    report.total.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_an_unknown_balance_is_refused() -> None:
    with pytest.raises(ValueError, match="balance is 'tokens' or 'scales', got 'scale'"):
        MaskedRefinement(balance="scale")


def test_only_unknown_tokens_of_late_scales_count(score: Score, codes: list[Tensor]) -> None:
    fixed = Fixed(torch.randn(3, 22, 32))
    objective = MaskedRefinement(first_scale=2)
    report = score(objective, fixed)
    assert fixed.scales == [(2, 3)]
    target = concatenate(codes[2:])
    unknown = ~fixed.known
    expected = torch.nn.functional.cross_entropy(fixed.logits[unknown], target[unknown])
    torch.testing.assert_close(report.total, expected)
    report.total.backward()
    assert not fixed.logits.grad[fixed.known].any()
    assert fixed.logits.grad[unknown].any(-1).all()
    right = (fixed.logits.argmax(-1) == target)[unknown].float().mean()
    torch.testing.assert_close(report.scalars["accuracy"], right)
    assert report.per_scale["loss"][:2].isnan().all()
    lengths = torch.tensor([int((~fixed.known[:, part]).sum()) for part in (slice(6), slice(6, 22))])
    weighed = (report.per_scale["loss"][2:] * lengths).sum() / lengths.sum()
    torch.testing.assert_close(weighed, report.total.detach())


@torch.no_grad()
def test_the_generator_shows_what_teacher_forcing_shows(
    build_transformer: Build,
    tokenizer: MultiScaleTokenizer,
    schedule: ScaleSchedule,
    condition: Condition,
    codes: list[Tensor],
) -> None:
    model, fixed = build_transformer(), Fixed(torch.zeros(3, 22, 32))
    report = MaskedRefinement(first_scale=2)(fixed, model, tokenizer, codes, condition, schedule, known_share=0.5)
    x_in = tokenizer.quantizer.teacher_forcing(codes, schedule)
    logits, hidden = model(x_in, condition, schedule, return_hidden=True)
    assert torch.equal(fixed.hidden, hidden[:, 5:])
    assert torch.equal(fixed.embeddings, tokenizer.quantizer.codebook.weight[concatenate(codes[2:])])
    right = (logits[:, 5:].argmax(-1) == concatenate(codes[2:]))[~fixed.known].float().mean()
    torch.testing.assert_close(report.scalars["generator_accuracy"], right)


@pytest.mark.parametrize("shared", [True, False])
@torch.no_grad()
def test_an_early_scale_sees_later_ones_only_through_a_shared_prefix(
    score: Score, schedule: ScaleSchedule, condition: Condition, shared: bool
) -> None:
    """Apart, a scale is trained as it is drawn; evaluation is always so."""
    refiner, objective = make_refiner(depth=2), MaskedRefinement(first_scale=2, shared_prefix=shared)
    for block in refiner.blocks:  # a fresh block adds next to nothing
        block.attention.out.weight.normal_(std=0.3)

    def early(later: float, share: float | None) -> tuple[Tensor, Tensor]:
        """What is said of scale 2 when the last scale's hidden states are `later` times as large, and when drawn."""
        found = []

        def ask(hidden: Tensor, embeddings: Tensor, known: Tensor, *others: Any) -> Tensor:
            hidden, known = hidden.clone(), torch.zeros_like(known)
            hidden[:, 6:] *= later
            found.append(refiner(hidden, embeddings, known, *others)[:, :6])
            drawn.append(refiner.step(hidden[:, :6], embeddings[:, :6], known[:, :6], condition, schedule, 2))
            return torch.zeros(*known.shape, 32)

        drawn: list[Tensor] = []
        score(objective, ask, known_share=share)
        return found[0], drawn[0]

    one, drawn = early(1.0, None)
    other, _ = early(2.0, None)
    assert torch.equal(one, other) != shared
    assert torch.allclose(one, drawn, atol=1e-6) != shared
    one, drawn = early(1.0, 0.5)
    torch.testing.assert_close(one, drawn)


@torch.no_grad()
def test_coarse_scales_are_trained_on_more_pictures(
    score: Score, schedule: ScaleSchedule, codes: list[Tensor], condition: Condition
) -> None:
    """And what is said of them is what all scales of all pictures would have said."""
    assert schedule.lengths[1:3] == (4, 6)
    some = MaskedRefinement(first_scale=1, last_scale=2, shared_prefix=False, tokens_per_scale=12)
    every = MaskedRefinement(first_scale=1, shared_prefix=False)
    assert some.pictures(3, schedule) == [3, 2]
    assert some.pictures(1, schedule) == [1, 1]
    refiner, seen = make_refiner(), []

    def ask(hidden: Tensor, embeddings: Tensor, known: Tensor, text: Condition, *others: Any) -> Tensor:
        seen.append((hidden, embeddings, text.pooled, others[-1]))
        return refiner(hidden, embeddings, known, text, *others)

    score(some, ask)
    score(every, ask)
    assert [call[-1] for call in seen] == [(1,), (2,), (1,), (2,), (3,)]
    for few, all_of_them in ((seen[0], seen[2]), (seen[1], seen[3])):
        for ours, theirs in zip(few[:3], all_of_them[:3], strict=True):
            torch.testing.assert_close(ours, theirs[: len(ours)])
    assert [len(call[0]) for call in seen] == [3, 2, 3, 3, 3]
    report = score(some, make_refiner(), known_share=0.0)  # evaluation takes all pictures
    assert report.per_scale["loss"].isnan().tolist() == [True, False, False, True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens_per_scale": 8}, "which shared_prefix=true excludes"),
        ({"tokens_per_scale": 0, "shared_prefix": False}, "at least 1, got 0"),
    ],
)
def test_token_budgets_have_their_conditions(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskedRefinement(**changes)


def test_no_gradient_reaches_the_generator_or_the_tokenizer(
    build_transformer: Build,
    tokenizer: MultiScaleTokenizer,
    schedule: ScaleSchedule,
    condition: Condition,
    codes: list[Tensor],
) -> None:
    """Even of parameters that ask for one."""
    model, refiner = build_transformer(), make_refiner()
    objective = MaskedRefinement(first_scale=1)
    objective(refiner, model, tokenizer, codes, condition, schedule, known_share=0.5).total.backward()
    for part in (model, tokenizer):
        assert all(parameter.requires_grad and parameter.grad is None for parameter in part.parameters())
    assert all(parameter.grad is not None for parameter in refiner.parameters())


def test_shares_of_known_tokens_are_those_of_the_paper(schedule: ScaleSchedule) -> None:
    """arccos(r) / (pi / 2) of a uniform r is on average 2 / pi, and as often above 2 / 3 as below."""
    torch.manual_seed(3)
    objective = MaskedRefinement(first_scale=3)
    known = objective.known(20000, schedule).float().mean(1)
    assert known.mean() == pytest.approx(2 / torch.pi, abs=0.01)
    assert (known < 2 / 3).float().mean() == pytest.approx(0.5, abs=0.03)
    assert objective.known(200, schedule, 0.25).float().mean() == pytest.approx(0.25, abs=0.03)


def test_images_and_scales_draw_their_shares_apart(schedule: ScaleSchedule) -> None:
    torch.manual_seed(4)
    known = MaskedRefinement(first_scale=2).known(4000, schedule).float()
    shares = torch.stack([known[:, :6].mean(1), known[:, 6:].mean(1)])
    assert shares.std(1).min() > 0.2
    assert torch.corrcoef(shares)[0, 1].abs() < 0.1


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_or_nothing_known(score: Score, share: float) -> None:
    report = score(MaskedRefinement(), make_refiner(), known_share=share)
    report.total.backward()
    assert (report.total == 0) == (share == 1)
    assert report.scalars["accuracy"].isnan() == (share == 1)


@torch.no_grad()
def test_with_first_sample_text_a_batch_is_its_images(
    build_transformer: Build,
    tokenizer: MultiScaleTokenizer,
    schedule: ScaleSchedule,
    condition: Condition,
    codes: list[Tensor],
) -> None:
    """A picture is drawn alone then, so the refiner learns from hidden states of a picture alone."""
    model, objective = build_transformer(first_sample_text=True), MaskedRefinement()
    fixed = Fixed(torch.zeros(3, 16, 32))
    objective(fixed, model, tokenizer, codes, condition, schedule)
    batch = fixed.hidden
    for row in range(3):
        alone = Fixed(torch.zeros(1, 16, 32))
        objective(
            alone, model, tokenizer, [c[row : row + 1] for c in codes], condition.select(torch.tensor([row])), schedule
        )
        torch.testing.assert_close(alone.hidden[0], batch[row])


@torch.no_grad()
@pytest.mark.parametrize("neighbourhood", [1, 3])
def test_an_untrained_refiner_that_adopted_the_head_predicts_what_the_generator_does(
    build_transformer: Build,
    tokenizer: MultiScaleTokenizer,
    schedule: ScaleSchedule,
    condition: Condition,
    codes: list[Tensor],
    neighbourhood: int,
) -> None:
    model, refiner = build_transformer(), make_refiner(neighbourhood=neighbourhood)
    codebook = tokenizer.quantizer.codebook.weight
    refiner.adopt(model.head, codebook)
    assert refiner.embed(codebook).std(0).mean() == pytest.approx(1.0, rel=1e-3)
    x_in = tokenizer.quantizer.teacher_forcing(codes, schedule)
    logits, hidden = model(x_in, condition, schedule, return_hidden=True)
    embeddings = tokenizer.quantizer.lookup(concatenate(codes[2:]))
    refined = refiner(hidden[:, 5:], embeddings, torch.rand(3, 22) < 0.5, condition, schedule, (2, 3))
    similarity = torch.nn.functional.cosine_similarity(refined, logits[:, 5:], dim=-1)
    assert similarity.min() > 0.95
    with pytest.raises(ValueError, match=r"a head of \(16, 32\) can't begin with the generator's, of \(32, 32\)"):
        make_refiner(codebook_size=16).adopt(model.head, codebook)


def test_the_first_refined_scale_is_the_papers_in_proportion() -> None:
    lengths = {1: 0, 2: 1, 3: 2, 4: 3, 10: 7, 14: 9}
    for count, expected in lengths.items():
        schedule = ScaleSchedule.square(*range(1, count + 1))
        assert first_refined(schedule) == expected
        assert MaskedRefinement().scales(schedule) == tuple(range(expected, count))
    assert first_refined(schedule, -2) == first_refined(schedule, 12) == 12
    with pytest.raises(ValueError, match="first_scale 14 isn't one of the 14"):
        first_refined(schedule, 14)
    assert list(refined_scales(schedule, 1, -13)) == [1]
    with pytest.raises(ValueError, match="the last refined scale, 3, lies before the first, 9"):
        refined_scales(schedule, None, 3)


def test_label_smoothing_is_a_share() -> None:
    with pytest.raises(ValueError, match="1"):
        MaskedRefinement(label_smoothing=1.0)
