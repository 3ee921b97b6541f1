"""EfficientNet-Lite0 from the file that a Python package ships."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


class EffNet(nn.Module):
    """Pooled features of pictures (B, 3, H, W) in [-1, 1].

    Args:
        network: timm's tf_efficientnet_lite0.
        head: take the head's 1280 features instead of the last block's 320.

    """

    def __init__(self, network: nn.Module, *, head: bool = False) -> None:
        super().__init__()
        self.network = network
        self.head = head

    def output(self, name: str) -> EffNet:
        """The same network with the output `block` or `head`."""
        return EffNet(self.network, head=name == "head")

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, 320) or (B, 1280)."""
        names = [
            "conv_stem",
            "bn1",
            "blocks",
            *(["conv_head", "bn2"] if self.head else []),
        ]  # bn1 and bn2 end in a ReLU6
        for name in names:
            x = self.network.get_submodule(name)(x)
        return x.mean((2, 3))


def load_effnet(state: Mapping[str, Tensor], *, source: str) -> EffNet:
    """The network with the package's tensors, which have other names than timm's but the same order and shapes.

    Raises:
        ValueError: when they don't fit.

    """
    import timm

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    expected = network.state_dict()
    shapes = [[tuple(value.shape) for value in tensors.values()] for tensors in (state, expected)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{source} is not an EfficientNet-Lite0 file: its tensors have other shapes")
    network.load_state_dict(dict(zip(expected, state.values(), strict=True)))
    return EffNet(network.eval().requires_grad_(False))
