"""CLIP models for scoring: open_clip's networks, weights from a file, preprocessing as each protocol wants it."""

from __future__ import annotations

import logging
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.metrics.assets import AssetFile
from star.metrics.base import as_uint8

log = logging.getLogger(__name__)

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
# shortest: Pillow, shorter side, then crop (CLIP); square: crop, then Pillow (CMMD); tensor: no Pillow (HPSv2)
PREPROCESSING = ("shortest", "square", "tensor")
_OPENAI_SETTINGS = {"input_resolution", "context_length", "vocab_size"}
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class ClipModel(nn.Module):
    """Pictures and texts to embeddings of length 1; weights are read when first needed.

    Args:
        architecture: open_clip's name (OpenAI's own weights need one that ends in `-quickgelu`), or its settings.
        file: the weights.
        preprocessing: one of `PREPROCESSING`.
        antialias: of the resizing without Pillow.
        precision: `fp32`; `fp16` and `bf16` are what some protocols run.

    Raises:
        ValueError: for an unknown word.

    """

    def __init__(
        self,
        architecture: str | Mapping[str, Any],
        file: AssetFile,
        *,
        preprocessing: str = "shortest",
        antialias: bool = True,
        precision: str = "fp32",
    ) -> None:
        super().__init__()
        if preprocessing not in PREPROCESSING or precision not in PRECISIONS:
            raise ValueError(
                f"preprocessing is one of {', '.join(PREPROCESSING)} and precision one of {', '.join(PRECISIONS)}"
            )
        self.architecture = architecture
        self.file = file
        self.preprocessing = preprocessing
        self.antialias = antialias
        self.precision = precision
        self._loaded: tuple[Any, ...] = ()

    def network(self, device: torch.device | str = "cpu") -> Any:
        """The network, on a device.

        Raises:
            MissingAssetError: when its weights aren't there.
            ValueError: when they don't fit the architecture.

        """
        if not self._loaded:
            network = build(self.architecture)
            load(network, read_state(self.file.path()), source=str(self.file.path()))
            self._loaded = (network.eval().requires_grad_(False),)
        return self._loaded[0].to(device)

    @property
    def side(self) -> int:
        """Of the pictures it takes, in pixels."""
        return int(_settings(self.architecture)["vision_cfg"]["image_size"])

    @property
    def width(self) -> int:
        """Of the embeddings."""
        return int(_settings(self.architecture)["embed_dim"])

    @torch.inference_mode()
    def embed_images(self, images: Tensor) -> Tensor:
        """Embeddings (B, D), float64, of pictures (B, 3, H, W) in [0, 1]."""
        if not len(images):
            return torch.zeros(0, self.width, dtype=torch.float64, device=images.device)
        network = self.network(images.device)
        inputs = preprocess(images, self.side, self.preprocessing, antialias=self.antialias)
        with self._autocast(images.device):
            return F.normalize(network.encode_image(inputs).double(), dim=1)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str], device: torch.device) -> Tensor:
        """Embeddings (B, D), float64, of texts; long ones are cut, the end token stays."""
        network = self.network(device)
        with self._autocast(device):
            return F.normalize(network.encode_text(tokenize(texts).to(device)).double(), dim=1)

    def _autocast(self, device: torch.device) -> torch.autocast:
        kind = PRECISIONS[self.precision]
        return torch.autocast(
            device.type, dtype=kind if kind != torch.float32 else torch.bfloat16, enabled=self.precision != "fp32"
        )

    def facts(self) -> dict[str, Any]:
        """For the card."""
        path = self.file.path()
        return {
            "clip": self.architecture if isinstance(self.architecture, str) else dict(self.architecture),
            "clip_precision": self.precision,
            "clip_preprocessing": self.preprocessing + ("" if self.antialias else " without antialiasing"),
            "clip_weights_file": path.name,
            "clip_weights_sha256": self.file.sha256(path),
            "clip_weights_verified": self.file.verified(path),
        }


def tokenize(texts: Sequence[str]) -> Tensor:
    """Tokens (B, 77) of texts, as CLIP's own tokenizer makes them with truncation."""
    import open_clip

    return open_clip.tokenize(list(texts))


def preprocess(images: Tensor, side: int, how: str = "shortest", *, antialias: bool = True) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] as a CLIP of `side` pixels takes them, (B, 3, side, side)."""
    import torchvision.transforms.v2.functional as T
    from torchvision.transforms import InterpolationMode

    if how == "tensor":
        resized = T.resize(images, [side], InterpolationMode.BICUBIC, antialias=antialias)
        return T.normalize(T.center_crop(resized, [side, side]), list(MEAN), list(STD))
    prepared = []
    for pixels in as_uint8(images).cpu():
        picture = T.to_pil_image(pixels)
        if how == "square":
            picture = T.center_crop(picture, [min(picture.size)] * 2)
        picture = T.center_crop(T.resize(picture, [side], InterpolationMode.BICUBIC), [side, side])
        prepared.append(T.pil_to_tensor(picture).float().div(255))
    return T.normalize(torch.stack(prepared), list(MEAN), list(STD)).to(images.device)


def _settings(architecture: str | Mapping[str, Any]) -> Mapping[str, Any]:
    import open_clip

    found = open_clip.get_model_config(architecture) if isinstance(architecture, str) else architecture
    if found is None:
        raise ValueError(f"open_clip knows no architecture {architecture!r}")
    return found


def build(architecture: str | Mapping[str, Any]) -> nn.Module:
    """open_clip's network with random weights."""
    import open_clip

    if isinstance(architecture, str):
        _settings(architecture)
        return open_clip.create_model(architecture, load_weights=False)
    return open_clip.CLIP(**architecture)


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a CLIP file: safetensors, a plain file of tensors, or OpenAI's TorchScript archive.

    Raises:
        ValueError: when it can't be read.

    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if zipfile.is_zipfile(path) and any(
            name.endswith("constants.pkl") for name in zipfile.ZipFile(path).namelist()
        ):
            # OpenAI ships a compiled network; its hash was checked before, and its code isn't run
            state = torch.jit.load(path, map_location="cpu").state_dict()
            return {name: value.float() for name, value in state.items() if name not in _OPENAI_SETTINGS}
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} can't be read as CLIP weights: {str(error).splitlines()[0]}") from error
    tensors = loaded.get("state_dict", loaded)
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def load(network: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load tensors into a CLIP.

    Raises:
        ValueError: when they don't fit.

    """
    expected = network.state_dict()
    missing = sorted(set(expected) - set(state) - {"attn_mask", "logit_bias"})
    wrong = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    if missing or wrong:
        names = ", ".join((missing + wrong)[:3])
        raise ValueError(
            f"{source} doesn't fit the CLIP architecture: {len(missing)} tensors missing, "
            f"{len(wrong)} reshaped ({names})"
        )
    network.load_state_dict({name: state.get(name, value) for name, value in expected.items()})
