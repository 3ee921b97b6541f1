from __future__ import annotations

import pytest
import torch

from star.metrics.effnet import load_effnet

timm = pytest.importorskip("timm")


@pytest.mark.parametrize(("output", "width"), [("block", 320), ("head", 1280)])
def test_outputs_are_those_of_the_network(output: str, width: int) -> None:
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    # other names, the same order, as the package has them
    state = {f"tensor_{i}": value for i, value in enumerate(network.state_dict().values())}
    ours = load_effnet(state, source="file").output(output)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found = ours(x)
        expected = (
            network.forward_features(x) if output == "head" else network.blocks(network.bn1(network.conv_stem(x)))
        )
    assert found.shape == (2, width)
    assert torch.allclose(found, expected.mean((2, 3)), atol=1e-5)


def test_another_file_is_refused() -> None:
    with pytest.raises(ValueError, match="file is not an EfficientNet-Lite0 file"):
        load_effnet({"a": torch.zeros(1)}, source="file")
