"""Captions to pictures to files, the figures, and the checkers of the exercises."""

import re
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from scipy.linalg import sqrtm

from galiplib.clip.bridge import ClipBridge
from galiplib.clip.training import new_clip, vocabulary_of
from galiplib.config import ModelConfig
from galiplib.course import checks, plotting
from galiplib.data import decoding as data_pictures
from galiplib.data import minibirds
from galiplib.sampling import recipe as recipes
from galiplib.sampling import sample as sampling
from galiplib.systems.galip import Generator

GEOMETRY = dict(
    embed_dim=32,
    image_resolution=32,
    vision_layers=3,
    vision_width=64,
    vision_patch_size=8,
    context_length=24,
    transformer_width=64,
    transformer_heads=1,
    transformer_layers=1,
)
RED, BLUE = "a red bird with black wings", "this is a blue bird in the snow"


@pytest.fixture(scope="module")
def birds():
    return minibirds.build("train", 24, size=32)


@pytest.fixture(scope="module")
def bridge(birds):
    torch.manual_seed(0)
    return ClipBridge(new_clip(GEOMETRY, vocabulary_of([*sum(birds.captions, []), RED, BLUE])))


@pytest.fixture(scope="module")
def generator(bridge):
    """Untrained, with weights large enough for noise and caption to show, and pictures within [-1, 1]."""
    torch.manual_seed(1)
    config = ModelConfig(channels=4, noise_dim=8, image_size=32, code_channels=8, fusion_blocks=1)
    generator = Generator(bridge, config)
    for parameter in generator.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.8 / parameter[0].numel() ** 0.5)
    made = generator(torch.randn(16, 8), torch.randn(16, 32))
    generator.to_rgb.weight.data *= 0.4 / made.std()
    return generator


# ---------------------------------------------------------------- sampling


def test_a_picture_depends_on_caption_and_seed_alone(generator, bridge):
    many = sampling.sample(generator, bridge, [RED, BLUE], count=5, seed=3)
    assert many.images.shape == (10, 3, 32, 32) and many.images.abs().max() <= 1
    assert many.captions == [RED] * 5 + [BLUE] * 5 and many.seeds == [3, 4, 5, 6, 7] * 2 and len(many) == 10
    alone = sampling.sample(generator, bridge, BLUE, count=1, seed=6)
    assert torch.equal(alone.images[0], many.images[8])  # bit for bit, whatever comes along
    in_threes = sampling.sample(generator, bridge, [RED, BLUE], count=5, seed=3, batch_size=3)
    torch.testing.assert_close(in_threes.images, many.images)  # batches round differently
    assert (many.images[0] - many.images[1]).abs().max() > 0.05  # other seed
    assert (many.images[0] - many.images[5]).abs().max() > 0.05  # other caption


def test_sampling_leaves_the_global_random_state_alone(generator, bridge):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    sampling.sample(generator, bridge, RED)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("captions", "options", "message"),
    [
        ("  ", {}, "the caption is empty"),
        ([RED, ""], {}, "caption 1 is empty"),
        ([], {}, "no caption"),
        ([RED, None], {}, "caption 1 is no text but None"),
        (RED, {"count": 0}, "count must lie between 1 and 4096, not 0"),
        (RED, {"count": 4097}, "not 4097"),
        (RED, {"seed": -1}, "seed must lie between 0 and 4294967295, not -1"),
        (RED, {"seed": 2**32 - 1, "count": 2}, "seed must lie"),
        (RED, {"batch_size": 0}, "batch_size must be at least 1"),
        (RED, {"count": -1}, "not -1"),
        (RED, {"count": 2.5}, "not 2.5"),
        (RED, {"truncation": -0.1}, "truncation must lie between 0 and 2, not -0.1"),
        (RED, {"truncation": float("nan")}, "truncation must lie between 0 and 2, not nan"),
        (RED, {"towards": BLUE, "share": 9}, "share must lie between -2 and 3, not 9"),
        (RED, {"share": 0.5}, "the second caption is empty"),
        (RED, {"turn": 0.5}, "give seed_b, too"),
        (RED, {"late_from": 2}, "the caption of the late blocks is empty"),
        (RED, {"truncate": 0.5}, "unknown truncate: a picture is made from caption, "),
        (RED + " \ud800", {}, r"holds '\\ud800', which is no whole character"),
    ],
)
def test_wrong_requests_say_what_is_wrong(generator, bridge, captions, options, message):
    with pytest.raises(ValueError, match=message):
        sampling.sample(generator, bridge, captions, **options)


