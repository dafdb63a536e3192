"""DF-GAN computes what its authors' networks compute, on weights rebuilt from their names; and trains as GALIP does.

The reference numbers were computed with the authors' public classes and step (fp32, CPU); names, shapes and numbers
lie in tests/reference/dfgan_*.
"""

import json
import re
import zlib
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from named_weights import close, resumed_equals_whole

from galiplib.augmentation import draw
from galiplib.build import make_bridge, make_system
from galiplib.checkpoints.dfgan import write_dfgan
from galiplib.checkpoints.loading import export_reference, load_discriminator, load_generator
from galiplib.config import ConfigError, DfganConfig, build_config, load_config
from galiplib.files import WeightsError
from galiplib.losses import matching_aware_penalty
from galiplib.runs.run import Run
from galiplib.sampling.bf16 import to_bf16
from galiplib.sampling.sample import sample
from galiplib.system import Batch, Text
from galiplib.systems.dfgan import geometry
from galiplib.training import Optimizers, train_step

HERE = Path(__file__).parent / "reference"
THEIRS = {  # patterns of our names -> the authors'
    "netG": (
        (r"^code", "fc"),
        (r"^blocks", "GBlocks"),
        (r"\.conv(\d)", r".c\1"),
        (r"\.(gamma|beta)\.0", r".fc_\1.linear1"),
        (r"\.(gamma|beta)\.2", r".fc_\1.linear2"),
        (r"\.shortcut", ".c_sc"),
        (r"^to_rgb", "to_rgb.1"),
    ),
    "netD": (
        (r"^from_rgb", "conv_img"),
        (r"^blocks", "DBlocks"),
        (r"\.residual", ".conv_r"),
        (r"\.shortcut", ".conv_s"),
    ),
    "netC": ((r"^joint", "joint_conv.0"), (r"^logit", "joint_conv.2")),
}


def to_theirs(network, name):
    for pattern, replacement in THEIRS[network]:
        name = re.sub(pattern, replacement, name)
    return name


def rule(network, name, shape):
    """The reference value of a tensor, from the authors' name of it: normal numbers seeded by that name.

    Weights are scaled to keep the size of what they multiply (the last convolution's to a quarter of it); of the
    vectors, the scales start around 1, the gates of the discriminator's residuals around 0.5, the rest around 0.
    """
    seed = zlib.crc32(f"dfgan.{network}.{name}".encode())
    value = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    if len(shape) > 1:
        quarter = 0.25 if name.startswith("to_rgb") else 1.0
        value = value * int(np.prod(shape[1:])) ** -0.5 * quarter
    else:
        middle = 1.0 if name.endswith("fc_gamma.linear2.bias") else 0.5 if name.endswith(".gamma") else 0.0
        value = middle + 0.02 * value
    return torch.from_numpy(value.astype(np.float32))


def make(channels=32, image_size="reference", embed_dim=256, device="cpu"):
    """The system as published, by default at its published size; DAMSM's sentences are 256 wide."""
    bridge = SimpleNamespace(embed_dim=embed_dim, pixel_mean=torch.zeros(1, device=device))
    side = 256 if image_size == "reference" else image_size
    values = {
        "system": "dfgan",
        "model": {"channels": channels, "image_size": image_size},
        "data": {"image_size": side},
        "train": {"recipe": "paper", "precision": "fp32"},
    }
    with torch.device(device):
        return make_system(bridge, build_config(values))


def published(*args, **kwargs):
    """The same with weights by the rule."""
    system = make(*args, **kwargs)
    for network, module in networks_of(system).items():
        ours = module.state_dict()
        module.load_state_dict({n: rule(network, to_theirs(network, n), tuple(ours[n].shape)) for n in ours})
    return system


def networks_of(system):
    return {"netG": system.generator, "netD": system.discriminator, "netC": system.head}


@pytest.fixture(scope="module")
def reference():
    return {name: torch.from_numpy(value) for name, value in np.load(HERE / "dfgan_outputs.npz").items()}


