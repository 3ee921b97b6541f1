"""From captions to pictures with one trained model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from star.checkpoints import io
from star.checkpoints.build import build
from star.checkpoints.describe import describe
from star.checkpoints.fingerprint import fingerprint
from star.checkpoints.parts import DRAWING, check_drawable, check_widths, drawn_with, identity_of, with_tokenizer
from star.checkpoints.pretrained import read_pretrained, write_pretrained
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.sampling.decoder import DecodeState, ScaleWiseDecoder
from star.schedule import ScaleSchedule
from star.utils.instantiate import instantiate_trusted

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class STARPipeline:
    """Text encoder, transformer, tokenizer and a way to draw.

    Args:
        text_encoder: captions to conditions.
        transformer: predicts token maps.
        tokenizer: token maps to pictures.
        schedule: the scales of a picture.
        decoder: settings of `ScaleWiseDecoder` beyond these three: `guidance`, `sampler`, ...
        precision: `fp32`, `bf16` or `fp16`: what autocast computes in. In fp32 a picture doesn't depend on its batch.
        identity: hash of the weights, for records.
        config: what the parts were built from, for `save_pretrained`; None describes them as they are.

    """

    def __init__(
        self,
        *,
        text_encoder: nn.Module,
        transformer: STARTransformer,
        tokenizer: MultiScaleTokenizer,
        schedule: ScaleSchedule,
        decoder: Mapping[str, Any],
        precision: str = "fp32",
        identity: str = "",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        _check_precision(precision)
        self.text_encoder = text_encoder.eval()
        self.text_encoder.batch_invariant = True  # type: ignore[assignment]
        self.transformer = transformer.eval()
        self.tokenizer = tokenizer.eval()
        self.schedule = schedule
        self.decoder = ScaleWiseDecoder(transformer, tokenizer, schedule, **decoder)
        self.precision = precision
        self.identity = identity
        self.config = config

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        sampling: Mapping[str, Any] | None = None,
        precision: str = "fp32",
        averaged: bool = True,
        trusted: Sequence[str] = (),
    ) -> STARPipeline:
        """Open a checkpoint of task=generator: a file, a run directory, or a converted folder.

        The weights are mapped where they are used as they are, so that the file has to stay as it is meanwhile.

        Args:
            path: where it is.
            sampling: instantiated settings of the decoder (`guidance`, `sampler`); None takes the checkpoint's preset.
            precision: see the class. fp32 means fp32 weights; in 16 bits, 16-bit weights stay 16-bit.
            averaged: use the moving averages of the weights where there are any.
            trusted: packages besides this one whose classes a checkpoint's configuration may name.

        Raises:
            FileNotFoundError: when there is no checkpoint, or the frozen text encoder's weights are missing.
            ValueError: when the file is no generator's, doesn't fit its own configuration, or names foreign code.

        """
        file = io.find(path)
        checkpoint = io.read(file, mmap=True)
        opened = {"state_dict": io.weights(checkpoint, averaged=averaged), "config": io.config(checkpoint, file)}
        return cls.from_parts(opened, what=str(file), sampling=sampling, precision=precision, trusted=trusted)

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        *,
        tokenizer: str | Path | None = None,
        sampling: Mapping[str, Any] | None = None,
        precision: str | None = None,
        trusted: Sequence[str] = (),
    ) -> STARPipeline:
        """Open a folder that `save_pretrained` or star.checkpoints.convert wrote; only tensors and JSON are read.

        Args:
            directory: the folder. Its files are mapped and have to stay as they are.
            tokenizer: another folder or checkpoint that has the tokenizer, for a folder without.
            sampling: see `from_checkpoint`.
            precision: see `from_checkpoint`; None takes what the generator's weights are stored in.
            trusted: see `from_checkpoint`.

        Raises:
            FileNotFoundError: when it is no such folder, or a part is missing.
            ValueError: see `from_checkpoint`; or when the tokenizer isn't the one that the generator learned from.

        """
        checkpoint = read_pretrained(directory)
        if tokenizer is not None:
            other = io.read(tokenizer, mmap=True)
            checkpoint = with_tokenizer(checkpoint, other, what=str(tokenizer))
        precision = precision or _precision_of(io.part(checkpoint["state_dict"], "transformer."))
        return cls.from_parts(checkpoint, what=str(directory), sampling=sampling, precision=precision, trusted=trusted)

    @classmethod
    def from_parts(
        cls,
        checkpoint: Mapping[str, Any],
        *,
        what: str,
        sampling: Mapping[str, Any] | None = None,
        precision: str = "fp32",
        trusted: Sequence[str] = (),
    ) -> STARPipeline:
        """Build the parts that a checkpoint (`state_dict` and `config`) describes around its tensors.

        `what` is what messages call it; see `from_checkpoint` for the rest.
        """
        _check_precision(precision)
        config, state = checkpoint["config"], checkpoint["state_dict"]
        check_drawable(checkpoint, what=what)
        module = config["module"]
        parts: dict[str, Any] = {"schedule": instantiate_trusted(module["schedule"], packages=trusted)}
        for name in DRAWING:
            # codes are decided by small differences, and a text is encoded but once: the other two are always fp32
            kind = PRECISIONS[precision] if name == "transformer" else torch.float32
            own = io.part(state, f"{name}.")
            parts[name] = build(module[name], own, what=f"{name} of {what}", precision=kind, trusted=trusted)
        if sampling is None:
            if "sampling" not in config:
                raise ValueError(f"{what} has no sampling preset: choose one")
            sampling = instantiate_trusted({**config["sampling"], "_partial_": True}, packages=trusted).keywords
        identity = fingerprint(drawn_with(state))
        return cls(**parts, decoder=sampling, precision=precision, identity=identity, config=config)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write tokenizer, transformer, text encoder (its weights only if it was trained) and preset into a new folder.

        Raises:
            FileExistsError: when the folder holds something already.
            ValueError: when a part doesn't keep what it was built with, and the pipeline wasn't opened from a file.

        """
        named: dict[str, nn.Module] = {name: getattr(self, name) for name in DRAWING}
        config = self.config
        if config is None:
            config = {"module": {name: describe(part) for name, part in {**named, "schedule": self.schedule}.items()}}
        # a folder opened for drawing may have had more, a refiner, whose weights aren't here
        config = {**config, "module": {name: config["module"][name] for name in (*DRAWING, "schedule")}}
        if "sampling" not in config:
            config = {**config, "sampling": _preset(self.decoder)}
        state = {f"{part}.{name}": value for part, own in named.items() for name, value in own.state_dict().items()}
        checkpoint = {"state_dict": state, "config": config}
        write_pretrained(directory, checkpoint, text_encoder_id=identity_of(self.text_encoder))

    @property
    def device(self) -> torch.device:
        """Where the transformer is."""
        return next(self.transformer.parameters()).device

    def to(self, device: torch.device | str) -> STARPipeline:
        """Move all parts."""
        for part in (self.text_encoder, self.transformer, self.tokenizer):
            part.to(device)
        return self

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], *, negative_prompt: str = "") -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1], one per prompt and seed."""
        *_, state = self.scales(prompts, seeds, negative_prompt=negative_prompt)
        return self.paint(state)

    @torch.no_grad()
    def scales(
        self, prompts: Sequence[str], seeds: Sequence[int], *, negative_prompt: str = ""
    ) -> Iterator[DecodeState]:
        """The states after each scale, for previews and records."""
        condition = self.text_encoder(list(prompts)).to(self.device)
        context = None if condition.context is None else condition.context.shape[2]
        check_widths(self.transformer, condition.pooled.shape[1], context)
        empty = self.text_encoder([negative_prompt]).to(self.device)
        states = self.decoder.scales(condition, empty, seeds)
        for _ in range(len(self.schedule)):
            with self._autocast():
                state = next(states)
            yield state

    @torch.no_grad()
    def paint(self, state: DecodeState) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] of what is drawn so far."""
        with self._autocast():
            return self.decoder.images(state)

    def _autocast(self) -> Any:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=PRECISIONS[self.precision])


def _check_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        raise ValueError(f"precision is one of {', '.join(PRECISIONS)}, got {precision!r}")


def _precision_of(state: Mapping[str, Tensor]) -> str:
    held = {value.dtype for value in state.values()}
    return next((name for name in ("fp16", "bf16") if PRECISIONS[name] in held), "fp32")


def _preset(decoder: ScaleWiseDecoder) -> dict[str, Any]:
    """The configuration of a decoder's settings."""
    names = ("guidance", "sampler", "constraint", "search", "cache_policy")
    kept = {name: getattr(decoder, name) for name in names}
    target = f"{ScaleWiseDecoder.__module__}.{ScaleWiseDecoder.__qualname__}"
    return {"_target_": target} | {name: describe(part) for name, part in kept.items() if part is not None}
