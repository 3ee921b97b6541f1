"""Object detectors for GenEval, pre-trained and optional: Mask2Former from Hugging Face's files, colours by CLIP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from star.metrics.clip import ClipModel
from star.metrics.geneval import COLORS, class_names
from star.metrics.geneval_rules import Detection

_SHORT_SIDE, _LONG_SIDE, _MULTIPLE = 800, 1333, 32
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MOST = 100
_REPOSITORY = "facebook/mask2former-swin-small-coco-instance"
_GREY = (0x99, 0x99, 0x99)
_TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")


@dataclass(frozen=True)
class Instance:
    """A detection with its mask.

    Attributes:
        detection: class, box, score.
        mask: (H, W) bool.

    """

    detection: Detection
    mask: Tensor


class Mask2FormerDetector:
    """Instances by Mask2Former Swin-S; where a prompt asks for colours, CLIP names them.

    Meta's weights, trained apart from those of the official detector: reported under a name of its own.

    Args:
        weights: a folder of facebook/mask2former-swin-small-coco-instance; None is missing.
        clip: names colours.
        device: where it runs.

    """

    name = "hf_mask2former"

    def __init__(self, *, weights: str | Path | None, clip: ClipModel, device: str = "cpu") -> None:
        self.weights = None if weights is None else Path(weights).expanduser()
        self.clip = clip
        self.device = device
        self._model: Any = None

    def iterate_missing(self) -> Iterator[str]:
        """The detector's folder and CLIP's file."""
        if self.weights is None or not (self.weights / "config.json").is_file():
            where = "" if self.weights is None else f" at {self.weights}"
            yield (
                f"GenEval's detector: no folder of {_REPOSITORY}{where}; get it from "
                f"https://huggingface.co/{_REPOSITORY} and set metric.items.geneval.detector.weights=FOLDER, or set "
                "metric.items.geneval.results=FILE of the official scorer, or only draw with "
                "metric.items.geneval.export=true"
            )
        yield from self.clip.file.iterate_missing()

    def facts(self) -> dict[str, Any]:
        """For the card."""
        return {"detector": self.name, "detector_weights": str(self.weights), **self.clip.facts()}

    @torch.inference_mode()
    def __call__(self, image: Image.Image, metadata: Mapping[str, Any]) -> list[Detection]:
        """Everything found in an RGB picture; colours for the classes whose colour the metadata asks for."""
        pixels, size = network_input(image)
        outputs = self._network()(pixel_values=pixels.to(self.device))
        logits = outputs.class_queries_logits[0].float().cpu(), outputs.masks_queries_logits[0].float().cpu()
        found = instances(
            *logits, padded=(pixels.shape[2], pixels.shape[3]), resized=size, original=(image.height, image.width)
        )
        colored = {clause["class"] for clause in metadata["include"] if "color" in clause}
        return [self._named(image, one) if one.detection.label in colored else one.detection for one in found]

    def _network(self) -> Any:
        if self._model is None:
            from transformers import Mask2FormerForUniversalSegmentation

            model = Mask2FormerForUniversalSegmentation.from_pretrained(str(self.weights), local_files_only=True)
            self._model = model.eval().to(self.device)
        return self._model

    def _named(self, image: Image.Image, one: Instance) -> Detection:
        return replace(one.detection, color=color_of(image, one, self.clip, torch.device(self.device)))


def network_input(image: Image.Image) -> tuple[Tensor, tuple[int, int]]:
    """A picture as the detector takes it, (1, 3, H, W), and its (height, width) before padding to multiples of 32."""
    scale = min(_SHORT_SIDE / min(image.size), _LONG_SIDE / max(image.size))
    height, width = (int(side * scale + 0.5) for side in (image.height, image.width))
    pixels = (
        torch.from_numpy(np.array(image.resize((width, height), Image.Resampling.BILINEAR)))
        .permute(2, 0, 1)
        .float()
        .div(255)
    )
    normal = (pixels - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_STD).view(3, 1, 1)
    return F.pad(normal, (0, -width % _MULTIPLE, 0, -height % _MULTIPLE))[None], (height, width)


def instances(
    class_logits: Tensor,
    mask_logits: Tensor,
    *,
    padded: tuple[int, int],
    resized: tuple[int, int],
    original: tuple[int, int],
) -> list[Instance]:
    """The best 100 (query, class) pairs as GenEval's detector reads them: masks at the picture's own size.

    Args:
        class_logits: (Q, classes + 1), the last one "nothing".
        mask_logits: (Q, h, w).
        padded: (height, width) of the network's input.
        resized: of the picture in it.
        original: of the picture itself.

    """
    scores = class_logits.softmax(-1)[:, :-1]
    best, places = scores.flatten().topk(min(_MOST, scores.numel()))
    names = class_names()
    found = []
    for score, place in zip(best.tolist(), places.tolist(), strict=True):
        query, label = divmod(place, scores.shape[1])
        logits = F.interpolate(mask_logits[query][None, None], padded, mode="bilinear", align_corners=False)
        logits = logits[:, :, : resized[0], : resized[1]]
        logits = F.interpolate(logits, original, mode="bilinear", align_corners=False)[0, 0]
        mask = logits > 0
        if not mask.any():
            continue
        # confidence of the class times that of the mask where it is
        confidence = score * float(logits[mask].sigmoid().mean())
        ys, xs = mask.nonzero(as_tuple=True)
        box = (float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1))
        found.append(Instance(Detection(names[label], box, confidence), mask))
    return found


def color_of(image: Image.Image, one: Instance, clip: ClipModel, device: torch.device) -> str:
    """The colour whose descriptions lie closest to the object on grey, cut out at its box."""
    background = Image.new("RGB", image.size, _GREY)
    cut = Image.composite(image, background, Image.fromarray(one.mask.numpy().astype(np.uint8) * 255))
    left, top, right, bottom = map(int, one.detection.box)
    crop = torch.from_numpy(np.array(cut.crop((left, top, right, bottom)))).permute(2, 0, 1).float().div(255)
    texts = color_embeddings(clip, one.detection.label, COLORS, device)
    return COLORS[int((clip.embed_images(crop[None].to(device)) @ texts.T).argmax())]


def color_embeddings(clip: ClipModel, name: str, colors: Sequence[str], device: torch.device) -> Tensor:
    """Of every colour the mean direction of its descriptions, (colours, D)."""
    rows = []
    for color in colors:
        texts = [template.format(color=color, name=name) for template in _TEMPLATES]
        rows.append(F.normalize(clip.embed_texts(texts, device).mean(0), dim=0))
    return torch.stack(rows)
