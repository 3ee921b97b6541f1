"""Care for the codebook while a tokenizer trains from scratch: a start from data, and new life for unused codes.

Without it, small trainings leave most codes unused, and coarse scales collapse onto a few of them.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from star.models.tokenizer.progress import Moment, Progress
from star.models.tokenizer.quantizer import MultiScaleVQ
from star.schedule import ScaleSchedule


class CodebookRevival(nn.Module):
    """Fits the codebook to the features once they mean something, then replaces codes that nothing uses.

    Args:
        codebook_size: `V`.
        num_scales: `K`.
        start: until then the autoencoder trains without the quantiser; at that moment the codebook is fitted to the
            vectors that the scales have to code (k-means). 0: the codebook keeps its random start.
        every: steps between two revivals; 0: no revival.
        until: no revival from then on, so that the codes settle.
        threshold: a code is dead when its share of a scale's tokens, averaged over the scales, is below this share of
            1 / V.
        decay: per batch, of the running usage; a code of the single token of the coarsest map comes up once in many
            batches.
        rounds: how often the fit looks again at what its own codes leave for the finer scales to code.
        iterations: k-means iterations per round.
        seed: of all draws; each also depends on the step, so a resumed training draws the same.

    Raises:
        ValueError: for a value out of range.

    """

    usage: Tensor
    fitted: Tensor

    def __init__(
        self,
        *,
        codebook_size: int,
        num_scales: int,
        start: Moment = 0.16,
        every: int = 20,
        until: Moment = 0.8,
        threshold: float = 0.05,
        decay: float = 0.97,
        rounds: int = 3,
        iterations: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if min(every, threshold) < 0 or not 0 <= decay < 1 or min(codebook_size, num_scales, rounds, iterations) < 1:
            raise ValueError(
                "revival needs every and threshold >= 0, decay in [0, 1), at least one of the others; "
                f"got {every=}, {threshold=}, {decay=}, {codebook_size=}, {num_scales=}, {rounds=}, {iterations=}"
            )
        self.start, self.every, self.until = start, every, until
        self.threshold, self.decay = threshold, decay
        self.rounds, self.iterations, self.seed = rounds, iterations, seed
        self.register_buffer("usage", torch.full((num_scales, codebook_size), 1 / codebook_size))
        self.register_buffer("fitted", torch.tensor(start == 0))

    @torch.no_grad()
    def tend(self, quantizer: MultiScaleVQ, f: Tensor, schedule: ScaleSchedule, progress: Progress) -> int:
        """Do what is due before this step: fit the codebook or revive its dead codes.

        Args:
            quantizer: whose codebook is changed in place, alike on all processes.
            f: features (B, D, h_K, w_K) of the step's images.
            schedule: the scales.
            progress: the step.

        Returns:
            How many codes were replaced.

        """
        if not progress.reached(self.start):
            return 0
        generator = torch.Generator().manual_seed(hash((self.seed, progress.step)) % 2**63)
        if not self.fitted:
            self._fit(quantizer, f, schedule, generator)
            self.fitted.fill_(True)
            return quantizer.codebook_size
        if not self.every or progress.step % self.every or progress.reached(self.until):
            return 0
        return self._revive(quantizer, f, schedule, generator)

    @torch.no_grad()
    def observe(self, codes: list[Tensor]) -> None:
        """Count the codes of a step, each scale's (B, L_k) long."""
        size = self.usage.shape[1]
        counts = torch.stack([drawn.flatten().bincount(minlength=size) for drawn in codes]).to(self.usage)  # (K, V)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
        # Of its scale's tokens, not of all: a coarse map has few, and its codes would be too rare to live.
        self.usage.lerp_(counts / counts.sum(1, keepdim=True), 1 - self.decay)

    def dead(self) -> Tensor:
        """Which codes nothing uses, (V,) bool."""
        return self.usage.mean(0) < self.threshold / self.usage.shape[1]

    def _fit(self, quantizer: MultiScaleVQ, f: Tensor, schedule: ScaleSchedule, generator: torch.Generator) -> None:
        """Set the codebook to the k-means centres of what all scales have to code."""
        centres = None
        for _ in range(self.rounds):
            # The first round pretends that every scale is coded exactly; the next ones know the errors of the last.
            vectors, weights = _pool(quantizer.targets(f, schedule, exact=centres is None))
            if centres is None:
                centres = _draw(vectors, quantizer.codebook_size, generator, weights)
            centres = _kmeans(vectors, weights, centres, self.iterations, generator)
            _write(quantizer, _apart(centres, generator))

    def _revive(self, quantizer: MultiScaleVQ, f: Tensor, schedule: ScaleSchedule, generator: torch.Generator) -> int:
        """Move dead codes to vectors of this batch that the living ones code badly."""
        dead = self.dead()
        count = int(dead.sum())
        if count == 0:
            return 0
        vectors, weights = _pool(quantizer.targets(f, schedule))
        errors = (vectors - quantizer.lookup(quantizer.nearest(vectors)).float()).square().sum(1)
        entries = quantizer.codebook.weight.detach().float().clone()
        entries[dead] = _draw(vectors, count, generator, weights * errors)
        _write(quantizer, _apart(entries, generator))
        self.usage[:, dead] = 1 / self.usage.shape[1]  # time to be found useful before it is judged again
        return count


