"""Every size of a released model, read off the shapes of its tensors."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

Shapes = Mapping[str, tuple[int, ...]]
Place = tuple[str, int]  # a name's pattern, and an axis

HEAD_WIDTH = 64  # of every published model
_ANY_BLOCK = r"(feat_extract_)?blocks\.\d+\."


@dataclass(frozen=True)
class TransformerSizes:
    """Arguments of a `STARTransformer`, or of a `Refiner` (which has no context and no adaptive norm).

    Attributes:
        depth, width, num_heads, codebook_size, code_width, pooled_width, context_width, num_levels, mlp_ratio, qk_norm,
            adaptive_norm: see `star.models.transformer.STARTransformer`.
        first_length: tokens of the first scale.
        positions: learned positions, `L`; None for a rotary model.

    """

    depth: int
    width: int
    num_heads: int
    codebook_size: int
    code_width: int
    pooled_width: int
    context_width: int | None
    num_levels: int
    mlp_ratio: float
    qk_norm: bool
    adaptive_norm: str
    first_length: int
    positions: int | None


@dataclass(frozen=True)
class TokenizerSizes:
    """Arguments of the tokenizer's parts.

    Attributes:
        channels, multipliers, num_res_blocks, code_width, patch_size, attention: see
            `star.models.tokenizer.autoencoder`.
        codebook_size: `V`.
        conv_size: side of the convolutions around the quantiser.
        num_phi: how many phi's.
        phi: what the release calls them, see `star.checkpoints.official_names.tokenizer_names`.
        counted_scales: scales that the release counted code uses for; None when it didn't.

    """

    channels: int
    multipliers: tuple[int, ...]
    num_res_blocks: int
    code_width: int
    patch_size: int
    attention: bool
    codebook_size: int
    conv_size: int
    num_phi: int
    phi: str
    counted_scales: int | None


def transformer_sizes(shapes: Shapes, *, source: str, num_heads: int | None = None) -> TransformerSizes:
    """Sizes of a generator, STAR's or class-conditional VAR's.

    Args:
        shapes: of all tensors, by released name.
        source: what messages call the file.
        num_heads: heads, for a model without QK-norm, whose shapes don't show them; by default 64 channels each.

    Raises:
        ValueError: when there is no generator, or its heads can't be told.

    """
    depth = _count(shapes, r"blocks\.(\d+)\.(attn|ffn)\..*")
    if not depth:
        raise ValueError(f"{source} holds no transformer (no tensor is called 'blocks.*'), only {_first(shapes)}")
    width = _width(shapes)
    qk_norm = any(name.endswith("scale_mul_1H11") for name in shapes)
    own, shared = (
        any(re.match(pattern, name) for name in shapes)
        for pattern in (r".*\.ada_lin\.1\.|head_nm", r".*ada_gss|shared_ada_lin")
    )
    adaptive_norm = "shared" if shared else "own" if own else "none"
    return TransformerSizes(
        depth=depth,
        width=width,
        num_heads=_heads(shapes, width, num_heads, source=source),
        codebook_size=_vote(shapes, (r"head(_logits)?\.(weight|bias)", 0)),
        code_width=_vote(shapes, (r"word_embed\.weight", 1)),
        pooled_width=width if adaptive_norm != "none" else _vote(shapes, (r"encoder_proj\.weight", 1)),
        context_width=_vote(shapes, (r"blocks\.\d+\.cross_attn\.mat_kv\.weight", 1))
        if any(".cross_attn." in name for name in shapes)
        else None,
        num_levels=_vote(shapes, (r"lvl_embed\.weight", 0)),
        mlp_ratio=_mlp_width(shapes, r"blocks\.\d+\.") / width,
        qk_norm=qk_norm,
        adaptive_norm=adaptive_norm,
        first_length=_vote(shapes, (r"pos_start", 1)),
        positions=_vote(shapes, (r"pos_1LC", 1)) if "pos_1LC" in shapes else None,
    )


def refiner_sizes(shapes: Shapes, *, source: str, num_heads: int | None = None) -> TransformerSizes:
    """Sizes of the causal-driven sampler's network; arguments and errors as for `transformer_sizes`."""
    depth = _count(shapes, r"feat_extract_blocks\.(\d+)\.(attn|ffn)\..*")
    if not depth:
        raise ValueError(
            f"{source} holds no causal-driven sampler (no tensor is called 'feat_extract_blocks.*'), only "
            f"{_first(shapes)}: open a checkpoint of STAR's sampler training"
        )
    width = _width(shapes)
    return TransformerSizes(
        depth=depth,
        width=width,
        num_heads=_heads(shapes, width, num_heads, source=source),
        codebook_size=_vote(shapes, (r"head_logits2\.(weight|bias)", 0)),
        code_width=_vote(shapes, (r"word_embed_head\.weight", 1)),
        pooled_width=_vote(shapes, (r"encoder_proj2\.weight", 1)),
        context_width=None,
        num_levels=_vote(shapes, (r"lvl_embed_2\.weight", 0)),
        mlp_ratio=_mlp_width(shapes, r"feat_extract_blocks\.\d+\.") / width,
        qk_norm=any(name.startswith("feat_extract_blocks.") and name.endswith("scale_mul_1H11") for name in shapes),
        adaptive_norm="none",
        first_length=1,
        positions=None,
    )


