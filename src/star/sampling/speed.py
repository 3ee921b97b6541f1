"""How pictures are computed: every switch that changes time or memory and not what is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from star.models.tokenizer.painter import Painter
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.nn.weights import KINDS, hold
from star.sampling.compiled import CompiledBlocks
from star.sampling.graphs import GraphedBlocks
from star.sampling.precision import PRECISIONS

if TYPE_CHECKING:
    from star.pipeline import STARPipeline

COMPILE = ("none", "blocks", "graphs")


@dataclass(frozen=True)
class Speed:
    """Switches of sampling; as they are here, nothing differs from the plain computation by a bit.

    Args:
        cache_text: compute the text's keys and values once, not at every scale.
        trim_text: cut padding that no text of the batch uses.
        skip_guidance: don't compute unconditional predictions of scales without guidance, nor anything unconditional
            once no later scale has guidance.
        sequential_guidance: the conditional and the unconditional half one after the other; on a GPU the other half's
            keys and values wait in main memory. Half the memory, more time.
        weights: how the blocks hold their weights: `as_is`, `auto`, `cast`, `packed`, `int8`; see `hold`.
        compile: `blocks`: with torch.compile, once for every scale's shape; `graphs`: and as CUDA graphs. Texts then
            keep their padding, which has one shape.
        decoder_dtype: `fp32`, `bf16`, `fp16`: of the decoder's convolutions; None: as the transformer.
        channels_last, fold_upsampling, strips_above: see `Painter`.
        offload_text_encoder: the text encoder is on the GPU only while it reads.

    Raises:
        ValueError: for another word, or switches that exclude each other.

    """

    cache_text: bool = True
    trim_text: bool = True
    skip_guidance: bool = True
    sequential_guidance: bool = False
    weights: str = "as_is"
    compile: str = "none"
    decoder_dtype: str | None = None
    channels_last: bool = False
    fold_upsampling: bool = False
    strips_above: int | str | None = None
    offload_text_encoder: bool = False

    def __post_init__(self) -> None:
        """Validate."""
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(one.default, bool) and not isinstance(value, bool):  # a command line's `off` is a word
                raise ValueError(f"speed.{one.name} is true or false, got {value!r}")
        if self.weights not in KINDS:
            raise ValueError(f"speed.weights is one of {', '.join(KINDS)}, got {self.weights!r}")
        if self.compile not in COMPILE:
            raise ValueError(f"speed.compile is one of {', '.join(COMPILE)}, got {self.compile!r}")
        if self.compile != "none" and self.weights in ("packed", "int8"):
            raise ValueError(
                f"speed.compile={self.compile} sees no {self.weights} weights: set speed.weights to as_is or cast"
            )
        if self.compile == "graphs" and self.sequential_guidance:
            raise ValueError("speed.compile=graphs keeps one cache in place, speed.sequential_guidance moves two about")

    def check(self, transformer: STARTransformer, *, search: bool, cache_policy: bool) -> None:
        """Raise a ValueError unless these switches work with a model and a decoder's other settings."""
        if self.sequential_guidance and transformer.first_sample_text:
            raise ValueError(
                "first_sample_text shows the unconditional half the conditional one's text: "
                "that can't be had with speed.sequential_guidance"
            )
        if self.compile != "none" and (cache_policy or transformer.mask.order is not None):
            raise ValueError(
                f"speed.compile={self.compile} needs a cache that keeps everything: no cache policy, no Markov mask"
            )
        if self.compile == "graphs" and search:
            raise ValueError("speed.compile=graphs keeps its cache in place, which a search rearranges")

    def painter(self, tokenizer: MultiScaleTokenizer) -> Painter:
        """What turns f_hat into pixels."""
        return Painter(
            tokenizer,
            dtype=self.decoder_dtype,
            channels_last=self.channels_last,
            fold_upsampling=self.fold_upsampling,
            strips_above=self.strips_above,
            hold_weights=self.weights != "as_is",
        )

    def runner(self, transformer: STARTransformer) -> Callable[..., Tensor] | None:
        """What runs the blocks; None for the transformer itself."""
        if self.compile == "none":
            return None
        compiled = CompiledBlocks(transformer)
        return GraphedBlocks(compiled) if self.compile == "graphs" else compiled

    def hold(self, module: nn.Module, dtype: torch.dtype) -> None:
        """Change how a transformer's or refiner's blocks hold their weights, for products in `dtype`."""
        hold(module.blocks, self.kind, dtype)  # type: ignore[arg-type]
        # logits are fp32 whatever the rest is
        hold(module.head, "as_is" if self.kind == "int8" else self.kind, torch.float32)  # type: ignore[arg-type]

    @property
    def kind(self) -> str:
        """How `hold` is told to hold weights."""
        return "cast" if self.weights == "auto" and self.compile != "none" else self.weights

    def check_saving(self) -> None:
        """Raise a ValueError when the weights are no longer what they were."""
        if self.weights != "as_is":
            raise ValueError(
                f"the weights are held for fast drawing (speed.weights={self.weights}): "
                "save a pipeline that was opened without"
            )

    def decisive(self) -> dict[str, str]:
        """The switches that show in a picture, for records; most change nothing but the last digit."""
        shown = {"decoder_dtype": self.decoder_dtype, "weights": "int8" if self.weights == "int8" else None}
        return {name: value for name, value in shown.items() if value is not None}

    @contextmanager
    def reading(self, text_encoder: nn.Module, device: torch.device) -> Iterator[nn.Module]:
        """The text encoder where it has to be while it reads."""
        if not self.offload_text_encoder:
            yield text_encoder
            return
        try:
            yield text_encoder.to(device)
        finally:
            text_encoder.to("cpu")


def speed_up(self: STARPipeline, speed: Speed) -> STARPipeline:
    """Draw with these switches from now on, the model being where it will stay.

    `weights` other than `as_is` can't be taken back, such a model can't be saved, and a packed one can't move.

    Raises:
        ValueError: for switches that can't be had with the model, its preset or this machine, or other `weights` than
            those that are held already; the pipeline then is as before.

    """
    before = self.speed
    if before.kind not in ("as_is", speed.kind):
        raise ValueError(
            f"the weights are held for fast drawing already (speed.weights={before.kind}), which can't be taken back: "
            f"open the pipeline anew for speed.weights={speed.kind}"
        )
    self.speed = speed
    try:
        self.set_preset(self.preset)
        for part in (self.transformer, self.refiner):
            if part is not None:
                speed.hold(part, PRECISIONS[self.precision])
    except (ValueError, ModuleNotFoundError):
        self.speed = before
        self.set_preset(self.preset)
        raise
    return self
