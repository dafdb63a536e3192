"""Generators that are given a picture, and what is measured on them."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from galiplib.build import make_bridge
from galiplib.data import minibirds
from galiplib.data.batches import TrainingData
from galiplib.evaluation.edits import Edits, make_edits, measure_edits
from galiplib.evaluation.judge import JUDGED, load_judge
from galiplib.images import to_images
from galiplib.systems.picture_input import (
    ClipFeatures,
    FeatureGenerator,
    ImageBlock,
    PictureGenerator,
    RandomResNet,
    ResidualGenerator,
    attach,
    energy_share,
    fit_to_copy,
    gain_gradient,
    generator_loss,
    image_share,
    pack,
    train_with_pictures,
    with_generator,
)
from galiplib.training import Networks


@pytest.fixture(scope="module")
def birds():
    return minibirds.build("seen", 24)


@pytest.fixture
def parts(tiny_config, birds):
    """Networks with a residual generator, their CLIP, data and configuration, all tiny."""
    config = tiny_config(train__max_steps=2, train__seed=3)
    bridge = make_bridge(config)
    networks = Networks(bridge, config)
    with_generator(networks, ResidualGenerator(networks.generator))
    return networks, bridge, TrainingData(bridge, birds), config.train


def inputs(networks, bridge, data, count=6):
    images, sentence = data.batch(1, count, 0)
    noise = torch.randn(count, networks.generator.noise_dim, generator=torch.Generator().manual_seed(1))
    return noise, images, sentence


class Painter(PictureGenerator):
    """Shows `share` of the given picture, and the rest of a picture drawn from the noise."""

    def __init__(self, share: float) -> None:
        nn.Module.__init__(self)
        self.noise_dim, self.image_size, self.share = 3 * 8 * 8, 8, share

    def forward(self, packed, sentence):
        noise, images = self.unpack(packed)
        painted = noise.unflatten(1, (3, 8, 8)).clamp(-1, 1)
        return self.share * images + (1 - self.share) * painted


# ---------------------------------------------------------------- the parts


def test_picture_survives_packing(parts):
    networks, bridge, data, _ = parts
    noise, images, _ = inputs(networks, bridge, data)
    ours, theirs = networks.generator.unpack(pack(noise, images))
    assert torch.equal(ours, noise) and torch.equal(theirs, images)


def test_attached_loss_adds_its_gradient_and_leaves_the_picture():
    picture = torch.randn(2, 3, 4, 4, requires_grad=True)
    made = 2 * picture
    out = attach(made, (3 * made).sum())
    assert torch.equal(out, made)
    out.sum().backward()
    assert torch.equal(picture.grad, torch.full_like(picture, 2.0 + 6.0))


def test_residual_generator_is_the_sum_of_its_branches(parts):
    networks, bridge, data, _ = parts
    noise, images, sentence = inputs(networks, bridge, data)
    generator = networks.generator.eval()
    image_part, generated = generator.branches(pack(noise, images), sentence)
    torch.testing.assert_close(generator(pack(noise, images), sentence), image_part + generated)
    torch.testing.assert_close(generated, generator.generator(noise, sentence))
    torch.testing.assert_close(image_part, generator.block(images))


def test_block_can_learn_to_copy():
    images = to_images(minibirds.build("train", 32).images)
    torch.manual_seed(0)
    block = ImageBlock()
    with torch.no_grad():
        before = F.mse_loss(block(images), images).sqrt()
    assert fit_to_copy(block, images, steps=60) < 0.5 * before


def test_features_replace_the_noise(parts):
    networks, bridge, data, _ = parts
    noise, images, sentence = inputs(networks, bridge, data)
    generator = FeatureGenerator(networks.generator.generator, ClipFeatures(bridge), scale=0.5).eval()
    mixed = generator.mixed(pack(noise, images))
    torch.testing.assert_close(mixed.mean(1), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(mixed.var(1, correction=0), torch.ones(6), atol=1e-3, rtol=0)
    torch.testing.assert_close(generator(pack(noise, images), sentence), generator.generator(mixed, sentence))
    generator.scale = 0.0
    assert torch.equal(generator.mixed(pack(noise, images)), generator.mixed(pack(noise.flip(0), images)))


def test_random_resnet_is_frozen_but_its_batchnorm_is_not(birds):
    images = to_images(birds.images[:8])
    resnet = RandomResNet()
    assert not any(p.requires_grad for p in resnet.parameters())
    resnet.train()
    together, apart = resnet(images)[:4], resnet(images[:4])
    assert together.shape == (4, 1000)
    assert not torch.allclose(together, apart, atol=1e-2)  # the batch shows through
    resnet.eval()
    torch.testing.assert_close(resnet(images)[:4], resnet(images[:4]), atol=1e-4, rtol=1e-3)


# ---------------------------------------------------------------- shares


def test_energy_share():
    silent, loud = torch.zeros(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    assert energy_share(silent, loud) == 0 and energy_share(loud, silent) == 1
    assert energy_share(loud, 3 * loud) == pytest.approx(0.1)
    grey = torch.full_like(loud, 100.0)  # the same in all pictures
    assert energy_share(grey, loud) > 0.99 and energy_share(grey, loud, centred=True) == 0


def test_image_share_of_painters_who_ignore_copy_and_mix():
    rng = torch.Generator().manual_seed(0)
    noise, images = torch.randn(400, 192, generator=rng), torch.randn(400, 3, 8, 8, generator=rng).clamp(-1, 1)
    found = [image_share(Painter(share), noise, images, torch.zeros(400, 1)) for share in (0.0, 1.0, 0.5, 0.2)]
    # variances of the two parts are as share ** 2 to (1 - share) ** 2
    assert found == pytest.approx([0, 1, 0.5, 0.04 / 0.68], abs=0.02)


def test_gain_gradient_is_the_slope_of_the_loss(parts):
    networks, bridge, data, config = parts
    noise, images, sentence = inputs(networks, bridge, data)
    networks.generator.eval()
    packed = pack(noise, images)
    with torch.no_grad():
        image_part, generated = networks.generator.branches(packed, sentence)
        less, more = (
            generator_loss(networks, bridge, config, gain * image_part + generated, sentence) for gain in (0.99, 1.01)
        )
    found = gain_gradient(networks, bridge, config, packed, sentence)
    assert found == pytest.approx(float((more - less) / 0.02), rel=0.05, abs=1e-3)


# ---------------------------------------------------------------- training


def test_training_moves_block_and_generator_and_keeps_the_ema_s_statistics(parts):
    networks, bridge, data, config = parts
    before = copy.deepcopy(networks.generator.state_dict())
    old = copy.deepcopy(dict(networks.ema.named_buffers()))
    reports = list(train_with_pictures(networks, bridge, data, config))
    assert [r.step for r in reports] == [1, 2]
    after = networks.generator.state_dict()
    for name in ("block.residual.0.weight", "block.shortcut.1.bias", "generator.to_rgb.weight"):
        assert not torch.equal(before[name], after[name]), name
    assert old
    for name, buffer in networks.ema.named_buffers():  # on the way to the statistics of the generator in training
        assert not torch.equal(buffer, old[name]), name
        assert (buffer - after[name]).float().norm() <= (old[name] - after[name]).float().norm(), name


def test_given_pictures_follow_shift_and_changed(parts, monkeypatch):
    networks, bridge, data, config = parts
    seen = []
    report = list(train_with_pictures(networks, bridge, data, config))[0]

    def note(networks, bridge, optimizers, config, step, images, sentence, packed, augmentations):
        seen.append((images, networks.generator.unpack(packed)[1]))
        return dataclasses.replace(report, step=step)

    monkeypatch.setattr("galiplib.systems.picture_input.train_step", note)
    for how in ({}, {"shift": 1}, {"changed": 0.5}):
        next(train_with_pictures(networks, bridge, data, config, **how))
    (own, given), (images, shifted), (others, half) = seen
    assert torch.equal(own, given)
    assert torch.equal(shifted, images.roll(1, 0))
    assert torch.equal(half[:2], others[:2]) and torch.equal(half[2:], others[2:].flip(0))


def test_identity_objective_pulls_towards_the_picture(parts):
    networks, bridge, data, config = parts
    noise, images, sentence = inputs(networks, bridge, data)
    distance = {}
    for weight in (0.0, 100.0):
        trained = copy.deepcopy(networks)
        trained.generator.identity = weight
        settings = config.model_copy(update={"max_steps": 8, "lr_g": 3e-3})
        list(train_with_pictures(trained, bridge, data, settings))
        with torch.no_grad():
            distance[weight] = float(F.mse_loss(trained.generator(pack(noise, images), sentence), images))
    assert distance[100.0] < distance[0.0]


def test_clip_identity_reaches_the_projection_of_features(parts):
    networks, bridge, data, _ = parts
    noise, images, sentence = inputs(networks, bridge, data)
    generator = FeatureGenerator(networks.generator.generator, ClipFeatures(bridge), identity=2.0)
    (generator(pack(noise, images), sentence) * 0).sum().backward()  # only the objective is left
    assert generator.project.weight.grad.abs().max() > 0


def test_accumulation_is_refused(parts):
    networks, bridge, data, config = parts
    settings = config.model_copy(update={"accumulate": 2})
    with pytest.raises(ValueError, match="train.accumulate must be 1"):
        next(train_with_pictures(networks, bridge, data, settings))


# ---------------------------------------------------------------- edits


def test_edits_take_the_next_picture_s_caption(parts, birds):
    networks, bridge, _, _ = parts
    changed = make_edits(networks.generator, bridge, birds, count=5)
    own = make_edits(networks.generator, bridge, birds, count=5, own=True)
    assert changed.captions[0] == birds.captions[1][0] and changed.captions[4] == birds.captions[0][4]
    assert own.captions[3] == birds.captions[3][3]
    assert changed.made.shape == (5, 3, 56, 56) and changed.truth.shape == (5, len(JUDGED))
    assert networks.generator.training  # as it was
    with pytest.raises(ValueError, match="the split has 24"):
        make_edits(networks.generator, bridge, birds, count=25)


def test_a_copier_keeps_everything_and_follows_nothing(parts, birds):
    _, bridge, _, _ = parts
    given = to_images(birds.images)
    captions = [birds.captions[(row + 1) % 24][row % 10] for row in range(24)]
    truth = torch.from_numpy(birds.labels[:, :4])
    result = measure_edits(Edits(given, given, captions, truth), bridge, load_judge())
    assert result["rmse"] == 0 and result["clip_image"] == pytest.approx(1, abs=1e-5)
    assert result["keeps"] == 1 and result["follows"] == 0
    assert result["rmse_control"] > 0.3 and result["keeps_control"] < 0.5


def test_an_obedient_painter_follows_and_keeps_by_chance(parts, birds):
    _, bridge, _, _ = parts
    given, made = to_images(birds.images), to_images(birds.images).roll(-1, 0)
    captions = [birds.captions[(row + 1) % 24][row % 10] for row in range(24)]
    truth = torch.from_numpy(birds.labels[:, :4])
    result = measure_edits(Edits(made, given, captions, truth), bridge, load_judge())
    assert result["follows"] == 1 and result["keeps"] < 0.5
    assert "follows" not in measure_edits(Edits(made, given, captions, None), bridge)
    with pytest.raises(ValueError, match="mini birds"):
        measure_edits(Edits(made, given, captions, None), bridge, load_judge())
