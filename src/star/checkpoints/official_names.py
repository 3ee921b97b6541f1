"""What the public releases of VAR and STAR call our parameters, and which of their tensors nobody needs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

Rules = Sequence[tuple[str, str]]
Rename = Callable[[str], str]

# The releases keep broadcasting axes of size 1 in front of these; ours don't.
_LEADING_AXES = {"scale_mul_1H11": 1, "pos_start": 1, "pos_start_last": 1, "pos_1LC": 1, "ada_gss": 2}

_SCHEDULE = "follows from the schedule"
_TRANSFORMER_LEFTOVERS: Rules = (
    (r".*\.zero_k_bias", "zeros: keys have no bias"),
    (r"lvl_1L|attn_bias_for_masking", _SCHEDULE),
)
_REFINER_PARTS = (
    r"pos_start_last|(word_embed_head|lvl_embed_2|feat_extract_blocks|head_logits2|encoder_proj2|head_proj)\..*"
)
_GENERATOR_PARTS = r"pos_start|pos_1LC|(word_embed|class_emb|lvl_embed|blocks|head_logits|encoder_proj)\..*"

STAR_LEFTOVERS: Rules = (
    *_TRANSFORMER_LEFTOVERS,
    (r"class_emb\.weight", "class embedding, which STAR never uses"),
    (_REFINER_PARTS, "causal-driven sampler: load_refiner reads it"),
)
VAR_LEFTOVERS: Rules = (
    *_TRANSFORMER_LEFTOVERS,
    (r"class_emb\.weight", "class embedding: load_class_labels reads it"),
)
REFINER_LEFTOVERS: Rules = (
    *_TRANSFORMER_LEFTOVERS,
    (_GENERATOR_PARTS, "generator: load_transformer reads it"),
)
TOKENIZER_LEFTOVERS: Rules = ((r"quantize\.ema_vocab_hit_SV", "training's count of code uses"),)


def leading_axes(official: str) -> int:
    """How many axes of size 1 the released tensor has in front of ours."""
    return _LEADING_AXES.get(official.rsplit(".", 1)[-1], 0)


def leftover_reason(official: str, leftovers: Rules) -> str | None:
    """Why a released tensor isn't needed, or None where it is."""
    return next((reason for pattern, reason in leftovers if re.fullmatch(pattern, official)), None)


def transformer_names(*, class_conditional: bool) -> Rename:
    """From our names to STAR's, or to those of class-conditional VAR."""
    head = "head" if class_conditional else "head_logits"
    return _rename_by(
        (r"start_position", r"pos_start"),
        (r"position\.table", r"pos_1LC"),
        (r"start\.(\w+)", r"encoder_proj.\1"),
        (r"embed\.(\w+)", r"word_embed.\1"),
        (r"level\.weight", r"lvl_embed.weight"),
        (r"shared_modulation\.(\w+)", r"shared_ada_lin.1.\1"),
        (r"head\.modulation\.(\w+)", r"head_nm.ada_lin.1.\1"),
        (r"head\.logits\.(\w+)", rf"{head}.\1"),
        *_block_rules("blocks"),
    )


def refiner_names() -> Rename:
    """From our names of the causal-driven sampler's network to STAR's."""
    return _rename_by(
        (r"start_position", r"pos_start_last"),
        (r"start\.(\w+)", r"encoder_proj2.\1"),
        (r"embed\.(\w+)", r"word_embed_head.\1"),
        (r"level\.weight", r"lvl_embed_2.weight"),
        (r"join\.(\w+)", r"head_proj.\1"),
        (r"head\.logits\.(\w+)", r"head_logits2.\1"),
        *_block_rules("feat_extract_blocks"),
    )


