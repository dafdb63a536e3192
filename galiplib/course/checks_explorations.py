"""Checkers for the exercises of notebooks 09 and 11, in the manner of `checks`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .checks import NOT_TRIED, CheckFailed, _call, _check_tensor, _compare

__all__ = ["NOT_TRIED", "CheckFailed", "check_energy_share", "check_mixed"]


def check_energy_share(fn: Callable[[Tensor, Tensor], Tensor]) -> str:
    """`fn(image_part (B, 3, H, W), generated (B, 3, H, W)) -> scalar`: the first one's part of the energy of both."""
    draw = torch.Generator().manual_seed(0)
    a = 0.3 * torch.randn(2, 3, 4, 5, generator=draw) + 0.2
    b = torch.randn(2, 3, 4, 5, generator=draw) - 0.1
    value = _call(fn, a, b)
    if value is None:
        return NOT_TRIED
    value = torch.as_tensor(value)
    _check_tensor(value, (), {(2,): "one number for the whole batch: take the mean over all axes"})
    energy, other = a.square().mean(), b.square().mean()
    mistakes = {
        "that is the ratio of the two energies: divide by their sum": energy / other,
        "that is the generator's share: the image's part goes on top": other / (energy + other),
        "divide by the sum of the energies, not by the energy of the sum: there the branches may cancel": (
            energy / (a + b).square().mean()
        ),
        "those are absolute values: energy is the mean of the squares": a.abs().mean() / (a.abs() + b.abs()).mean(),
        "those are norms: leave out the square root": energy.sqrt() / (energy.sqrt() + other.sqrt()),
        "those are variances: the energy counts what all pixels have in common too": (
            a.var(correction=0) / (a.var(correction=0) + b.var(correction=0))
        ),
        "those are variances: the energy counts what all pixels have in common, too": a.var() / (a.var() + b.var()),
        "the image's part alone: divide by the energy of both": energy,
    }
    _compare(value, energy / (energy + other), mistakes)
    return "passed: 0 for a silent branch, 1 for a silent generator"


def check_mixed(fn: Callable[[Tensor, Tensor, float], Tensor]) -> str:
    """`fn(features (B, Z), noise (B, Z), scale) -> (B, Z)`: features + scale * noise, rows of mean 0, variance 1."""
    draw = torch.Generator().manual_seed(0)
    features, noise = torch.randn(2, 4, 50, generator=draw)
    features = torch.nn.functional.layer_norm(features, (50,))
    for scale in (1.0, 3.0, 0.0):
        value = _call(fn, features, noise, scale)
        if value is None:
            return NOT_TRIED
        _check_tensor(value, (4, 50))
        mixed = features + scale * noise
        centred = mixed - mixed.mean(1, keepdim=True)
        right = centred / mixed.std(1, keepdim=True, correction=0)
        mistakes = {
            "the sum is not normalised: its variance is about 1 + scale ** 2": mixed,
            "the variance is 1, but the mean is not 0: subtract it": mixed / mixed.std(1, keepdim=True, correction=0),
            "the mean is 0, but the variance is not 1: divide by the standard deviation": centred,
            "divided by the variance: its root, the standard deviation, is asked for": (
                centred / mixed.var(1, keepdim=True, correction=0)
            ),
            "normalised over the batch: each row has its own mean and variance": (
                (mixed - mixed.mean(0)) / mixed.std(0, correction=0)
            ),
            "normalised over all rows together: each has its own mean and variance": (
                (mixed - mixed.mean()) / mixed.std(correction=0)
            ),
            "the length is 1: it is the variance that should be": torch.nn.functional.normalize(mixed, dim=1),
            "divided by sqrt(1 + scale ** 2): right on average, but not in every row": mixed / (1 + scale**2) ** 0.5,
            "the scale is missing": torch.nn.functional.layer_norm(features + noise, (50,)),
            "the scale belongs to the noise, not to the features": (
                torch.nn.functional.layer_norm(scale * features + noise, (50,))
            ),
        }
        loose = centred / mixed.std(1, keepdim=True)  # with N - 1 in the variance: as good
        if not torch.allclose(value, loose, rtol=1e-3, atol=1e-4):
            _compare(value, right, mistakes)
    return "passed: every row has mean 0 and variance 1, whatever the scale"
