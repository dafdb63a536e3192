"""Any CLIP with a vision transformer fits: everything follows from its geometry."""

import pytest
import torch

from galiplib.clip.bridge import CLIP, ClipBridge
from galiplib.config import load_config
from galiplib.systems.galip import ConditionalHead, FeatureDiscriminator, Generator

VITS = {  # OpenAI's: embed, resolution, layers, width, patch, context, vocabulary, text width, heads, text layers
    "ViT-B/32": (512, 224, 12, 768, 32, 77, 49408, 512, 8, 12),
    "ViT-B/16": (512, 224, 12, 768, 16, 77, 49408, 512, 8, 12),
    "ViT-L/14": (768, 224, 24, 1024, 14, 77, 49408, 768, 12, 12),
    "ViT-L/14@336px": (768, 336, 24, 1024, 14, 77, 49408, 768, 12, 12),
}
FACTS = {  # grid, taps, blocks with a prompt
    "ViT-B/32": (7, (1, 4, 8), 8),
    "ViT-B/16": (14, (1, 4, 8), 8),
    "ViT-L/14": (16, (2, 8, 16), 16),
    "ViT-L/14@336px": (24, (2, 8, 16), 16),
}


@pytest.mark.parametrize("size", [256, "reference"])
@pytest.mark.parametrize("name", VITS)
def test_published_geometries(name, size):
    """On the meta device: shapes only, at full size."""
    config = load_config("mini", {"model.image_size": size, "model.channels": 64, "model.disc_channels": 512}).model
    with torch.device("meta"):
        bridge = ClipBridge(CLIP(*VITS[name]).float(), "reference")
        generator = Generator(bridge, config)
        discriminator, head = FeatureDiscriminator(bridge, config), ConditionalHead(bridge, config)
        noise, sentence = torch.randn(2, 100), torch.randn(2, bridge.embed_dim)
    assert (bridge.grid, bridge.taps, bridge.prompt_layers) == FACTS[name]
    pixels = 224 if size == "reference" else size
    images = generator(noise, sentence)
    assert images.shape == (2, 3, pixels, pixels) and generator.image_size == pixels
    features, embedding = bridge.encode_image(images)
    assert features.shape == (2, 3, bridge.width, bridge.grid, bridge.grid)
    assert embedding.shape == (2, bridge.embed_dim)
    assert head(discriminator(features), sentence).shape == (2,)


@pytest.mark.parametrize(("resolution", "patch", "layers"), [(64, 16, 3), (64, 4, 6), (48, 16, 2), (56, 8, 1)])
def test_small_geometries_compute(resolution, patch, layers):
    torch.manual_seed(0)
    bridge = ClipBridge(CLIP(24, resolution, layers, 64, patch, 16, 100, 64, 1, 1).float())
    config = load_config("mini", {"model.channels": 2, "model.image_size": 40, "model.disc_channels": 8}).model
    generator = Generator(bridge, config)
    sentence = torch.randn(2, 24)
    images = generator(torch.randn(2, 100), sentence)
    assert images.shape == (2, 3, 40, 40) and images.isfinite().all()
    features, _ = bridge.encode_image(images)
    logits = ConditionalHead(bridge, config)(FeatureDiscriminator(bridge, config)(features), sentence)
    assert logits.shape == (2,) and logits.isfinite().all()


def test_taps_and_prompts_can_be_set():
    model = CLIP(24, 64, 6, 64, 16, 16, 100, 64, 1, 1).float()
    bridge = ClipBridge(model, taps=(0, 3), prompt_layers=2)
    config = load_config("mini", {"model.channels": 2, "model.disc_channels": 8}).model
    features, _ = bridge.encode_image(torch.zeros(1, 3, 64, 64))
    assert features.shape[1] == 2 and len(FeatureDiscriminator(bridge, config).collect) == 1
    assert Generator(bridge, config).prompts.out_features == 2 * 64
    with pytest.raises(ValueError, match="prompt_layers = 6 must lie in 1 to 5"):
        ClipBridge(model, prompt_layers=6)
