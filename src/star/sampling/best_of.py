"""The best of several candidates, judged by the model that drew them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from star.models.likelihood import token_losses
from star.sampling.order import at_least_1
from star.sampling.rows import merge
from star.types import Condition

if TYPE_CHECKING:
    from star.sampling.decoder import DecodeState, ScaleWiseDecoder, Watch


LOGITS = 2**25  # held at a time: 128 MiB in fp32, less than one picture of 1024 pixels has


class BestOf:
    """Draw several candidates of every picture and keep the one that shows most of its text.

    Tokens of one scale are drawn independently, so that a picture may come out otherwise than any of them meant: two
    objects melt into one, a shape is neither of two. The generator understands pictures better than it draws them.
    Every finished candidate is therefore decoded, *encoded again*, and read by the generator under its text and under
    the empty one; kept is that with the largest

        log p(codes | text) - log p(codes | empty text),

    by which an empty or simple picture, likely under any text, gains nothing (a generative model as classifier: Li et
    al. 2023, "Your diffusion model is secretly a zero-shot classifier"; not in STAR). That needs no other model.
    Judging a candidate takes about as long as drawing it: four take seven times the time of one. With a negative
    prompt, the empty text is that one.

    A picture depends on its text, its seed and the settings alone. Its first candidate is the picture that the same
    seed gives without `BestOf`, and the candidates of a smaller count are among those of a larger one.

    Args:
        count: candidates of a picture; of one, a decoder judges nothing.

    Raises:
        ValueError: for a count below 1.

    """

    def __init__(self, count: int = 4) -> None:
        at_least_1("best_of.count", count)
        self.count = count

    def __call__(
        self,
        decoder: ScaleWiseDecoder,
        condition: Condition,
        empty: Condition | None,
        seeds: Sequence[int],
        watch: Watch,
    ) -> Iterator[DecodeState]:
        """The states of the kept candidates after every scale; see `ScaleWiseDecoder.scales`.

        Nothing is yielded before all candidates are drawn.

        Raises:
            ValueError: without an empty text.

        """
        if empty is None:
            raise ValueError("best_of compares a text with the empty one: give its condition, too")
        if len(empty) == 1:
            empty = empty.repeat(len(condition))
        drawn: list[list[DecodeState]] = []
        for number, own in enumerate(zip(*(self.seeds(seed) for seed in seeds), strict=True)):
            seen = _share(watch, number, self.count, len(decoder.schedule))
            drawn.append(list(decoder.candidates(condition, empty, own, seen)))
        rows = torch.arange(len(seeds), device=condition.pooled.device)
        gains = []
        for row in rows.split(1):
            # all candidates of one picture together, and no other's: a batch mate could decide between close ones
            pictures = decoder.paint(torch.cat([states[-1].f_hat[row] for states in drawn]))
            gains.append(fit(decoder, pictures, condition.select(row), empty.select(row)))
        best = torch.stack(gains).argmax(1)  # (B,), the first of equals
        for states in zip(*drawn, strict=True):
            yield merge(states, decoder.no_cache()).select(best * len(seeds) + rows)

    def seeds(self, seed: int) -> list[int]:
        """The seeds of a picture's candidates, its own first."""
        stream = torch.Generator().manual_seed(seed)
        return [seed, *torch.randint(2**62, (self.count - 1,), generator=stream).tolist()]


def fit(decoder: ScaleWiseDecoder, pictures: Tensor, text: Condition, empty: Condition) -> Tensor:
    """By how many nats (N,) pictures are likelier under a text than under the empty one.

    Args:
        decoder: whose models judge.
        pictures: (N, 3, H, W) in [-1, 1].
        text: one text.
        empty: the empty one, or a negative prompt.

    """
    tokenizer, schedule = decoder.tokenizer, decoder.schedule
    both = text.trim().stack(empty.trim())
    together = max(LOGITS // (len(both) * schedule.total * tokenizer.quantizer.codebook_size), 1)
    gains = []
    for some in pictures.split(together):
        with torch.autocast(some.device.type, enabled=False):  # small differences decide about codes
            codes = [own.repeat(len(both), 1) for own in tokenizer.encode(some.float(), schedule)]
        losses, _ = token_losses(decoder.transformer, tokenizer, codes, both.repeat(len(some)), schedule)
        own, other = losses.double().sum(1).chunk(2)
        gains.append(other - own)
    return torch.cat(gains)


def _share(watch: Watch, number: int, count: int, scales: int) -> Watch:
    """Tell of one candidate's steps as of a share of all candidates' steps, so that a bar never goes back."""

    def tell(k: int, step: int, steps: int) -> None:
        whole, part = divmod(number * scales + k, count)
        watch(whole, part * steps + step, count * steps)

    return tell
