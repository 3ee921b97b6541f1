"""The same work as the released code does it, to be timed beside ours: `versus=implementation=reference`.

Written from what is known of that code, over our modules' weights: the same numbers up to rounding, which tests hold it
to, by its steps. These are: keys and values of the text at every scale, padding included; caches that are concatenated
anew at every scale; both halves of guidance everywhere; weights that autocast narrows at every use; a sort over the
codebook; a mask over all pairs of tokens in training; a decoder that doubles before it convolves. The released code
itself isn't run, and what it does besides (checks, views, prints) isn't in here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from star.bench.models import TEXT_TOKENS, build_pipeline
from star.bench.settings import Settings
from star.bench.stopwatch import Stopwatch
from star.bench.work import Train, Work
from star.models.transformer import STARTransformer
from star.nn.attention import CrossAttention, QKNorm, SelfAttention
from star.nn.block import Block
from star.nn.position import Rotary2D
from star.sampling.guidance import ClassifierFreeGuidance
from star.sampling.precision import autocast
from star.sampling.samplers import TopKTopP
from star.types import Condition

Past = list[tuple[Tensor, Tensor]]


class ReferenceSample(Work):
    """From text features to pixels."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.pipeline = build_pipeline(settings, self.config)
        check(self.pipeline.transformer)
        decoder = self.pipeline.decoder
        if not (isinstance(decoder.guidance, ClassifierFreeGuidance) and isinstance(decoder.sampler, TopKTopP)):
            raise ValueError("the reference draws with guidance, top-k and top-p: leave sampling= as the stage has it")
        self.guidance, self.sampler = decoder.guidance, decoder.sampler

    @torch.no_grad()
    def run(self) -> None:
        """Draw and decode a batch."""
        texts = self.pipeline.text_encoder(["a picture"] * self.settings.batch)
        empty = self.pipeline.text_encoder([""]).repeat(self.settings.batch)
        with autocast(self.settings.dtype, self.device):
            self.decode(self.draw(texts.stack(empty), torch.Generator(self.device).manual_seed(0)))

    def draw(self, condition: Condition, generator: torch.Generator) -> Tensor:
        """f_hat (B, D, h_K, w_K) of B texts and B empty ones."""
        model, schedule = self.pipeline.transformer, self.pipeline.schedule
        quantizer = self.pipeline.tokenizer.quantizer
        past: list[Past] = [[] for _ in model.blocks]
        f_hat = quantizer.start(len(condition) // 2, schedule).to(self.device)
        x_in = None
        for k in range(len(schedule)):
            part = schedule.only(k)
            x = model._tokens(x_in, condition, part)
            hidden = self.blocks(x, condition, rotation=turns(model, part, self.device), past=past)
            logits = model.head(hidden)
            codes = self.token_sampling(*logits.chunk(2), strength=self.guidance.strength(k, schedule), by=generator)
            f_hat = quantizer.accumulate(f_hat, codes, k, schedule)
            if k + 1 < len(schedule):
                x_in = quantizer.next_input(f_hat, k + 1, schedule).repeat(2, 1, 1)
        return f_hat

    def blocks(self, x: Tensor, condition: Condition, *, rotation: Tensor | None, past: list[Past]) -> Tensor:
        """One scale through all blocks."""
        return run_blocks(self.pipeline.transformer, x, condition, rotation=rotation, past=past)

    def token_sampling(self, own: Tensor, other: Tensor, *, strength: float, by: torch.Generator) -> Tensor:
        """Codes (B, L_k) of conditional and unconditional logits: filters over the whole codebook."""
        logits = (1 + strength) * own - strength * other
        if self.sampler.top_k:
            least = logits.topk(self.sampler.clamp(logits), sorted=False).values.amin(-1, keepdim=True)
            logits = logits.masked_fill(logits < least, -math.inf)
        if self.sampler.top_p:
            ascending, order = logits.sort(-1)
            unlikely = ascending.softmax(-1).cumsum(-1) <= 1 - self.sampler.top_p
            unlikely[..., -1] = False
            logits = logits.masked_fill(unlikely.scatter(-1, order, unlikely), -math.inf)
        drawn = torch.multinomial(logits.softmax(-1).flatten(0, 1), 1, replacement=True, generator=by)
        return drawn.view(logits.shape[:2])

    def decode(self, f_hat: Tensor) -> Tensor:
        """Pixels in [0, 1]."""
        return self.pipeline.tokenizer.decode(f_hat).add(1).mul(0.5)

    @contextmanager
    def watched(self, watch: Stopwatch) -> Iterator[None]:
        """The large parts."""
        own = {"blocks": "blocks", "token_sampling": "token_sampling", "decode": "decoder"}
        with ExitStack() as stack:
            for method, name in own.items():
                stack.enter_context(watch.calls(self, method, name))
            stack.enter_context(watch.calls(self.pipeline.transformer.head, "forward", "head"))
            stack.enter_context(watch.calls(self.pipeline.text_encoder, "forward", "text"))
            for method in ("accumulate", "next_input"):
                stack.enter_context(watch.calls(self.pipeline.tokenizer.quantizer, method, "quantiser"))
            yield


class ReferenceTrain(Train):
    """Forward, loss and backward of the transformer, on every token."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        check(self.model)
        text = self.condition
        assert text.context is not None
        assert text.context_mask is not None
        missing = TEXT_TOKENS - text.context.shape[1]
        padded = F.pad(text.context, (0, 0, 0, missing)), F.pad(text.context_mask, (0, missing))
        self.condition = Condition(text.pooled, *padded)
        self.bias = self.model.mask.bias(self.schedule).to(self.device)
        self.rotation = turns(self.model, self.schedule, self.device)

    def run(self) -> None:
        """One step; its gradients are dropped."""
        target = torch.cat(self.codes, 1)
        with autocast(self.settings.dtype, self.device):
            x_in = self.tokenizer.quantizer.teacher_forcing(self.codes, self.schedule)
            with torch.autocast(self.device.type, enabled=False):
                x = self.model._tokens(x_in, self.condition, self.schedule)
            if self.settings.dtype != "fp32":
                x = x.to(torch.get_autocast_dtype(self.device.type))
            logits = self.model.head(self.blocks(x))
            losses = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
        self._backward(losses.mul(1 / target.shape[1]).sum(1).mean())
        self.model.zero_grad(set_to_none=True)

    def blocks(self, x: Tensor) -> Tensor:
        """All scales through all blocks."""
        return run_blocks(self.model, x, self.condition, rotation=self.rotation, bias=self.bias.to(x.dtype))

    @contextmanager
    def watched(self, watch: Stopwatch) -> Iterator[None]:
        """The large parts."""
        with watch.calls(self, "blocks", "blocks"), watch.calls(self, "_backward", "backward"):
            yield


def check(model: STARTransformer) -> None:
    """Raise a ValueError unless the released code has such a model."""
    block = model.blocks[0]
    assert isinstance(block, Block)
    if block.cross_attention is None or block.modulation is not None or block.attention.norm.log_scale is None:
        raise ValueError("the reference is STAR's: a text, normalised queries and keys, no adaptive norms")


def turns(model: STARTransformer, schedule: Any, device: torch.device) -> Tensor | None:
    """Rotations (L, d / 2) as complex numbers."""
    if not isinstance(model.position, Rotary2D):
        return None
    angles = model.position.angles(schedule, model.width // model.num_heads).to(device)
    return torch.polar(torch.ones_like(angles), angles)


def run_blocks(
    model: STARTransformer,
    x: Tensor,
    condition: Condition,
    *,
    rotation: Tensor | None,
    past: list[Past] | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Tokens (B, L, C) through all blocks, each of which adds its keys and values to its past."""
    assert condition.context is not None
    assert condition.context_mask is not None
    padding = torch.where(condition.context_mask, 0.0, -math.inf)[:, None, None]
    for layer, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        assert block.cross_attention is not None
        own = None if past is None else past[layer]
        x = x + block.drop_path(attend_self(block.attention, block.norm(x), rotation, own, bias))
        x = attend_text(block.cross_attention, block.norm(x), condition.context, padding) + x
        inner = F.gelu(block.feed_forward.inner(block.norm(x)), approximate="tanh")
        x = x + block.drop_path(block.feed_forward.out(inner))
    return x


def attend_self(
    layer: SelfAttention, x: Tensor, rotation: Tensor | None, past: Past | None, bias: Tensor | None
) -> Tensor:
    """Self-attention, (B, L, C)."""
    added = torch.cat([layer.q_bias, torch.zeros_like(layer.q_bias), layer.v_bias])
    qkv = F.linear(x, layer.qkv.weight, added).unflatten(-1, (3, layer.num_heads, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    if rotation is not None:
        q, k = (turned(part, rotation) for part in (q, k))
    q, k = normalised(layer.norm, q, k)
    if past is not None:
        if past:
            k, v = (torch.cat([before, new], 2) for before, new in zip(past[0], (k, v), strict=True))
        past[:] = [(k, v)]
    mixed = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, bias, scale=1.0)
    out: Tensor = layer.out(mixed.transpose(1, 2).flatten(2))
    return out


def attend_text(layer: CrossAttention, x: Tensor, context: Tensor, padding: Tensor) -> Tensor:
    """Cross-attention, (B, L, C)."""
    q = F.linear(x, layer.q.weight, layer.q_bias).unflatten(-1, (layer.num_heads, -1)).transpose(1, 2)
    added = torch.cat([torch.zeros_like(layer.v_bias), layer.v_bias])
    kv = F.linear(context, layer.kv.weight, added).unflatten(-1, (2, layer.num_heads, -1))
    k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
    q, k = normalised(layer.norm, q, k)
    mixed = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, padding.to(v.dtype), scale=1.0)
    out: Tensor = layer.out(mixed.transpose(1, 2).flatten(2))
    return out


def turned(x: Tensor, rotation: Tensor) -> Tensor:
    """Neighbouring channels of x (B, heads, L, d) turned as complex numbers, in fp32 and back."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * rotation).flatten(3).to(x.dtype)


def normalised(norm: QKNorm, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Unit queries, scaled, and unit keys."""
    assert norm.log_scale is not None
    scale = norm.log_scale.clamp(max=math.log(100.0)).exp()
    return F.normalize(q, dim=-1).mul(scale), F.normalize(k, dim=-1)


REFERENCE: dict[str, type[Work]] = {"sample": ReferenceSample, "train": ReferenceTrain}
