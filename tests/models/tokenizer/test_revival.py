from __future__ import annotations

import pytest
import torch

from star.models.tokenizer.progress import Progress
from star.models.tokenizer.quantizer import MultiScaleVQ
from star.models.tokenizer.residual_conv import ResidualConv
from star.models.tokenizer.revival import CodebookRevival
from star.schedule import ScaleSchedule

SCHEDULE = ScaleSchedule.square(1, 2, 4)


def quantizer() -> MultiScaleVQ:
    return MultiScaleVQ(32, 6, phi=ResidualConv(6, zero_init=True))


def revival(**changes: object) -> CodebookRevival:
    return CodebookRevival(**{"codebook_size": 32, "num_scales": 3, "start": 10, "every": 5, "until": 40} | changes)


def features() -> torch.Tensor:
    return torch.randn(16, 6, 4, 4)


def used(vq: MultiScaleVQ, f: torch.Tensor) -> int:
    return len(torch.cat([drawn.flatten() for drawn in vq.encode(f, SCHEDULE)]).unique())


def test_nothing_happens_before_the_start() -> None:
    vq, care = quantizer(), revival()
    before = vq.codebook.weight.detach().clone()
    assert care.tend(vq, features(), SCHEDULE, Progress(9, 100)) == 0
    assert torch.equal(vq.codebook.weight, before)
    assert not care.fitted


def test_the_fit_turns_a_random_codebook_into_one_that_codes_the_features() -> None:
    vq, care, f = quantizer(), revival(), features()
    error, count = vq.quantize(f, SCHEDULE).codebook, used(vq, f)
    assert care.tend(vq, f, SCHEDULE, Progress(10, 100)) == 32
    assert care.fitted
    assert vq.quantize(f, SCHEDULE).codebook < 0.85 * error
    assert used(vq, f) > max(24, count)


def test_the_fit_happens_once() -> None:
    vq, care, f = quantizer(), revival(every=0), features()
    care.tend(vq, f, SCHEDULE, Progress(10, 100))
    fitted = vq.codebook.weight.detach().clone()
    care.tend(vq, f, SCHEDULE, Progress(11, 100))
    assert torch.equal(vq.codebook.weight, fitted)


def test_few_vectors_make_no_equal_codes() -> None:
    vq, care = quantizer(), revival()
    f = torch.randn(1, 6, 2, 2).repeat(4, 1, 2, 2)  # at most six different vectors for 32 codes
    care.tend(vq, f, SCHEDULE, Progress(10, 100))
    assert len(vq.codebook.weight.unique(dim=0)) == 32
    care.tend(vq, f, SCHEDULE, Progress(15, 100))
    assert len(vq.codebook.weight.unique(dim=0)) == 32


def test_dead_codes_come_to_be_used_and_living_ones_stay() -> None:
    vq, care, f = quantizer(), revival(start=0), features()
    with torch.no_grad():
        vq.codebook.weight[:8] = torch.randn(8, 6)
        vq.codebook.weight[8:] = 100.0
    for _ in range(120):
        care.observe(vq.encode(f, SCHEDULE))
    before, dead, count = vq.codebook.weight.detach().clone(), care.dead(), used(vq, f)
    assert dead[8:].all()
    assert care.tend(vq, f, SCHEDULE, Progress(5, 100)) == int(dead.sum())
    assert torch.equal(vq.codebook.weight[~dead], before[~dead])
    assert used(vq, f) > count + 12
    assert not care.dead().any()  # they get time to prove themselves


@pytest.mark.parametrize("step", [4, 40, 45])
def test_revival_keeps_to_its_steps_and_its_end(step: int) -> None:
    vq, care = quantizer(), revival(start=0)
    care.usage.zero_()
    assert care.tend(vq, features(), SCHEDULE, Progress(step, 100)) == 0


def test_usage_is_a_running_share_of_each_scales_tokens() -> None:
    vq, care, f = quantizer(), revival(start=0, decay=0.9), features()
    for _ in range(80):
        care.observe(vq.encode(f, SCHEDULE))
    counts = torch.stack([drawn.flatten().bincount(minlength=32) for drawn in vq.encode(f, SCHEDULE)]).float()
    torch.testing.assert_close(care.usage, counts / counts.sum(1, keepdim=True), atol=2e-4, rtol=0.02)
    torch.testing.assert_close(care.usage.sum(1), torch.ones(3))


def test_a_rare_code_of_the_coarsest_map_lives() -> None:
    """One picture in 48 batches of 16 has it: of the tokens of all maps one in 16,128."""
    care, fine = revival(start=0, codebook_size=1024), [torch.zeros(16, 4).long(), torch.zeros(16, 16).long()]
    once = torch.ones(16, 1).long()
    once[0] = 7
    for step in range(144):
        care.observe([once if step % 48 == 0 else torch.ones(16, 1).long(), *fine])
    assert not care.dead()[[0, 1, 7]].any()
    assert care.dead()[8:].all()


def test_the_same_step_draws_the_same_codes() -> None:
    f, books = features(), []
    for _ in range(2):
        torch.manual_seed(3)
        vq = quantizer()
        torch.manual_seed(len(books))  # the global generator has no say
        revival().tend(vq, f, SCHEDULE, Progress(10, 100))
        books.append(vq.codebook.weight.detach())
    assert torch.equal(*books)


def test_its_state_is_saved() -> None:
    care, other = revival(), revival()
    care.tend(quantizer(), features(), SCHEDULE, Progress(10, 100))
    care.observe(quantizer().encode(features(), SCHEDULE))
    other.load_state_dict(care.state_dict())
    assert other.fitted
    assert torch.equal(other.usage, care.usage)


@pytest.mark.parametrize("wrong", [{"every": -1}, {"decay": 1.0}, {"threshold": -0.1}, {"rounds": 0}])
def test_impossible_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="revival needs"):
        revival(**wrong)
