"""RAT-GAN computes what its authors' networks compute, on weights rebuilt from their names; so does DF-GAN's of 2020.

The reference numbers were computed with the authors' public classes and step (fp32, CPU); names, shapes and numbers
lie in tests/reference/ratgan_*.
"""

import json
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from galiplib.build import make_system
from galiplib.checkpoints.dfgan import RATGAN, of_dfgan, renamed
from galiplib.config import build_config
from galiplib.system import Batch, Text
from galiplib.training import Optimizers, train_step

HERE = Path(__file__).parent / "reference"


def rule(prefix, name, shape):
    """The reference value of a tensor, from the authors' name of it: normal numbers seeded by that name."""
    name = name[name.index("lstm.") :] if ".lstm." in name else name  # the one cell stands in every block
    seed = zlib.crc32(f"{prefix}.{name}".encode())
    value = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    if len(shape) > 1:
        gain = {"lstm.W": 4.0, "lstm.U": 2.0}.get(name, 0.25 if name == "conv_img.1.weight" else 1.0)
        value = value * int(np.prod(shape[1:])) ** -0.5 * gain
    else:
        middle = 1.0 if "gamma" in name and name.endswith("linear2.bias") else 0.5 if name.endswith("gamma") else 0.0
        value = middle + 0.02 * value
    return torch.from_numpy(value.astype(np.float32))


@pytest.fixture(scope="module")
def shapes():
    return json.loads((HERE / "ratgan_state_dict.json").read_text())


@pytest.fixture(scope="module")
def reference():
    return {name: torch.from_numpy(value) for name, value in np.load(HERE / "ratgan_outputs.npz").items()}


@pytest.fixture(scope="module")
def states(shapes):
    """The published state dicts by manifest; `netD_attention_nf8`'s rule has another prefix."""

    def made(manifest):
        prefix = "dfgan2020" if "2020" in manifest else "ratgan"
        network = manifest.partition("_")[0] + ("att" if "attention" in manifest else "")
        return {name: rule(f"{prefix}.{network}", name, shape) for name, shape in shapes[manifest].items()}

    return made


def published(*contents, path="netG_500.pth", **model):
    """The system whose networks the files hold, read as files are."""
    bridge, values, tensors = SimpleNamespace(embed_dim=256, pixel_mean=torch.zeros(1)), {}, {}
    for content in contents:
        found = of_dfgan(content, path)
        values |= found["config"]["model"]
        tensors |= {name.replace("ema.", "generator."): tensor for name, tensor in found["networks"].items()}
    config = {"system": "ratgan", "model": values | model, "data": {"image_size": 256},
              "train": {"recipe": "paper", "precision": "fp32"}}  # fmt: skip
    system = make_system(bridge, build_config(config))
    lacking = system.load_state_dict(tensors, strict=False)
    assert not lacking.unexpected_keys
    kinds = {name.partition(".")[0] for name in tensors}
    assert not [name for name in lacking.missing_keys if name.partition(".")[0] in kinds]
    return system.eval()


