"""Every measure against a value known from elsewhere: a closed form, scipy, torchmetrics, or a case worked by hand."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from galiplib import evaluation
from galiplib.evaluation import EvaluationError, Moments, Statistics, load_statistics, save_statistics


def gaussian(count, dim, seed, shift=0.0, scale=1.0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale + shift


class Through(nn.Module):
    """Passes features to torchmetrics in place of pictures."""

    num_features = 6

    def forward(self, x):
        return x


def test_frechet_of_known_gaussians_is_the_closed_form():
    a, b = torch.tensor([1.0, 4.0, 0.25]).double(), torch.tensor([9.0, 1.0, 0.25]).double()
    means = torch.tensor([0.0, 1.0, -2.0]).double(), torch.tensor([3.0, 1.0, 2.0]).double()
    turn = torch.linalg.qr(gaussian(3, 3, 0))[0]  # commuting covariances, not diagonal
    one, other = (Statistics(turn @ m, turn @ d.diag() @ turn.T, 99) for m, d in zip(means, (a, b), strict=True))
    closed = 25 + ((a.sqrt() - b.sqrt()) ** 2).sum().item()
    assert evaluation.frechet_of(one, other).value == pytest.approx(closed, rel=1e-6)
    assert evaluation.frechet_of(one, one).value == pytest.approx(0, abs=1e-9)


def test_frechet_agrees_with_scipy_and_torchmetrics():
    real, fake = gaussian(400, 6, 1), gaussian(300, 6, 2, 0.3, 1.4) @ gaussian(6, 6, 3) * 0.5
    ours = evaluation.frechet_distance(real, fake).value
    (m, c), (n, d) = ((x.mean(0).numpy(), np.cov(x.numpy(), rowvar=False)) for x in (real, fake))
    assert ours == pytest.approx(((m - n) ** 2).sum() + np.trace(c + d - 2 * sqrtm(c @ d).real), rel=1e-8)
    metric = FrechetInceptionDistance(feature=Through())
    metric.update(real, real=True)
    metric.update(fake, real=False)
    assert ours == pytest.approx(metric.compute().item(), rel=1e-5)
    assert evaluation.frechet_distance(real, real).value == pytest.approx(0, abs=1e-6)


def test_statistics_batch_by_batch_are_those_of_all():
    features = gaussian(100, 5, 4, shift=3)
    moments = Moments(5)
    for part in features.split(17):
        moments.update(part)
    found, whole = moments.statistics(), evaluation.statistics_of(features)
    for mine in (found, whole):
        torch.testing.assert_close(mine.mu, features.mean(0))
        torch.testing.assert_close(mine.sigma, features.T.cov())
    assert found.count == whole.count == 100
    with pytest.raises(EvaluationError, match=r"must be \(N, 5\)"):
        moments.update(gaussian(3, 4, 0))
    with pytest.raises(EvaluationError, match="not finite"):
        moments.update(torch.full((3, 5), math.nan))
    with pytest.raises(EvaluationError, match="two samples, not 1"):
        evaluation.statistics_of(features[:1])


def test_statistics_of_some_groups_together():
    features, group = gaussian(90, 4, 14), torch.arange(90) % 3
    moments = Moments(4, groups=3)
    for part in range(0, 90, 20):
        moments.update(features[part : part + 20], group[part : part + 20])
    for chosen in ([1], [0, 2]):
        own = features[torch.isin(group, torch.tensor(chosen))]
        found = moments.statistics(chosen)
        assert found.count == len(own)
        torch.testing.assert_close(found.mu, own.mean(0))
        torch.testing.assert_close(found.sigma, own.T.cov())


def test_kernel_distance_is_zero_for_alike_and_agrees_with_torchmetrics():
    real, fake = gaussian(600, 6, 5), gaussian(600, 6, 6, 0.5)
    same = evaluation.kernel_distance(real, gaussian(600, 6, 7))
    other = evaluation.kernel_distance(real, fake)
    assert abs(same.value) < 4 * same.error and other.value > 20 * same.error and other.count == 600
    spread = np.std([evaluation.kernel_distance(gaussian(60, 6, s), gaussian(60, 6, s + 500)).value for s in range(40)])
    stated = np.mean([evaluation.kernel_distance(gaussian(60, 6, s), gaussian(60, 6, s + 900)).error for s in range(9)])
    assert 0.5 * spread < stated < 2 * spread  # the error is what other samples would give
    metric = KernelInceptionDistance(feature=Through(), subsets=300, subset_size=100)
    torch.manual_seed(0)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    mean, std = metric.compute()
    assert abs(other.value - mean.item()) < 3 * (other.error + std.item() / 300**0.5)


def test_precision_recall_of_cases_known_by_hand():
    line = torch.arange(10.0)[:, None]

    def values(fake):
        return {name: found.value for name, found in evaluation.precision_recall(line, fake, 1).items()}

    assert values(line + 0.1) == {"precision": 1.0, "recall": 1.0, "density": pytest.approx(1.9), "coverage": 1.0}
    far = values(line + 100)
    assert far == {"precision": 0.0, "recall": 0.0, "density": 0.0, "coverage": 0.0}
    collapsed = torch.full((10, 1), 4.2) + torch.linspace(0, 0.01, 10)[:, None]
    found = values(collapsed)
    assert found["precision"] == 1.0 and found["recall"] == 0.0 and found["coverage"] == pytest.approx(0.2)
    with pytest.raises(EvaluationError, match="more than 5 samples a side, not 5 and 9"):
        evaluation.precision_recall(line[:5], line[:9])


def test_similarities():
    image, text = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [1.0, -1.0]])
    assert evaluation.cosines(image, text).tolist() == pytest.approx([1.0, -(0.5**0.5)])
    assert evaluation.clip_score(image, text).tolist() == pytest.approx([2.5, 0.0])


def test_r_precision_of_perfect_and_of_blind_embeddings():
    text = gaussian(300, 16, 8)
    captions = [f"caption {index}" for index in range(300)]
    assert evaluation.r_precision(text, text, captions).mean() == 1
    blind = evaluation.r_precision(gaussian(300, 16, 9), text, captions, candidates=10)
    assert blind.mean().item() == pytest.approx(0.1, abs=0.06)
    twice = torch.cat([text, text])  # the same wording is no wrong candidate
    assert evaluation.r_precision(twice, twice, captions * 2).mean() == 1
    with pytest.raises(EvaluationError, match="among 100 needs as many different captions, not 30"):
        evaluation.r_precision(text[:60], text[:60], captions[:30] * 2)


def test_diversity_is_the_mean_distance_within_a_caption():
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0], [1.0, 1.0], [9.0, 9.0]])
    assert evaluation.diversity(features, [0, 0, 1, 1, 2]).tolist() == [5.0, 0.0]
    with pytest.raises(EvaluationError, match="two pictures of a caption"):
        evaluation.diversity(features[:2], [0, 1])


def test_errors_are_those_of_repeated_experiments():
    """The jackknife's error of a mean is the usual one, and of a distance about its spread over new samples."""
    values = gaussian(500, 1, 10)
    usual = evaluation.mean_of(values[:, 0])
    assert usual.error == pytest.approx(values.std().item() / 500**0.5)
    group = torch.randperm(500, generator=torch.Generator().manual_seed(0)) % 10

    def of(samples, statistic):
        own = group[: len(samples)]
        return evaluation.jackknife(lambda kept: statistic(samples[torch.isin(own, torch.tensor(kept))]), 10)

    assert of(values, lambda x: x.mean().item()) == pytest.approx(usual.error, rel=0.6)
    real = gaussian(2000, 3, 11)

    def distance(fake):
        return evaluation.frechet_distance(real, fake).value

    spread = np.std([distance(gaussian(300, 3, seed, 0.4)) for seed in range(100, 130)])
    assert 0.4 * spread < of(gaussian(300, 3, 99, 0.4), distance) < 2.5 * spread


