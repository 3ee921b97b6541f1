from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from star.metrics.inception import Branches, Inception, _conv, load_inception


def test_tensors_have_the_published_names_and_shapes() -> None:
    with torch.device("meta"):
        state = Inception().state_dict()
    assert len(state) == 566
    assert state["fc.weight"].shape == (1008, 2048)
    shapes = {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_6a.branch3x3dbl_3.bn.running_var": (96,),
        "Mixed_6c.branch7x7dbl_4.conv.weight": (160, 160, 7, 1),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7b.branch3x3dbl_3a.conv.weight": (384, 384, 1, 3),
        "Mixed_7c.branch_pool.conv.weight": (192, 2048, 1, 1),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


def test_average_leaves_the_padding_out() -> None:
    block = Branches(1, (), pool="average")
    assert torch.allclose(block(torch.ones(1, 1, 4, 4)), torch.ones(1, 1, 4, 4))


def test_shrinking_block_concatenates_in_order() -> None:
    block = Branches(2, ((_conv("a", 3, 3, stride=2, padding=False),),), pool="shrink").eval()
    x = torch.randn(1, 2, 9, 9)
    found = block(x)
    assert found.shape == (1, 5, 4, 4)
    assert torch.equal(found[:, 3:], F.max_pool2d(x, 3, 2))


def test_file_without_counters_loads_and_another_file_is_refused() -> None:
    with torch.device("meta"):
        state = Inception().state_dict()
    state = {name: torch.zeros(value.shape) for name, value in state.items() if "num_batches" not in name}
    assert load_inception(state, source="file").fc.weight.shape == (1008, 2048)
    with pytest.raises(ValueError, match=r"file is not an Inception file of the FID: it lacks 'Conv2d_1a_3x3.bn.bias'"):
        load_inception({}, source="file")
    with pytest.raises(ValueError, match=r"another shape of 'fc.bias'"):
        load_inception(state | {"fc.bias": torch.zeros(1000)}, source="file")
