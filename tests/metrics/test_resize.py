from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from star.metrics import resize

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "eval" / "fid_resize.npz")


@pytest.mark.parametrize("size", [48, 400])
@pytest.mark.parametrize("name", ["pytorch_fid", "torch_fidelity", "cleanfid"])
def test_network_inputs_are_those_of_the_pipelines(name: str, size: int) -> None:
    pixels = torch.from_numpy(GOLDEN[f"in{size}"])
    found = getattr(resize, name)(pixels)
    assert found.shape == (len(pixels), 3, 299, 299)
    np.testing.assert_allclose(found[:, :, ::13, ::13].numpy(), GOLDEN[f"{name}{size}"], rtol=0, atol=2e-5)


def test_empty_batch() -> None:
    assert resize.cleanfid(torch.zeros(0, 3, 8, 8, dtype=torch.uint8)).shape == (0, 3, 299, 299)
