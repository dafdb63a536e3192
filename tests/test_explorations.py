"""Generators that are given a picture, and what is measured on them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from galiplib.build import make_bridge, make_system
from galiplib.data import minibirds
from galiplib.data.batches import TrainingData
from galiplib.evaluation.edits import Edits, make_edits, measure_edits
from galiplib.evaluation.judge import JUDGED, load_judge
from galiplib.images import to_images
from galiplib.system import Batch, Step, Text
from galiplib.systems.picture_input import (
    ClipFeatures,
    FeatureGenerator,
    ImageBlock,
    PictureGenerator,
    RandomResNet,
    energy_share,
    fit_to_copy,
    image_share,
)
from galiplib.training import Optimizers, train


@pytest.fixture(scope="module")
def birds():
    return minibirds.build("seen", 24)


@pytest.fixture
def parts(tiny_config, birds):
    """The residual structure as a system, its CLIP, data and configuration, all tiny."""
    config = tiny_config(system="residual", train__max_steps=2, train__seed=3)
    bridge = make_bridge(config)
    return make_system(bridge, config), bridge, TrainingData(bridge, birds), config.train


def inputs(system, bridge, data, count=6):
    images, sentence = data.batch(1, count, 0)
    noise = torch.randn(count, system.generator.noise_dim, generator=torch.Generator().manual_seed(1))
    return noise, images, sentence


def with_settings(system, **settings):
    changed = copy.deepcopy(system)
    changed.settings = system.settings.model_copy(update=settings)
    return changed


class Painter(PictureGenerator):
    """Shows `share` of the given picture, and the rest of a picture drawn from the noise."""

    def __init__(self, share: float) -> None:
        nn.Module.__init__(self)
        self.noise_dim, self.image_size, self.share = 3 * 8 * 8, 8, share

    def paint(self, noise, sentence, images):
        painted = noise.unflatten(1, (3, 8, 8)).clamp(-1, 1)
        return self.share * images + (1 - self.share) * painted


# ---------------------------------------------------------------- the parts


def test_residual_generator_is_the_sum_of_its_branches(parts):
    system, bridge, data, _ = parts
    noise, images, sentence = inputs(system, bridge, data)
    generator = system.generator.eval()
    image_part, generated = generator.branches(noise, sentence, images)
    torch.testing.assert_close(generator(noise, sentence, images), image_part + generated)
    torch.testing.assert_close(generated, generator.generator(noise, sentence))
    torch.testing.assert_close(image_part, generator.block(images))
    torch.testing.assert_close(generator(noise, sentence), generator(noise, sentence, torch.zeros_like(images)))


def test_block_can_learn_to_copy():
    images = to_images(minibirds.build("train", 32).images)
    torch.manual_seed(0)
    block = ImageBlock()
    with torch.no_grad():
        before = F.mse_loss(block(images), images).sqrt()
    assert fit_to_copy(block, images, steps=60) < 0.5 * before


def test_features_replace_the_noise(parts):
    system, bridge, data, _ = parts
    noise, images, sentence = inputs(system, bridge, data)
    generator = FeatureGenerator(system.generator.generator, ClipFeatures(bridge), scale=0.5).eval()
    mixed = generator.mixed(noise, images)
    torch.testing.assert_close(mixed.mean(1), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(mixed.var(1, correction=0), torch.ones(6), atol=1e-3, rtol=0)
    torch.testing.assert_close(generator(noise, sentence, images), generator.generator(mixed, sentence))
    generator.scale = 0.0
    assert torch.equal(generator.mixed(noise, images), generator.mixed(noise.flip(0), images))


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
    system, bridge, data, _ = parts
    noise, images, sentence = inputs(system, bridge, data)
    system.generator.eval()
    with torch.no_grad():
        image_part, generated = system.generator.branches(noise, sentence, images)
        less, more = (system.loss_of(gain * image_part + generated, sentence) for gain in (0.99, 1.01))
    found = system.gain_gradient(noise, sentence, images)
    assert found == pytest.approx(float((more - less) / 0.02), rel=0.05, abs=1e-3)


# ---------------------------------------------------------------- training


def test_training_moves_block_and_generator_and_keeps_the_ema_s_statistics(parts):
    system, bridge, data, config = parts
    before = copy.deepcopy(system.generator.state_dict())
    old = copy.deepcopy(dict(system.ema.named_buffers()))
    reports = list(train(system, Optimizers(system, config), data, config))
    assert [r.step for r in reports] == [1, 2]
    after = system.generator.state_dict()
    for name in ("block.residual.0.weight", "block.shortcut.1.bias", "generator.to_rgb.weight"):
        assert not torch.equal(before[name], after[name]), name
    assert old
    for name, buffer in system.ema.named_buffers():  # on the way to the statistics of the generator in training
        assert not torch.equal(buffer, old[name]), name
        assert (buffer - after[name]).float().norm() <= (old[name] - after[name]).float().norm(), name


def test_given_pictures_follow_the_share_exchanged(parts):
    system, bridge, data, _ = parts
    noise, images, sentence = inputs(system, bridge, data, 4)
    batch = Batch(images, Text(sentence), {"z": noise})
    own, shifted, half = (with_settings(system, exchanged=share).given(batch) for share in (0.0, 1.0, 0.5))
    assert torch.equal(own, images)
    assert torch.equal(shifted, images.roll(1, 0))
    assert torch.equal(half[:2], images[:2]) and torch.equal(half[2:], images[2:].flip(0))
    made = with_settings(system, exchanged=1.0).draw_fakes(batch)
    torch.testing.assert_close(made, system.generator(noise, sentence, shifted))


def test_identity_objective_pulls_towards_the_picture(parts):
    system, bridge, data, config = parts
    noise, images, sentence = inputs(system, bridge, data)
    distance = {}
    for weight in (0.0, 100.0):
        trained = with_settings(system, identity=weight)
        settings = config.model_copy(update={"max_steps": 8, "lr_g": 3e-3})
        list(train(trained, Optimizers(trained, settings), data, settings))
        with torch.no_grad():
            distance[weight] = float(F.mse_loss(trained.generator(noise, sentence, images), images))
    assert distance[100.0] < distance[0.0]


def test_the_objective_is_added_once_however_the_batch_is_cut(parts):
    system, bridge, data, _ = parts
    noise, images, sentence = inputs(system, bridge, data, 4)
    asked = with_settings(system, identity=2.0).eval()
    batch = Batch(images, Text(sentence), {"z": noise})
    whole = asked.generator_losses(batch, Step(1))
    parts = [asked.generator_losses(part, Step(1, 2)) for part in batch.split(2)]
    for name in ("identity", "loss_g"):
        mean = sum(part.noted[name] for part in parts) / 2
        torch.testing.assert_close(mean, whole.noted[name], rtol=1e-3, atol=1e-5)
    unlike = F.mse_loss(asked.generator(noise, sentence, images), images)
    torch.testing.assert_close(whole.noted["identity"], unlike)


def test_clip_identity_reaches_the_projection_of_features(tiny_config, birds):
    config = tiny_config(system="features", model__features="clip", model__identity=2.0)
    bridge = make_bridge(config)
    system = make_system(bridge, config)
    noise, images, sentence = inputs(system, bridge, TrainingData(bridge, birds))
    (2.0 * system.unlike(system.generator(noise, sentence, images), images)).backward()
    assert system.generator.project.weight.grad.abs().max() > 0


def test_what_never_learns_is_no_optimizers_concern(tiny_config, birds):
    config = tiny_config(system="features", train__max_steps=1)
    bridge = make_bridge(config)
    system = make_system(bridge, config)
    frozen = {name: weight.clone() for name, weight in system.generator.features.named_parameters()}
    list(train(system, Optimizers(system, config.train), TrainingData(bridge, birds), config.train))
    for name, weight in system.generator.features.named_parameters():
        assert torch.equal(weight, frozen[name])


# ---------------------------------------------------------------- edits


def test_edits_take_the_next_picture_s_caption(parts, birds):
    system, bridge, _, _ = parts
    changed = make_edits(system.generator, bridge, birds, count=5)
    own = make_edits(system.generator, bridge, birds, count=5, own=True)
    assert changed.captions[0] == birds.captions[1][0] and changed.captions[4] == birds.captions[0][4]
    assert own.captions[3] == birds.captions[3][3]
    assert changed.made.shape == (5, 3, 56, 56) and changed.truth.shape == (5, len(JUDGED))
    assert system.generator.training  # as it was
    with pytest.raises(ValueError, match="the split has 24"):
        make_edits(system.generator, bridge, birds, count=25)


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
