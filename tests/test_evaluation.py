"""The measures: known answers, known limits, and no number that depends on the batch size."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from galiplib import evaluation, minibirds
from galiplib.clip_bridge import ClipBridge
from galiplib.clip_training import new_clip, vocabulary_of
from galiplib.config import EvalConfig, ModelConfig
from galiplib.evaluation import EvaluationError
from galiplib.generator import Generator
from galiplib.judge import FEATURES, JUDGED, load_judge
from galiplib.training_data import to_images

IMAGES = 600  # halves of halves still have more pictures than the judge has features
few_samples = pytest.mark.filterwarnings("ignore:Fréchet distance from")


@pytest.fixture(scope="module")
def judge():
    return load_judge()


@pytest.fixture(scope="module")
def data():
    return {split: minibirds.build(split, IMAGES // 2, seed=31) for split in ("seen", "test")}


@pytest.fixture(scope="module")
def bridge(data):
    torch.manual_seed(0)
    texts = [text for split in data.values() for captions in split.captions for text in captions]
    geometry = dict(embed_dim=16, image_resolution=56, vision_layers=2, vision_width=64, vision_patch_size=14)
    geometry |= dict(context_length=24, transformer_width=32, transformer_heads=1, transformer_layers=1)
    return ClipBridge(new_clip(geometry, vocabulary_of(texts)))


@pytest.fixture(scope="module")
def generator(bridge):
    torch.manual_seed(1)
    config = ModelConfig(channels=4, noise_dim=8, image_size=56, code_channels=8, fusion_blocks=1)
    return Generator(bridge, config)


class Replay(nn.Module):
    """A generator that hands out given pictures in turn, whatever it is asked for."""

    noise_dim = 4

    def __init__(self, images):
        super().__init__()
        self.images, self.next = images, 0

    def forward(self, noise, sentence):
        self.next += len(noise)
        return self.images[self.next - len(noise) : self.next]


# ---------------------------------------------------------------- ranges


def test_ranges():
    images = torch.tensor([-1.5, -1.0, 0.0, 0.5, 1.0, 3.0]).view(6, 1, 1, 1)
    expected = {
        "signed": torch.tensor([-1, -1, 0, 0.5, 1, 1]),
        "unit": torch.tensor([0, 0, 0.5, 0.75, 1, 1]),
        "byte": torch.tensor([0, 0, 128, 191, 255, 255], dtype=torch.uint8),
    }
    for wanted, values in expected.items():
        result = evaluation.to_range(images, wanted)
        torch.testing.assert_close(result.flatten(), values, rtol=0, atol=0)
    with pytest.raises(ValueError, match="signed, unit, byte"):
        evaluation.to_range(images, "percent")


def test_every_pixel_value_survives_the_way_there_and_back():
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    back = evaluation.to_range(to_images(pixels), "byte").permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(back, pixels)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_pictures_that_are_not_finite_are_named(judge, bridge, value):
    images = torch.zeros(7, 3, 56, 56)
    images[5, 1, 2, 3] = value
    captions = ["a red bird"] * 7
    with pytest.raises(EvaluationError, match="picture 5 "):
        evaluation.to_range(images)
    with pytest.raises(EvaluationError, match="picture 5 "):
        evaluation.caption_accuracy(judge, images, captions)
    with pytest.raises(EvaluationError, match="picture 5 "):
        evaluation.clip_similarity(bridge, images, captions, batch_size=2)
    with pytest.raises(EvaluationError, match="picture 5 "):
        evaluation.generate(Replay(images), bridge, captions, batch_size=3)


# ---------------------------------------------------------------- Fréchet distance


def reference_distance(real, fake):
    """The formula as Heusel et al. (2017) print it, with scipy's matrix square root."""
    real, fake = real.double().numpy(), fake.double().numpy()
    covariances = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    means = np.square(real.mean(0) - fake.mean(0)).sum()
    return means + np.trace(covariances[0] + covariances[1] - 2 * root)


def gaussian(count, width, seed, shift=0.0):
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=rng, dtype=torch.float64)
    return torch.randn(count, width, generator=rng, dtype=torch.float64) @ mix + shift


