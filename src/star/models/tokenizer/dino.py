"""A vision transformer that reads DINO's published weights (arXiv 2104.14294): features for a discriminator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_WIDTH = 64  # of every published DINO transformer
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Attention(nn.Module):
    """Self-attention under the published names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens (B, L, C)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, HEAD_WIDTH)).permute(2, 0, 3, 1, 4)  # (B, heads, L, 64)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers under the published names."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Change every token of (B, L, C) by itself."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """One layer."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """From tokens (B, L, C) to tokens (B, L, C)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nn.Module):
    """Squares of pixels to tokens, under the published names."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        """From images (B, 3, H, W) to a map (B, C, H / patch, W / patch)."""
        return self.proj(images)


class DINOTransformer(nn.Module):
    """DINO's ViT, whose size is read off its weights.

    Args:
        state: the published state dict; a classification head in it is left out.

    Raises:
        ValueError: for weights of something else.

    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        weights = {name: value for name, value in state.items() if not name.startswith("head.")}
        try:
            width, _, self.patch, _ = weights["patch_embed.proj.weight"].shape
            hidden = weights["blocks.0.mlp.fc1.weight"].shape[0]
        except KeyError as error:
            raise ValueError(f"these aren't the weights of a DINO vision transformer: {error} is missing") from error
        depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
        self.width = width
        with torch.device("meta"):  # the weights come with the state
            self.cls_token = nn.Parameter(torch.empty(1, 1, width))
            self.pos_embed = nn.Parameter(torch.empty(weights["pos_embed"].shape))
            self.patch_embed = PatchEmbedding(width, self.patch)
            self.blocks = nn.ModuleList(Block(width, hidden) for _ in range(depth))
            self.norm = nn.LayerNorm(width, eps=1e-6)
        try:
            self.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            raise ValueError(f"these aren't the weights of a DINO vision transformer: {error}") from error
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Features (B, C, H / patch, W / patch) after the given layers (-1: before the first) of images in [-1, 1]."""
        x = self.patch_embed(((images + 1) / 2 - self.mean) / self.deviation)
        size = (x.shape[2], x.shape[3])
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1) + self._positions(size)
        found = {-1: x}
        for number, block in enumerate(self.blocks[: max(layers) + 1]):
            x = block(x)
            found[number] = x
        # the class token tells every position about the whole picture
        return [(found[n][:, 1:] + found[n][:, :1]).transpose(1, 2).unflatten(2, size) for n in layers]

    def _positions(self, size: tuple[int, int]) -> Tensor:
        """Position embeddings (1, 1 + h * w, C), interpolated to maps of another size than they were trained for."""
        side = round((self.pos_embed.shape[1] - 1) ** 0.5)
        if size == (side, side):
            return self.pos_embed
        grid = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        grid = F.interpolate(grid, size, mode="bicubic").flatten(2).transpose(1, 2)
        return torch.cat([self.pos_embed[:, :1], grid], 1)
