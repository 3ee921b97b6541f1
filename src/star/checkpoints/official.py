"""The public releases of VAR and STAR: their checkpoints open as our models, and ours are written as theirs.

Every size comes from the shapes of the tensors; only what no tensor shows is an argument. The models take the tensors
over without a copy: a file is mapped, so that pages cost memory only when they are used, and must stay as it is while
the model lives; a state dict shares its storage with the model.
"""

from __future__ import annotations

import logging
from typing import Any, TypeVar

import torch
from torch import nn

from star.checkpoints.blank import blank
from star.checkpoints.official_files import OfficialTensors, Source, read_official
from star.checkpoints.official_names import (
    REFINER_LEFTOVERS,
    STAR_LEFTOVERS,
    TOKENIZER_LEFTOVERS,
    VAR_LEFTOVERS,
    Rename,
    Rules,
    leading_axes,
    leftover_reason,
    refiner_names,
)
from star.checkpoints.official_prefix import begin_of
from star.checkpoints.official_sizes import TransformerSizes, refiner_sizes, tokenizer_sizes, transformer_sizes
from star.checkpoints.official_writers import (
    dump_refiner,
    dump_tokenizer,
    dump_transformer,
    names_of_tokenizer,
    names_of_transformer,
)
from star.checkpoints.report import Leftover, LoadReport, compare
from star.models.conditioning.class_label import ClassLabelEncoder
from star.models.refiner import Refiner
from star.models.tokenizer.autoencoder import Decoder, Encoder
from star.models.tokenizer.quantizer import MultiScaleVQ
from star.models.tokenizer.residual_conv import ResidualConv
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.nn.position import AbsolutePosition, Rotary2D
from star.schedule import ScaleSchedule

__all__ = [
    "dump_refiner",
    "dump_tokenizer",
    "dump_transformer",
    "load_class_labels",
    "load_refiner",
    "load_refiner_with_report",
    "load_tokenizer",
    "load_tokenizer_with_report",
    "load_transformer",
    "load_transformer_with_report",
]

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)


def load_tokenizer(source: Source, *, schedule: ScaleSchedule, dtype: torch.dtype | None = None) -> MultiScaleTokenizer:
    """Open VAR's multi-scale VQ-VAE; see `load_tokenizer_with_report`."""
    return _logged(*load_tokenizer_with_report(source, schedule=schedule, dtype=dtype))


def load_tokenizer_with_report(
    source: Source, *, schedule: ScaleSchedule, dtype: torch.dtype | None = None
) -> tuple[MultiScaleTokenizer, LoadReport]:
    """Open VAR's multi-scale VQ-VAE, alone or out of a STAR training checkpoint.

    Args:
        source: a state dict, or a .pth or .safetensors file.
        schedule: the scales it will be used with; any number, but which phi a scale takes depends on that number.
        dtype: of the parameters; by default the file's, or fp32 if it mixes several.

    Raises:
        ValueError: when tensors are missing, unexpected or of another shape, in one table; or the file isn't one.

    """
    official = read_official(source, "vae_local")
    sizes = tokenizer_sizes(official.shapes, source=official.name)
    layers: dict[str, Any] = {
        "channels": sizes.channels,
        "multipliers": sizes.multipliers,
        "num_res_blocks": sizes.num_res_blocks,
        "code_width": sizes.code_width,
        "patch_size": sizes.patch_size,
        "attention": sizes.attention,
    }
    with blank():
        phi = ResidualConv(sizes.code_width, count=sizes.num_phi)
        quantizer = MultiScaleVQ(sizes.codebook_size, sizes.code_width, phi=phi)
        tokenizer = MultiScaleTokenizer(
            encoder=Encoder(**layers), decoder=Decoder(**layers), quantizer=quantizer, conv_size=sizes.conv_size
        )
    notes: tuple[str, ...] = ()
    if sizes.counted_scales not in (None, len(schedule)):
        notes = (
            f"the file counts codes of {sizes.counted_scales} scales, the schedule has {len(schedule)}, "
            "which share the phi's out in another way",
        )
    return _fill(
        tokenizer, official, names_of_tokenizer(tokenizer, sizes.phi), TOKENIZER_LEFTOVERS, dtype=dtype, notes=notes
    )


