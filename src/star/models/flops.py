"""How many floating-point operations a model takes, from its sizes; a multiplication and an addition are two.

Matrix products and convolutions are counted, as `torch.utils.flop_counter` does; norms, softmax and the like are a few
per cent more. Of attention, only what a mask lets be seen is counted, whichever way it is computed.
"""

from __future__ import annotations

from torch import nn

from star.models.tokenizer.autoencoder import Decoder, Encoder, Level, SpatialAttention
from star.models.tokenizer.patches import PatchEncoder
from star.models.tokenizer.pyramid import PyramidEncoder
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.nn.attention import CrossAttention
from star.nn.block import Block
from star.nn.masks import Visibility
from star.schedule import ScaleSchedule

BACKWARD = 2  # a backward pass takes two products for each one of the forward pass


def transformer_flops(
    model: STARTransformer, schedule: ScaleSchedule, *, text_tokens: int, counts: tuple[int, ...] | None = None
) -> int:
    """Operations of one forward pass over one picture.

    Args:
        model: the generator.
        schedule: the scales.
        text_tokens: tokens of the text, `T`.
        counts: how many tokens of each scale are trained; all of them by default.

    """
    counts = counts or schedule.lengths
    tokens = sum(counts)
    width, own = model.width, counts[0] if schedule.levels[0] == 0 else 0
    total = sum(
        block_flops(block, tokens=tokens, pairs=pairs(model.mask.visibility(schedule, counts)), text_tokens=text_tokens)
        for block in model.blocks
        if isinstance(block, Block)
    )
    total += 2 * tokens * width * model.head.logits.out_features
    total += 2 * (schedule.total - own) * model.embed.in_features * width
    for layer in (model.start, model.shared_modulation, model.head.modulation):
        total += 2 * layer.in_features * layer.out_features if isinstance(layer, nn.Linear) else 0
    return total


def block_flops(block: Block, *, tokens: int, pairs: int, text_tokens: int) -> int:
    """Operations of one block.

    Args:
        block: which.
        tokens: of the picture.
        pairs: how many (query, key) pairs of them are looked at.
        text_tokens: of the text.

    """
    width = block.attention.out.in_features
    total = 2 * tokens * width * 4 * width + 4 * pairs * width  # q, k, v and out; scores and their mixture
    total += 2 * tokens * 2 * width * block.feed_forward.inner.out_features
    cross = block.cross_attention
    if isinstance(cross, CrossAttention):
        total += 2 * tokens * 2 * width * width + 4 * tokens * text_tokens * width
        total += 2 * text_tokens * cross.kv.in_features * cross.kv.out_features
    linear = None if block.modulation is None else block.modulation.linear
    return total if linear is None else total + 2 * linear.in_features * linear.out_features


def pairs(visibility: Visibility) -> int:
    """How many (query, key) pairs are looked at."""
    return sum(
        (queries.stop - queries.start) * (keys.stop - keys.start if isinstance(keys, slice) else len(keys))
        for queries, keys in visibility.spans()
    )


def sampling_flops(model: STARTransformer, schedule: ScaleSchedule, *, text_tokens: int) -> int:
    """Operations of drawing one picture scale by scale with guidance: the text and the empty text."""
    return 2 * transformer_flops(model, schedule, text_tokens=text_tokens)


def encode_flops(tokenizer: MultiScaleTokenizer, schedule: ScaleSchedule) -> int:
    """Operations of turning one picture into codes."""
    return (
        encoder_flops(tokenizer.encoder, schedule.sizes[-1])
        + _conv(tokenizer.before, _area(schedule))
        + quantizing_flops(tokenizer, schedule)
    )


def decode_flops(tokenizer: MultiScaleTokenizer, schedule: ScaleSchedule) -> int:
    """Operations of turning f_hat into one picture."""
    return decoder_flops(tokenizer.decoder, schedule.sizes[-1]) + _conv(tokenizer.after, _area(schedule))


def quantizing_flops(tokenizer: MultiScaleTokenizer, schedule: ScaleSchedule) -> int:
    """Operations of finding the codes of features: distances to all entries, and a smoothing convolution per scale."""
    quantizer = tokenizer.quantizer
    distances = 2 * schedule.total * quantizer.codebook_size * quantizer.code_width
    smoothing = 2 * _area(schedule) * quantizer.code_width**2 * 9
    return distances + len(schedule) * smoothing


def encoder_flops(encoder: Encoder | PatchEncoder | PyramidEncoder, size: tuple[int, int]) -> int:
    """Operations of the encoder, whose features have `size` (height, width)."""
    if isinstance(encoder, PyramidEncoder):
        times = [part.factor // encoder.factor for part in encoder.parts]
        sizes = [(size[0] // n, size[1] // n) for n in times]
        return sum(encoder_flops(part, own) for part, own in zip(encoder.parts, sizes, strict=True))
    if isinstance(encoder, PatchEncoder):
        linear = [part for part in encoder.modules() if isinstance(part, nn.Linear)]
        return sum(2 * size[0] * size[1] * part.in_features * part.out_features for part in linear)
    area = size[0] * size[1] * 4 ** (len(encoder.levels) - 1)
    total = _conv(encoder.stem, area)
    for level in encoder.levels:
        total += _level(level, area, change=1 / 4)
        area = area // 4 if getattr(level, "resample", None) is not None else area
    return total + _parts(encoder.middle, area) + _conv(encoder.out, area)


def decoder_flops(decoder: Decoder, size: tuple[int, int]) -> int:
    """Operations of the decoder, from features of `size` (height, width)."""
    area = size[0] * size[1]
    total = _conv(decoder.stem, area) + _parts(decoder.middle, area)
    for level in decoder.levels:
        total += _level(level, area, change=4)
        area = area * 4 if getattr(level, "resample", None) is not None else area
    return total + _conv(decoder.out, area)


def _level(level: nn.Module, area: int, change: float) -> int:
    """A level at `area` positions, whose change of resolution is a convolution at `change` of them."""
    assert isinstance(level, Level)
    total = _parts(level.blocks, area) + (0 if level.attentions is None else _parts(level.attentions, area))
    return total + (0 if level.resample is None else _parts(level.resample, round(area * change)))


def _parts(module: nn.Module, area: int) -> int:
    """All convolutions and attentions within, at `area` positions."""
    total = sum(_conv(part, area) for part in module.modules() if isinstance(part, nn.Conv2d))
    attentions = [part for part in module.modules() if isinstance(part, SpatialAttention)]
    return total + sum(4 * area**2 * part.out.in_channels for part in attentions)


def _conv(layer: nn.Module, area: int) -> int:
    if not isinstance(layer, nn.Conv2d):  # left out
        return 0
    height, width = layer.kernel_size
    return 2 * area * layer.out_channels * layer.in_channels // layer.groups * height * width


def _area(schedule: ScaleSchedule) -> int:
    return schedule.lengths[-1]
