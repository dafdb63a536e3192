import dataclasses
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from galiplib import losses
from galiplib.blocks import Affine, GeneratorBlock, block_channels, conv3x3, conv_of_doubled
from galiplib.build import make_generator, make_system
from galiplib.checkpoints.loading import load_generator
from galiplib.config import load_config
from galiplib.runs.run import Run
from galiplib.system import Batch, Text
from galiplib.systems.galip import (
    REFERENCE_SIZES,
    ConditionalHead,
    FeatureBlock,
    FeatureDiscriminator,
    FusionBlock,
    Generator,
    block_sizes,
)
from galiplib.systems.ratlip import AFFINES, AttentiveConv, BatchAffine, RecurrentCondition, ShuffleAttention
from galiplib.training import Optimizers, train_step

VARIANTS = [(conditioning, attention) for conditioning in ("affine", "recurrent", "recurrent-reference")
            for attention in (False, True)]  # fmt: skip


def randomised(module):
    """Weights away from their identities, statistics away from theirs."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    for name, buffer in module.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            nn.init.uniform_(buffer, 0.5, 1.5)
    return module


def ratlip(conditioning, attention=False):
    return {"system": "ratlip", "model.conditioning": conditioning, "model.attention": attention}


def variant(bridge, conditioning, attention):
    config = load_config("mini", {"model.channels": 4, **ratlip(conditioning, attention)})
    return randomised(make_generator(bridge, config)).eval()


def test_affine_starts_as_identity_and_then_scales_and_shifts():
    affine, x, condition = Affine(5, 3), torch.randn(2, 3, 4, 4), torch.randn(2, 5)
    torch.testing.assert_close(affine(x, condition), x)
    nn.init.constant_(affine.gamma[-1].bias, 2.0)
    nn.init.constant_(affine.beta[-1].bias, -1.0)
    torch.testing.assert_close(affine(x, condition), 2 * x - 1)


def test_conv_of_doubled_equals_upsampling_first():
    conv, x = nn.Conv2d(6, 5, 3, padding=1), torch.randn(2, 6, 7, 7)
    torch.testing.assert_close(conv_of_doubled(conv, x), conv(F.interpolate(x, scale_factor=2.0)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [7, 14, 16])
@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("attention", [False, True])
def test_generator_block_equals_the_plain_order(size, smooth, attention):
    block = randomised(GeneratorBlock(5, 6, 4, size, smooth, AttentiveConv if attention else conv3x3)).eval()
    x, condition = torch.randn(2, 6, 7, 7), torch.randn(2, 5)
    large = F.interpolate(x, size=(size, size))
    skipped = F.interpolate(x, size=(size, size), mode="bilinear") if smooth else large
    residual = block.conv2(block.fuse2(block.conv1(block.fuse1(large, condition)), condition))
    torch.testing.assert_close(block(x, condition), block.shortcut(skipped) + residual, atol=1e-4, rtol=1e-4)


def test_feature_and_fusion_blocks_start_at_their_shortcut():
    x, tap = torch.randn(2, 6, 7, 7), torch.randn(2, 6, 7, 7)
    block = FeatureBlock(6)
    torch.testing.assert_close(block(x, tap), x)
    nn.init.ones_(block.beta)
    torch.testing.assert_close(block(x, tap), x + tap)
    assert FusionBlock(5, 8)(torch.randn(2, 8, 7, 7), torch.randn(2, 5)).shape == (2, 8, 7, 7)


@pytest.mark.parametrize(
    ("grid", "size", "sizes"),
    [
        (7, "reference", REFERENCE_SIZES),
        (7, 56, (7, 14, 28, 56)),
        (7, 256, (8, 16, 32, 64, 128, 256)),
        (16, 256, (16, 32, 64, 128, 256)),
        (14, 224, (14, 28, 56, 112, 224)),
        (8, 64, (8, 16, 32, 64)),
        (7, 60, (8, 16, 32, 60)),
    ],
)
def test_block_sizes(grid, size, sizes):
    assert block_sizes(grid, size) == sizes


def test_published_channels_and_too_small_images():
    assert block_channels(64, 6) == [(512, 512), (512, 512), (512, 512), (512, 256), (256, 128), (128, 64)]
    with pytest.raises(ValueError, match="larger than CLIP's grid of 7 x 7"):
        block_sizes(7, 7)


def test_generator_and_discriminator_shapes(small_bridge):
    config = load_config("mini", {"model.channels": 4, "model.disc_channels": 16}).model
    generator = Generator(small_bridge, config)
    images = generator(torch.randn(3, 100), torch.randn(3, 32))
    assert images.shape == (3, 3, 56, 56) and generator.image_size == 56
    assert not any("clip" in name.lower() and "to_clip" not in name and "from_clip" not in name
                   for name in generator.state_dict())  # fmt: skip
    features, _ = small_bridge.encode_image(images)
    collected = FeatureDiscriminator(small_bridge, config)(features)
    assert collected.shape == (3, 16, 7, 7)
    assert ConditionalHead(small_bridge, config)(collected, torch.randn(3, 32)).shape == (3,)


def alone_and_with_others(generator):
    """The same two pictures: together, with others before and behind them."""
    noise, sentence = torch.randn(5, 100), torch.randn(5, 32)
    with torch.no_grad():
        return generator(noise[1:3], sentence[1:3]), generator(noise, sentence)[1:3]


@pytest.mark.parametrize(("conditioning", "attention"), VARIANTS[:4])
def test_pictures_do_not_depend_on_their_neighbours(small_bridge, conditioning, attention):
    alone, among = alone_and_with_others(variant(small_bridge, conditioning, attention))
    torch.testing.assert_close(alone, among, atol=1e-4 * alone.abs().max().item(), rtol=0)


@pytest.mark.parametrize("attention", [False, True])
def test_published_ratlip_depends_on_neighbours_and_says_so_once(small_bridge, attention):
    generator = variant(small_bridge, "recurrent-reference", attention)
    with pytest.warns(UserWarning, match="pictures depend on the others of their batch") as caught:
        alone, among = alone_and_with_others(generator)
    assert len(caught) == 1
    assert (alone - among).abs().max() > 0.05 * alone.abs().max()
    single = torch.randn(1, 100), torch.randn(1, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh = variant(small_bridge, "recurrent-reference", attention)
        fresh(*single)
        fresh.train()(torch.randn(3, 100), torch.randn(3, 32))


def test_batch_affine_gives_all_images_the_last_state():
    affine = randomised(BatchAffine(6, 4))
    x, condition = torch.randn(1, 4, 3, 3).expand(3, -1, -1, -1), torch.randn(3, 6)
    images = affine(x, condition)
    torch.testing.assert_close(images[0], images[2])
    swapped = affine(x, condition[[1, 0, 2]])  # the order of the others matters
    assert (images - swapped).abs().max() > 1e-4
    state = torch.zeros(1, 64), torch.zeros(1, 64)
    cell = nn.LSTMCell(6, 64)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in affine.rnn.state_dict().items()})
    for row in condition:
        state = cell(row[None], state)
    torch.testing.assert_close(images, affine.affine(x, state[0].expand(3, -1)))


def test_recurrent_condition_is_a_cell_stepped_per_image():
    carrier = randomised(RecurrentCondition(7, 5, steps=3))
    noise, sentence = torch.randn(2, 7), torch.randn(2, 5)
    hidden, memory = carrier.start(noise).chunk(2, dim=1)
    cell = nn.LSTMCell(5, 64)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in carrier.cell.state_dict().items()})
    states = carrier(noise, sentence)
    assert states.shape == (2, 3, 64)
    for step in range(3):
        hidden, memory = cell(sentence, (hidden, memory))
        torch.testing.assert_close(states[:, step], hidden)


def test_every_affine_gets_its_own_state(small_bridge):
    """Changing the state of one step changes what the affine of that step gets, and no other."""
    generator = variant(small_bridge, "recurrent", False)
    affines = [m for m in (*generator.fusion.modules(), *generator.blocks.modules()) if isinstance(m, Affine)]
    assert len(affines) == AFFINES * (len(generator.fusion) + len(generator.blocks))
    given = []
    for affine in affines:
        affine.register_forward_pre_hook(lambda _, args: given.append(args[1]))
    noise, sentence = torch.randn(2, 100), torch.randn(2, 32)
    with torch.no_grad():
        generator(noise, sentence)
        states = generator.recurrent(noise, sentence)
    torch.testing.assert_close(torch.stack(given, dim=1), states)


@pytest.mark.parametrize(("channels", "groups"), [(128, 8), (16, 8), (12, 2), (4, 2), (2, 1)])
def test_shuffle_attention_by_loops(channels, groups):
    attention = randomised(ShuffleAttention(channels))
    assert attention.groups == groups
    x = torch.randn(2, channels, 3, 3)
    width, mixed = channels // groups // 2, torch.empty_like(x)
    for channel in range(channels):
        place = channel % (2 * width)
        at, values = place % width, x[:, channel]  # (2, 3, 3)
        if place < width:
            pull = attention.channel_weight[0, at] * values.mean((1, 2), keepdim=True) + attention.channel_bias[0, at]
        else:
            normal = F.layer_norm(values, (3, 3)) * attention.norm.weight[at] + attention.norm.bias[at]
            pull = attention.place_weight[0, at] * normal + attention.place_bias[0, at]
        half, index = divmod(channel, channels // 2)
        mixed[:, 2 * index + half] = values * torch.sigmoid(pull)
    torch.testing.assert_close(attention(x), mixed)


def test_shuffle_attention_refuses_odd_channels():
    with pytest.raises(ValueError, match="5 is odd"):
        ShuffleAttention(5)


def trained(tiny_config, bridge, steps, recipe="stable", **more):
    """Networks after some steps on random pictures, the optimizers, and the last report."""
    config = tiny_config(train__recipe=recipe, train__precision="fp32", **more)
    networks = make_system(bridge, config)
    optimizers = Optimizers(networks, config.train)
    random = torch.Generator().manual_seed(0)
    for step in range(1, steps + 1):
        images, sentence = torch.randn(4, 3, 56, 56, generator=random), torch.randn(4, 32, generator=random)
        noise = torch.randn(4, networks.generator.noise_dim, generator=random)
        report = train_step(networks, optimizers, Batch(images, Text(sentence), {"z": noise}), config.train, step)
    return networks, optimizers, report


@pytest.mark.parametrize(("conditioning", "attention"), VARIANTS)
def test_every_parameter_learns(tiny_config, small_bridge, conditioning, attention):
    """From the third step on: what starts at zero, or behind a zero, has moved by then."""
    # 32 wide: in narrower published affines all units can be off for the one state that serves all images
    more = {**ratlip(conditioning, attention), "model.code_channels": 32}
    networks, optimizers, _ = trained(tiny_config, small_bridge, 3, **more)
    for module in (networks.generator, networks.discriminator, networks.head):
        still = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert not still
    assert {id(p) for p in networks.generator.parameters()} == {id(p) for p in optimizers.weights["generator"]}


def test_average_takes_the_running_statistics_along(tiny_config, small_bridge):
    more = {**ratlip("affine", True), "train__ema_half_life": 2, "train__ema_ramp_up": 100}
    networks, _, _ = trained(tiny_config, small_bridge, 1, **more)
    before = {name: buffer.clone() for name, buffer in networks.ema.named_buffers()}
    fresh = make_system(small_bridge, tiny_config(**more)).ema
    live = dict(networks.generator.named_buffers())
    for name, buffer in fresh.named_buffers():
        if name.endswith("num_batches_tracked"):
            assert before[name] == live[name] == 1
        else:
            torch.testing.assert_close(before[name], buffer.lerp(live[name], 1 - 0.5**0.5))
            assert not torch.equal(before[name], buffer)
    networks, _, _ = trained(tiny_config, small_bridge, 2, recipe="paper", **more)
    for name, buffer in networks.ema.named_buffers():
        assert torch.equal(buffer, dict(networks.generator.named_buffers())[name])


def test_exported_generator_keeps_its_statistics(tmp_path, tiny_config):
    config = tiny_config(**ratlip("recurrent", True), train__max_steps=3, train__evaluate_every=0)
    run = Run(tmp_path, config, "cpu", progress=False)
    list(run.train())
    loaded = load_generator(tmp_path / "generator.safetensors")
    average = dict(run.system.ema.named_buffers())
    assert average["blocks.0.conv1.norm.num_batches_tracked"] == 3
    for name, buffer in loaded.named_buffers():
        assert buffer.dtype == average[name].dtype and torch.equal(buffer, average[name])
    noise, sentence = torch.randn(2, 100), torch.randn(2, run.bridge.embed_dim)
    with torch.no_grad():
        torch.testing.assert_close(loaded(noise, sentence), run.system.ema(noise, sentence), atol=5e-3, rtol=0)
    assert Run(tmp_path, config, "cpu", progress=False).finished


def test_skipped_step_keeps_the_running_statistics(tiny_config, small_bridge):
    config = tiny_config(**ratlip("affine", True), train__precision="fp32")
    networks = make_system(small_bridge, config)
    before = {name: buffer.clone() for name, buffer in networks.state_dict().items() if "generator" in name}
    noise = torch.full((4, networks.generator.noise_dim), float("nan"))
    batch = Batch(torch.randn(4, 3, 56, 56), Text(torch.randn(4, 32)), {"z": noise})
    report = train_step(networks, Optimizers(networks, config.train), batch, config.train, 1)
    assert report.skipped
    for name, tensor in before.items():
        assert torch.equal(networks.state_dict()[name], tensor), name


def test_hinge_losses():
    logits = torch.tensor([-2.0, 0.0, 3.0])
    assert losses.hinge_real(logits).item() == pytest.approx((3 + 1 + 0) / 3)
    assert losses.hinge_fake(logits).item() == pytest.approx((0 + 1 + 4) / 3)


def test_penalty_of_a_linear_discriminator_is_known():
    torch.manual_seed(0)
    weight, other = torch.randn(2 * 3 * 4 * 4), torch.randn(5)
    features, sentence = torch.randn(6, 2, 3, 4, 4), torch.randn(6, 5)
    penalty = losses.matching_aware_penalty(
        lambda f, s: f.flatten(1) @ weight + s @ other, features, sentence, weight=2.0, power=6.0
    )
    norm = torch.cat([weight, other]).norm()
    torch.testing.assert_close(penalty, 2 * norm**6)


def test_penalty_reaches_the_parameters():
    layer = nn.Linear(12, 1)

    def logit(features, sentence):
        return layer(torch.cat([features.flatten(1), sentence], 1)).tanh().squeeze(1)

    losses.matching_aware_penalty(logit, torch.randn(3, 1, 2, 2, 2), torch.randn(3, 4), 2.0, 6.0).backward()
    assert layer.weight.grad.abs().sum() > 0


def test_beyond_range_is_the_mean_of_what_is_outside():
    images = torch.tensor([[-3.0, -1.0, 0.5], [1.0, 1.5, 0.0]], requires_grad=True)
    beyond = losses.beyond_range(images)
    assert beyond.item() == pytest.approx((2 + 0.5) / 6)
    beyond.backward()
    assert torch.equal(images.grad * 6, torch.tensor([[-1.0, 0, 0], [0, 1, 0]]))


def test_the_generator_is_asked_to_stay_in_range(tiny_config, small_bridge):
    """By the stable recipe, with its weight; in the paper's step it changes nothing."""

    def steps(recipe, weight):
        config = tiny_config(train__recipe=recipe, train__range_weight=weight, train__precision="fp32")
        networks = make_system(small_bridge, config)
        optimizers = Optimizers(networks, config.train)
        with torch.no_grad():
            networks.generator.to_rgb.weight.mul_(200)
        torch.manual_seed(0)
        for step in range(1, 9):
            images = torch.rand(4, 3, 56, 56) * 2 - 1
            sentence, noise = torch.randn(4, small_bridge.embed_dim), torch.randn(4, config.model.noise_dim)
            yield train_step(networks, optimizers, Batch(images, Text(sentence), {"z": noise}), config.train, step)

    without, asked = list(steps("stable", 0.0)), list(steps("stable", 10.0))
    assert asked[0].beyond == without[0].beyond > 1
    assert asked[0].loss_g - without[0].loss_g == pytest.approx(10 * asked[0].beyond, rel=1e-3)
    assert asked[-1].beyond < 0.5 * without[-1].beyond
    for one, other in zip(list(steps("paper", 0.0)), list(steps("paper", 10.0)), strict=True):
        assert dataclasses.replace(one, seconds=0) == dataclasses.replace(other, seconds=0)


def test_clip_similarity_is_mean_cosine():
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    b = torch.tensor([[3.0, 0.0], [0.0, -1.0]])
    assert losses.clip_similarity(a, b).item() == pytest.approx(0.0)