def tokenizer_sizes(shapes: Shapes, *, source: str) -> TokenizerSizes:
    """Sizes of a multi-scale VQ-VAE.

    Raises:
        ValueError: when there is none, or its widths aren't multiples of the first.

    """
    num_resolutions = _count(shapes, r"encoder\.down\.(\d+)\..*")
    if not num_resolutions:
        raise ValueError(f"{source} holds no tokenizer (no tensor is called 'encoder.down.*'), only {_first(shapes)}")
    channels = _vote(
        shapes, (r"encoder\.conv_in\.(weight|bias)", 0), (r"encoder\.down\.0\.block\.0\.(norm1\.weight|conv1\.bias)", 0)
    )
    widths = [
        _vote(shapes, (rf"encoder\.down\.{i}\.block\.\d+\.(conv1|norm2|conv2)\.\w+", 0)) for i in range(num_resolutions)
    ]
    if any(width % channels for width in widths):
        raise ValueError(
            f"{source}: the encoder's widths {widths} aren't multiples of the first convolution's {channels}"
        )
    num_phi, phi = _phis(shapes)
    return TokenizerSizes(
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        num_res_blocks=_count(shapes, r"encoder\.down\.0\.block\.(\d+)\..*"),
        code_width=_vote(shapes, (r"quantize\.embedding\.weight", 1), (r"(post_)?quant_conv\.(weight|bias)", 0)),
        patch_size=math.isqrt(
            _vote(shapes, (r"encoder\.conv_in\.weight", 1), (r"decoder\.conv_out\.(weight|bias)", 0)) // 3
        )
        or 1,
        attention=any(".attn" in name for name in shapes),
        codebook_size=_vote(shapes, (r"quantize\.embedding\.weight", 0)),
        conv_size=_vote(shapes, (r"(post_)?quant_conv\.weight", 3)),
        num_phi=num_phi,
        phi=phi,
        counted_scales=shapes["quantize.ema_vocab_hit_SV"][0] if "quantize.ema_vocab_hit_SV" in shapes else None,
    )


def _phis(shapes: Shapes) -> tuple[int, str]:
    """How many phi's, and how they are called: partly shared, one for all, or one for each scale."""
    if partly := _count(shapes, r"quantize\.quant_resi\.qresi_ls\.(\d+)\..*"):
        return partly, "qresi_ls."
    if each := _count(shapes, r"quantize\.quant_resi\.(\d+)\..*"):
        return each, ""
    return 1, "qresi"


def _width(shapes: Shapes) -> int:
    return _vote(
        shapes,
        (r"pos_start(_last)?", 2),
        (r"lvl_embed(_2)?\.weight", 1),
        (_ANY_BLOCK + r"attn\.[qv]_bias", 0),
        (_ANY_BLOCK + r"ffn\.fc2\.bias", 0),
    )


def _mlp_width(shapes: Shapes, block: str) -> int:
    return _vote(shapes, (block + r"ffn\.fc1\.(weight|bias)", 0), (block + r"ffn\.fc2\.weight", 1))


def _heads(shapes: Shapes, width: int, given: int | None, *, source: str) -> int:
    if not any(name.endswith("scale_mul_1H11") for name in shapes):
        if given is None and width % HEAD_WIDTH:
            raise ValueError(
                f"{source} has no QK-norm, so that no tensor shows its heads, and its width {width} isn't a multiple "
                f"of the usual {HEAD_WIDTH} channels: give num_heads"
            )
        return given or width // HEAD_WIDTH
    found = _vote(shapes, (r".*\.scale_mul_1H11", 1))
    if given not in (None, found):
        raise ValueError(f"{source} has {found} heads, not num_heads={given}: leave num_heads out")
    return found


def _vote(shapes: Shapes, *places: Place) -> int:
    """The size that most of these tensors have along these axes, so that one wrong tensor is reported and not believed.

    Where none of them exists, 1: each is then reported as missing, whatever its size.
    """
    votes: Counter[int] = Counter()
    for pattern, axis in places:
        votes.update(shape[axis] for name, shape in shapes.items() if re.fullmatch(pattern, name) and axis < len(shape))
    del votes[0]  # no model is empty
    return votes.most_common(1)[0][0] if votes else 1


def _count(shapes: Shapes, pattern: str) -> int:
    """One more than the highest number in names of this pattern; 0 without any."""
    return max((int(match[1]) + 1 for name in shapes if (match := re.fullmatch(pattern, name))), default=0)


def _first(shapes: Shapes) -> str:
    return ", ".join(map(repr, list(shapes)[:4])) + (", ..." if len(shapes) > 4 else "")
