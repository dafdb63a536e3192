"""The networks compute what the published GALIP and RATLIP compute, on weights rebuilt from their names.

The reference numbers were computed with the authors' public networks (fp32, CPU, ViT-B/32 geometry). `rule` says how a
tensor follows from its name; the shapes and the numbers lie in tests/reference.
"""

import json
import zlib
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clip.model import LayerNorm

from galiplib.build import make_system
from galiplib.checkpoints.loading import load_generator
from galiplib.checkpoints.published import NEVER_LEARN, TOWER, import_reference, to_ours
from galiplib.clip.bridge import ClipBridge
from galiplib.config import build_config
from galiplib.losses import matching_aware_penalty
from galiplib.system import Batch, Text
from galiplib.training import Optimizers, train_step

HERE = Path(__file__).parent / "reference"
ATTENTION = ("cweight", "cbias", "sweight", "sbias")


def read(name):
    return json.loads((HERE / name).read_text())


def rule(prefix: str, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The reference value of a tensor, from its name."""
    random = np.random.RandomState(zlib.crc32((prefix + name).encode()))
    value = np.asarray(random.standard_normal(shape), dtype=np.float32)
    last = name.split(".")[-1]
    if last == "num_batches_tracked":
        return torch.tensor(0)
    if last == "running_var":
        return torch.from_numpy(np.abs(value) * np.float32(0.1) + 1)
    if len(shape) <= 1:
        one = last == "weight" or (name.endswith("linear2.bias") and "gamma" in name) or "fc_gamma.2.bias" in name
        base = 1 if one else 0.5 if last in ("gamma", "beta") else 2 if last == "logit_scale" else 0
        return torch.from_numpy(np.asarray(base + np.float32(0.02) * value, dtype=np.float32))
    if last in ("proj", "text_projection"):
        scale = shape[0] ** -0.5
    elif last == "positional_embedding" or name.endswith("token_embedding.weight"):
        scale = 0.02
    elif last in ATTENTION:
        scale = 0.2
    else:
        scale = float(np.prod(shape[1:])) ** -0.5
    scale *= 0.09 if prefix == "netC." else 0.25 if prefix == "netG." and name.startswith("to_rgb") else 1
    return torch.from_numpy(value * np.float32(scale))


def close(value, wanted, tolerance=1e-4):
    value, wanted = np.asarray(value, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
    assert np.abs(value - wanted).max() <= tolerance * np.abs(wanted).max()


@pytest.fixture(scope="module", params=["galip", "ratlip"])
def system(request):
    return request.param


@pytest.fixture(scope="module")
def outputs(system):
    return dict(np.load(HERE / f"{system}_outputs.npz"))


@pytest.fixture(scope="module")
def bridge(published_clip):
    return ClipBridge(published_clip, convention="reference")


@pytest.fixture(scope="module")
def checkpoint(bridge, system):
    """A checkpoint in the authors' format, as DDP saves it, with weights by the rule."""
    tower = bridge.model.visual.state_dict()
    model = {
        network: {
            f"module.{n}": tower[n.removeprefix(TOWER)] if n.startswith(TOWER) else rule(f"{network}.", n, tuple(shape))
            for n, shape in shapes.items()
        }
        for network, shapes in read(f"{system}_state_dict.json").items()
    }
    return {"model": model, "optimizers": {}, "epoch": 3}


@pytest.fixture
def published(bridge, checkpoint):
    found = import_reference("state_epoch_003.pth", bridge.model, content=checkpoint)
    config = found.config.model_dump()
    config = build_config(config | {"train": {"recipe": "paper", "precision": "fp32"}})
    networks = make_system(bridge, config)
    for name in ("generator", "discriminator", "head"):
        getattr(networks, name).load_state_dict(getattr(found, name).state_dict())
    return config.train, networks


@contextmanager
def double_precision(*modules):
    """Everything computes in float64, also what insists on single precision; afterwards the modules are as before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LayerNorm, "forward", torch.nn.LayerNorm.forward)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        torch.set_default_dtype(torch.float64)
        try:
            for module in modules:
                module.double()
            yield
        finally:
            torch.set_default_dtype(torch.float32)
            for module in modules:
                module.to(torch.float32)


@pytest.fixture(scope="module")
def inputs(outputs, bridge):
    images = F.interpolate(torch.from_numpy(outputs["real_32"]), size=256)
    with torch.no_grad():
        sentence, words = bridge.encode_words(torch.from_numpy(outputs["tokens"]).long())
    return images, sentence, words, torch.from_numpy(outputs["noise"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:model.conditioning = 'recurrent-reference'")
def test_one_training_step_is_the_published_one(bridge, system, published, inputs, outputs):
    step = read(f"{system}_train_step.json")
    images, sentence, words, noise = inputs
    config, networks = published
    networks.eval()

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
        fake = networks.generator(noise, sentence)
        close(fake[:2, :, ::4, ::4], outputs["fake_every_4th_pixel"])
        close(torch.stack([fake.mean((1, 2, 3)), fake.std((1, 2, 3))]), outputs["fake_mean_std"])
        alone = networks.generator(noise[:1], sentence[:1])
        close(alone[0, :, ::4, ::4], outputs["fake_single0_every_4th_pixel"].squeeze())

    # The penalty where the logits are large.
    for layer in (networks.head.joint, networks.head.logit):
        layer.weight.data /= 0.09
    penalty = matching_aware_penalty(networks.judge, features, sentence, 2.0, 6.0)
    close(penalty.item(), step["errD_magp_large_logits"])
    for layer in (networks.head.joint, networks.head.logit):
        layer.weight.data *= 0.09

    # The generator learns behind the discriminator's first update, where Adam blows rounding up to whole steps (see
    # `ConditionalHead`). RATLIP's batch norm blows it up once more, so its step is taken in double precision, where
    # only the reference's own rounding is left: of the generator's loss, 1.37e-4 (GALIP: 5.8e-5).
    networks.train()
    with double_precision(bridge, networks) if system == "ratlip" else nullcontext():
        images, sentence, z = (tensor.to(networks.generator.code.weight) for tensor in (images, sentence, noise))
        batch = Batch(images, Text(sentence), {"z": z})
        report = train_step(networks, Optimizers(networks, config), batch, config, 1)
    sentence = sentence.float()
    for value, key in [
        (report.loss_real, "errD_real"), (report.loss_mismatch, "errD_mismatch"), (report.loss_fake, "errD_fake"),
        (report.penalty, "errD_magp"), (report.loss_d + report.penalty, "errD"),
        (report.similarity, "text_image_similarity"),
    ]:  # fmt: skip
        close(value, step[key])
    close(report.loss_g, step["errG"], {"galip": 1e-4, "ratlip": 1.5e-4}[system])
    for prefix, module in (("netG", networks.generator), ("netD", networks.discriminator), ("netC", networks.head)):
        gradients = {name: parameter.grad.norm().item() for name, parameter in module.named_parameters()}
        wanted = {n: norm for n, norm in step["grad_norms"][prefix].items() if not any(p.match(n) for p in NEVER_LEARN)}
        assert {to_ours(prefix, name) for name in wanted} == gradients.keys()
        for name, norm in wanted.items():
            close(gradients[to_ours(prefix, name)], norm, 1e-3)
    networks.eval()
    with torch.no_grad():
        fake = networks.generator(noise, sentence)
        close(fake[:, :, 100:108, 100:108], outputs["fake_after_step_crop"], 1e-3)
        close(torch.stack([fake.mean((1, 2, 3)), fake.std((1, 2, 3))]), outputs["fake_after_step_mean_std"], 1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:model.conditioning = 'recurrent-reference'")
def test_their_file_draws_the_published_pictures_without_a_clip(tmp_path, checkpoint, outputs):
    torch.save(checkpoint, tmp_path / "state_epoch_003.pth")
    generator = load_generator(tmp_path / "state_epoch_003.pth")
    with torch.no_grad():
        images = generator(torch.from_numpy(outputs["noise"]), torch.from_numpy(outputs["sent"]))
    close(images[:2, :, ::4, ::4], outputs["fake_every_4th_pixel"])
