from __future__ import annotations

import torch
import torch.nn.functional as F

from star.nn.gelu import gelu


def test_it_is_the_tanh_form_and_so_is_its_slope() -> None:
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e30, -1e10, 0.0, 1e10, 1e30])]).requires_grad_()
    ours, theirs = gelu(x), F.gelu(x, approximate="tanh")
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=2e-6)
    slopes = [torch.autograd.grad(y.sum(), x)[0][:4001] for y in (ours, theirs)]
    torch.testing.assert_close(*slopes, atol=2e-6, rtol=2e-6)
    with torch.no_grad():
        assert torch.equal(gelu(x), ours)


def test_in_bf16_it_is_within_rounding_of_it() -> None:
    """The largest difference of the two forms lies below half of a bf16 unit at the numbers that matter."""
    x = torch.linspace(-12, 12, 40001).bfloat16().requires_grad_()
    wide = x.detach().float().requires_grad_()
    ours, exact = gelu(x), F.gelu(wide, approximate="tanh")
    rounding = exact.abs() * 2**-8
    assert ((ours.float() - exact).abs() <= rounding + 4.8e-4).all()
    slope, exact_slope = (torch.autograd.grad(y.sum(), z)[0].float() for y, z in ((ours, x), (exact, wide)))
    assert ((slope - exact_slope).abs() <= exact_slope.abs() * 2**-7 + 2e-3).all()


def test_other_dtypes_are_pytorchs_own() -> None:
    x = torch.randn(50).double()
    assert torch.equal(gelu(x), F.gelu(x, approximate="tanh"))