def real_pictures(reference, image_size):
    return reference["real_32"].repeat_interleave(image_size // 32, 2).repeat_interleave(image_size // 32, 3)


def test_the_published_networks_have_no_tensor_that_ours_lack():
    published = json.loads((HERE / "dfgan_state_dict.json").read_text())
    unused = [f"DBlocks.{block}.conv_s.{kind}" for block in (3, 4, 5) for kind in ("weight", "bias")]
    for network, module in networks_of(make(device="meta")).items():
        ours = {to_theirs(network, name): list(tensor.shape) for name, tensor in module.state_dict().items()}
        assert ours == {name: shape for name, shape in published[network].items() if name not in unused}


@torch.no_grad()
def test_pictures_and_logits_are_the_published_ones(reference):
    system = published()
    noise, sentence = reference["noise"], reference["sent"]
    fake = system.generator(noise, sentence)
    close(fake[:2, :, ::4, ::4], reference["fake_every_4th_pixel"])
    close(torch.stack([fake.mean((1, 2, 3)), fake.flatten(1).std(1)]), reference["fake_mean_std"])
    features = system.discriminator(real_pictures(reference, 256))
    close(features[:, :8], reference["netD_first8"])
    close(features.mean(1), reference["netD_mean"])
    close(system.head(features, sentence), reference["netC_logits"])
    close(system.head(features, sentence.roll(1, 0)), reference["netC_logits_rolled"])
    close(system.head(system.discriminator(fake), sentence), reference["netC_logits_fake"])


@pytest.mark.parametrize("image_size", [64, 128])
@torch.no_grad()
def test_smaller_pictures_are_the_published_ones(reference, image_size):
    system = published(8, image_size)
    fake = system.generator(reference["noise"], reference["sent"])
    step = image_size // 32
    close(fake[:2, :, ::step, ::step], reference[f"nf8_imsize{image_size}_fake"])
    close(system.head(system.discriminator(fake), reference["sent"]), reference[f"nf8_imsize{image_size}_logits"])


def test_one_training_step_is_the_published_one(reference):
    step = json.loads((HERE / "dfgan_train_step.json").read_text())
    system = published(8)
    images, sentence, noise = real_pictures(reference, 256), reference["sent"], reference["noise"]

    with doubled(system.head):
        penalty = matching_aware_penalty(system.judge, images, sentence, 2.0, 6.0)
        close(penalty.item(), step["errD_magp_netC_times_2"])

    with torch.no_grad():
        close(system.generator(noise, sentence)[:2, :, 100:108, 100:108], reference["step_fake_before"])
    batch = Batch(images, Text(sentence), {"z": noise})
    report = train_step(system, Optimizers(system, system.config), batch, system.config, 1)
    for value, key in [
        (report.loss_real, "errD_real"), (report.loss_mismatch, "errD_mis"), (report.loss_fake, "errD_fake"),
        (report.penalty, "errD_magp"), (report.loss_d + report.penalty, "errD"),
    ]:  # fmt: skip
        close(value, step[key])
    close(report.loss_g, step["errG"], 1e-3)  # through the updated discriminator
    for network, module in networks_of(system).items():
        for name, parameter in module.named_parameters():
            close(parameter.grad.norm().item(), step["grad_norms"][network][to_theirs(network, name)], 1e-3)
    with torch.no_grad():
        fake = system.generator(noise, sentence)
        close(fake[:2, :, 100:108, 100:108], reference["step_fake_after"], 1e-3)
        close(torch.stack([fake.mean((1, 2, 3)), fake.flatten(1).std(1)]), reference["step_fake_after_mean_std"], 1e-3)
        close(system.head(system.discriminator(fake), sentence), reference["step_logits_after"], 1e-3)


@contextmanager
def doubled(module):
    for parameter in module.parameters():
        parameter.data *= 2
    yield
    for parameter in module.parameters():
        parameter.data /= 2


@pytest.mark.parametrize(("image_size", "side"), [(256, 4), (64, 4), (8, 4), (56, 7), (96, 6), (80, 5)])
def test_the_smallest_map(image_size, side):
    system = make(2, image_size, embed_dim=16)
    assert geometry(DfganConfig(image_size=image_size))[0][0] == side
    picture = system.generator(torch.randn(2, 100), torch.randn(2, 16))
    assert picture.shape == (2, 3, image_size, image_size)
    features = system.discriminator(picture)
    assert features.shape[2:] == (side, side)
    assert system.head(features, torch.randn(2, 16)).shape == (2,)


@pytest.mark.parametrize("image_size", [4, 7, 9, 50, 100, 3])
def test_other_sizes_are_refused(image_size):
    with pytest.raises(ConfigError, match=f"{image_size} must be 4, 5, 6 or 7 times a power of two"):
        geometry(DfganConfig(image_size=image_size))


TINY = {
    "model.channels": 2, "data.train_size": 24, "data.test_size": 20, "train.batch_size": 4, "train.precision": "fp32",
    "train.penalty_every": 2, "train.evaluate_every": 0,
}  # fmt: skip


def tiny(**more):
    return load_config("mini:dfgan", TINY | {key.replace("__", "."): value for key, value in more.items()})


@torch.no_grad()
def test_a_picture_does_not_depend_on_its_batch(reference):
    generator = published(8, 64).generator.eval()
    together = generator(reference["noise"], reference["sent"])
    for row in range(4):
        alone = generator(reference["noise"][row : row + 1], reference["sent"][row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_late_blocks_take_another_caption(reference):
    generator = published(8, 64).generator
    noise, sentence = reference["noise"], reference["sent"]
    late = noise, sentence.roll(1, 0)
    assert torch.equal(generator(noise, sentence, late, generator.late_blocks), generator(noise, sentence))
    assert not torch.allclose(generator(noise, sentence, late, 3), generator(noise, sentence))


def test_a_batch_in_parts_gives_the_gradients_of_the_whole(reference):
    """A mismatched pair is picture i + 1 with sentence i, wherever the batch is cut; so is every augmentation."""
    found = []
    for parts in (1, 2, 4):
        system = published(8, 64).double()
        config = system.config.model_copy(update={"accumulate": parts, "shift": 3, "colour": 0.5})
        system.config = config
        noise = {"z": reference["noise"].double()} | draw(config, 4, torch.Generator().manual_seed(0))
        images, text = real_pictures(reference, 64).double(), Text(reference["sent"].double())
        with in_double():
            report = train_step(system, Optimizers(system, config), Batch(images, text, noise), config, 1)
        found.append((report.noted, {n: p.grad for n, p in system.named_parameters() if p.grad is not None}))
    (noted, gradients), *others = found
    for cut, learned in others:
        assert cut == pytest.approx(noted, rel=1e-9)
        for name, gradient in gradients.items():
            torch.testing.assert_close(learned[name], gradient, rtol=1e-7, atol=1e-10)


@contextmanager
def in_double():
    """The penalty insists on single precision."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield


def test_pictures_of_another_size_than_the_real_ones_are_refused():
    config = tiny(data__image_size=64)
    with pytest.raises(ConfigError, match="data.image_size = 64 must be model.image_size = 56"):
        make_system(make_bridge(config), config)


def test_a_resumed_run_equals_the_uninterrupted_one_and_draws(tmp_path):
    config = tiny(train__max_steps=6, train__sample_every=6, train__lr_g=0.01)
    first = Run(tmp_path / "first", config, progress=False).system.state_dict()
    whole = resumed_equals_whole(config, tmp_path)
    for part in ("generator", "discriminator", "head", "ema"):
        names = [name for name in first if name.startswith(part)]
        assert any(not torch.equal(first[name], whole.system.state_dict()[name]) for name in names), part
    history = whole.history()
    assert [line["penalty"] > 0 for line in history] == [False, True] * 3

    noise, sentence = torch.randn(2, 100), torch.randn(2, 128)
    with torch.no_grad():
        live = whole.system.ema(noise, sentence)
        torch.testing.assert_close(load_generator(tmp_path / "whole")(noise, sentence), live)
        exported = load_generator(tmp_path / "whole" / "generator.safetensors")
        torch.testing.assert_close(exported(noise, sentence), live, atol=2e-2, rtol=2e-2)
        discriminator, head = load_discriminator(tmp_path / "whole")
        assert torch.equal(
            head(discriminator(live), sentence), whole.system.head(whole.system.discriminator(live), sentence)
        )
    drawn = sample(exported, exported.bridge, "a red bird in the snow", seed=1).images
    fast = to_bf16(load_generator(tmp_path / "whole" / "generator.safetensors"))
    torch.testing.assert_close(
        sample(fast, fast.bridge, "a red bird in the snow", seed=1).images, drawn, atol=0.1, rtol=0
    )
    with pytest.raises(WeightsError, match="authors' format of the system dfgan"):
        export_reference(tmp_path / "whole", tmp_path / "state_epoch_001.pth")


def test_their_file_is_read_and_written_back_tensor_by_tensor(reference, tmp_path):
    system, path = published(8, 64), tmp_path / "state_epoch_1220.pth"
    nets = {
        network: {to_theirs(network, name): tensor for name, tensor in module.state_dict().items()}
        for network, module in networks_of(system).items()
    }
    nets["netD"] |= {"DBlocks.3.conv_s.weight": torch.ones(64, 64, 1, 1), "DBlocks.3.conv_s.bias": torch.ones(64)}
    content = {"model": {key: {f"module.{n}": t for n, t in net.items()} for key, net in nets.items()}, "epoch": 1220,
               "optimizers": {"optimizer_G": {}, "optimizer_D": {}}}  # fmt: skip
    torch.save(content, path)
    generator, (discriminator, head) = load_generator(path), load_discriminator(path)
    noise, sentence = reference["noise"], reference["sent"]
    with torch.no_grad():
        fake = generator(noise, sentence)
        close(fake[:2, :, ::2, ::2], reference["nf8_imsize64_fake"])
        close(head(discriminator(fake), sentence), reference["nf8_imsize64_logits"])
    with pytest.raises(WeightsError, match="--damsm FOLDER"):
        sample(generator, generator.bridge, "a red bird")
    export_reference(path, tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert (back["epoch"], back["optimizers"]) == (1220, content["optimizers"])
    for network, tensors in nets.items():
        assert back["model"][network].keys() == tensors.keys()
        assert all(torch.equal(back["model"][network][name], tensor) for name, tensor in tensors.items())


def test_a_training_is_written_for_their_code(tmp_path):
    system, config = make(8, 64), {"system": "dfgan", "model": {"channels": 8, "image_size": 64}}
    write_dfgan({"config": config, "networks": system.state_dict()}, tmp_path / "state_epoch_001.pth")
    written = torch.load(tmp_path / "state_epoch_001.pth", weights_only=True)["model"]
    assert written["netD"]["DBlocks.3.conv_s.weight"].shape == (64, 64, 1, 1)
    generator = load_generator(tmp_path / "state_epoch_001.pth")
    for name, tensor in system.ema.state_dict().items():
        assert torch.equal(generator.state_dict()[name], tensor), name


@pytest.mark.parametrize(("name", "steps"), [("birds", 358_800), ("flowers", 219_000), ("coco", 776_000)])
def test_the_published_settings(name, steps):
    config = load_config(f"{name}:dfgan")
    assert (config.model.channels, config.model.noise_dim, geometry(config.model)[0][-1]) == (32, 100, 256)
    train = config.train
    assert (train.recipe, train.batch_size, train.lr_g, train.lr_d, train.max_steps) == ("paper", 32, 1e-4, 4e-4, steps)
    assert (train.penalty_weight, train.penalty_power, train.penalty_every, train.shift) == (2.0, 6.0, 1, 0)
