"""Captions to pictures to files."""

import warnings

import pytest
import torch
import torch.nn.functional as F

from galiplib.clip.bridge import ClipBridge
from galiplib.clip.training import new_clip, vocabulary_of
from galiplib.config import GalipConfig
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
    config = GalipConfig(channels=4, noise_dim=8, image_size=32, code_channels=8, fusion_blocks=1)
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
    a, b = recipes.noise_of_seeds([3, 4], 20_000)
    for share in (0.25, 0.5, 0.75):
        between = recipes.Recipe(RED, seed=3, seed_b=4, turn=share).noise(20_000)
        assert abs(float(between.std()) - 1) < 0.02  # on a straight line it would be 0.79 and 0.71
        assert torch.allclose(between, recipes.arc(b, a, 1 - share), atol=1e-5)
    assert torch.equal(recipes.Recipe(RED, seed=3, seed_b=3, turn=0.5).noise(8), recipes.noise_of_seeds([3], 8)[0])


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
        by_hand = generator(recipes.noise_of_seeds([0], 8), (b + 0.5 * (b - a))[None])
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
