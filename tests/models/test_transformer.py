from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch

from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.nn.masks import ScaleMask, Visibility
from star.nn.position import AbsolutePosition, Rotary2D
from star.objectives.train_tokens import LocalWindow, RandomTail
from star.schedule import ScaleSchedule
from star.studies.memory import AllocationWatch
from star.types import Condition

Build = Callable[..., STARTransformer]


def random_input(schedule: ScaleSchedule, batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, schedule.total - 1, 8)


@pytest.mark.parametrize(("depth", "millions"), [(16, 274.0), (30, 1680.0)])
def test_published_sizes_have_the_papers_parameter_counts(depth: int, millions: float) -> None:
    with torch.device("meta"):
        model = STARTransformer(
            depth=depth,
            width=64 * depth,
            num_heads=depth,
            codebook_size=4096,
            code_width=32,
            pooled_width=1024,
            context_width=1024,
            num_levels=10,
            position=Rotary2D(),
        )
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


@torch.no_grad()
def test_a_batch_is_its_samples(build_transformer: Build, schedule: ScaleSchedule, condition: Condition) -> None:
    model, x = build_transformer(), random_input(schedule)
    together = model(x, condition, schedule)
    for row in range(3):
        alone = model(x[row : row + 1], condition.select(torch.tensor([row])).trim(), schedule)
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_permuting_the_batch_permutes_the_result(
    build_transformer: Build, schedule: ScaleSchedule, condition: Condition
) -> None:
    model, x, order = build_transformer(), random_input(schedule), torch.tensor([2, 0, 1])
    torch.testing.assert_close(
        model(x[order], condition.select(order), schedule), model(x, condition, schedule)[order], atol=1e-4, rtol=1e-4
    )


@torch.no_grad()
def test_each_sample_reads_its_own_text(
    build_transformer: Build, schedule: ScaleSchedule, condition: Condition
) -> None:
    model, x = build_transformer(), random_input(schedule)
    assert condition.context is not None
    other = Condition(
        condition.pooled, condition.context + torch.tensor([1.0, 0.0, 0.0])[:, None, None], condition.context_mask
    )
    change = (model(x, condition, schedule) - model(x, other, schedule)).abs().amax((1, 2))
    assert change[0] > 1e-2
    assert change[1] == change[2] == 0


@torch.no_grad()
def test_a_token_sees_no_finer_scale(build_transformer: Build, schedule: ScaleSchedule, condition: Condition) -> None:
    model, x = build_transformer(), random_input(schedule)
    changed = x.clone()
    changed[:, schedule.offsets[2] - 1 :] += 1
    before, after = model(x, condition, schedule), model(changed, condition, schedule)
    assert torch.equal(before[:, : schedule.offsets[2]], after[:, : schedule.offsets[2]])
    assert (before[:, schedule.slice(3)] - after[:, schedule.slice(3)]).abs().amin(-1).max() > 0


@torch.no_grad()
@pytest.mark.parametrize("position", ["rotary", "absolute"])
def test_kept_tokens_are_what_a_masked_pass_gives_them(
    build_transformer: Build, schedule: ScaleSchedule, condition: Condition, position: str
) -> None:
    """Dropping tokens of the last scale changes nothing for earlier ones; dropping none changes nothing at all."""
    where = Rotary2D() if position == "rotary" else AbsolutePosition(32, schedule=schedule)
    model, x = build_transformer(position=where), random_input(schedule)
    full = model(x, condition, schedule)
    torch.testing.assert_close(model(x, condition, schedule, torch.arange(schedule.total)), full, atol=1e-5, rtol=1e-5)
    kept = torch.cat([torch.arange(schedule.offsets[3]), schedule.offsets[3] + torch.tensor([1, 5, 6])])
    thinned = model(x, condition, schedule, kept)
    torch.testing.assert_close(thinned[:, : schedule.offsets[3]], full[:, : schedule.offsets[3]], atol=1e-5, rtol=1e-5)
    rows = kept.expand(3, -1).clone()
    torch.testing.assert_close(model(x, condition, schedule, rows), thinned, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="equally many"):
        model(x, condition, schedule, torch.stack([kept, kept, torch.arange(1, len(kept) + 1)]))


@dataclass(frozen=True)
class Hiding(Visibility):
    """All tokens ask, and only some may be looked at."""

    kept: tuple[int, ...] = ()

    def spans(self) -> Iterator[tuple[slice, slice | torch.Tensor]]:
        for queries, keys in super().spans():
            assert isinstance(keys, slice)
            yield queries, torch.tensor([i for i in self.kept if keys.start <= i < keys.stop])


