"""Networks that turn pictures into features, each with its own resizing: FID, KID and CMMD compare such features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.metrics import resize
from star.metrics.assets import AssetFile, read_tensors
from star.metrics.base import as_uint8

INCEPTION_MODES: dict[str, Callable[[Tensor], Tensor]] = {
    "pytorch_fid": resize.pytorch_fid,
    "torch_fidelity": resize.torch_fidelity,
    "cleanfid": resize.cleanfid,
}
CLIP_MODELS = {"clip_vit_l_14_336": "ViT-L-14-336-quickgelu"}
EFFNET_OUTPUTS = {"effnet_lite0_b320@128": 320, "effnet_lite0_h1280@128": 1280}
CHOICES = (*INCEPTION_MODES, *EFFNET_OUTPUTS, *CLIP_MODELS)
OFFLINE = "effnet_lite0_b320@128"


class FeatureNetwork(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1] to features (B, width) in float64; weights are read when first needed.

    Args:
        name: of network and resizing together; two sets of features compare only under one name.
        width: of the features.
        file: the weights.

    """

    def __init__(self, name: str, width: int, file: AssetFile) -> None:
        super().__init__()
        self.name = name
        self.width = width
        self.file = file
        self.protocol: str | None = None
        # in a tuple, so that the network is no part of any state_dict
        self._loaded: tuple[nn.Module, ...] = ()

    def network(self, device: torch.device | str = "cpu") -> nn.Module:
        """The network itself, on a device.

        Raises:
            MissingAssetError: when its weights aren't there.

        """
        if not self._loaded:
            self._loaded = (self.load(self.file.path()).eval().requires_grad_(False),)
        return self._loaded[0].to(device)

    def load(self, path: Path) -> nn.Module:
        """Build the network from a weight file."""
        raise NotImplementedError

    def prepare(self, images: Tensor) -> Tensor:
        """The network's input."""
        raise NotImplementedError

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """Features (B, width), float64, of pictures (B, 3, H, W) in [0, 1]."""
        if not len(images):
            return torch.zeros(0, self.width, dtype=torch.float64, device=images.device)
        return self.network(images.device)(self.prepare(images)).double()

    def iterate_missing(self) -> Iterator[str]:
        """What is said about weights that aren't there."""
        return self.file.iterate_missing()

    def deviations(self) -> list[str]:
        """In what these aren't the features that the protocol asks for, with the weights that were published."""
        found = []
        if self.protocol is not None and self.name != self.protocol:
            found.append(f"{self.name} features instead of {self.protocol}")
        if not self.file.verified(self.file.path()):
            found.append(f"{self.file.path().name} is not the published file {self.file.facts.files[0]}")
        return found

    def facts(self) -> dict[str, Any]:
        """For the card: name, width, and the weights' hash."""
        path = self.file.path()
        return {
            "features": self.name,
            "width": self.width,
            "weights_file": path.name,
            "weights_sha256": self.file.sha256(path),
            "weights_verified": self.file.verified(path),
        }


