"""How much memory a training step keeps for its backward pass, from the sizes of the model.

The formulas name what autograd keeps in `star.nn.block` and `star.models.transformer`; a test compares them with what
it really keeps. Under mixed precision the residual stream, norms and logits are fp32, the rest has 16 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from star.models.tokenizer.autoencoder import Encoder
from star.models.tokenizer.patches import PatchEncoder
from star.models.tokenizer.pyramid import PyramidEncoder
from star.models.transformer import STARTransformer
from star.nn.attention import CrossAttention
from star.nn.backends import choose
from star.nn.block import Block

FLOAT = 4


@dataclass(frozen=True)
class Step:
    """What decides how much is kept.

    Attributes:
        tokens: trained tokens of a picture, `L`.
        text_tokens: of its text, `T`.
        half: mixed precision.
        device: type of the device, which decides how attention is computed.
        recompute: every how many blocks one is computed again instead of kept; 0 for none, 1 for all.

    """

    tokens: int
    text_tokens: int
    half: bool
    device: str = "cuda"
    recompute: int = 0

    @property
    def narrow(self) -> int:
        """Bytes of a number that autocast narrows."""
        return 2 if self.half else FLOAT


def kept_bytes(model: STARTransformer, step: Step) -> int:
    """Bytes that one picture keeps from the forward to the backward pass."""
    blocks = [block for block in model.blocks if isinstance(block, Block)]
    recomputed = [bool(step.recompute) and number % step.recompute == 0 for number in range(1, len(blocks) + 1)]
    stream = step.tokens * model.width * FLOAT
    total = sum(stream if again else block_bytes(block, step) for block, again in zip(blocks, recomputed, strict=True))
    vocabulary = model.head.logits.out_features
    # what the head's norm takes, and the logarithms of the probabilities
    return total + stream + step.tokens * vocabulary * FLOAT


def passing_bytes(model: STARTransformer, step: Step) -> int:
    """Bytes besides, at the worst moment of the backward pass: gradients of logits or of a block, perhaps run again."""
    logits = 2 * step.tokens * model.head.logits.out_features * FLOAT
    block = model.blocks[-1]
    assert isinstance(block, Block)
    inner = block.feed_forward.inner.out_features
    gradients = step.tokens * (3 * model.width * FLOAT + 2 * inner * step.narrow)
    again = block_bytes(block, step) - step.tokens * model.width * FLOAT if step.recompute else 0
    return max(logits, gradients + again)


def block_bytes(block: Block, step: Step) -> int:
    """Bytes that one block keeps of one picture."""
    width, heads = block.attention.out.in_features, block.attention.num_heads
    total = _self_attention(block, step) + _feed_forward(block, step)
    if isinstance(block.cross_attention, CrossAttention):
        total += _cross_attention(block.cross_attention, width, heads, step)
    if block.modulation is not None:
        # what attention and feed-forward give is gated
        total += 2 * step.tokens * width * step.narrow
    return total


def _self_attention(block: Block, step: Step) -> int:
    """The stream, which its norm is made from again, projections, which queries and keys are, and the mixture."""
    width, heads = block.attention.out.in_features, block.attention.num_heads
    total = step.tokens * width * (FLOAT + 4 * step.narrow)
    backend = _backend(block.attention.backend, width // heads, step.tokens, step)
    if backend == "matmul" and step.device == "cpu":
        return total  # made again from the projections
    if backend == "matmul":
        # queries, keys and values, each on its own, and the softmax
        return total + step.tokens * width * 3 * step.narrow + heads * step.tokens**2 * _softmax(step)
    total += step.tokens * heads * FLOAT
    # elsewhere queries, keys, and the mixture in another layout
    return total if _on_cpu(backend, step) else total + step.tokens * width * 3 * step.narrow


def _cross_attention(cross: CrossAttention, width: int, heads: int, step: Step) -> int:
    """As self-attention; keys and values are kept as well as the storage that they were split from."""
    total = step.tokens * width * (FLOAT + 2 * step.narrow) + step.text_tokens * width * 3 * step.narrow
    backend = _backend(cross.backend, width // heads, step.text_tokens, step)
    if not _on_cpu(backend, step):
        total += step.tokens * width * step.narrow
    if backend == "matmul" and step.device != "cpu":
        total += step.text_tokens * width * 2 * step.narrow + heads * step.tokens * step.text_tokens * _softmax(step)
    elif backend != "matmul":
        total += step.tokens * heads * FLOAT
    if cross.norm.log_scale is not None:
        total += step.text_tokens * FLOAT * ((width if step.half else 0) + 2 * heads)
    return total


def _on_cpu(backend: str, step: Step) -> bool:
    """Whether it is `star.nn.prefix`, which makes queries and keys again."""
    return step.device == "cpu" and backend in ("prefix", "matmul")


def _backend(name: str, head_width: int, length: int, step: Step) -> str:
    if name != "auto":
        return name
    dtype = torch.bfloat16 if step.half else torch.float32
    return choose(step.device, dtype, length, head_width=head_width, whole_scales=True)


def _softmax(step: Step) -> int:
    """Bytes of one of its numbers: autocast widens it on GPUs, and it is narrowed again."""
    return FLOAT + step.narrow if step.half and step.device == "cuda" else step.narrow


def _feed_forward(block: Block, step: Step) -> int:
    width, inner = block.attention.out.in_features, block.feed_forward.inner.out_features
    return step.tokens * (width * FLOAT + inner * step.narrow)


def encoding_bytes(encoder: Encoder | PatchEncoder | PyramidEncoder, size: tuple[int, int], *, half: bool) -> int:
    """Bytes that encoding one picture takes at its worst moment, where its features have `size` (height, width).

    That is at the finest resolution: five maps in fp32, or three where autocast narrows some of them.
    """
    if isinstance(encoder, PyramidEncoder):
        return encoding_bytes(encoder.parts[-1], size, half=half)
    if isinstance(encoder, PatchEncoder):
        return size[0] * size[1] * encoder.stem.out_features * (3 if half else 5) * FLOAT
    fold = encoder.fold.downscale_factor if isinstance(encoder.fold, nn.PixelUnshuffle) else 1
    pixels = size[0] * size[1] * (encoder.factor // fold) ** 2
    return pixels * encoder.stem.out_channels * (3 if half else 5) * FLOAT
