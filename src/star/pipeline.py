"""From captions to pictures with one trained model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from star.checkpoints import io
from star.checkpoints.build import build
from star.checkpoints.describe import describe
from star.checkpoints.fingerprint import fingerprint
from star.checkpoints.location import find_pretrained
from star.checkpoints.parts import DRAWING, check_drawable, check_widths, drawn_with, identity_of, with_tokenizer
from star.checkpoints.pretrained import read_pretrained, write_pretrained
from star.checkpoints.refiner import beside, check_own, has_refiner, with_refiner
from star.models.refiner import Refiner, check_fit
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.pipeline_call import call, preset_of
from star.sampling.decoder import NO_REFINER, DecodeState, ScaleWiseDecoder, Watch, needs_refiner, unwatched
from star.sampling.precision import PRECISIONS, autocast, check_precision, precision_of
from star.sampling.speed import Speed, speed_up
from star.schedule import ScaleSchedule
from star.utils.instantiate import instantiate_trusted


class STARPipeline:
    """Text encoder, transformer, tokenizer, perhaps a refiner, and a way to draw.

    Args:
        text_encoder: captions to conditions.
        transformer: predicts token maps.
        tokenizer: token maps to pictures.
        schedule: the scales of a picture.
        decoder: settings of `ScaleWiseDecoder` beyond these three: `guidance`, `sampler`, ...
        refiner: for presets that reveal late scales in steps.
        precision: `fp32`, `bf16` or `fp16`: what autocast computes in. In fp32 a picture doesn't depend on its batch.
        identity: hash of the weights without the refiner's, for records.
        config: what the parts were built from, for `save_pretrained`; None describes them as they are.

    Raises:
        ValueError: for an unknown precision, a refiner of another generator's sizes, or a preset that needs a refiner
            when there is none.

    """

    speed = Speed()

    def __init__(
        self,
        *,
        text_encoder: nn.Module,
        transformer: STARTransformer,
        tokenizer: MultiScaleTokenizer,
        schedule: ScaleSchedule,
        decoder: Mapping[str, Any],
        refiner: Refiner | None = None,
        precision: str = "fp32",
        identity: str = "",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        check_precision(precision)
        if isinstance(refiner, Refiner):
            check_fit(refiner, transformer)
        self.text_encoder = text_encoder.eval()
        self.text_encoder.batch_invariant = True  # type: ignore[assignment]
        self.transformer = transformer.eval()
        self.tokenizer = tokenizer.eval()
        self.refiner = None if refiner is None else refiner.eval()
        self.refiner_identity = None if refiner is None else fingerprint(refiner.state_dict())
        self.schedule = schedule
        self.set_preset(decoder)
        self.precision = precision
        self.identity = identity
        self.config = config

    def set_preset(self, decoder: Mapping[str, Any]) -> None:
        """Draw with other settings of `ScaleWiseDecoder` from now on.

        Raises:
            ValueError: for a preset that needs a refiner when there is none.

        """
        self.preset = decoder
        self.decoder = ScaleWiseDecoder(
            self.transformer, self.tokenizer, self.schedule, refiner=self.refiner, speed=self.speed, **decoder
        )

    speed_up = speed_up

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        refiner: str | Path | None = None,
        sampling: Mapping[str, Any] | None = None,
        precision: str = "fp32",
        averaged: bool = True,
        trusted: Sequence[str] = (),
    ) -> STARPipeline:
        """Open a checkpoint of task=generator (or sampler): a file, a run directory, or a converted folder.

        The weights are mapped where they are used as they are, so that the file has to stay as it is meanwhile.

        Args:
            path: where it is.
            refiner: where the refiner is, see `star.checkpoints.refiner.with_refiner`. None takes the checkpoint's own;
                a preset that needs one then also takes the `refiner.ckpt` beside `path`.
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
        check_drawable(opened, what=str(file))
        sampling = _instantiated(opened["config"], sampling, what=str(file), trusted=trusted)
        if refiner is None and needs_refiner(sampling.get("sampler")) and not has_refiner(opened):
            refiner = beside(path)
        if refiner is not None:
            opened = with_refiner(opened, refiner, what=str(file))
        return cls.from_parts(opened, what=str(file), sampling=sampling, precision=precision, trusted=trusted)

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        *,
        tokenizer: str | Path | None = None,
        refiner: str | Path | None = None,
        sampling: Mapping[str, Any] | None = None,
        precision: str | None = None,
        trusted: Sequence[str] = (),
    ) -> STARPipeline:
        """Open a folder that `save_pretrained` or star.checkpoints.convert wrote; only tensors and JSON are read.

        Args:
            directory: the folder, or a repository `owner/name` of the hub: from its cache, else downloaded. Its files
                are mapped and have to stay as they are.
            tokenizer: another folder or checkpoint that has the tokenizer, for a folder without.
            refiner: another file that has the refiner, see `star.checkpoints.refiner.with_refiner`; None takes the
                folder's own, if it has one.
            sampling: see `from_checkpoint`.
            precision: see `from_checkpoint`; None takes what the generator's weights are stored in.
            trusted: see `from_checkpoint`.

        Raises:
            FileNotFoundError: when it is no such folder, or a part is missing.
            ValueError: see `from_checkpoint`; or when the tokenizer isn't the one that the generator learned from.

        """
        checkpoint = read_pretrained(find_pretrained(directory))
        if tokenizer is not None:
            other = io.read(tokenizer, mmap=True)
            checkpoint = with_tokenizer(checkpoint, other, what=str(tokenizer))
        if refiner is not None:
            checkpoint = with_refiner(checkpoint, refiner, what=str(directory))
        precision = precision or precision_of(io.part(checkpoint["state_dict"], "transformer."))
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
        check_precision(precision)
        config, state = checkpoint["config"], checkpoint["state_dict"]
        check_drawable(checkpoint, what=what)
        module = config["module"]
        sampling = _instantiated(config, sampling, what=what, trusted=trusted)
        parts: dict[str, Any] = {"schedule": instantiate_trusted(module["schedule"], packages=trusted)}
        if has_refiner(checkpoint):
            check_own(checkpoint, what=what)
        elif needs_refiner(sampling.get("sampler")):
            raise ValueError(f"{what}: {NO_REFINER}")
        for name in (*DRAWING, *(("refiner",) if has_refiner(checkpoint) else ())):
            # codes are decided by small differences, and a text is encoded but once: these two are always fp32
            kind = PRECISIONS[precision] if name in ("transformer", "refiner") else torch.float32
            own = io.part(state, f"{name}.")
            parts[name] = build(module[name], own, what=f"{name} of {what}", precision=kind, trusted=trusted)
        identity = fingerprint(drawn_with(state))
        return cls(**parts, decoder=sampling, precision=precision, identity=identity, config=config)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write all parts (a text encoder's weights only if it was trained) and the preset into a new folder.

        Raises:
            FileExistsError: when the folder holds something already.
            ValueError: when a part doesn't keep what it was built with, and the pipeline wasn't opened from a file.

        """
        self.speed.check_saving()
        named: dict[str, nn.Module] = {name: getattr(self, name) for name in DRAWING}
        if self.refiner is not None:
            named["refiner"] = self.refiner
        config = self.config
        if config is None:
            config = {"module": {name: describe(part) for name, part in {**named, "schedule": self.schedule}.items()}}
        # what was opened may have had more, whose weights aren't here
        config = {**config, "module": {name: config["module"][name] for name in (*named, "schedule")}}
        if "sampling" not in config:
            config = {**config, "sampling": preset_of(self.decoder)}
        state = {f"{part}.{name}": value for part, own in named.items() for name, value in own.state_dict().items()}
        checkpoint = {"state_dict": state, "config": config}
        write_pretrained(directory, checkpoint, text_encoder_id=identity_of(self.text_encoder))

    __call__ = call

    @property
    def device(self) -> torch.device:
        """Where the transformer is."""
        return next(self.transformer.parameters()).device

    def to(self, device: torch.device | str) -> STARPipeline:
        """Move all parts."""
        for part in (self.text_encoder, self.transformer, self.tokenizer, self.refiner):
            if part is not None:
                part.to(device)
        return self

    def draw(
        self, prompts: Sequence[str], seeds: Sequence[int], *, negative_prompt: str = "", watch: Watch = unwatched
    ) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1], one per prompt and seed; `watch` is told every step (`DecodeState`)."""
        *_, state = self.scales(prompts, seeds, negative_prompt=negative_prompt, watch=watch)
        return self.paint(state)

    @torch.no_grad()
    def scales(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        negative_prompt: str | Sequence[str] = "",
        watch: Watch = unwatched,
        decoder: ScaleWiseDecoder | None = None,
    ) -> Iterator[DecodeState]:
        """The states after each scale, for previews and records.

        `negative_prompt` is one, or one per prompt; `decoder` draws in place of the pipeline's own.
        """
        decoder = decoder or self.decoder
        negatives = [negative_prompt] if isinstance(negative_prompt, str) else list(negative_prompt)
        with self.speed.reading(self.text_encoder, self.device) as read:
            condition, empty = read(list(prompts)).to(self.device), read(negatives).to(self.device)
        context = None if condition.context is None else condition.context.shape[2]
        check_widths(self.transformer, condition.pooled.shape[1], context)
        states = decoder.scales(condition, empty, seeds, watch)
        for _ in range(len(decoder.schedule)):
            with autocast(self.precision, self.device):
                state = next(states)
            yield state

    @torch.no_grad()
    def paint(self, state: DecodeState, *, preview: bool = False) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] of what is drawn so far; a `preview` is small and soon made."""
        with autocast(self.precision, self.device):
            return self.decoder.preview(state) if preview else self.decoder.images(state)


def _instantiated(
    config: Mapping[str, Any], sampling: Mapping[str, Any] | None, *, what: str, trusted: Sequence[str]
) -> Mapping[str, Any]:
    """Settings of the decoder: those given, or the checkpoint's own preset."""
    if sampling is not None:
        return sampling
    if config.get("sampling") is None:
        raise ValueError(f"{what} has no sampling preset: choose one")
    settings: Mapping[str, Any] = instantiate_trusted(
        {**config["sampling"], "_partial_": True}, packages=trusted
    ).keywords
    return settings