def test_diverged_weights_are_reported(generator, bridge):
    bias = generator.to_rgb.bias.detach()
    before = bias.clone()
    bias.fill_(float("nan"))
    try:
        with pytest.raises(FloatingPointError, match="1 of 1 pictures hold NaN"):
            sampling.sample(generator, bridge, RED, count=2)
    finally:
        bias.copy_(before)


def test_interpolation_starts_and_ends_at_the_captions(generator, bridge):
    walk = sampling.interpolate(generator, bridge, RED, BLUE, steps=4, seed=2)
    ends = sampling.sample(generator, bridge, [RED, BLUE], seed=2).images
    torch.testing.assert_close(walk.images[[0, -1]], ends)
    assert walk.captions[:2] == [RED, f"67% {RED}, 33% {BLUE}"] and walk.captions[3] == BLUE and walk.seeds == [2] * 4
    with pytest.raises(ValueError, match="steps must lie between 2"):
        sampling.interpolate(generator, bridge, RED, BLUE, steps=1)
    turn = sampling.interpolate(generator, bridge, RED, steps=3, seed=2, seed_b=7)
    ends = torch.cat([sampling.sample(generator, bridge, RED, seed=seed).images for seed in (2, 7)])
    assert torch.equal(turn.images[[0, -1]], ends)


def test_noise_is_turned_on_an_arc():
    a, b = recipes.noise_of([3, 4], 20_000)
    for share in (0.25, 0.5, 0.75):
        between = recipes.Recipe(RED, seed=3, seed_b=4, turn=share).noise(20_000)
        assert abs(float(between.std()) - 1) < 0.02  # on a straight line it would be 0.79 and 0.71
        assert torch.allclose(between, recipes.arc(b, a, 1 - share), atol=1e-5)
    assert torch.equal(recipes.Recipe(RED, seed=3, seed_b=3, turn=0.5).noise(8), recipes.noise_of([3], 8)[0])


def test_truncation_shrinks_the_noise(generator, bridge):
    spread = [
        sampling.sample(generator, bridge, RED, count=8, truncation=truncation).images.std(dim=0).mean()
        for truncation in (0, 0.5, 1)
    ]
    assert spread[0] == 0 and spread[1] < spread[2]


def test_guidance_goes_beyond_the_second_caption(generator, bridge):
    a, b = bridge.encode_text(bridge.tokenize([RED, BLUE]))
    made = sampling.sample(generator, bridge, RED, towards=BLUE, share=1.5)
    with torch.inference_mode():
        by_hand = generator(recipes.noise_of([0], 8), (b + 0.5 * (b - a))[None])
    torch.testing.assert_close(made.images, by_hand.clamp(-1, 1))
    assert made.captions == [f"-50% {RED}, 150% {BLUE}"]


def test_late_blocks_take_another_caption(generator, bridge):
    blocks = len(generator.blocks)
    many = sampling.sample(generator, bridge, [RED, BLUE], count=2, late=BLUE, late_from=1, batch_size=3).images
    assert (many[0] - sampling.sample(generator, bridge, RED).images[0]).abs().max() > 0.05
    assert (many[0] - many[2]).abs().max() > 0.01  # the first block still tells RED from BLUE
    torch.testing.assert_close(many[2:], sampling.sample(generator, bridge, BLUE, count=2).images)
    none = sampling.sample(generator, bridge, RED, late=BLUE, late_from=blocks)
    assert torch.equal(none.images, sampling.sample(generator, bridge, RED).images)
    assert none.captions == [f"{RED}, from block {blocks} on {BLUE}"]
    kinds = [recipes.Recipe(RED, late=BLUE, late_from=late) for late in (0, 1, 1)] + [recipes.Recipe(RED)]
    together = sampling.collect(generator, bridge, kinds, batch_size=8).images
    torch.testing.assert_close(together, sampling.collect(generator, bridge, kinds).images)
    with pytest.raises(ValueError, match=f"late_from must lie between 0 and {blocks}, the number of generator blocks"):
        sampling.sample(generator, bridge, RED, late=BLUE, late_from=blocks + 1)


def test_ranking_keeps_what_clip_finds_nearest(generator, bridge):
    best = sampling.rank(generator, bridge, RED, make=10, keep=3, seed=4)
    made = sampling.sample(generator, bridge, RED, count=10, seed=4)
    sentence = bridge.encode_text(bridge.tokenize([RED]))
    cosines = F.cosine_similarity(bridge.encode_image(made.images)[1], sentence)
    expected, order = cosines.sort(descending=True)
    assert best.seeds == [4 + index for index in order[:3].tolist()]
    assert torch.equal(best.images, made.images[order[:3]])
    torch.testing.assert_close(torch.tensor(best.scores), expected[:3], atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="keep must lie between 1 and the 4 pictures made, not 5"):
        sampling.rank(generator, bridge, RED, make=4, keep=5)


