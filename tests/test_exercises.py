"""The checkers of the exercises: right solutions pass, and every mistake is called by its name."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import sqrtm

from galiplib.course import checks
from galiplib.data import minibirds
from galiplib.data.decoding import square_around


def spread(x):
    return x[:, :, None, None]


def frechet(mu1, cov1, mu2, cov2):
    return ((mu1 - mu2) ** 2).sum() + np.trace(cov1 + cov2 - 2 * sqrtm(cov1 @ cov2).real)


def contrastive(image, text, scale, rows=1.0, columns=1.0, normalise=F.normalize):
    logits = scale * normalise(image) @ normalise(text).T
    target = torch.arange(len(logits))
    return (rows * F.cross_entropy(logits, target) + columns * F.cross_entropy(logits.T, target)) / 2


def asks(text):
    found = {}
    for part, nouns in {"body": "bird|body", "wing": "wings", "belly": "belly|breast"}.items():
        if match := re.search(rf"({'|'.join(minibirds.COLOURS)}) ({nouns})\b", text):
            found[part] = match[1]
    return found


def rolled(sentence):
    return sentence.roll(1, dims=0)


def real(logits):
    return F.relu(1 - logits).mean()


def fake(logits):
    return F.relu(1 + logits).mean()


def crop(box, size, factor=0.75, pick=max, centre=0.5, low=(0, 0)):
    (x, y, w, h), half = box, factor * pick(box[2:])
    cx, cy = x + centre * w, y + centre * h
    return max(cx - half, low[0]), max(cy - half, low[1]), min(cx + half, size[0]), min(cy + half, size[1])


def with_torch(mu1, cov1, mu2, cov2):
    root = torch.linalg.eigvals(cov1 @ cov2).sqrt().real.sum()
    return (mu1 - mu2).square().sum() + cov1.trace() + cov2.trace() - 2 * root


@pytest.mark.parametrize(
    ("check", "solutions"),
    [
        (checks.check_affine, [lambda x, gamma, beta: spread(gamma) * x + spread(beta)]),
        (checks.check_hinge, [real, fake]),
        (checks.check_mismatch, [rolled]),
        (checks.check_mismatch, [lambda s: torch.cat([s[1:], s[:1]])]),
        (checks.check_contrastive, [contrastive]),
        (checks.check_frechet, [frechet]),
        (checks.check_frechet, [with_torch]),
        (checks.check_caption_asks, [asks]),
        (checks.check_box_crop, [crop]),
        (checks.check_box_crop, [lambda box, size: np.array(crop(box, size)).astype(int)]),
        (checks.check_box_crop, [lambda box, size: square_around(box, size, "a.jpg")]),
        (checks.check_overflow_norm, [lambda largest, weight, power: (largest / weight) ** (1 / power)]),
        (checks.check_overflow_norm, [lambda largest, weight, power: torch.tensor(largest / weight) ** (1 / power)]),
        (checks.check_channel_shuffle, [lambda x: x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)]),
        (checks.check_channel_shuffle, [lambda x: torch.stack(x.chunk(2, dim=1), dim=2).flatten(1, 2)]),
    ],
)
def test_right_solutions_pass(check, solutions):
    assert check(*solutions).startswith("passed")
    assert check(*[lambda *_: None for _ in solutions]) == checks.NOT_TRIED


def test_one_written_hinge_is_checked_and_the_other_awaited():
    assert checks.check_hinge(real, lambda logits: None) == checks.NOT_TRIED
    with pytest.raises(checks.CheckFailed, match="the fake loss: the sign"):
        checks.check_hinge(lambda logits: None, real)


def in_place(x, gamma, beta):
    x *= spread(gamma)
    return x + spread(beta)


@pytest.mark.parametrize(
    ("solution", "message"),
    [
        (lambda x, gamma, beta: gamma * x + beta, r"raised RuntimeError.*\(B, C, 1, 1\)"),
        (lambda x, gamma, beta: gamma * x.mean((2, 3)) + beta, r"got shape \(2, 3\).*more axes"),
        (lambda x, gamma, beta: spread(gamma) * x, "beta is missing"),
        (lambda x, gamma, beta: x + spread(beta), "gamma is missing"),
        (lambda x, gamma, beta: spread(beta) * x + spread(gamma), "swapped"),
        (lambda x, gamma, beta: (1 + spread(gamma)) * x + spread(beta), r"not 1 \+ gamma"),
        (lambda x, gamma, beta: spread(gamma) * (x + spread(beta)), "beta is scaled too"),
        (lambda x, gamma, beta: 0.5 * x, "values are off by"),
        (lambda x, gamma, beta: "x", "got str"),
        (in_place, "in place"),
    ],
)
def test_affine_mistakes(solution, message):
    with pytest.raises(checks.CheckFailed, match=message):
        checks.check_affine(solution)


@pytest.mark.parametrize(
    ("solutions", "message"),
    [
        ((fake, real), "the real loss: the sign of the logit"),
        ((real, lambda x: F.relu(1 + x)), "the fake loss: .*mean over the batch"),
        ((real, lambda x: F.relu(1 + x).sum()), "not the sum"),
        ((lambda x: (1 - x).mean(), fake), r"max\(0, ...\) is missing"),
        ((lambda x: F.relu(-x).mean(), fake), "margin of 1 is missing"),
        ((lambda x: F.softplus(-x).mean(), fake), "logistic loss"),
        ((lambda x: real(x).item(), fake), r"without .item\(\)"),
        ((lambda x: real(x.detach()), fake), "no gradient flows"),
    ],
)
def test_hinge_mistakes(solutions, message):
    with pytest.raises(checks.CheckFailed, match=message):
        checks.check_hinge(*solutions)


@pytest.mark.parametrize(
    ("solution", "message"),
    [
        (lambda s: s, "still in their places"),
        (lambda s: s.flip(0), "with 3 sentences, row 1 stayed"),
        (lambda s: s[torch.randperm(len(s))], "stayed in its place|still in their places"),
        (lambda s: s.roll(1, dims=1), "numbers inside each sentence moved"),
        (lambda s: s.roll(1), "move whole rows"),
        (lambda s: s[:1].expand_as(s), "some sentence was lost"),
        (lambda s: s[1:], r"got shape \(1, 5\)"),
    ],
)
def test_mismatch_mistakes(solution, message):
    with pytest.raises(checks.CheckFailed, match=message):
        checks.check_mismatch(solution)


@pytest.mark.parametrize(
    ("solution", "message"),
    [
        (lambda i, t, s: contrastive(i, t, s, normalise=lambda x: x), "not normalised"),
        (lambda i, t, s: contrastive(i, t, s, normalise=lambda x: F.normalize(x, dim=0)), "along the batch"),
        (lambda i, t, s: contrastive(i, t, s, 2, 0), "only one direction, picture to text"),
        (lambda i, t, s: contrastive(i, t, s, 0, 2), "only one direction, text to picture"),
        (lambda i, t, s: contrastive(i, t, s, 2, 2), "summed: take their mean"),
        (lambda i, t, s: contrastive(i, t, 1), "scale is missing"),
        (lambda i, t, s: contrastive(i, t, 1 / s), "divided by the scale"),
        (lambda i, t, s: contrastive(i, t, s.exp()), "leave out the exp"),
        (lambda i, t, s: contrastive(i.detach(), t, s), "no gradient"),
        (lambda i, t, s: i @ t.T, "these are the logits"),
        (lambda i, t, s: i @ t, r"image @ text.T is \(B, B\)"),
    ],
)
def test_contrastive_mistakes(solution, message):
    with pytest.raises(checks.CheckFailed, match=message):
        checks.check_contrastive(solution)


@pytest.mark.parametrize(
    ("solution", "message"),
    [
        (lambda m, c, n, d: frechet(m, c, m, d), "means are missing"),
        (lambda m, c, n, d: frechet(m, c, n, d) ** 0.5, "square root too much"),
        (lambda m, c, n, d: ((m - n) ** 2).sum(), "covariances are missing"),
        (lambda m, c, n, d: ((m - n) ** 2).sum() + np.trace(c + d), "square root's term is missing"),
        (lambda m, c, n, d: ((m - n) ** 2).sum() + np.trace(c + d - sqrtm(c @ d).real), "factor 2"),
        (lambda m, c, n, d: frechet(m, c, m, d) + np.linalg.norm(m - n), "must be squared"),
        (lambda m, c, n, d: ((m - n) ** 2).sum() + np.trace(c + d - 2 * np.sqrt(c * d)), "number by number"),
        (lambda m, c, n, d: (m - n) ** 2 + c + d - 2 * sqrtm(c @ d).real, "trace .* missing"),
        (lambda m, c, n, d: frechet(m, c, n, d) + 0j, "take .real"),
        (lambda m, c, n, d: float("nan"), "NaN"),
        (lambda m, c, n, d: c @ d @ m[:2], "raised ValueError"),
    ],
)
def test_frechet_mistakes(solution, message):
    with np.errstate(invalid="ignore"), pytest.raises(checks.CheckFailed, match=message):
        checks.check_frechet(solution)


@pytest.mark.parametrize(
    ("solution", "message"),
    [
        (lambda text: {}, "the body is red, you found nothing"),
        (lambda text: {k.replace("wing", "wings"): v for k, v in asks(text).items()}, "without s"),
        (lambda text: {k: len(v) for k, v in asks(text).items()}, "colour's name 'red'"),
        (lambda text: asks(text.replace("breast", "")), "pink breast.* names it"),
        (lambda text: asks(text.replace("body", "")), "both name it"),
        (lambda text: asks(text.replace("beak", "body")), "that is the beak's colour"),
        (lambda text: {"body": "red", "wing": "black"}, "leave out what the caption does not name"),
        (lambda text: [], "expected a dict such as"),
    ],
)
def test_caption_mistakes(solution, message):
    with pytest.raises(checks.CheckFailed, match=message):
        checks.check_caption_asks(solution)


FAR = (-999, -999)


@pytest.mark.parametrize(
    ("solution", "message"),
    [
        (lambda b, s: (b[0], b[1], b[0] + b[2], b[1] + b[3]), r"box \(100, 60, 40, 20\).*the box itself"),
        (lambda b, s: (*crop((*b[:2], b[2], b[2]), s)[:1], *crop((*b[:2], b[3], b[3]), s)), "expected four numbers"),
        (lambda b, s: crop(b, s, factor=0.5), "1.5 is missing"),
        (lambda b, s: crop(b, s, factor=1.5), "three times the box"),
        (lambda b, s: crop(b, s, pick=min), "shorter side"),
        (lambda b, s: crop(b, s, centre=0), "box's corner"),
        (lambda b, s: (90, 40, 60, 60), "not width and height"),
        (lambda b, s: (90, 55, 150, 85), "both sides get 1.5"),
        (lambda b, s: crop(b, (999, 999), low=FAR), r"box \(4, 8.*left and top are at least 0"),
        (lambda b, s: crop(b, s, low=FAR), "reaches out of the picture"),
        (lambda b, s: crop(b, (999, 999)), r"box \(240, .*right at most the width"),
        (lambda b, s: crop(b, s if s[0] > 120 else s[::-1]), "swapped"),
        (lambda b, s: (1, 2, 3, 4), r"expected \(90, 40, 150, 100\), got \(1, 2, 3, 4\)"),
        (lambda b, s: 7, "expected four numbers"),
        (lambda b, s: (1, 2, 3, float("nan")), "expected four numbers"),
        (lambda b, s: b[4], "raised IndexError"),
    ],
)
def test_box_crop_mistakes(solution, message):
    with pytest.raises(checks.CheckFailed, match=message):
        checks.check_box_crop(solution)


@pytest.mark.parametrize(
    ("solution", "message"),
    [
        (lambda largest, weight, power: largest ** (1 / power), "weight 2, power 6: the weight is missing"),
        (lambda largest, weight, power: largest ** (1 / power) / weight, "divide by it first"),
        (lambda largest, weight, power: (largest * weight) ** (1 / power), "multiplied by the weight"),
        (lambda largest, weight, power: largest / weight, "the power is missing"),
        (lambda largest, weight, power: (largest / weight) ** power, "its inverse, the root"),
        (lambda largest, weight, power: largest / weight / power, "divided by the power"),
        (lambda largest, weight, power: (weight / largest) ** (1 / power), "sign of the power"),
        (lambda largest, weight, power: np.log(largest / weight) / power, "take exp"),
        (lambda largest, weight, power: 5.6564, "weight 32768, power 6: expected 1.1224, got 5.6564"),
        (lambda largest, weight, power: "5.67", "got str"),
        (lambda largest, weight, power: 1 / 0, "raised ZeroDivisionError"),
    ],
)
def test_overflow_norm_mistakes(solution, message):
    with pytest.raises(checks.CheckFailed, match=message):
        checks.check_overflow_norm(solution)


@pytest.mark.parametrize(
    ("solution", "message"),
    [
        (lambda x: x.unflatten(1, (2, -1)).flatten(1, 2), "nothing has moved"),
        (lambda x: x.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2), "neighbours were put apart"),
        (lambda x: x.roll(x.shape[1] // 2, 1), "the halves have changed places"),
        (lambda x: x.unflatten(1, (2, -1)).flip(1).transpose(1, 2).flatten(1, 2), "the second half comes first"),
        (lambda x: x.unflatten(1, (2, -1)).transpose(1, 2), "flatten the two axes"),
    ],
)
def test_channel_shuffle_mistakes(solution, message):
    with pytest.raises(checks.CheckFailed, match=message):
        checks.check_channel_shuffle(solution)


def test_unwritten_functions_of_every_kind():
    def todo(*_):
        raise NotImplementedError

    for check in (checks.check_affine, checks.check_mismatch, checks.check_frechet):
        assert check(todo) == check(None) == checks.NOT_TRIED


def test_exercise_energy_share():
    assert checks.check_energy_share(lambda a, b: None) == checks.NOT_TRIED

    def right(a, b):
        return a.square().mean() / (a.square().mean() + b.square().mean())

    assert checks.check_energy_share(right).startswith("passed")
    wrong = {
        "ratio": lambda a, b: a.square().mean() / b.square().mean(),
        "energy of the sum": lambda a, b: a.square().mean() / (a + b).square().mean(),
        "generator's share": lambda a, b: right(b, a),
        "absolute": lambda a, b: a.abs().mean() / (a.abs() + b.abs()).mean(),
        "variances": lambda a, b: a.var() / (a.var() + b.var()),
        "the whole batch": lambda a, b: a.square().mean((1, 2, 3)),
    }
    for hint, fn in wrong.items():
        with pytest.raises(checks.CheckFailed, match=hint):
            checks.check_energy_share(fn)


def test_exercise_mixed():
    assert checks.check_mixed(lambda f, n, s: None) == checks.NOT_TRIED
    assert checks.check_mixed(lambda f, n, s: F.layer_norm(f + s * n, (50,))).startswith("passed")

    def by_hand(features, noise, scale):
        mixed = features + scale * noise
        return (mixed - mixed.mean(1, keepdim=True)) / mixed.std(1, keepdim=True)

    assert checks.check_mixed(by_hand).startswith("passed")
    wrong = {
        "not normalised": lambda f, n, s: f + s * n,
        "variance is not 1": lambda f, n, s: f + s * n - (f + s * n).mean(1, keepdim=True),
        "right on average": lambda f, n, s: (f + s * n) / (1 + s**2) ** 0.5,
        "over the batch": lambda f, n, s: (f + s * n - (f + s * n).mean(0)) / (f + s * n).std(0, correction=0),
    }
    for hint, fn in wrong.items():
        with pytest.raises(checks.CheckFailed, match=hint):
            checks.check_mixed(fn)


def test_exercise_energy_score():
    def score(a, b, x, third=-1.0, length=lambda d: d.norm(dim=1), reduce=torch.mean):
        return reduce(length(a - x) + length(b - x) + third * length(a - b))

    assert checks.check_energy_score(lambda a, b, x: None) == checks.NOT_TRIED
    assert checks.check_energy_score(score).startswith("passed")
    for fn, message in (
        (lambda a, b, x: score(a, b, x, third=1), "should be rewarded"),
        (lambda a, b, x: score(a, b, x, third=0), "drawing always the same is free"),
        (lambda a, b, x: score(a, b, x, length=lambda d: d.square().sum(1)), "only means count"),
        (lambda a, b, x: score(a, b, x, length=lambda d: d.abs().sum(1)), "take the length"),
        (lambda a, b, x: score(a, b, x, reduce=torch.sum), "not the sum"),
        (lambda a, b, x: score(a, b, x, reduce=lambda d: d), "one number for the whole batch"),
        (lambda a, b, x: -score(a, b, x), "wrong sign"),
        (lambda a, b, x: score(a, b, x).item(), "got float"),
        (lambda a, b, x: score(a, b, x).detach(), "no gradient flows back"),
    ):
        with pytest.raises(checks.CheckFailed, match=message):
            checks.check_energy_score(fn)


def test_exercise_nearest():
    def apart(features, among):
        distances = torch.cdist(features, among, compute_mode="donot_use_mm_for_euclid_dist")
        return distances.where(distances > 0, torch.inf)

    assert checks.check_nearest(lambda features, among: None) == checks.NOT_TRIED
    assert checks.check_nearest(lambda f, a: apart(f, a).min(1).values).startswith("passed")
    wrong = {
        "finds itself": lambda f, a: torch.cdist(f, a).min(1).values,
        "squared": lambda f, a: apart(f, a).min(1).values ** 2,
        "farthest": lambda f, a: torch.cdist(f, a).max(1).values,
        "to each of them": apart,
        "for each of the N": lambda f, a: apart(f, a).min(),
    }
    for said, fn in wrong.items():
        with pytest.raises(AssertionError, match=said):
            checks.check_nearest(fn)


def decibels(made, wanted, peak=4.0, mean=lambda error: error.square().mean(), log=np.log10, gain=10.0):
    return gain * float(log(peak / float(mean(made - wanted))))


def test_decibels():
    assert checks.check_decibels(lambda made, wanted: None) == checks.NOT_TRIED
    assert checks.check_decibels(decibels).startswith("passed")
    for said, wrong in {
        "not 1": {"peak": 1.0}, "not 2": {"peak": 2.0}, "0 to 255": {"peak": 255.0**2}, "natural": {"log": np.log},
        "not 20": {"gain": 20.0}, "bel": {"gain": 1.0}, "sign": {"gain": -10.0},
        "square the error": {"mean": lambda error: error.abs().mean()},
        "not its sum": {"mean": lambda error: error.square().sum()},
    }.items():  # fmt: skip
        with pytest.raises(checks.CheckFailed, match=said):
            checks.check_decibels(lambda made, wanted, wrong=wrong: decibels(made, wanted, **wrong))


def test_exercise_modulated():
    def modulated(x, weight, style, length=lambda own, style: style.square() @ own.T, root=0.5, padding=1):
        made = F.conv2d(x * style[:, :, None, None], weight, padding=padding)
        return made / (length(weight.square().sum((2, 3)), style) + 1e-8)[:, :, None, None] ** root

    assert checks.check_modulated(lambda x, weight, style: None) == checks.NOT_TRIED
    assert checks.check_modulated(modulated).startswith("passed")
    for fn, message in (
        (lambda x, w, s: F.conv2d(x * s[:, :, None, None], w, padding=1), "demodulation is missing"),
        (lambda x, w, s: F.conv2d(x, w, padding=1), "modulation is missing"),
        (lambda x, w, s: modulated(x, w, s, lambda own, style: own.sum(1).expand(len(style), -1)), "as they are"),
        (lambda x, w, s: modulated(x, w, s, lambda own, style: style @ own.T), "its square their squared length"),
        (lambda x, w, s: modulated(x, w, s, lambda own, style: (style**2 @ own.T).sum(1, True)), "each has its own"),
        (lambda x, w, s: modulated(x, w, s, lambda own, style: (style + 9).square() @ own.T), "values are off"),
        (lambda x, w, s: modulated(x, w, s, root=1), "take the root"),
        (lambda x, w, s: modulated(x, w, s, padding=0), "a padding of 1"),
    ):
        with pytest.raises(checks.CheckFailed, match=message):
            checks.check_modulated(fn)
