"""STAR's generator: a transformer that predicts each token map from all coarser ones (STAR sections 3.1-3.3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.nn.block import NORM_EPS, Block
from star.nn.cache import KVCache
from star.nn.init import calm_modulations, init_weights, shrink_residuals
from star.nn.masks import ScaleMask, Visibility
from star.nn.position import AbsolutePosition, Rotary2D, Rotation
from star.nn.recipe import Recipe, linear, run
from star.schedule import ScaleSchedule
from star.types import Condition


class Head(nn.Module):
    """From hidden states to logits over the codebook, in fp32 even under autocast.

    Args:
        width: channels `C`.
        codebook_size: `V`.
        norm: LayerNorm without affine parameters in front.
        adaptive: the norm is scaled and shifted by the condition (VAR).

    """

    def __init__(self, width: int, codebook_size: int, *, norm: bool = True, adaptive: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=NORM_EPS, elementwise_affine=False) if norm or adaptive else nn.Identity()
        self.modulation = nn.Linear(width, 2 * width) if adaptive else None
        self.logits = nn.Linear(width, codebook_size)

    def forward(self, hidden: Tensor, pooled: Tensor | None = None) -> Tensor:
        """Logits (B, L, V) of hidden states (B, L, C); `pooled` (B, C) is needed by an adaptive head alone."""
        with torch.autocast(hidden.device.type, enabled=False):
            normed = Recipe(self._normed, hidden.float())
            if self.modulation is not None:
                if pooled is None:
                    raise ValueError("an adaptive head needs the condition's pooled vector")
                weight, bias = self.modulation.weight.float(), self.modulation.bias.float()
                scale, shift = F.linear(F.silu(pooled.float()), weight, bias)[:, None].chunk(2, -1)
                normed = Recipe(self._modulated, hidden.float(), scale, shift)
            # half-precision weights are widened, so that a model opened in 16 bits still has an fp32 head
            return linear(normed, self.logits.weight.float(), self.logits.bias.float())

    def _normed(self, hidden: Tensor) -> Tensor:
        """Normalised hidden states (B, L, C)."""
        normed: Tensor = run(self.norm, hidden)
        return normed

    def _modulated(self, hidden: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Normalised hidden states (B, L, C), scaled and shifted by (B, 1, C)."""
        return self._normed(hidden) * (1 + scale) + shift