@torch.no_grad()
@pytest.mark.parametrize("order", [None, 1])
@pytest.mark.parametrize("position", ["rotary", "absolute"])
@pytest.mark.parametrize("backend", ["prefix", "matmul"])
def test_kept_tokens_are_a_gather_of_a_pass_in_which_the_others_are_hidden(
    build_transformer: Build,
    schedule: ScaleSchedule,
    condition: Condition,
    monkeypatch: pytest.MonkeyPatch,
    position: str,
    order: int | None,
    backend: str,
) -> None:
    """So positions, levels and masks follow the kept tokens, row by row; it isn't a gather of the plain pass."""
    where = Rotary2D() if position == "rotary" else AbsolutePosition(32, schedule=schedule)
    model, x = build_transformer(position=where, mask=ScaleMask(order), backend=backend), random_input(schedule)
    kept = LocalWindow(((1, 2), (1, 2)))(schedule, 3)
    assert kept is not None
    assert len({tuple(row.tolist()) for row in kept}) > 1
    ours = model(x, condition, schedule, kept)
    plain = model(x, condition, schedule)
    for row in range(3):
        seen = ScaleMask(order).visibility(schedule)
        hiding = Hiding(seen.offsets, seen.first, tuple(kept[row].tolist()))
        with monkeypatch.context() as patch:
            patch.setattr(ScaleMask, "visibility", lambda *_, hiding=hiding: hiding)
            hidden = model(x, condition, schedule)[row, kept[row]]
        torch.testing.assert_close(ours[row], hidden, atol=1e-4, rtol=1e-4)
    assert (ours - plain.gather(1, kept[..., None].expand(-1, -1, 32))).abs().max() > 1e-2


@pytest.mark.parametrize("train_tokens", [LocalWindow(), RandomTail(), None], ids=["window", "tail", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_allocates_no_l_by_l_tensor(
    build_transformer: Build,
    condition: Condition,
    train_tokens: LocalWindow | RandomTail | None,
    dtype: torch.dtype,
) -> None:
    long = ScaleSchedule.square(1, 2, 4, 8, 16, 32)  # 1365 tokens, more than `auto` ever gives to `matmul`
    one = condition.select(torch.tensor([0]))
    kept = None if train_tokens is None else train_tokens(long, 1)
    length = long.total if kept is None else kept.shape[-1]

    def largest(backend: str) -> int:
        model = build_transformer(num_levels=6, backend=backend)
        with AllocationWatch() as watch, torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            model(random_input(long, 1), one, long, kept).square().mean().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        return watch.largest

    assert largest("prefix") <= long.total * 4 * 32  # the feed-forward's inner layer, at most
    assert largest("dense") == length**2 > long.total * 4 * 32


@pytest.mark.parametrize("kept", [[0, 2, 1], [0, 1, 1], [0, 1, 27], [-1, 0, 1]])
def test_kept_positions_ascend_within_the_sequence(
    build_transformer: Build, schedule: ScaleSchedule, condition: Condition, kept: list[int]
) -> None:
    with pytest.raises(ValueError, match="kept positions ascend"):
        build_transformer()(random_input(schedule), condition, schedule, torch.tensor(kept))


@torch.no_grad()
def test_a_scale_alone_is_the_slice_of_a_pass_in_which_scales_are_blind(
    build_transformer: Build, schedule: ScaleSchedule, condition: Condition
) -> None:
    model, x = build_transformer(mask=ScaleMask(0)), random_input(schedule)
    part = x[:, schedule.offsets[2] - 1 : schedule.offsets[3] - 1]
    torch.testing.assert_close(
        model(part, condition, schedule.only(2)),
        model(x, condition, schedule)[:, schedule.slice(2)],
        atol=1e-5,
        rtol=1e-5,
    )


@torch.no_grad()
def test_the_head_stays_in_fp32_under_autocast(
    build_transformer: Build, schedule: ScaleSchedule, condition: Condition
) -> None:
    model = build_transformer()
    with torch.autocast("cpu", torch.bfloat16):
        logits, hidden = model(random_input(schedule), condition, schedule, return_hidden=True)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(model.head(hidden.float()), logits)


@torch.no_grad()
def test_without_text_or_level_embedding_it_still_runs(build_transformer: Build, schedule: ScaleSchedule) -> None:
    model = build_transformer(context_width=None, level_embedding=False, adaptive_norm="own", pooled_width=32)
    assert model(random_input(schedule), Condition(torch.randn(3, 32)), schedule).shape == (3, schedule.total, 32)


def test_wrong_inputs_are_named(
    build_transformer: Build, schedule: ScaleSchedule, condition: Condition, tokenizer: MultiScaleTokenizer
) -> None:
    with pytest.raises(ValueError, match="needs 26 input tokens besides the start, got 3"):
        build_transformer()(torch.zeros(3, 3, 8), condition, schedule)
    with pytest.raises(ValueError, match="pooled_width 12"):
        build_transformer(adaptive_norm="own")
    with pytest.raises(ValueError, match="factor 2"):
        tokenizer.check((16, 16), schedule)


def test_stochastic_depth_grows_with_the_layer(build_transformer: Build) -> None:
    def rates(**changes: object) -> list[float]:
        return [block.drop_path.rate for block in build_transformer(**changes).blocks]  # type: ignore[union-attr]

    assert rates(depth=5, drop_path=0.2) == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
    assert rates(depth=1, drop_path=0.2) == [0.0]


def test_stochastic_depth_spares_the_text(build_transformer: Build, schedule: ScaleSchedule) -> None:
    block = build_transformer(depth=2, drop_path=1 - 1e-9).train().blocks[1]
    x, context = torch.randn(3, schedule.total, 32), torch.randn(3, 5, 10)
    torch.testing.assert_close(block(x, context=context), x + block.text(x, context, None, None, 0))
