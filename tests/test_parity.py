"""The networks compute what the published GALIP computes, on weights that anyone can rebuild from their names.

The reference numbers were computed with the authors' public networks (fp32, CPU, ViT-B/32 geometry). `rule` says how a
tensor follows from its name; the shapes and the numbers lie in tests/reference.
"""

import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from galiplib.clip_bridge import CLIP, ClipBridge
from galiplib.config import build_config
from galiplib.losses import matching_aware_penalty
from galiplib.training import Networks, Optimizers, train_step

HERE = Path(__file__).parent / "reference"
SHAPES = json.loads((HERE / "galip_state_dict.json").read_text())
STEP = json.loads((HERE / "galip_train_step.json").read_text())
UNUSED = re.compile(r"DBlocks\.\d\.conv_s\.")  # in the published discriminator, but in no computation


def rule(prefix: str, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The reference value of a tensor, from its name."""
    random = np.random.RandomState(zlib.crc32((prefix + name).encode()))
    value = np.asarray(random.standard_normal(shape), dtype=np.float32)
    last = name.split(".")[-1]
    if len(shape) <= 1:
        one = last == "weight" or (name.endswith("linear2.bias") and "gamma" in name)
        base = 1 if one else 0.5 if last in ("gamma", "beta") else 2 if last == "logit_scale" else 0
        return torch.from_numpy(np.asarray(base + np.float32(0.02) * value, dtype=np.float32))
    if last in ("proj", "text_projection"):
        scale = shape[0] ** -0.5
    elif last == "positional_embedding" or name.endswith("token_embedding.weight"):
        scale = 0.02
    else:
        scale = float(np.prod(shape[1:])) ** -0.5
    scale *= 0.09 if prefix == "netC." else 0.25 if prefix == "netG." and name.startswith("to_rgb") else 1
    return torch.from_numpy(value * np.float32(scale))


RENAMED = [
    ("fc_code", "code"), ("mapping.FBlocks", "fusion"), ("mapping.conv_fuse", "to_clip"),
    ("mapping.conv.", "from_clip."), ("mapping.fc_prompt", "prompts"), ("GBlocks", "blocks"), ("to_rgb.1", "to_rgb"),
    (".c_sc", ".shortcut"), (".c1.", ".conv1."), (".c2.", ".conv2."), ("fc_gamma.linear1", "gamma.0"),
    ("fc_gamma.linear2", "gamma.2"), ("fc_beta.linear1", "beta.0"), ("fc_beta.linear2", "beta.2"),
    ("DBlocks", "collect"), ("main.", "reduce."), ("conv_r", "residual"), ("conv_s", "shortcut"),
    ("joint_conv.0", "joint"), ("joint_conv.2", "logit"),
]  # fmt: skip


def ours(name: str) -> str:
    for theirs, here in RENAMED:
        name = name.replace(theirs, here)
    return name


def names(network: str) -> list[str]:
    return [name for name in SHAPES[network] if "CLIP_ViT" not in name and not UNUSED.match(name)]


def close(value, wanted, tolerance=1e-4):
    value, wanted = np.asarray(value, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
    assert np.abs(value - wanted).max() <= tolerance * np.abs(wanted).max()


@pytest.fixture(scope="module")
def outputs():
    return dict(np.load(HERE / "galip_outputs.npz"))


@pytest.fixture(scope="module")
def bridge():
    model = CLIP(512, 224, 12, 768, 32, 77, 49408, 512, 8, 12).float()
    model.load_state_dict({name: rule("clip.", name, tuple(t.shape)) for name, t in model.state_dict().items()})
    return ClipBridge(model, convention="reference")


def published(bridge):
    config = build_config({"train": {"recipe": "paper", "precision": "fp32"}})
    networks = Networks(bridge, config)
    for prefix, module in (("netG", networks.generator), ("netD", networks.discriminator), ("netC", networks.head)):
        module.load_state_dict({ours(n): rule(f"{prefix}.", n, tuple(SHAPES[prefix][n])) for n in names(prefix)})
    return config.train, networks


@pytest.fixture(scope="module")
def inputs(outputs, bridge):
    images = F.interpolate(torch.from_numpy(outputs["real_32"]), size=256)
    with torch.no_grad():
        sentence, words = bridge.encode_words(torch.from_numpy(outputs["tokens"]).long())
    return images, sentence, words, torch.from_numpy(outputs["noise"])


@pytest.mark.slow
def test_one_training_step_is_the_published_one(bridge, inputs, outputs):
    images, sentence, words, noise = inputs
    config, networks = published(bridge)

    # Before the step: encoders, pictures, logits.
    close(sentence, outputs["sent"])
    filled = outputs["words_mean"][:, : words.shape[1]]
    causal = torch.arange(words.shape[1]) <= torch.from_numpy(outputs["tokens"]).argmax(-1)[:, None]
    close(words.mean(-1)[causal], filled[causal.numpy()], 1e-3)  # a mean of 512 values that nearly cancel
    with torch.no_grad():
        features, embedding = bridge.encode_image(images)
        close(embedding, outputs["clip_real_emb"])
        close(features.mean(2), outputs["clip_real_feats_mean"])
        collected = networks.discriminator(features)
        close(collected.mean(1), outputs["netD_mean"])
        close(networks.head(collected, sentence), outputs["netC_logits"])
        close(networks.generator(noise[:2], sentence[:2])[:, :, ::4, ::4], outputs["fake_every_4th_pixel"])

    # The penalty where the logits are large.
    for layer in (networks.head.joint, networks.head.logit):
        layer.weight.data /= 0.09
    penalty = matching_aware_penalty(networks.judge, features, sentence, 2.0, 6.0)
    close(penalty.item(), STEP["errD_magp_large_logits"])
    for layer in (networks.head.joint, networks.head.logit):
        layer.weight.data *= 0.09

    report = train_step(networks, bridge, Optimizers(networks, config), config, 1, images, sentence, noise)
    for value, key in [
        (report.loss_real, "errD_real"), (report.loss_mismatch, "errD_mismatch"), (report.loss_fake, "errD_fake"),
        (report.penalty, "errD_magp"), (report.loss_d + report.penalty, "errD"),
        (report.similarity, "text_image_similarity"),
    ]:  # fmt: skip
        close(value, STEP[key])
    # Behind the discriminator's first Adam step, which moves a weight by the learning rate however small its gradient:
    # where a gradient is nearly zero, rounding decides the direction.
    close(report.loss_g, STEP["errG"], 1e-3)
    for prefix, module in (("netG", networks.generator), ("netD", networks.discriminator), ("netC", networks.head)):
        gradients = {name: parameter.grad.norm().item() for name, parameter in module.named_parameters()}
        for name in names(prefix):
            close(gradients[ours(name)], STEP["grad_norms"][prefix][name], 1e-3)
    with torch.no_grad():
        close(networks.generator(noise, sentence)[:, :, 100:108, 100:108], outputs["fake_after_step_crop"], 1e-3)