def _pool(targets: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The vectors (N, D) of all scales, and weights (N,) that give every scale the same say.

    Unweighted, the finest scale, which has most of the tokens, would take nearly all codes.
    """
    weights = [vectors.new_full((len(vectors),), 1 / len(vectors)) for vectors in targets]
    return torch.cat(targets), torch.cat(weights)


def _draw(vectors: Tensor, count: int, generator: torch.Generator, weights: Tensor) -> Tensor:
    """`count` of the vectors (N, D), with chances in proportion to weights (N,); none twice if there are enough."""
    chances = weights.cpu().double() + 1e-12
    rows = torch.multinomial(chances, count, replacement=count > len(vectors), generator=generator)
    return vectors[rows.to(vectors.device)]


def _kmeans(vectors: Tensor, weights: Tensor, centres: Tensor, iterations: int, generator: torch.Generator) -> Tensor:
    """Lloyd's algorithm on weighted vectors (N, D) from centres (V, D); centres that lose all move to random ones."""
    for _ in range(iterations):
        nearest = torch.cdist(vectors, centres).argmin(1)
        mass = torch.zeros_like(centres[:, 0]).index_add_(0, nearest, weights)
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors * weights[:, None])
        lost = mass == 0
        centres = sums / mass.masked_fill(lost, 1.0)[:, None]
        if lost.any():
            centres[lost] = _draw(vectors, int(lost.sum()), generator, weights)
    return centres


def _apart(entries: Tensor, generator: torch.Generator) -> Tensor:
    """Entries (V, D) of which those that repeat an earlier one are moved by a thousandth of the deviation.

    Few vectors give equal entries. A generator that starts from the codebook would find their codes equally likely to
    the last digit, and which of them it draws would depend on rounding.
    """
    order = torch.arange(len(entries), device=entries.device)
    group = torch.unique(entries, dim=0, return_inverse=True)[1]
    first = order.new_full((len(entries),), len(entries)).scatter_reduce(0, group, order, "amin")
    repeats = (first[group] != order)[:, None]
    noise = torch.randn(entries.shape, generator=generator).to(entries) * entries.std() * 1e-3
    return torch.where(repeats, entries + noise, entries)


def _write(quantizer: MultiScaleVQ, entries: Tensor) -> None:
    """Set the codebook (V, D), on every process to what the first one found."""
    quantizer.codebook.weight.copy_(entries)
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(quantizer.codebook.weight.detach(), 0)
