from __future__ import annotations

from typing import Any

import pytest
import torch

from star.checkpoints.var_to_star import FATES, star_from_var
from star.nn.position import AbsolutePosition
from star.schedule import ScaleSchedule
from star.types import Condition


def convert(toys: Any, adaptive_norm: str = "own", **changes: Any) -> Any:
    var = toys.var(adaptive_norm)
    options = {"schedule": toys.schedule, "pooled_width": 12, "context_width": 20} | changes
    return var, *star_from_var(var, **options)


@pytest.mark.parametrize("adaptive_norm", ["own", "shared"])
def test_every_tensor_of_both_has_one_fate(toys: Any, adaptive_norm: str) -> None:
    var, star, report = convert(toys, adaptive_norm)
    old, new = var.state_dict(), star.state_dict()
    names = [one.name for one in report.fates]
    assert len(names) == len(set(names))
    assert set(names) == set(old) | set(new)
    assert set().union(*map(report.names, FATES)) == set(names)
    for name in report.names("copied"):
        assert torch.equal(old[name], new[name]), name
    for name in report.names("zeroed"):
        assert not new[name].any()
    assert all(".cross_attention.out." in name for name in report.names("zeroed"))
    assert report.names("dropped") == {n for n in old if "modulation" in n or n == "position.table"}
    fresh = {name for name in report.names("fresh") if not name.startswith("start.")}
    assert all(".cross_attention." in name for name in fresh)


@torch.no_grad()
def test_the_text_branch_starts_silent_and_can_learn(toys: Any) -> None:
    _, star, _ = convert(toys)
    pooled, x = torch.randn(2, 12), torch.randn(2, toys.schedule.total - 1, 8)
    mask = torch.ones(2, 5, dtype=torch.bool)
    said = [star(x, Condition(pooled, torch.randn(2, 5, 20), mask), toys.schedule) for _ in range(2)]
    assert torch.equal(*said)
    with torch.enable_grad():
        star(x, Condition(pooled, torch.randn(2, 5, 20), mask), toys.schedule).square().sum().backward()
    assert all(block.cross_attention.out.weight.grad.any() for block in star.blocks)


def test_learned_positions_are_copied_as_far_as_the_schedules_agree(toys: Any) -> None:
    longer = ScaleSchedule.square(1, 2, 4, 5)
    position = AbsolutePosition(32, schedule=longer)
    before = position.table.detach().clone()
    var, star, report = convert(toys, schedule=longer, position=position)
    assert report.names("partly copied") == {"level.weight", "position.table"}
    assert torch.equal(star.position.table[:5], var.position.table[:5])
    assert torch.equal(star.position.table[5:], before[5:])
    assert torch.equal(star.level.weight[:3], var.level.weight)
    same = convert(toys, position=AbsolutePosition(32, schedule=toys.schedule))[2]
    assert "position.table" in same.names("copied")


def test_what_is_fresh_depends_on_the_seed_alone(toys: Any) -> None:
    var = toys.var()
    options = {"schedule": toys.schedule, "pooled_width": 12, "context_width": 20}
    one, _ = star_from_var(var, **options, seed=1)
    torch.randn(3)
    again, _ = star_from_var(var, **options, seed=1)
    other, _ = star_from_var(var, **options, seed=2)
    assert torch.equal(one.start.weight, again.start.weight)
    assert not torch.equal(one.start.weight, other.start.weight)


def test_the_report_is_a_table_that_counts_blocks(toys: Any) -> None:
    lines = str(convert(toys)[2]).splitlines()
    assert lines[0].startswith("from VAR to STAR: ")
    assert any(
        line.split()[:3] == ["copied", "blocks.*.attention.qkv.weight", "96x32"] and "(2 times)" in line
        for line in lines
    )
    assert any(line.split()[:2] == ["dropped", "head.modulation.weight"] for line in lines)


def test_a_generator_that_reads_texts_already_is_refused(toys: Any) -> None:
    with pytest.raises(ValueError, match="isn't class-conditional VAR"):
        star_from_var(toys.star(), schedule=toys.schedule, pooled_width=12, context_width=20)