@pytest.mark.parametrize("shift", [0.0, 3.0, 100.0])
def test_frechet_distance_is_the_closed_form(shift):
    real, fake = gaussian(500, 12, 1, shift), gaussian(400, 12, 2, shift + 0.5)
    result = evaluation.frechet_distance(real, fake)
    assert result.value == pytest.approx(reference_distance(real, fake), rel=1e-6)
    assert result[1:] == (500, 400)
    assert evaluation.frechet_distance(fake, real).value == pytest.approx(result.value, rel=1e-6)


def test_frechet_distance_of_gaussians_that_are_known():
    base = gaussian(200_000, 1, 3)
    base = (base - base.mean()) / base.std()
    # N(0, 1) and N(3, 2^2): (0 - 3)^2 + (1 - 2)^2
    assert evaluation.frechet_distance(base, 2 * base + 3).value == pytest.approx(10, rel=1e-6)


def test_identical_sets_have_no_distance():
    real = gaussian(300, 20, 4)
    assert evaluation.frechet_distance(real, real).value == pytest.approx(0, abs=1e-6)
    assert evaluation.frechet_distance(real, real.flip(0)).value == pytest.approx(0, abs=1e-6)


def test_floor_is_the_distance_of_disjoint_halves():
    real = gaussian(401, 8, 5)
    first, second = evaluation.halves(real)
    rows = {tuple(row.tolist()) for row in torch.cat([first, second])}
    assert len(first) == len(second) == 200 and len(rows) == 400
    floor = evaluation.frechet_floor(real)
    assert floor == evaluation.frechet_distance(first, second) == evaluation.frechet_floor(real)
    assert floor.value < 0.1 * evaluation.frechet_distance(first, second + 3).value


def test_frechet_distance_refuses_what_has_none():
    with pytest.raises(EvaluationError, match="not 5 and 1"):
        evaluation.frechet_distance(torch.rand(5, 2), torch.rand(1, 2))
    with pytest.raises(EvaluationError, match=r"\(5, 2\), \(5, 3\)"):
        evaluation.frechet_distance(torch.rand(5, 2), torch.rand(5, 3))
    with pytest.raises(EvaluationError, match="finite"):
        evaluation.frechet_distance(torch.rand(5, 2), torch.full((5, 2), math.nan))
    with pytest.warns(UserWarning, match="5 and 9 samples, fewer than the 6 features"):
        evaluation.frechet_distance(torch.rand(5, 6), torch.rand(9, 6))


# ---------------------------------------------------------------- captions


def test_caption_accuracy_near_one_on_real_pictures_near_chance_on_shuffled(judge, data):
    rows, captions = evaluation.choose(data["seen"], 600)
    images = to_images(data["seen"].images[rows])
    right = evaluation.caption_accuracy(judge, images, captions)
    assert set(right) == set(JUDGED)
    assert min(share.value for share in right.values()) > 0.97, right
    # Six of the ten kinds of caption name the body, six the wing, six the belly, three the background.
    assert {name: share.count for name, share in right.items()} == {
        "body": 360, "wing": 360, "belly": 360, "background": 180,
    }
    order = np.random.default_rng(0).permutation(len(rows))
    shuffled = evaluation.caption_accuracy(judge, images, [captions[i] for i in order])
    for name, share in shuffled.items():
        assert share.value == pytest.approx(1 / len(minibirds.ATTRIBUTES[name]), abs=0.1), name


def test_an_attribute_counts_only_where_it_is_named(judge, data):
    images = to_images(data["seen"].images[:3])
    body = minibirds.ATTRIBUTES["body"]
    captions = [f"a {body[label]} bird" for label in data["seen"].labels[:2, 0]] + ["a small bird"]
    accuracy = evaluation.caption_accuracy(judge, images, captions)
    assert accuracy["body"] == (1.0, 2)
    assert accuracy["wing"].count == 0 and math.isnan(accuracy["wing"].value)
    with pytest.raises(EvaluationError, match="no caption names any"):
        evaluation.caption_accuracy(judge, images, ["a small bird", "a bird", "a large bird"])
    with pytest.raises(EvaluationError, match="3 pictures, but 1 captions"):
        evaluation.caption_accuracy(judge, images, ["a red bird"])


def test_choice_uses_every_picture_and_all_kinds(data):
    split = data["seen"]
    rows, captions = evaluation.choose(split, 2 * len(split))
    assert sorted(rows) == sorted([*range(len(split))] * 2)
    kinds = [split.captions[row].index(text) for row, text in zip(rows, captions, strict=True)]
    assert set(kinds) == set(range(10))
    assert sum(a != b for a, b in zip(captions[: len(split)], captions[len(split) :], strict=True)) > 50


