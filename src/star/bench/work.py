"""What is timed: one repetition of each kind of work, and which of its calls belong to which part."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from star.bench.models import VALID, SyntheticTexts, build_pipeline, configuration
from star.bench.settings import Settings
from star.bench.stopwatch import Stopwatch
from star.evaluation.latency import PROMPTS
from star.models.flops import BACKWARD, decode_flops, transformer_flops
from star.models.transformer import STARTransformer
from star.nn.block import Block
from star.objectives.train_tokens import counts
from star.pipeline import STARPipeline
from star.sampling.guidance import is_guided
from star.sampling.precision import autocast
from star.training.blocks import BlockExecution
from star.utils.devices import choose_device
from star.utils.instantiate import instantiate

BLOCKS = ("blocks", "self_attention", "cross_attention", "feed_forward")


class Work(ABC):
    """Something that can be done again and again.

    Args:
        settings: what.

    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.config = configuration(settings)
        self.device = torch.device(choose_device(settings.device))

    @abstractmethod
    def run(self) -> None:
        """Once."""

    @contextmanager
    def watched(self, watch: Stopwatch) -> Iterator[None]:
        """Meanwhile every call of a part tells the stopwatch."""
        del watch
        yield

    def flops(self) -> int:
        """Operations of one repetition's products; 0 where nobody counted."""
        return 0


class Sample(Work):
    """From text features to pixels, without reading the texts."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.pipeline = build_pipeline(settings, self.config).speed_up(instantiate(self.config["speed"]))
        if self.pipeline.decoder.best_of is not None:
            raise ValueError("the parts of one picture are timed, not of candidates: leave sampling.best_of.count at 1")
        self.prompts = ["a picture"] * settings.batch

    def run(self) -> None:
        """Draw and decode a batch."""
        *_, state = self.pipeline.scales(self.prompts, list(range(self.settings.batch)))
        self.pipeline.paint(state)

    @contextmanager
    def watched(self, watch: Stopwatch) -> Iterator[None]:
        """Parts; those inside of blocks can't be seen where blocks are compiled."""
        decoder: Any = self.pipeline.decoder
        quantizer = self.pipeline.tokenizer.quantizer
        model = self.pipeline.transformer
        with ExitStack() as stack:
            stack.enter_context(watch.calls(model, "step", _scale_of))
            if self.pipeline.speed.compile == "none":
                stack.enter_context(_inside_blocks(watch, model))
            stack.enter_context(watch.calls(model.head, "forward", "head"))
            stack.enter_context(watch.calls(decoder, "sampler", "token_sampling"))
            stack.enter_context(watch.calls(decoder, "paint", "decoder"))
            for method in ("accumulate", "next_input"):
                stack.enter_context(watch.calls(quantizer, method, "quantiser"))
            stack.enter_context(watch.calls(self.pipeline.text_encoder, "forward", "text"))
            yield

    def flops(self) -> int:
        """Of both halves as far as guidance needs them; other switches that save work aren't credited."""
        model, schedule, guidance = self.pipeline.transformer, self.pipeline.schedule, self.pipeline.decoder.guidance
        drawn = transformer_flops(model, schedule, text_tokens=text_tokens(model))
        needed = [k for k in range(len(schedule)) if is_guided(guidance, k, schedule)]
        if guidance is not None and not self.pipeline.speed.skip_guidance:
            needed = [len(schedule) - 1]
        if needed:
            part = schedule.only(*range(needed[-1] + 1))
            drawn += transformer_flops(model, part, text_tokens=text_tokens(model))
        return self.settings.batch * (drawn + decode_flops(self.pipeline.tokenizer, schedule))


