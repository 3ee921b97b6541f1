from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.distributed import checkpoint as dcp

from star.checkpoints.describe import describe
from star.checkpoints.pretrained import write_pretrained
from star.checkpoints.stages import (
    carry_over,
    check_resumable,
    grow_levels,
    grow_positions,
    schedule_of,
    table,
)
from star.models.transformer import STARTransformer
from star.nn.position import AbsolutePosition
from star.schedule import ScaleSchedule

SHORT, LONG = ScaleSchedule.square(1, 2, 4, 8), ScaleSchedule.square(1, 2, 4, 8, 16)
Build = Callable[..., STARTransformer]


def wrapped(model: STARTransformer) -> torch.nn.Module:
    return torch.nn.ModuleDict({"transformer": model})


@pytest.mark.parametrize("rule", ["position", "index"])
def test_the_same_schedule_is_a_copy(build_transformer: Build, rule: str) -> None:
    model = wrapped(build_transformer(position=AbsolutePosition(32, schedule=SHORT)))
    state, rows = carry_over(model, model.state_dict(), before=SHORT, rule=rule)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert {row.how for row in rows} == {"copied"}
    assert sum(row.numel for row in rows) == sum(value.numel() for value in state.values())


def test_equally_many_scales_keep_their_levels(build_transformer: Build) -> None:
    """256 and 512 both have ten scales."""
    wide = ScaleSchedule.square(1, 3, 6, 16)
    old, new = (wrapped(build_transformer(position=AbsolutePosition(32, schedule=s))) for s in (SHORT, wide))
    state, rows = carry_over(new, old.state_dict(), before=SHORT)
    assert torch.equal(state["transformer.level.weight"], old.state_dict()["transformer.level.weight"])
    assert state["transformer.position.table"].shape == (wide.total, 32)
    assert [row.name for row in rows if row.how == "grown"] == ["transformer.position.table"]


@pytest.mark.parametrize("rule", ["position", "index"])
@pytest.mark.parametrize("position", ["rotary", "absolute"])
def test_what_is_carried_over_loads(build_transformer: Build, rule: str, position: str) -> None:
    def build(schedule: ScaleSchedule) -> torch.nn.Module:
        kind = {} if position == "rotary" else {"position": AbsolutePosition(32, schedule=schedule)}
        return wrapped(build_transformer(num_levels=len(schedule), **kind))

    old, new = build(SHORT), build(LONG)
    state, rows = carry_over(new, old.state_dict(), before=SHORT, rule=rule)
    new.load_state_dict(state, strict=True)
    assert sum(row.numel for row in rows) == sum(value.numel() for value in state.values())
    grown = {row.name for row in rows if row.how == "grown"}
    assert ("transformer.position.table" in grown) == (position == "absolute")
    assert {row.how for row in rows if row.name.endswith("level.weight")} == (
        {"grown"} if rule == "position" else {"copied", "fresh"}
    )
    text = table(rows)
    assert "transformer.blocks" in text
    assert f"{sum(row.numel for row in rows if '.blocks.' in row.name):,}" in text


def test_levels_by_relative_position_lie_between_their_neighbours() -> None:
    old = torch.arange(10.0)[:, None].expand(-1, 3)
    new, rows = grow_levels("level.weight", old, torch.zeros(14, 3), rule="position")
    torch.testing.assert_close(new[:, 0], torch.linspace(0, 9, 14))
    assert rows[0].how == "grown"
    shorter, _ = grow_levels("level.weight", old, torch.zeros(4, 3), rule="position")
    torch.testing.assert_close(shorter[:, 0], torch.tensor([0.0, 3.0, 6.0, 9.0]))
    alone, _ = grow_levels("level.weight", old[:1] + 5, torch.zeros(3, 3), rule="position")
    torch.testing.assert_close(alone, torch.full((3, 3), 5.0))


def test_levels_by_index_keep_their_number() -> None:
    old, fresh = torch.randn(4, 3), torch.randn(6, 3)
    new, rows = grow_levels("level.weight", old, fresh, rule="index")
    assert torch.equal(new, torch.cat([old, fresh[4:]]))
    assert [(row.how, row.numel) for row in rows] == [("copied", 12), ("fresh", 6)]
    shorter, rows = grow_levels("level.weight", old, fresh[:2], rule="index")
    assert torch.equal(shorter, old[:2])
    assert [row.how for row in rows] == ["copied"]