# ---------------------------------------------------------------- generating


def test_batch_size_changes_no_picture(generator, bridge, data):
    _, captions = evaluation.choose(data["seen"], 13)
    small, large = (evaluation.generate(generator, bridge, captions, seed=5, batch_size=b) for b in (3, 13))
    assert small.shape == (13, 3, 56, 56)
    torch.testing.assert_close(small, large, rtol=1e-4, atol=1e-4)
    assert not torch.equal(large, evaluation.generate(generator, bridge, captions, seed=6, batch_size=13))


def test_noise_is_normal_and_each_row_its_own():
    noise = evaluation.noise_of(range(500), 100, seed=0)
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert len({tuple(row[:3].tolist()) for row in noise}) == 500
    torch.testing.assert_close(evaluation.noise_of([7], 100, seed=0)[0], noise[7], rtol=0, atol=0)


def test_modes_are_restored_even_after_an_error(generator, bridge):
    generator.train()
    generator.fusion.eval()
    evaluation.generate(generator, bridge, ["a red bird"])
    broken = Replay(torch.full((1, 3, 8, 8), math.nan)).train()
    with pytest.raises(EvaluationError):
        evaluation.generate(broken, bridge, ["a red bird"])
    assert generator.training and not generator.fusion.training and broken.training
    with pytest.raises(EvaluationError, match="no captions"):
        evaluation.generate(generator, bridge, [])


# ---------------------------------------------------------------- everything


@few_samples
def test_evaluate_is_the_same_for_every_batch_size(generator, bridge, judge, data):
    first, second = (
        evaluation.evaluate(generator, bridge, judge, data, config, progress=False)
        for config in (EvalConfig(images=40, batch_size=7), EvalConfig(images=40, batch_size=20))
    )
    accuracies = ("caption_accuracy", "caption_accuracy_held_out", "caption_accuracy_real", "chance")
    numbers = ("frechet_distance", "frechet_floor", "clip_similarity", "clip_similarity_real")
    assert set(first) == {*accuracies, *numbers, "frechet_images", "images"}
    for key in accuracies:
        assert list(first[key]) == list(JUDGED)
        assert first[key] == pytest.approx(second[key], abs=1e-6)
    for key in numbers:
        assert isinstance(first[key], float)
        assert first[key] == pytest.approx(second[key], rel=1e-3, abs=1e-5)
    assert first["images"] == 40 and first["frechet_images"] == 10
    assert first["chance"] == {"body": 0.1, "wing": 0.1, "belly": 0.1, "background": 0.25}


def test_perfect_pictures_reach_the_limits(generator, bridge, judge, data):
    """Real pictures in the generator's place must score as real ones, noise must not."""
    config = EvalConfig(images=IMAGES, batch_size=25)
    pictures = torch.cat([to_images(data[split].images) for split in ("test", "seen")])
    perfect = evaluation.evaluate(Replay(pictures), bridge, judge, data, config, progress=False)
    assert perfect["caption_accuracy"] == perfect["caption_accuracy_real"]
    assert min(perfect["caption_accuracy_held_out"].values()) > 0.95
    assert perfect["clip_similarity"] == pytest.approx(perfect["clip_similarity_real"], abs=1e-6)
    assert perfect["frechet_distance"] < 1.5 * perfect["frechet_floor"]
    noise = torch.rand(pictures.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    awful = evaluation.evaluate(Replay(noise), bridge, judge, data, config, progress=False)
    assert awful["frechet_distance"] > 3 * awful["frechet_floor"]
    assert awful["caption_accuracy"]["body"] < 0.4


def test_evaluate_names_a_missing_split(generator, bridge, judge, data):
    with pytest.raises(EvaluationError, match="missing: .'test'"):
        evaluation.evaluate(generator, bridge, judge, {"seen": data["seen"]}, EvalConfig(), progress=False)


def test_judge_features_do_not_depend_on_the_batch(judge, data):
    images = to_images(data["seen"].images[:20])
    features = evaluation.judge_features(judge, images, batch_size=20)
    assert features.shape == (20, FEATURES)
    torch.testing.assert_close(evaluation.judge_features(judge, images, 3), features, rtol=1e-4, atol=1e-4)