def load_transformer(
    source: Source,
    *,
    schedule: ScaleSchedule,
    position: Rotary2D | AbsolutePosition | None = None,
    first_sample_text: bool = False,
    logit_norm: bool = True,
    num_heads: int | None = None,
    dtype: torch.dtype | None = None,
) -> STARTransformer:
    """Open STAR's generator or class-conditional VAR; see `load_transformer_with_report`."""
    model, report = load_transformer_with_report(
        source,
        schedule=schedule,
        position=position,
        first_sample_text=first_sample_text,
        logit_norm=logit_norm,
        num_heads=num_heads,
        dtype=dtype,
    )
    return _logged(model, report)


def load_transformer_with_report(
    source: Source,
    *,
    schedule: ScaleSchedule,
    position: Rotary2D | AbsolutePosition | None = None,
    first_sample_text: bool = False,
    logit_norm: bool = True,
    num_heads: int | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[STARTransformer, LoadReport]:
    """Open STAR's generator or class-conditional VAR.

    Args:
        source: a state dict, or a .pth (flat, or nested as STAR's training writes it) or .safetensors file.
        schedule: the scales it was trained on, or their beginning.
        position: where tokens lie. By default learned positions where the file has some, else the released rotary ones;
            STAR's first checkpoints used `Rotary2D(theta=100, extent=32)`.
        first_sample_text: every row adds the text branch of row 0, as the released code does.
        logit_norm: LayerNorm before the logits. No tensor shows it.
        num_heads: heads, for a model without QK-norm, where no tensor shows them; by default 64 channels each.
        dtype: of the parameters; by default the file's, or fp32 if it mixes several.

    Raises:
        ValueError: when tensors are missing, unexpected or of another shape, in one table; when the schedule doesn't
            fit; or the file isn't one.

    """
    official = read_official(source, "var_wo_ddp")
    sizes = transformer_sizes(official.shapes, source=official.name, num_heads=num_heads)
    official, notes, problem = begin_of(official, schedule, levels="lvl_embed.weight")
    with blank():
        if position is None:
            learned = sizes.positions is not None or sizes.adaptive_norm != "none"  # as in every class-conditional VAR
            position = AbsolutePosition(sizes.width, schedule=schedule) if learned else Rotary2D()
        model = STARTransformer(
            **_shared_sizes(sizes, schedule),
            context_width=sizes.context_width,
            first_length=sizes.first_length,
            adaptive_norm=sizes.adaptive_norm,
            position=position,
            logit_norm=logit_norm,
            first_sample_text=first_sample_text,
        )
    leftovers = STAR_LEFTOVERS if sizes.adaptive_norm == "none" else VAR_LEFTOVERS
    return _fill(model, official, names_of_transformer(model), leftovers, dtype=dtype, notes=notes, problem=problem)


def load_refiner(
    source: Source,
    *,
    schedule: ScaleSchedule,
    position: Rotary2D | None = None,
    num_heads: int | None = None,
    dtype: torch.dtype | None = None,
) -> Refiner:
    """Open the causal-driven sampler's network; see `load_refiner_with_report`."""
    return _logged(
        *load_refiner_with_report(source, schedule=schedule, position=position, num_heads=num_heads, dtype=dtype)
    )


def load_refiner_with_report(
    source: Source,
    *,
    schedule: ScaleSchedule,
    position: Rotary2D | None = None,
    num_heads: int | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Refiner, LoadReport]:
    """Open the causal-driven sampler's network out of a checkpoint of STAR's sampler training.

    Args:
        source: see `load_transformer_with_report`; the file holds the generator beside it.
        schedule: the scales it was trained on, or their beginning.
        position: where tokens lie; by default the released rotary positions.
        num_heads: see `load_transformer_with_report`.
        dtype: of the parameters; by default the file's, or fp32 if it mixes several.

    Raises:
        ValueError: as for `load_transformer_with_report`.

    """
    official = read_official(source, "var_wo_ddp")
    sizes = refiner_sizes(official.shapes, source=official.name, num_heads=num_heads)
    official, notes, problem = begin_of(official, schedule, levels="lvl_embed_2.weight")
    with blank():
        model = Refiner(**_shared_sizes(sizes, schedule), position=position or Rotary2D())
    return _fill(model, official, refiner_names(), REFINER_LEFTOVERS, dtype=dtype, notes=notes, problem=problem)


def load_class_labels(source: Source, *, dtype: torch.dtype | None = None) -> ClassLabelEncoder:
    """The class embedding of a class-conditional VAR, as the encoder that makes its conditions.

    Args:
        source: what `load_transformer` reads.
        dtype: of the embedding; by default the file's.

    Raises:
        ValueError: when the file has no class embedding.

    """
    official = read_official(source, "var_wo_ddp")
    embedding = official.tensors.get("class_emb.weight")
    if embedding is None or embedding.dim() != 2:
        raise ValueError(f"{official.name} has no class embedding (classes + 1, C) called 'class_emb.weight'")
    with blank():
        encoder = ClassLabelEncoder(embedding.shape[0] - 1, embedding.shape[1])
    encoder.load_state_dict({"embedding.weight": embedding.to(dtype or embedding.dtype)}, assign=True)
    return encoder.eval()


def _shared_sizes(sizes: TransformerSizes, schedule: ScaleSchedule) -> dict[str, Any]:
    names = ("depth", "width", "num_heads", "codebook_size", "code_width", "pooled_width", "mlp_ratio", "qk_norm")
    return {name: getattr(sizes, name) for name in names} | {"num_levels": len(schedule)}


def _fill(
    model: Model,
    official: OfficialTensors,
    rename: Rename,
    leftovers: Rules,
    *,
    dtype: torch.dtype | None,
    notes: tuple[str, ...],
    problem: str | None = None,
) -> tuple[Model, LoadReport]:
    """Give a model on the meta device its tensors, once all of them fit; `problem`: why they can't be meant."""
    ours = {rename(name): (name, parameter) for name, parameter in model.state_dict().items()}
    unused = [
        Leftover(name, tensor.numel(), reason)
        for name, tensor in official.tensors.items()
        if name not in ours and (reason := leftover_reason(name, leftovers)) is not None
    ]
    ignored = {leftover.name for leftover in unused}
    used = {name: tensor for name, tensor in official.tensors.items() if name not in ignored}
    expected = {name: (1,) * leading_axes(name) + tuple(parameter.shape) for name, (_, parameter) in ours.items()}
    found = {name: tuple(tensor.shape) for name, tensor in used.items()}
    compare(expected, found, source=official.name, hint=problem)
    if problem is not None:
        raise ValueError(problem)
    if wrong := [f"{name} ({tensor.dtype})" for name, tensor in used.items() if not tensor.is_floating_point()]:
        raise ValueError(f"{official.name} has weights that aren't real numbers: {', '.join(wrong)}")
    dtypes = {tensor.dtype for tensor in used.values()}
    if dtype is None and len(dtypes) > 1:
        dtype = torch.float32
        notes = (*notes, f"the file mixes {', '.join(sorted(map(str, dtypes)))}: opened in fp32")
    state = {
        ours[name][0]: tensor.reshape(expected[name][leading_axes(name) :]).to(dtype or tensor.dtype)
        for name, tensor in used.items()
    }
    model.load_state_dict(state, assign=True)
    report = LoadReport(
        source=official.name,
        model=type(model).__name__,
        tensors=len(used),
        parameters=sum(tensor.numel() for tensor in used.values()),
        leftovers=tuple(unused),
        notes=notes,
    )
    return model.eval(), report


def _logged(model: Model, report: LoadReport) -> Model:
    logger.info("%s", report)
    return model