def test_statistics_files_ours_and_the_authors(tmp_path):
    statistics = evaluation.statistics_of(gaussian(50, 4, 12))
    save_statistics(tmp_path / "ours.npz", statistics, {"data": "birds", "crop": "1.5 x box"})
    loaded, note = load_statistics(tmp_path / "ours.npz", dim=4)
    assert note == {"data": "birds", "crop": "1.5 x box"} and loaded.count == 50
    assert torch.equal(loaded.mu, statistics.mu) and torch.equal(loaded.sigma, statistics.sigma)
    np.savez(tmp_path / "theirs.npz", mu=statistics.mu.numpy(), sigma=statistics.sigma.numpy())
    loaded, note = load_statistics(tmp_path / "theirs.npz")
    assert note == {} and evaluation.frechet_of(loaded, statistics).value == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no statistics file"),
        (b"nonsense", "no readable statistics file"),
        ({"mu": np.zeros(3)}, "lacks sigma; it holds mu"),
        ({"mu": np.zeros(3), "sigma": np.zeros((2, 2))}, r"mu is \(3,\) and sigma \(2, 2\)"),
        ({"mu": np.zeros(3), "sigma": np.eye(3)}, "over 3 features, and 4 are to be compared"),
        ({"mu": np.zeros(4), "sigma": np.full((4, 4), np.nan)}, "not finite"),
        ({"mu": np.array([{}], dtype=object), "sigma": np.eye(1)}, "no readable statistics file"),
    ],
)
def test_statistics_files_that_do_not_fit(tmp_path, content, message):
    path = tmp_path / "s.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.savez(path, **content)
    with pytest.raises(EvaluationError, match=message):
        load_statistics(path, dim=4)


def test_frechet_refuses_and_warns():
    with pytest.raises(EvaluationError, match=r"must be \(N, D\), \(M, D\)"):
        evaluation.frechet_distance(gaussian(9, 3, 0), gaussian(9, 4, 0))
    with pytest.raises(EvaluationError, match="3 features don't compare with those of 4"):
        evaluation.frechet_of(evaluation.statistics_of(gaussian(9, 3, 0)), evaluation.statistics_of(gaussian(9, 4, 0)))
    with pytest.warns(UserWarning, match="5 and 9 samples, fewer than the 6 features"):
        evaluation.frechet_distance(gaussian(5, 6, 0), gaussian(9, 6, 1))