def test_a_caption_beyond_the_context_is_cut_with_a_notice(generator, bridge):
    long = " ".join(["a red bird with black wings"] * 83)[:2600]  # 500 words and a half
    with pytest.warns(UserWarning, match=r"longer than the 24 tokens that CLIP reads; left out: .*…"):
        cut = sampling.sample(generator, bridge, long)
    same = sampling.sample(generator, bridge, " ".join(long.split()[:22]))
    assert torch.equal(cut.images, same.images)


@pytest.mark.parametrize(
    "caption", ["a red\nbird\twith  black wings", "a red bird with 🐦 black wings", "rødt 赤い a red bird"]
)
def test_other_scripts_and_white_space_are_no_obstacle(generator, bridge, caption):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = sampling.sample(generator, bridge, caption)
    known = "a red bird with black wings" if "black" in caption else "a red bird"
    assert torch.equal(made.images, sampling.sample(generator, bridge, known).images)


# ---------------------------------------------------------------- plotting


def test_figures_come_from_every_kind_of_input(birds, bridge):
    signed = torch.tensor(birds.images[:3]).permute(0, 3, 1, 2) / 127.5 - 1
    features, _ = bridge.encode_image(signed)
    shares = {"body": 0.9, "wing": 0.8, "belly": None, "background": 1.0}
    results = {"caption_accuracy": shares, "caption_accuracy_real": shares, "chance": {"body": 0.1}}
    records = [{"step": 0, "loss_d": 1.0, "similarity": 0.1}, {"step": 5, "loss_d": np.nan, "penalty": 0.2}]
    figures = [
        plotting.image_grid(birds.images),
        plotting.image_grid(signed, titles=["costs $5", "or $6", "a_b"]),
        plotting.feature_maps(signed, features, bridge.taps),
        plotting.similarity_matrix(torch.eye(3), signed, ["a", "b $x", "c $y"]),
        plotting.similarity_matrix(np.eye(2, 3), ["one", "two"], ["a", "b", "c"]),
        plotting.training_curves(records),
        plotting.training_curves([{"grad_norm_g": 1.0}], plotting.PANELS | plotting.GRADIENT_PANEL),
        plotting.accuracy_bars(results),
        *map(plotting.pipeline, plotting.PARTS),
    ]
    for figure in figures:
        assert isinstance(figure, Figure)
        figure.draw_without_rendering()
    assert len(figures[0].axes) == 24
    assert plotting.plt.get_fignums() == []  # nothing is shown twice


def test_figures_refuse_what_does_not_fit(birds):
    with pytest.raises(ValueError, match="2 titles for 24 pictures"):
        plotting.image_grid(birds.images, titles=["a", "b"])
    with pytest.raises(ValueError, match=r"matrix \(2, 2\) for 24 pictures and 1 captions"):
        plotting.similarity_matrix(np.eye(2), birds.images, ["a"])
    with pytest.raises(ValueError, match="nothing to plot"):
        plotting.training_curves([{"step": 1}])
    with pytest.raises(ValueError, match="no caption accuracy"):
        plotting.accuracy_bars({"chance": {"body": 0.1}})
    with pytest.raises(ValueError, match="unknown part 'critic': one of data, clip"):
        plotting.pipeline("critic")


def test_running_mean_leaves_gaps_out():
    values = np.array([1.0, np.nan, 3.0, 5.0, 7.0])
    assert plotting.running_mean(values, 3).tolist() == [1.0, 2.0, 4.0, 5.0, 6.0]
    assert np.isnan(plotting.running_mean(np.array([np.nan, np.nan, np.nan]), 2)).all()


def test_pipeline_boxes_hold_their_text():
    figure = plotting.pipeline("generator")
    figure.draw_without_rendering()
    ax = figure.axes[0]
    for name, (x, y, text, _) in plotting.BLOCKS.items():
        drawn = next(t for t in ax.texts if t.get_text() == text).get_window_extent()
        corners = [(x - 0.41, y - 0.21), (x + 0.41, y + 0.21)]
        left, bottom, right, top = ax.transData.transform(corners).ravel()
        assert left + 4 < drawn.x0 and drawn.x1 < right - 4 and bottom < drawn.y0 and drawn.y1 < top, name


# ---------------------------------------------------------------- checkers


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
        (checks.check_box_crop, [lambda box, size: data_pictures.square_around(box, size, "a.jpg")]),
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
