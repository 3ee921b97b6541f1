"""Our models as state dicts of the public releases, which the releases' own code opens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from star.checkpoints.official_names import Rename, leading_axes, refiner_names, tokenizer_names, transformer_names
from star.models.refiner import Refiner
from star.models.tokenizer.autoencoder import Encoder
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.nn.block import Block
from star.nn.position import AbsolutePosition
from star.schedule import ScaleSchedule


def dump_tokenizer(tokenizer: MultiScaleTokenizer, *, schedule: ScaleSchedule | None = None) -> dict[str, Tensor]:
    """VAR's state dict of a tokenizer; shares the parameters' storage.

    Args:
        tokenizer: the model.
        schedule: the scales for which VAR counts uses of codes while training; the counts, which start at 0, are only
            written with it.

    Raises:
        ValueError: when the release, which reads the same shapes in one way only, would draw other pictures with it.

    """
    quantizer, encoder = tokenizer.quantizer, convolutional(tokenizer)
    fixed = {
        "groups": (encoder.norm.num_groups, 32),
        "groups of the decoder": (tokenizer.decoder.norm.num_groups, 32),
        "composition": (quantizer.composition, "residual"),
        "ratio of phi": (quantizer.phi.ratio, 0.5),
    }
    if other := [f"{name} is {own}, there {theirs}" for name, (own, theirs) in fixed.items() if own != theirs]:
        raise ValueError(f"the released layout can't say how this tokenizer computes: {', '.join(other)}")
    tensors = _renamed(tokenizer, names_of_tokenizer(tokenizer))
    if schedule is not None:
        weight = quantizer.codebook.weight
        tensors["quantize.ema_vocab_hit_SV"] = weight.new_zeros(len(schedule), weight.shape[0])
    return tensors


def dump_transformer(transformer: STARTransformer, *, class_embedding: Tensor | None = None) -> dict[str, Tensor]:
    """STAR's state dict of a generator, or VAR's of a class-conditional one; shares the parameters' storage.

    Args:
        transformer: the model.
        class_embedding: (classes + 1, C), which VAR needs and STAR carries along unused: with it the releases' own code
            opens the result.

    Raises:
        ValueError: when the releases have no such model.

    """
    if transformer.level is None:
        raise ValueError("the released layout has no model without level embeddings")
    if transformer.mask.order is not None:
        raise ValueError(f"in the releases a scale sees all earlier ones, in this model only {transformer.mask.order}")
    tensors = _renamed(transformer, names_of_transformer(transformer)) | _key_biases(transformer, "blocks")
    position = transformer.position
    if transformer.head.modulation is not None and isinstance(position, AbsolutePosition):
        tensors["lvl_1L"] = position.schedule.scale_ids()[None]
        tensors["attn_bias_for_masking"] = transformer.mask.bias(position.schedule)[None, None]
    return tensors if class_embedding is None else tensors | {"class_emb.weight": class_embedding.detach()}


def dump_refiner(refiner: Refiner) -> dict[str, Tensor]:
    """STAR's tensors of the causal-driven sampler's network; shares the parameters' storage.

    Raises:
        ValueError: for a network that the release doesn't have.

    """
    if refiner.neighbourhood > 1:
        raise ValueError(
            f"in the release a token gets no codes around it, in this refiner those of {refiner.neighbourhood} by "
            f"{refiner.neighbourhood} tokens"
        )
    return _renamed(refiner, refiner_names()) | _key_biases(refiner, "feat_extract_blocks")


def names_of_transformer(transformer: STARTransformer) -> Rename:
    """From our names to those of STAR or, for a class-conditional model, of VAR."""
    return transformer_names(class_conditional=transformer.head.modulation is not None)


def convolutional(tokenizer: MultiScaleTokenizer) -> Encoder:
    """The encoder, if it's one that the releases have.

    Raises:
        ValueError: for another one.

    """
    if not isinstance(tokenizer.encoder, Encoder):
        raise ValueError(f"the released layout has a convolutional encoder, not a {type(tokenizer.encoder).__name__}")
    return tokenizer.encoder


def names_of_tokenizer(tokenizer: MultiScaleTokenizer, phi: str | None = None) -> Rename:
    """From our names to VAR's; `phi` as in `tokenizer_names`, by default what the number of phi's suggests."""
    if phi is None:
        phi = "qresi_ls." if len(tokenizer.quantizer.phi.convs) > 1 else "qresi"
    encoder = convolutional(tokenizer)
    return tokenizer_names(num_resolutions=len(encoder.levels), attention=len(encoder.middle) > 2, phi=phi)


def _renamed(model: nn.Module, rename: Rename) -> dict[str, Tensor]:
    """Our tensors under the released names, with the released leading axes."""
    named: dict[str, Tensor] = {rename(name): tensor.detach() for name, tensor in model.state_dict().items()}
    return {name: tensor.reshape((1,) * leading_axes(name) + tuple(tensor.shape)) for name, tensor in named.items()}


def _key_biases(model: STARTransformer | Refiner, prefix: str) -> dict[str, Tensor]:
    """The zeros that the releases keep in place of key biases."""
    return {
        f"{prefix}.{number}.{attention}.zero_k_bias": torch.zeros_like(layer.q_bias)
        for number, block in enumerate(block for block in model.blocks if isinstance(block, Block))
        for attention, layer in (("attn", block.attention), ("cross_attn", block.cross_attention))
        if layer is not None
    }