class InceptionFeatures(FeatureNetwork):
    """Pool3 features (2048) of the published Inception file.

    Args:
        mode: whose resizing: `pytorch_fid`, `torch_fidelity` or `cleanfid`.
        file: the weights; one file serves all three.

    """

    def __init__(self, mode: str, file: AssetFile) -> None:
        super().__init__(mode, 2048, file)
        self.mode = mode

    def load(self, path: Path) -> nn.Module:
        """Read the file without running anything in it."""
        from star.metrics.inception import load_inception

        # its convolutions are a third faster with channels last
        return load_inception(read_tensors(path), source=str(path)).to(memory_format=torch.channels_last)

    def prepare(self, images: Tensor) -> Tensor:
        """(B, 3, 299, 299)."""
        return INCEPTION_MODES[self.mode](as_uint8(images)).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Class logits (B, 1008), float64, without the bias."""
        if not len(images):
            return torch.zeros(0, 1008, dtype=torch.float64, device=images.device)
        network: Any = self.network(images.device)
        return network.logits(network(self.prepare(images))).double()


class EffNetFeatures(FeatureNetwork):
    """EfficientNet-Lite0 as a Python package ships it: works offline, compares with nothing but itself.

    Args:
        output: `effnet_lite0_b320@128` (the last block, monotone in every degradation tried) or
            `effnet_lite0_h1280@128` (the head).
        file: the weights.

    """

    def __init__(self, output: str, file: AssetFile) -> None:
        super().__init__(output, EFFNET_OUTPUTS[output], file)
        self.side = int(output.rpartition("@")[2])

    def load(self, path: Path) -> nn.Module:
        """Read the file without running anything in it."""
        from star.metrics.effnet import load_effnet

        network = load_effnet(read_tensors(path), source=str(path))
        return network.output("block" if self.width == 320 else "head").to(memory_format=torch.channels_last)

    def prepare(self, images: Tensor) -> Tensor:
        """(B, 3, side, side) in [-1, 1], bicubic, antialiased where pictures are larger."""
        scaled = images.mul(255).round_().clamp_(0, 255).div_(127.5).sub_(1)  # what an 8-bit file of them holds
        size = (self.side, self.side)
        if tuple(scaled.shape[2:]) != size:
            shrinks = max(scaled.shape[2:]) > self.side
            scaled = F.interpolate(scaled, size=size, mode="bicubic", align_corners=False, antialias=shrinks)
        return scaled.contiguous(memory_format=torch.channels_last)


class ClipFeatures(FeatureNetwork):
    """A CLIP's projected picture embeddings: cropped to a square first, then resized (CMMD).

    Args:
        name: of the asset, `clip_vit_l_14_336`.
        file: the weights.
        architecture: open_clip's name or settings.

    """

    def __init__(self, name: str, file: AssetFile, architecture: str | Mapping[str, Any] | None = None) -> None:
        from star.metrics.clip import ClipModel

        model = ClipModel(architecture or CLIP_MODELS[name], file, preprocessing="square")
        super().__init__(name, model.width, file)
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings (B, width), float64, of pictures (B, 3, H, W) in [0, 1]."""
        return self.model.embed_images(images)


def choose(
    protocol: str,
    *,
    choice: str | None = None,
    weights: str | Path | None = None,
    verify_hash: bool = True,
    needed_by: str = "this metric",
    hint: str | None = None,
) -> FeatureNetwork:
    """The features that a protocol asks for, or those that were chosen instead.

    Args:
        protocol: one of `CHOICES`.
        choice: another one; None takes the protocol's.
        weights: the weight file or its folder; None looks where it usually lies.
        verify_hash: refuse another file than the published one.
        needed_by: who asks, for messages.
        hint: what is said besides when the weights aren't there; None names the features that work offline.

    Raises:
        ValueError: for an unknown name.

    """
    name = choice or protocol
    if name not in CHOICES:
        raise ValueError(f"metric.features is one of {', '.join(CHOICES)}, got {name!r}")
    kinds = {**dict.fromkeys(INCEPTION_MODES, "inception_fid"), **dict.fromkeys(EFFNET_OUTPUTS, "efficientnet_lite0")}
    asset = kinds.get(name, name)
    if hint is None:
        substitute = name not in EFFNET_OUTPUTS
        hint = f"A substitute that a Python package ships: metric.features={OFFLINE}" if substitute else ""
    file = AssetFile(asset, weights, verify_hash, needed_by=f"{needed_by} ({name} features)", hint=hint)
    if name in CLIP_MODELS:
        network: FeatureNetwork = ClipFeatures(name, file)
    else:
        network = InceptionFeatures(name, file) if name in INCEPTION_MODES else EffNetFeatures(name, file)
    network.protocol = protocol
    return network