class STARTransformer(nn.Module):
    """Predicts all tokens of a scale at once from the text and all coarser scales.

    Args:
        depth: number of blocks.
        width: channels `C`; published sizes have 64 * depth.
        num_heads: heads per attention; published sizes have `depth` of 64 channels.
        codebook_size: `V`.
        code_width: `D`, channels of a code.
        pooled_width: channels of the pooled text; equal to `width` and not projected when `adaptive_norm` is used
            (VAR).
        context_width: channels of the text's hidden states; None for a model without cross-attention.
        num_levels: how many level embeddings; at least as many as the longest schedule has scales.
        first_length: tokens of the first scale (1 for every published schedule).
        position: where tokens lie (`star.nn.position`).
        mask: what a scale sees.
        level_embedding: add a learned vector per scale.
        mlp_ratio, drop_path, qk_norm, adaptive_norm, first_sample_text, backend: see `star.nn.block.Block`; stochastic
            depth grows linearly from 0 to `drop_path` over the blocks.
        logit_norm: LayerNorm before the logits.

    Raises:
        ValueError: for sizes that don't fit together.

    """

    def __init__(
        self,
        *,
        depth: int,
        width: int,
        num_heads: int,
        codebook_size: int,
        code_width: int,
        pooled_width: int,
        context_width: int | None,
        num_levels: int,
        position: Rotary2D | AbsolutePosition,
        mask: ScaleMask | None = None,
        first_length: int = 1,
        level_embedding: bool = True,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        qk_norm: bool = True,
        logit_norm: bool = True,
        adaptive_norm: str = "none",
        first_sample_text: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        adaptive = adaptive_norm != "none"
        if adaptive and pooled_width != width:
            raise ValueError(
                f"adaptive norms take the pooled vector as it is: pooled_width {pooled_width} must be the width {width}"
            )
        self.width, self.num_heads, self.depth = width, num_heads, depth
        self.first_sample_text, self.mask, self.position = first_sample_text, mask or ScaleMask(), position
        self.start = nn.Identity() if adaptive else nn.Linear(pooled_width, width)
        self.start_position = nn.Parameter(torch.empty(first_length, width))
        self.embed = nn.Linear(code_width, width)
        self.level = nn.Embedding(num_levels, width) if level_embedding else None
        self.shared_modulation = nn.Linear(width, 6 * width) if adaptive_norm == "shared" else None
        block = partial(
            Block,
            width,
            num_heads=num_heads,
            context_width=context_width,
            mlp_ratio=mlp_ratio,
            qk_norm=qk_norm,
            adaptive_norm=adaptive_norm,
            first_sample_text=first_sample_text,
            backend=backend,
        )
        self.blocks = nn.ModuleList(block(drop_path=drop_path * layer / max(depth - 1, 1)) for layer in range(depth))
        self.head = Head(width, codebook_size, norm=logit_norm, adaptive=adaptive)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The published initialisation."""
        init_weights(self, width=self.width)
        nn.init.trunc_normal_(self.start_position, std=math.sqrt(1 / self.width / 3))
        self.head.logits.weight.data.mul_(0.02)
        blocks = [block for block in self.blocks if isinstance(block, Block)]
        shrink_residuals(blocks, depth=self.depth)
        if self.head.modulation is not None:
            calm_modulations(blocks, self.head.modulation)

    def forward(
        self,
        x_in: Tensor,
        condition: Condition,
        schedule: ScaleSchedule,
        kept: Tensor | None = None,
        *,
        return_hidden: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Predict every token under teacher forcing.

        Args:
            x_in: (B, L - L_0, D), what `MultiScaleVQ.teacher_forcing` gives; (B, L, D) for a part of a schedule that
                doesn't begin with level 0.
            condition: the texts.
            schedule: the scales.
            kept: ascending positions (L') or (B, L') in the sequence of all L tokens that are trained; the rest is
                absent.
                Every row keeps equally many tokens of each scale.
            return_hidden: also give the last block's output (B, L, C), before the head's norm.

        Returns:
            Logits (B, L, V), or (B, L', V) with `kept`, and the hidden states if asked for.

        Raises:
            ValueError: when `x_in` doesn't fit the schedule, or `kept` differs in size between rows.

        """
        x = self._tokens(x_in, condition, schedule)
        rotation = self.position.rotation(schedule, self.width // self.num_heads, x.device)
        visibility = self.mask.visibility(schedule)
        if kept is not None:
            x, rotation, visibility = self._thin(x, rotation, schedule, kept)
        hidden = self.run_blocks(x, condition, rotation=rotation, visibility=visibility)
        logits = self.head(hidden, condition.pooled)
        return (logits, hidden) if return_hidden else logits

    def step(
        self,
        x_in: Tensor | None,
        condition: Condition,
        schedule: ScaleSchedule,
        k: int,
        cache: KVCache,
        run: Callable[..., Tensor] | None = None,
    ) -> Tensor:
        """Hidden states (B, L_k, C) of scale `k` alone, its past being in the cache.

        Args:
            x_in: (B, L_k, D), what `MultiScaleVQ.next_input` gives; None for the first scale.
            condition: the texts.
            schedule: all scales of the picture.
            k: the scale to predict.
            cache: keys and values of the scales before; gets this scale's.
            run: what runs the blocks instead of `run_blocks`, e.g. a compiled form of it.

        """
        part = schedule.only(k)
        x = self._tokens(x_in, condition, part)
        rotation = self.position.rotation(part, self.width // self.num_heads, x.device)
        return (run or self.run_blocks)(x, condition, rotation=rotation, cache=cache, scale=k)

    def _tokens(self, x_in: Tensor | None, condition: Condition, schedule: ScaleSchedule) -> Tensor:
        """Tokens (B, L, C) as the first block sees them: start token, embedded maps, levels, positions."""
        parts = []
        expected = schedule.total
        if schedule.levels[0] == 0:
            start = self.start(condition.pooled.to(self.start_position.dtype))[:, None] + self.start_position
            parts.append(start)
            expected -= schedule.lengths[0]
            if start.shape[1] != schedule.lengths[0]:
                raise ValueError(
                    f"the first scale has {schedule.lengths[0]} tokens, the model was built for {start.shape[1]}"
                )
        if expected:
            given = 0 if x_in is None else x_in.shape[1]
            if x_in is None or given != expected:
                raise ValueError(
                    f"the schedule '{schedule}' needs {expected} input tokens besides the start, got {given}"
                )
            parts.append(self.embed(x_in))
        x = torch.cat(parts, 1)
        if self.level is not None:
            x = x + self.level(schedule.level_ids().to(x.device))
        added = self.position.embedding(schedule)
        return x if added is None else x + added

    def _thin(
        self, x: Tensor, rotation: Rotation | None, schedule: ScaleSchedule, kept: Tensor
    ) -> tuple[Tensor, Rotation | None, Visibility]:
        """Leave only the kept tokens, with their own positions and masks."""
        rows = kept if kept.dim() == 2 else kept[None]
        # counted where `kept` comes from, usually a CPU, so that a GPU isn't waited for
        bounds = torch.tensor(schedule.offsets, device=kept.device).expand(rows.shape[0], -1).contiguous()
        counts = torch.searchsorted(rows.contiguous(), bounds).diff()  # (B or 1, K)
        if (rows.diff() <= 0).any() or (counts.sum(1) != rows.shape[1]).any():
            raise ValueError(f"kept positions ascend and lie in the sequence of {schedule.total} tokens, got {kept}")
        if (counts != counts[:1]).any():
            raise ValueError("every row must keep equally many tokens of each scale")
        kept, rows = kept.to(x.device), rows.to(x.device)
        x = x.gather(1, rows[..., None].expand(x.shape[0], -1, x.shape[2]))
        if rotation is not None:
            rotation = (rotation[0][kept], rotation[1][kept])
        return x, rotation, self.mask.visibility(schedule, tuple(counts[0].tolist()))

    def run_blocks(
        self,
        x: Tensor,
        condition: Condition,
        *,
        rotation: Rotation | None,
        visibility: Visibility | None = None,
        cache: KVCache | None = None,
        scale: int = 0,
        blocks: Iterable[Callable[..., Tensor]] | None = None,
    ) -> Tensor:
        """Tokens (B, L, C) through all blocks, or what stands for them; the rest is as for `Block.forward`."""
        bias = None
        if condition.context_mask is not None:
            bias = torch.zeros(condition.context_mask.shape, device=x.device).masked_fill_(
                ~condition.context_mask, float("-inf")
            )[:, None, None]
        modulation = condition.pooled if self.head.modulation is not None else None
        if self.shared_modulation is not None:
            modulation = self.shared_modulation(F.silu(condition.pooled))
        run: Iterable[Callable[..., Tensor]] = self.blocks if blocks is None else blocks
        for layer, block in enumerate(run):
            x = block(
                x,
                context=condition.context,
                context_bias=bias,
                modulation=modulation,
                rotation=rotation,
                visibility=visibility,
                cache=cache,
                layer=layer,
                scale=scale,
            )
        return x