def test_positions_by_index_copy_the_maps_there_are_and_enlarge_the_last() -> None:
    old = torch.randn(SHORT.total, 6)
    new = grow_positions(old, SHORT, LONG, rule="index")
    assert torch.equal(new[: SHORT.total], old)
    last = old[SHORT.slice(3)].T.reshape(6, 8, 8)
    grown = new[LONG.slice(4)].T.reshape(6, 16, 16)
    assert (
        torch.corrcoef(torch.stack([last.flatten(), torch.nn.functional.avg_pool2d(grown, 2).flatten()]))[0, 1] > 0.95
    )


@pytest.mark.parametrize("rule", ["position", "index"])
def test_a_constant_stays_constant_and_sides_are_not_mixed_up(rule: str) -> None:
    wide, wider = ScaleSchedule(((1, 1), (2, 4), (3, 6))), ScaleSchedule(((1, 1), (2, 4), (4, 8), (6, 12)))
    torch.testing.assert_close(
        grow_positions(torch.full((wide.total, 2), 3.0), wide, wider, rule=rule), torch.full((wider.total, 2), 3.0)
    )
    rows = torch.cat([torch.arange(h).repeat_interleave(w) - (h - 1) / 2 for h, w in wide.sizes])[:, None].float()
    last = grow_positions(rows, wide, wider, rule=rule)[wider.slice(3), 0].unflatten(0, (6, 12))
    torch.testing.assert_close(last, last[:, :1].expand(-1, 12))
    assert (last[:, 0].diff() > 0).all()


def test_what_has_no_rule_is_left_to_the_loaders_table(build_transformer: Build) -> None:
    old, new = (wrapped(build_transformer(width=width)) for width in (32, 64))
    state, _ = carry_over(new, old.state_dict(), before=SHORT)
    assert state["transformer.level.weight"].shape[1] == 32
    with pytest.raises(ValueError, match="position, index, got 'size'"):
        carry_over(new, old.state_dict(), before=SHORT, rule="size")
    absolute = wrapped(build_transformer(position=AbsolutePosition(32, schedule=SHORT)))
    with pytest.raises(ValueError, match="which schedule"):
        carry_over(absolute, absolute.state_dict(), before=None)


def test_a_checkpoint_says_what_its_schedule_was() -> None:
    module = {"schedule": {"_target_": "star.schedule.ScaleSchedule", "sizes": [1, [2, 3]]}}
    assert schedule_of({"config": {"module": module}}) == ScaleSchedule(((1, 1), (2, 3)))
    assert schedule_of({"state_dict": {}}) is None


def test_only_a_training_of_the_same_shapes_goes_on(build_transformer: Build, tmp_path: Path) -> None:
    short, long = (wrapped(build_transformer(num_levels=count)) for count in (4, 5))
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": short.state_dict(), "optimizer_states": [], "config": {}}, path)
    check_resumable(path, short)
    with pytest.raises(ValueError, match=r"(?s)resume_from=.*5x32 +4x32.*use init_from="):
        check_resumable(path, long)
    torch.save({"state_dict": short.state_dict(), "config": {}}, path)
    with pytest.raises(ValueError, match="weights alone"):
        check_resumable(path, short)


def test_the_same_is_said_of_a_sharded_one(build_transformer: Build, tmp_path: Path) -> None:
    short, long = (wrapped(build_transformer(num_levels=count)) for count in (4, 5))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        writer = dcp.FileSystemWriter(tmp_path / "last.ckpt")
        dcp.save({"state_dict": short.state_dict()}, storage_writer=writer, no_dist=True)
    torch.save({"config": {}}, tmp_path / "last.ckpt" / "meta.pt")
    check_resumable(tmp_path / "last.ckpt", short)
    with pytest.raises(ValueError, match=r"(?s)resume_from=.*5x32 +4x32.*use init_from="):
        check_resumable(tmp_path / "last.ckpt", long)


def test_a_converted_folder_cant_be_resumed(build_transformer: Build, schedule: ScaleSchedule, tmp_path: Path) -> None:
    model = build_transformer()
    config = {"module": {"transformer": describe(model), "schedule": describe(schedule)}}
    state = {f"transformer.{name}": value for name, value in model.state_dict().items()}
    write_pretrained(tmp_path / "star", {"state_dict": state, "config": config})
    with pytest.raises(ValueError, match=r"weights alone.*init_from="):
        check_resumable(tmp_path / "star", wrapped(model))
