"""LPIPS: how different two images look to a network (arXiv 1801.03924), as a training loss."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from star.models.tokenizer.frozen import Frozen, read_weights

MIN_SIDE = 48  # below, the deepest features of an image are a single position


@dataclass(frozen=True)
class Backbone:
    """A torchvision network that LPIPS has heads for.

    Attributes:
        file: its published weights.
        heads: the file of heads inside torchmetrics.
        taps: layers of its `features` that are compared.

    """

    file: str
    heads: str
    taps: tuple[int, ...]


BACKBONES = {
    "vgg16": Backbone("vgg16-397923af.pth", "vgg.pth", (3, 8, 15, 22, 29)),
    "alexnet": Backbone("alexnet-owt-7be5be79.pth", "alex.pth", (1, 4, 7, 9, 11)),
}


class LPIPS(Frozen):
    """LPIPS version 0.1, frozen and never saved.

    Args:
        weights: torchvision's ImageNet weights of the network, a file or the folder that holds it.
        network: `vgg16`, usual in training, or `alexnet`, usual in reports.

    Raises:
        FileNotFoundError: when the weights aren't there.
        ValueError: for another network, weights of another network, or images below 48 pixels.

    """

    def __init__(self, weights: str | Path | None, *, network: str = "vgg16") -> None:
        if network not in BACKBONES:
            raise ValueError(f"LPIPS has heads for {', '.join(BACKBONES)}, not for {network!r}")
        file = BACKBONES[network].file
        source = f"https://download.pytorch.org/models/{file}"
        state = read_weights(weights, name=file, source=source, key="tokenizer_training.objective.perceptual.weights")
        super().__init__(LPIPSNetwork(network, state))

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Distances (B,) of images (B, 3, H, W) in [-1, 1]; gradients reach both."""
        if min(images.shape[2:]) < MIN_SIDE:
            raise ValueError(
                f"LPIPS needs images of {MIN_SIDE} pixels or more, got {tuple(images.shape[2:])}: "
                "set tokenizer_training.objective.perceptual=null or raise the resolution"
            )
        return self.network(images, others)


class LPIPSNetwork(nn.Module):
    """The backbone and its heads.

    Args:
        network: a key of `BACKBONES`.
        state: the backbone's published state dict; its classifier is left out.

    """

    shift: Tensor
    scale: Tensor

    def __init__(self, network: str, state: dict[str, Tensor]) -> None:
        import torchvision

        super().__init__()
        self.taps = BACKBONES[network].taps
        with torch.device("meta"):  # the classifier, most of the network, is never made
            self.features = getattr(torchvision.models, network)(weights=None).features[: self.taps[-1] + 1]
        kept = {name: state[f"features.{name}"] for name in self.features.state_dict() if f"features.{name}" in state}
        try:
            self.features.load_state_dict(kept, assign=True)
        except RuntimeError as error:
            raise ValueError(f"these aren't torchvision's weights of {network}: {error}") from error
        for layer in self.features:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False  # what a tap returned must stay
        for number, head in enumerate(_heads(BACKBONES[network].heads, len(self.taps))):
            self.register_buffer(f"head{number}", head)
        self.register_buffer("shift", torch.tensor((-0.030, -0.088, -0.188)).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor((0.458, 0.448, 0.450)).view(1, 3, 1, 1))

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Distances (B,) of images (B, 3, H, W) in [-1, 1]."""
        x, y = ((each - self.shift) / self.scale for each in (images, others))
        total = x.new_zeros(len(images), dtype=torch.float32)
        for number, layer in enumerate(self.features):
            x, y = layer(x), layer(y)
            if number in self.taps:
                head: Tensor = getattr(self, f"head{self.taps.index(number)}")  # (1, C, 1, 1)
                difference = (_normalized(x.float()) - _normalized(y.float())).square()
                total = total + (head * difference).sum(1).mean((1, 2))
        return total


def _heads(file: str, count: int) -> list[Tensor]:
    """The published linear heads, each (1, C, 1, 1), which torchmetrics ships."""
    spec = find_spec("torchmetrics")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "functional" / "image" / "lpips_models" / file
    state = torch.load(path, map_location="cpu", weights_only=True)
    return [state[f"lin{number}.model.1.weight"] for number in range(count)]


def _normalized(features: Tensor) -> Tensor:
    """Unit vectors along the channels of (B, C, h, w)."""
    return features / (features.square().sum(1, keepdim=True) + 1e-8).sqrt()