class Decode(Sample):
    """From f_hat to pixels."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        quantizer = self.pipeline.tokenizer.quantizer
        start = quantizer.start(settings.batch, self.pipeline.schedule)
        self.f_hat = torch.randn(start.shape, generator=torch.Generator().manual_seed(0)).to(self.device)

    @torch.no_grad()
    def run(self) -> None:
        """Decode a batch."""
        with autocast(self.settings.dtype, self.device):
            self.pipeline.decoder.paint(self.f_hat)

    def flops(self) -> int:
        """As without folded upsampling."""
        return self.settings.batch * decode_flops(self.pipeline.tokenizer, self.pipeline.schedule)


class Train(Work):
    """Forward, loss and backward of the transformer; neither tokenizer nor text encoder nor optimiser."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        torch.manual_seed(0)
        config = self.config
        self.model: STARTransformer = instantiate(config["model"]).to(self.device).train()
        self.tokenizer = instantiate(config["tokenizer"]).to(self.device).eval()
        self.schedule = instantiate(config["schedule"])
        self.objective = instantiate(config["module"]["objective"])
        self.execution = BlockExecution(config["activation_checkpointing"], config["compile"])
        self.execution.apply(nn.Sequential(self.model))
        text = SyntheticTexts(config["text_encoder"]["pooled_width"], config["text_encoder"]["context_width"])
        self.condition = text.to(self.device)(["a picture"] * settings.batch).trim()
        size = self.tokenizer.quantizer.codebook_size
        self.codes = [torch.randint(size, (settings.batch, n), device=self.device) for n in self.schedule.lengths]
        self._watch: Stopwatch | None = None

    def run(self) -> None:
        """One step; its gradients are dropped, so that every step begins with the weights alone."""
        with autocast(self.settings.dtype, self.device):
            loss = self.objective(self.model, self.tokenizer, self.codes, self.condition, self.schedule).total
        self._backward(loss)
        self.model.zero_grad(set_to_none=True)

    def _backward(self, loss: Tensor) -> None:
        loss.backward()

    @contextmanager
    def watched(self, watch: Stopwatch) -> Iterator[None]:
        """Parts of the forward pass (not inside of compiled blocks), and the backward pass as a whole."""
        with ExitStack() as stack:
            stack.enter_context(watch.calls(self.model, "run_blocks", "blocks"))
            if not self.execution.compile:
                stack.enter_context(_inside_blocks(watch, self.model))
            stack.enter_context(watch.calls(self.model.head, "forward", "head"))
            stack.enter_context(watch.calls(self.tokenizer.quantizer, "teacher_forcing", "quantiser"))
            stack.enter_context(watch.calls(self, "_backward", "backward"))
            yield

    def flops(self) -> int:
        """Forward and backward, of the tokens that are trained; what is computed again isn't credited."""
        trained = counts(instantiate(self.config["train_tokens"]), self.schedule)
        once = transformer_flops(self.model, self.schedule, text_tokens=text_tokens(self.model), counts=trained)
        return self.settings.batch * once * (1 + BACKWARD)


class Text(Work):
    """Captions to features; `text_encoder.weights=null` needs no weights."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.encoder = instantiate(self.config["text_encoder"]).to(self.device).eval()
        if not self.encoder.trainable:
            self.encoder.load()
        self.captions = [PROMPTS[i % len(PROMPTS)] for i in range(settings.batch)]

    @torch.no_grad()
    def run(self) -> None:
        """Read a batch; an encoder that remembers captions is made to forget them."""
        if getattr(self.encoder, "memo", None) is not None:
            self.encoder.memo = None
        with autocast(self.settings.dtype, self.device):
            self.encoder(self.captions)


WORK: dict[str, type[Work]] = {"sample": Sample, "decode": Decode, "train": Train, "text": Text}


def _scale_of(*arguments: Any, k: int, **named: Any) -> str:
    """The part that a call of `STARTransformer.step` belongs to."""
    del arguments, named
    return f"blocks/{k}"


def halves(pipeline: STARPipeline, k: int) -> int:
    """2 where scale `k` is drawn for the text and for the empty text, because of itself or of a later scale, else 1."""
    guidance, schedule = pipeline.decoder.guidance, pipeline.schedule
    if guidance is None:
        return 1
    later = any(is_guided(guidance, j, schedule) for j in range(k, len(schedule)))
    return 2 if later or not pipeline.speed.skip_guidance else 1


def text_tokens(model: STARTransformer) -> int:
    """How many tokens of a text the blocks look at: paddings are cut."""
    block = model.blocks[0]
    return VALID if isinstance(block, Block) and block.cross_attention is not None else 0


@contextmanager
def _inside_blocks(watch: Stopwatch, model: nn.Module) -> Iterator[None]:
    blocks = [block for block in model.blocks if isinstance(block, Block)]  # type: ignore[union-attr]
    with ExitStack() as stack:
        stack.enter_context(watch.modules((block.attention for block in blocks), "self_attention"))
        stack.enter_context(watch.modules((block.feed_forward for block in blocks), "feed_forward"))
        for block in blocks:
            stack.enter_context(watch.calls(block, "text", "cross_attention"))
        yield
