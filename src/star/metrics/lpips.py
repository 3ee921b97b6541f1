"""Learned perceptual distance (Zhang et al., 2018): torchmetrics' network, the backbone from a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from star.metrics.assets import AssetFile, read_tensors
from star.metrics.base import bootstrap, check, concatenated

NETWORKS = ("alex", "vgg")
_LEAST_SIDE = {"alex": 32, "vgg": 16}


class PerceptualDistance(Metric):
    """Mean LPIPS between pictures and the ones they were made from.

    Args:
        network: `alex` (what papers report) or `vgg`.
        weights: torchvision's file of that network or its folder; None looks where it usually lies.
        verify_hash: refuse another file than the published one.

    Raises:
        ValueError: for another network.

    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False
    distances: list[Tensor]

    def __init__(
        self, *, network: str = "alex", weights: str | Path | None = None, verify_hash: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if network not in NETWORKS:
            raise ValueError(f"LPIPS is computed with {' or '.join(NETWORKS)}, got {network!r}")
        self.name = network
        self.file = AssetFile(f"lpips_{network}", weights, verify_hash, needed_by=f"LPIPS ({network})")
        self._loaded: tuple[nn.Module, ...] = ()
        self.add_state("distances", default=[], dist_reduce_fx="cat")

    def network(self, device: torch.device | str = "cpu") -> nn.Module:
        """The network on a device, read when first needed."""
        if not self._loaded:
            path = self.file.path()
            self._loaded = (build_lpips(self.name, list(read_tensors(path).items()), source=str(path)),)
        return self._loaded[0].to(device)

    @torch.inference_mode()
    def update(self, images: Tensor, reference: Tensor) -> None:
        """Compare pictures (B, 3, H, W) in [0, 1] with others of the same shape; B may be 0."""
        check(images)
        if not len(images):
            self.distances.append(torch.zeros(0, dtype=torch.float64, device=self.device))
            return
        if min(images.shape[2:]) < _LEAST_SIDE[self.name]:
            raise ValueError(
                f"LPIPS ({self.name}) needs {_LEAST_SIDE[self.name]} pixels a side, got {tuple(images.shape[2:])}"
            )
        distance = self.network(images.device)(images * 2 - 1, reference * 2 - 1)
        self.distances.append(distance.flatten().double().to(self.device))

    def compute(self) -> dict[str, Any]:
        """`value`, `interval` and `num_images`."""
        distances = concatenated(self.distances)
        return {"value": float(distances.mean()), "interval": bootstrap(distances), "num_images": len(distances)}

    def iterate_missing(self) -> Iterator[str]:
        """The backbone, if it isn't there."""
        return self.file.iterate_missing()

    def deviations(self) -> list[str]:
        """Whether another backbone than the published one was used."""
        path = self.file.path()
        return [] if self.file.verified(path) else [f"{path.name} is not the published file {self.file.facts.files[0]}"]

    def facts(self) -> dict[str, Any]:
        """For the card."""
        path = self.file.path()
        return {"lpips_network": self.name, "lpips_file": path.name, "lpips_verified": self.file.verified(path)}


def build_lpips(name: str, backbone: list[tuple[str, Tensor]], *, source: str) -> nn.Module:
    """The distance (images in [-1, 1]) with a backbone's convolutions; torchmetrics ships the linear heads.

    Raises:
        ValueError: when the backbone has other shapes.

    """
    from torchmetrics.functional.image.lpips import _LPIPS

    # pnet_rand: torchvision isn't asked to download the backbone
    network: Any = _LPIPS(
        pretrained=True,
        net=name,  # type: ignore[arg-type]
        pnet_rand=True,
        eval_mode=True,
    )
    expected = network.net.state_dict()
    # the backbone's names differ from ours, their order doesn't; its classifier isn't used
    found = [value for key, value in backbone if key.startswith(("features.", "slice"))]
    shapes = [tuple(value.shape) for value in found], [tuple(value.shape) for value in expected.values()]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{source} is not torchvision's {name} network: its convolutions have other shapes")
    network.net.load_state_dict(dict(zip(expected, found, strict=True)))
    return network.eval().requires_grad_(False)