def close(value, wanted, tolerance=1e-4):
    value, wanted = np.asarray(value, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
    assert value.shape == wanted.shape
    assert np.abs(value - wanted).max() <= tolerance * np.abs(wanted).max()


def real_pictures(reference):
    return reference["real_32"].repeat_interleave(8, 2).repeat_interleave(8, 3)


@torch.no_grad()
def test_pictures_states_and_logits_are_the_published_ones(reference, states):
    system = published(states("netG"), states("netD"))
    noise, sentence = reference["noise"], reference["sent"]
    hidden = system.generator.cell(noise, sentence, 28)
    close(hidden[:, 0], reference["hidden_first"])
    close(hidden[:, -1], reference["hidden_last"])
    close(hidden.norm(dim=2).T, reference["hidden_norms"])
    fake = system.generator(noise, sentence)
    close(fake[:2, :, ::4, ::4], reference["fake_every_4th_pixel"])
    close(torch.stack([fake.mean((1, 2, 3)), fake.flatten(1).std(1)]), reference["fake_mean_std"])
    features = system.discriminator(real_pictures(reference))
    close(features[:, :8], reference["netD_first8"])
    close(features.mean(1), reference["netD_mean"])
    close(system.head(features, sentence), reference["logits"])
    close(system.head(features[:-1], sentence[1:]), reference["logits_shifted"])
    close(system.judge(fake, sentence), reference["logits_fake"])


@torch.no_grad()
def test_the_other_published_functions(reference, states):
    """RAT-GAN with six affines for flowers, DF-GAN of 2020, the discriminator of the files of 2022."""
    noise, sentence, real = reference["noise"], reference["sent"], real_pictures(reference)
    for path, name in (("netG_500.pth", "nf8_fake"), ("flower_lstm_4aff/netG_500.pth", "nf8_flower_fake")):
        fake = published(states("netG_nf8"), path=path).generator(noise, sentence)
        close(fake[:2, :, ::8, ::8], reference[f"{name}_every_8th_pixel"])
    old = published(states("netG_2020_nf8"), states("netD_2020_nf8"))
    close(old.generator(noise, sentence)[:2, :, ::8, ::8], reference["v2020_nf8_fake_every_8th_pixel"])
    close(old.judge(real, sentence), reference["v2020_nf8_logits"])
    system = published(states("netD_attention_nf8"))
    features = system.discriminator(real)
    close(system.head(features, sentence), reference["nf8_attention_logits"])
    close(system.head.weights(features, sentence)[:, 0], reference["nf8_attention_map"])


def test_one_training_step_is_the_published_one(reference, states):
    step = json.loads((HERE / "ratgan_train_step.json").read_text())
    system = published(states("netG_nf8"), states("netD_nf8"), reference=True)
    noise, sentence = reference["noise"], reference["sent"]
    optimizers, found = Optimizers(system, system.config), []
    for adam in optimizers.adam.values():
        adam.register_step_pre_hook(lambda *_: found.append(norms(system)))
    with torch.no_grad():
        close(system.generator(noise, sentence)[:2, :, 100:108, 100:108], reference["step_fake_before"])
    batch = Batch(real_pictures(reference), Text(sentence), {"z": noise})
    report = train_step(system, optimizers, batch, system.config, 1)
    for value, key in [
        (report.loss_real, "errD_real"), (report.loss_mismatch, "errD_mis"), (report.loss_fake, "errD_fake"),
        (report.loss_d, "errD"),
    ]:  # fmt: skip
        close(value, step[key])
    close(report.penalty, step["errD_magp"], 1e-3)  # through the updated discriminator
    close(report.loss_g, step["errG"], 1e-3)
    for gradients, key in zip(found, ("netD", "netD_penalty", "netG"), strict=True):
        wanted = step["grad_norms"][key]
        ours = {name: gradients[network][name] for name in wanted for network in [key[:4]]}
        largest = max(wanted.values())
        for name, value in wanted.items():
            assert abs(ours[name] - value) <= 1e-3 * max(value, 1e-3 * largest), (key, name)
    with torch.no_grad():
        fake = system.generator(noise, sentence)
        close(fake[:2, :, 100:108, 100:108], reference["step_fake_after"], 1e-2)
        close(torch.stack([fake.mean((1, 2, 3)), fake.flatten(1).std(1)]), reference["step_fake_after_mean_std"], 1e-2)
        close(system.judge(fake, sentence), reference["step_logits_after"], 1e-2)


def norms(system):
    """Their names -> norms of the gradients."""
    found = {"netG": {}, "netD": {}}
    for name, parameter in system.named_parameters():
        if parameter.grad is not None:
            network = "netG" if name.startswith("generator.") else "netD"
            theirs = renamed(name.replace("generator.", "ema.", 1), RATGAN[network], back=True)
            found[network][theirs] = parameter.grad.norm().item()
    return found
