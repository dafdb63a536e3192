import pytest
import torch
import torch.nn.functional as F
from torch import nn

from galiplib import losses
from galiplib.blocks import Affine, FeatureBlock, FusionBlock, GeneratorBlock, conv_of_doubled
from galiplib.config import load_config
from galiplib.discriminator import ConditionalHead, FeatureDiscriminator
from galiplib.generator import REFERENCE_SIZES, Generator, block_channels, block_sizes


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
def test_generator_block_equals_the_plain_order(size, smooth):
    torch.manual_seed(0)
    block, x, condition = GeneratorBlock(5, 6, 4, size, smooth), torch.randn(2, 6, 7, 7), torch.randn(2, 5)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
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


def test_generator_does_not_depend_on_batch_neighbours(small_bridge):
    generator = Generator(small_bridge, load_config("mini", {"model.channels": 4}).model).eval()
    noise, sentence = torch.randn(4, 100), torch.randn(4, 32)
    with torch.no_grad():
        torch.testing.assert_close(generator(noise, sentence)[2:3], generator(noise[2:3], sentence[2:3]),
                                   atol=1e-5, rtol=1e-5)  # fmt: skip


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


def test_clip_similarity_is_mean_cosine():
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    b = torch.tensor([[3.0, 0.0], [0.0, -1.0]])
    assert losses.clip_similarity(a, b).item() == pytest.approx(0.0)
