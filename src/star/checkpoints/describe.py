"""From an object back to the configuration that builds it: the other direction of `instantiate`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from star.models.conditioning.base import FrozenTextEncoder
from star.models.conditioning.class_label import ClassLabelEncoder
from star.models.conditioning.huggingface import HuggingFaceTextEncoder
from star.models.conditioning.openclip import OpenCLIPTextEncoder
from star.models.conditioning.word_transformer import WordTransformer
from star.models.refiner import Refiner
from star.models.tokenizer.autoencoder import Decoder, Encoder
from star.models.tokenizer.patches import PatchEncoder
from star.models.tokenizer.pyramid import PyramidEncoder, PyramidVQ
from star.models.tokenizer.quantizer import MultiScaleVQ
from star.models.tokenizer.residual_conv import ResidualConv
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.nn.block import Block
from star.nn.position import AbsolutePosition
from star.schedule import ScaleSchedule

Config = dict[str, Any]


def describe(value: Any) -> Config:
    """The configuration (plain containers with `_target_`) that `instantiate` turns into an object like this one.

    Weights aren't part of it, nor is what decides nothing once there are weights (how they were initialised).

    Raises:
        ValueError: for an object that doesn't keep what it was built with.

    """
    kind = type(value)
    arguments = _ARGUMENTS[kind](value) if kind in _ARGUMENTS else _kept(value)
    return {"_target_": f"{kind.__module__}.{kind.__qualname__}"} | {
        name: _plain(argument) for name, argument in arguments.items()
    }


def disagreements(configured: Mapping[str, Any], held: Mapping[str, Any], *, ignored: Sequence[str] = ()) -> list[str]:
    """Where two configurations of a class differ, as `name: held, not configured`; only names in both are compared."""
    names = [name for name in held if name in configured and name not in ignored]
    return [f"{name}: {held[name]}, not {configured[name]}" for name in names if held[name] != configured[name]]


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return describe(value)


def _kept(value: Any) -> Config:
    """The arguments of a class that keeps each of them under its own name."""
    names = [
        name
        for name, parameter in inspect.signature(type(value)).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    unknown = [name for name in names if not hasattr(value, name)]
    if unknown:
        raise ValueError(
            f"a {type(value).__name__} doesn't keep its {', '.join(unknown)}, so that no configuration can be written "
            "for it: hand over the one that it was built from"
        )
    return {name: getattr(value, name) for name in names}


def _blocks(model: STARTransformer | Refiner) -> tuple[Config, Block]:
    """What generator and refiner have in common, and the last block."""
    last = model.blocks[-1]
    assert isinstance(last, Block)
    return {
        "depth": model.depth,
        "width": model.width,
        "num_heads": model.num_heads,
        "codebook_size": model.head.logits.out_features,
        "code_width": model.embed.in_features,
        "pooled_width": model.start.in_features if isinstance(model.start, nn.Linear) else model.width,
        "mlp_ratio": last.feed_forward.inner.out_features / model.width,
        "drop_path": last.drop_path.rate,
        "qk_norm": last.attention.norm.log_scale is not None,
        "backend": last.attention.backend,
        "position": model.position,
    }, last


def _transformer(model: STARTransformer) -> Config:
    common, last = _blocks(model)
    cross, modulation = last.cross_attention, last.modulation
    adaptive = "none" if modulation is None else "own" if modulation.linear is not None else "shared"
    return common | {
        "context_width": None if cross is None else cross.kv.in_features,
        # without level embeddings nothing counts levels
        "num_levels": 1 if model.level is None else model.level.num_embeddings,
        "level_embedding": model.level is not None,
        "first_length": model.start_position.shape[0],
        "logit_norm": isinstance(model.head.norm, nn.LayerNorm),
        "adaptive_norm": adaptive,
        "first_sample_text": model.first_sample_text,
        "mask": model.mask,
    }


def _refiner(model: Refiner) -> Config:
    own = {"num_levels": model.level.num_embeddings, "neighbourhood": model.neighbourhood}
    return _blocks(model)[0] | own


def _schedule(schedule: ScaleSchedule) -> Config:
    sizes = [height if height == width else [height, width] for height, width in schedule.sizes]
    whole = schedule.levels == tuple(range(len(schedule)))
    return {"sizes": sizes} | ({} if whole else {"levels": schedule.levels})


def _absolute(position: AbsolutePosition) -> Config:
    return {"width": position.table.shape[1], "schedule": position.schedule}


def _tokenizer(tokenizer: MultiScaleTokenizer) -> Config:
    before: Any = tokenizer.before
    return {
        "encoder": tokenizer.encoder,
        "decoder": tokenizer.decoder,
        "quantizer": tokenizer.quantizer,
        "conv_size": 0 if isinstance(before, nn.Identity) else before.kernel_size[0],
    }


def _encoder(encoder: Encoder) -> Config:
    sides = [level.blocks[-1].conv2.out_channels for level in encoder.levels]  # type: ignore[union-attr, index]
    channels = encoder.stem.out_channels
    return _convolutions(encoder) | {
        "channels": channels,
        "multipliers": [side // channels for side in sides],
        "num_res_blocks": len(encoder.levels[0].blocks),  # type: ignore[arg-type]
        "code_width": encoder.out.out_channels,
        "patch_size": encoder.fold.downscale_factor,
    }


def _patch_encoder(encoder: PatchEncoder) -> Config:
    return {
        "width": encoder.stem.out_features,
        "depth": len(encoder.blocks),
        "code_width": encoder.code_width,
        "patch_size": encoder.factor,
        "seen_size": encoder.fold.downscale_factor if encoder.shrink > 1 else None,
    }


def _pyramid_encoder(encoder: PyramidEncoder) -> Config:
    alike = _patch_encoder(encoder.parts[0])
    del alike["patch_size"]
    return alike | {"patch_sizes": [part.factor for part in encoder.parts]}


def _decoder(decoder: Decoder) -> Config:
    sides = [level.blocks[-1].conv2.out_channels for level in decoder.levels][::-1]  # type: ignore[union-attr, index]
    channels = math.gcd(*sides)  # no tensor has this width if all multipliers share a factor, and none needs it
    return _convolutions(decoder) | {
        "channels": channels,
        "multipliers": [side // channels for side in sides],
        "num_res_blocks": len(decoder.levels[0].blocks) - 1,  # type: ignore[arg-type]
        "code_width": decoder.stem.in_channels,
        "patch_size": decoder.unfold.upscale_factor,
    }


def _convolutions(part: Encoder | Decoder) -> Config:
    block: Any = part.middle[0]
    return {
        "attention": len(part.middle) > 2,
        "groups": part.norm.num_groups,
        "dropout": block.dropout.p,
    }


def _quantizer(quantizer: MultiScaleVQ) -> Config:
    return {
        "codebook_size": quantizer.codebook_size,
        "code_width": quantizer.code_width,
        "composition": quantizer.composition,
        "phi": quantizer.phi,
    }


def _pyramid_quantizer(quantizer: PyramidVQ) -> Config:
    described = _quantizer(quantizer)
    del described["composition"]
    return described | {"patch_sizes": list(quantizer.patch_sizes)}


def _phi(phi: ResidualConv) -> Config:
    conv: Any = phi.convs[0]
    return {"width": conv.in_channels, "count": len(phi.convs), "ratio": phi.ratio}


def _class_labels(encoder: ClassLabelEncoder) -> Config:
    width = encoder.pooled_width
    return {"num_classes": encoder.num_classes, "width": width, "pooled_width": width, "context_width": None}


def _word_transformer(encoder: WordTransformer) -> Config:
    words, block = encoder.words, encoder.blocks[0]
    return {
        "width": encoder.pooled_width,
        "depth": len(encoder.blocks),
        "num_heads": block.num_heads,
        "max_tokens": encoder.max_tokens,
        "vocabulary_size": words.num_buckets,
        "num_hashes": words.num_hashes,
        "kernel": encoder.kernel,
        "words": words.words,
        "pooled_width": encoder.pooled_width,
        "context_width": encoder.context_width,
    }


def _frozen(encoder: FrozenTextEncoder) -> Config:
    return {
        "pooled_width": encoder.pooled_width,
        "context_width": encoder.context_width,
        "dtype": encoder.dtype,
        "pass_size": encoder.pass_size,
        "memoize": encoder.memo is not None,
        **({} if encoder.memo is None else {"memo_limit": encoder.memo.limit}),
    }


def _openclip(encoder: OpenCLIPTextEncoder) -> Config:
    return {"name": encoder.name, "weights": encoder.weights, "layers": encoder.layers} | _frozen(encoder)


def _huggingface(encoder: HuggingFaceTextEncoder) -> Config:
    own = {name: getattr(encoder, name) for name in ("path", "pooling", "layer", "max_tokens")}
    measured = {"standardize": encoder.standardize, "random_weights": encoder.random_weights}
    return own | {"tokenizer": encoder.tokenizer_path} | measured | _frozen(encoder)


_ARGUMENTS: dict[type, Callable[[Any], Config]] = {
    STARTransformer: _transformer,
    Refiner: _refiner,
    ScaleSchedule: _schedule,
    AbsolutePosition: _absolute,
    MultiScaleTokenizer: _tokenizer,
    Encoder: _encoder,
    PatchEncoder: _patch_encoder,
    PyramidEncoder: _pyramid_encoder,
    PyramidVQ: _pyramid_quantizer,
    Decoder: _decoder,
    MultiScaleVQ: _quantizer,
    ResidualConv: _phi,
    ClassLabelEncoder: _class_labels,
    WordTransformer: _word_transformer,
    OpenCLIPTextEncoder: _openclip,
    HuggingFaceTextEncoder: _huggingface,
}
