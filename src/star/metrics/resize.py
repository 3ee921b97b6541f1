"""How each FID pipeline brings pictures to its network's size; they differ by more than the numbers they decide."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

SIDE = 299


def pytorch_fid(pixels: Tensor) -> Tensor:
    """From uint8 (B, 3, H, W) to (B, 3, 299, 299) in [-1, 1]: bilinear, no antialiasing (pytorch-fid)."""
    resized = F.interpolate(pixels.float().div(255), size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    return 2 * resized - 1


def torch_fidelity(pixels: Tensor) -> Tensor:
    """From uint8 (B, 3, H, W) to (B, 3, 299, 299) in [-1, 1): TensorFlow 1's bilinear, whose pixels are not centred."""
    values = pixels.float()
    height, width = values.shape[2:]
    y, x = (torch.arange(SIDE, device=values.device) * (side / SIDE) for side in (height, width))
    top, left = y.long(), x.long()
    bottom, right = (top + 1).clamp_max(height - 1), (left + 1).clamp_max(width - 1)
    dy, dx = (y - top)[:, None], x - left
    rows = [values[:, :, row] for row in (top, bottom)]
    upper, lower = (row[..., left] + (row[..., right] - row[..., left]) * dx for row in rows)
    return (upper + (lower - upper) * dy - 128) / 128


def cleanfid(pixels: Tensor) -> Tensor:
    """From uint8 (B, 3, H, W) to (B, 3, 299, 299) in [-1, 1): Pillow's bicubic in floating point (clean-fid)."""
    planes = pixels.cpu().numpy().astype(np.float32).reshape(-1, *pixels.shape[2:])
    resized = [np.asarray(Image.fromarray(plane).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for plane in planes]
    stacked = torch.from_numpy(np.stack(resized)) if resized else torch.zeros(0, SIDE, SIDE)
    return (stacked.clamp(0, 255).unflatten(0, (-1, 3)).to(pixels.device) - 128) / 128