def tokenizer_names(*, num_resolutions: int, attention: bool, phi: str) -> Rename:
    """From our names of the tokenizer to VAR's.

    Args:
        num_resolutions: resolutions of encoder and decoder; the release counts the decoder's from fine to coarse.
        attention: whether the middles have attention between their two blocks.
        phi: what the release puts before a phi's number: `qresi_ls.` when partly shared, nothing with one for each
            scale; `qresi` is the only one, without number.

    """
    resolutions = [
        rule
        for level in range(num_resolutions)
        for rule in (
            *_level_rules(rf"encoder\.levels\.{level}", f"encoder.down.{level}", "downsample"),
            *_level_rules(rf"decoder\.levels\.{level}", f"decoder.up.{num_resolutions - 1 - level}", "upsample"),
        )
    ]
    middles = ("block_1", "attn_1", "block_2") if attention else ("block_1", "block_2")
    middle = [
        rule
        for number, name in enumerate(middles)
        for rule in _part_rules(rf"(\w+)\.middle\.{number}", rf"\1.mid.{name}")
    ]
    return _rename_by(
        *resolutions,
        *middle,
        (r"(\w+)\.stem\.(\w+)", r"\1.conv_in.\2"),
        (r"(\w+)\.norm\.(\w+)", r"\1.norm_out.\2"),
        (r"(encoder|decoder)\.out\.(\w+)", r"\1.conv_out.\2"),
        (r"before\.(\w+)", r"quant_conv.\1"),
        (r"after\.(\w+)", r"post_quant_conv.\1"),
        (r"quantizer\.codebook\.weight", r"quantize.embedding.weight"),
        (
            r"quantizer\.phi\.convs\.(\d+)\.(\w+)",
            rf"quantize.quant_resi.{phi}.\2" if phi == "qresi" else rf"quantize.quant_resi.{phi}\1.\2",
        ),
    )


def _block_rules(prefix: str) -> Rules:
    """Names inside of a transformer block."""
    ours = r"blocks\.(\d+)\."
    both = [
        rule
        for attention, official in (("attention", "attn"), ("cross_attention", "cross_attn"))
        for rule in (
            (rf"{ours}{attention}\.norm\.log_scale", rf"{prefix}.\1.{official}.scale_mul_1H11"),
            (rf"{ours}{attention}\.([qv]_bias)", rf"{prefix}.\1.{official}.\2"),
            (rf"{ours}{attention}\.(qkv|q|kv)\.weight", rf"{prefix}.\1.{official}.mat_\2.weight"),
            (rf"{ours}{attention}\.out\.(\w+)", rf"{prefix}.\1.{official}.proj.\2"),
        )
    ]
    return (
        *both,
        (ours + r"feed_forward\.inner\.(\w+)", rf"{prefix}.\1.ffn.fc1.\2"),
        (ours + r"feed_forward\.out\.(\w+)", rf"{prefix}.\1.ffn.fc2.\2"),
        (ours + r"modulation\.linear\.(\w+)", rf"{prefix}.\1.ada_lin.1.\2"),
        (ours + r"modulation\.offsets", rf"{prefix}.\1.ada_gss"),
    )


def _level_rules(ours: str, official: str, resample: str) -> Rules:
    """Names of one resolution of the tokenizer's encoder or decoder."""
    return (
        (rf"{ours}\.resample\.conv\.(\w+)", rf"{official}.{resample}.conv.\1"),
        (rf"{ours}\.blocks\.(\d+)\.shortcut\.(\w+)", rf"{official}.block.\1.nin_shortcut.\2"),
        (rf"{ours}\.blocks\.(\d+)\.(norm1|conv1|norm2|conv2)\.(\w+)", rf"{official}.block.\1.\2.\3"),
        (rf"{ours}\.attentions\.(\d+)\.(norm|qkv)\.(\w+)", rf"{official}.attn.\1.\2.\3"),
        (rf"{ours}\.attentions\.(\d+)\.out\.(\w+)", rf"{official}.attn.\1.proj_out.\2"),
    )


def _part_rules(ours: str, official: str) -> Rules:
    """Names inside of a middle's residual block or attention; both patterns already have one group."""
    return (
        (rf"{ours}\.(norm1|conv1|norm2|conv2|norm|qkv)\.(\w+)", rf"{official}.\2.\3"),
        (rf"{ours}\.out\.(\w+)", rf"{official}.proj_out.\2"),
    )


def _rename_by(*rules: tuple[str, str]) -> Rename:
    compiled = [(re.compile(pattern), template) for pattern, template in rules]

    def rename(ours: str) -> str:
        for pattern, template in compiled:
            if match := pattern.fullmatch(ours):
                return match.expand(template)
        raise ValueError(
            f"the released layout has no name for {ours!r}: only models of the released kinds can be written in it"
        )

    return rename
