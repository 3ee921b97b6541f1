"""From captions to pictures with one trained model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from star.checkpoints import io
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
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision is one of {', '.join(PRECISIONS)}, got {precision!r}")
        self.text_encoder = text_encoder.eval()
        self.text_encoder.batch_invariant = True  # type: ignore[assignment]
        self.transformer = transformer.eval()
        self.tokenizer = tokenizer.eval()
        self.schedule = schedule
        self.decoder = ScaleWiseDecoder(transformer, tokenizer, schedule, **decoder)
        self.precision = precision
        self.identity = identity

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
        """Open a checkpoint of task=generator: a file, or a run directory.

        Args:
            path: where it is.
            sampling: instantiated settings of the decoder (`guidance`, `sampler`); None takes the checkpoint's own preset.
            precision: see the class.
            averaged: use the moving averages of the weights where there are any.
            trusted: packages besides this one whose classes a checkpoint's configuration may name.

        Raises:
            FileNotFoundError: when there is no checkpoint, or the frozen text encoder's weights are missing.
            ValueError: when the file isn't one of a generator, doesn't fit its own configuration, or names foreign code.

        """
        file = io.find(path)
        checkpoint = io.read(file, mmap=True)
        config = io.config(checkpoint, file)
        if config.get("task") != "generator":
            raise ValueError(
                f"{file} is a checkpoint of task={config.get('task')}, pictures need one of task=generator"
            )
        module = config["module"]
        parts = {
            name: instantiate_trusted(module[name], packages=trusted)
            for name in ("text_encoder", "transformer", "tokenizer", "schedule")
        }
        state = io.weights(checkpoint, averaged=averaged)
        for name in ("text_encoder", "transformer", "tokenizer"):
            io.load(parts[name], io.part(state, f"{name}."), what=f"{name} of {file}")
        if sampling is None:
            preset = instantiate_trusted({**config["sampling"], "_partial_": True}, packages=trusted)
            sampling = preset.keywords
        return cls(**parts, decoder=sampling, precision=precision, identity=fingerprint(state))

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


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Sixteen hexadecimal digits that name a set of weights."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
