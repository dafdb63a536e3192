"""The networks compute what the published GALIP computes, on weights that anyone can rebuild from their names.

The reference numbers were computed with the authors' public networks (fp32, CPU, ViT-B/32 geometry). `rule` says how a
tensor follows from its name; the shapes and the numbers lie in tests/reference.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from galiplib.clip_bridge import CLIP, ClipBridge
from galiplib.config import build_config
from galiplib.loading import load_generator
from galiplib.losses import matching_aware_penalty
from galiplib.reference import TOWER, UNUSED, import_reference, to_ours
from galiplib.training import Networks, Optimizers, train_step

HERE = Path(__file__).parent / "reference"
SHAPES = json.loads((HERE / "galip_state_dict.json").read_text())
STEP = json.loads((HERE / "galip_train_step.json").read_text())


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


@pytest.fixture(scope="module")
def checkpoint(bridge):
    """A checkpoint in the authors' format, as DDP saves it, with weights by the rule."""
    tower = bridge.model.visual.state_dict()
    model = {
        network: {
            f"module.{n}": tower[n.removeprefix(TOWER)] if n.startswith(TOWER) else rule(f"{network}.", n, tuple(shape))
            for n, shape in shapes.items()
        }
        for network, shapes in SHAPES.items()
    }
    return {"model": model, "optimizers": {}, "epoch": 3}


@pytest.fixture
def published(bridge, checkpoint):
    found = import_reference("state_epoch_003.pth", bridge.model, content=checkpoint)
    config = build_config({"train": {"recipe": "paper", "precision": "fp32"}})
    networks = Networks(bridge, config)
    for name in ("generator", "discriminator", "head"):
        getattr(networks, name).load_state_dict(getattr(found, name).state_dict())
    return config.train, networks


@pytest.fixture(scope="module")
def inputs(outputs, bridge):
    images = F.interpolate(torch.from_numpy(outputs["real_32"]), size=256)
    with torch.no_grad():
        sentence, words = bridge.encode_words(torch.from_numpy(outputs["tokens"]).long())
    return images, sentence, words, torch.from_numpy(outputs["noise"])


@pytest.mark.slow
def test_one_training_step_is_the_published_one(bridge, published, inputs, outputs):
    images, sentence, words, noise = inputs
    config, networks = published

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
    close(report.loss_g, STEP["errG"])  # in fp64 it lies 5.8e-5 from the reference, which was rounded too
    for prefix, module in (("netG", networks.generator), ("netD", networks.discriminator), ("netC", networks.head)):
        gradients = {name: parameter.grad.norm().item() for name, parameter in module.named_parameters()}
        for name in SHAPES[prefix]:
            if not name.startswith(TOWER) and not UNUSED.match(name):
                close(gradients[to_ours(prefix, name)], STEP["grad_norms"][prefix][name], 1e-3)
    with torch.no_grad():
        close(networks.generator(noise, sentence)[:, :, 100:108, 100:108], outputs["fake_after_step_crop"], 1e-3)


@pytest.mark.slow
def test_their_file_draws_the_published_pictures_without_a_clip(tmp_path, checkpoint, outputs):
    torch.save(checkpoint, tmp_path / "state_epoch_003.pth")
    generator = load_generator(tmp_path / "state_epoch_003.pth")
    with torch.no_grad():
        images = generator(torch.from_numpy(outputs["noise"])[:2], torch.from_numpy(outputs["sent"])[:2])
    close(images[:, :, ::4, ::4], outputs["fake_every_4th_pixel"])
