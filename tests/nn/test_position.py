from __future__ import annotations

import pytest
import torch

from star.nn.position import AbsolutePosition, Rotary2D, rotate
from star.schedule import ScaleSchedule


def test_every_normalised_scale_spans_the_same_extent() -> None:
    position = Rotary2D("normalized", extent=64.0)
    for count in (2, 5, 16):
        axis = position.axis(count)
        assert axis[0] == 0
        assert axis[-1] == pytest.approx(64.0, abs=1e-4)
    assert position.axis(1).tolist() == [0.0]
    assert Rotary2D("normalized_length").axis(4).tolist() == [16.0, 32.0, 48.0, 64.0]
    assert Rotary2D("axial").axis(3).tolist() == [0.0, 1.0, 2.0]


def test_rotation_keeps_lengths_and_makes_scores_relative() -> None:
    """A common shift of two tokens on an integer grid changes no score."""
    schedule = ScaleSchedule.square(4)
    rotation = Rotary2D("axial", theta=100.0).rotation(schedule, 16, torch.device("cpu"))
    assert rotation is not None
    q, k = torch.randn(1, 1, 1, 16).expand(-1, -1, 16, -1), torch.randn(1, 1, 1, 16).expand(-1, -1, 16, -1)
    turned_q, turned_k = rotate(q, rotation), rotate(k, rotation)
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm(dim=-1))
    scores = (turned_q @ turned_k.transpose(-1, -2))[0, 0]
    torch.testing.assert_close(scores[0, 5], scores[5, 10])  # (0, 0) -> (1, 1) and (1, 1) -> (2, 2)
    torch.testing.assert_close(scores[1, 2], scores[9, 10])
    assert (scores[0, 1] - scores[0, 4]).abs() > 1e-3  # a column is not a row


def test_x_turns_the_first_half_and_y_the_second() -> None:
    angles = Rotary2D().angles(ScaleSchedule(((2, 3),)), 8)
    assert (angles[:3, 2:] == 0).all()  # the first row: y = 0
    assert (angles[0, :2] == 0).all()
    assert (angles[1, :2] > 0).all()


def test_absolute_positions_follow_their_level() -> None:
    schedule = ScaleSchedule.square(1, 2, 3)
    position = AbsolutePosition(8, schedule=schedule)
    torch.testing.assert_close(position.embedding(schedule.only(2)), position.table[schedule.slice(2)])
    with pytest.raises(ValueError, match="level 2 of size"):
        position.embedding(ScaleSchedule.square(1, 2, 4))


def test_unknown_coordinates_are_named() -> None:
    with pytest.raises(ValueError, match="'polar'"):
        Rotary2D("polar")
    with pytest.raises(ValueError, match="6"):
        Rotary2D().angles(ScaleSchedule.square(1), 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("own", [False, True], ids=["one table", "a table for each row"])
def test_pairs_are_turned_by_their_angles(own: bool, dtype: torch.dtype) -> None:
    x = torch.randn(2, 5, 3, 8, dtype=dtype).transpose(1, 2)  # (B, heads, L, d), as heads are split
    angles = torch.randn(2, 5, 4) if own else torch.randn(5, 4)
    cos, sin = (part[:, None] if own else part for part in (angles.cos(), angles.sin()))
    even, odd = x.float()[..., ::2], x.float()[..., 1::2]
    turned = rotate(x, (angles.cos(), angles.sin()))
    torch.testing.assert_close(turned[..., ::2], even * cos - odd * sin)
    torch.testing.assert_close(turned[..., 1::2], even * sin + odd * cos)


@pytest.mark.parametrize(("heads", "width"), [(1, 8), (4, 64)])
@pytest.mark.parametrize("length", [1, 9, 85, 680])
def test_a_rotation_is_the_same_alone_and_in_a_batch(heads: int, width: int, length: int) -> None:
    """To the bit: pictures mustn't depend on their batch."""
    x = torch.randn(8, length, heads * width).unflatten(-1, (heads, width)).transpose(1, 2)
    angles = torch.rand(length, width // 2) * 6
    rotation = (angles.cos(), angles.sin())
    assert torch.equal(rotate(x, rotation)[5:6], rotate(x[5:6].clone(), rotation))


@pytest.mark.parametrize("first", ["validation", "training"])
def test_a_training_can_use_what_a_validation_asked_for_first(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, or compiled, where a rotation keeps its cosines for the backward pass."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    position, schedule = Rotary2D(), ScaleSchedule.square(1, 2)
    with torch.inference_mode(first == "validation"):
        position.rotation(schedule, 8, torch.device("cpu"))
    x = torch.randn(1, 1, 5, 8, requires_grad=True)
    rotation = position.rotation(schedule, 8, torch.device("cpu"))
    assert rotation is not None
    rotate(x, rotation).square().sum().backward()
    assert x.grad is not None
