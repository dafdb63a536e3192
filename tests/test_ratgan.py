"""RAT-GAN computes what its authors' networks compute, on weights rebuilt from their names; so does DF-GAN's of 2020.

The reference numbers were computed with the authors' public classes and step (fp32, CPU); names, shapes and numbers
lie in tests/reference/ratgan_*.
"""

import json
import zlib
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from named_weights import close, resumed_equals_whole

from galiplib.build import make_system
from galiplib.checkpoints.dfgan import RATGAN, of_dfgan, renamed, write_dfgan
from galiplib.checkpoints.loading import export_reference, load_discriminator, load_generator
from galiplib.config import build_config, load_config
from galiplib.files import WeightsError
from galiplib.sampling.sample import sample
from galiplib.system import Batch, Step, Text
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
    """Manifest -> the published state dict."""

    @cache
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
        close(fake[:2, :, 100:108, 100:108], reference["step_fake_after"], 1e-3)
        close(torch.stack([fake.mean((1, 2, 3)), fake.flatten(1).std(1)]), reference["step_fake_after_mean_std"], 1e-3)
        close(system.judge(fake, sentence), reference["step_logits_after"], 1e-3)


def norms(system):
    """Their names -> norms of the gradients."""
    found = {"netG": {}, "netD": {}}
    for name, parameter in system.named_parameters():
        if parameter.grad is not None:
            network = "netG" if name.startswith("generator.") else "netD"
            theirs = renamed(name.replace("generator.", "ema.", 1), RATGAN[network], back=True)
            found[network][theirs] = parameter.grad.norm().item()
    return found


# ---------------------------------------------------------------- their files


@pytest.mark.parametrize("manifest", ["netG_nf8", "netD_attention_nf8", "netG_2020_nf8", "netD_2020_nf8"])
def test_a_file_is_written_back_tensor_by_tensor(manifest, states, tmp_path):
    state, path = states(manifest), tmp_path / f"{manifest}.pth"
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, path)
    export_reference(path, tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())
    if manifest.startswith("netG"):
        generator = load_generator(path)
        assert generator.image_size == 256
        with pytest.raises(WeightsError, match="holds a generator only"):
            load_discriminator(path)
        with pytest.raises(WeightsError, match=rf"{manifest}\.pth: captions .*--damsm FOLDER"):
            sample(generator, generator.bridge, "a red bird")
    else:
        discriminator, head = load_discriminator(path)
        logits = head(discriminator(torch.zeros(2, 3, 256, 256)), torch.zeros(2, 256))
        assert logits.shape == (2,) and torch.isfinite(logits).all()
        with pytest.raises(WeightsError, match="holds a discriminator only"):
            load_generator(path)


def test_a_training_is_written_for_their_code(shapes, tmp_path):
    """Also what their networks hold and do not use: the cell eight times, affines as the identity."""
    bridge = SimpleNamespace(embed_dim=256, pixel_mean=torch.zeros(1))
    values = {"system": "ratgan", "model": {"channels": 8, "attention": True}, "data": {"image_size": 256}}
    config = build_config(values)
    content = {"config": config.model_dump(), "networks": make_system(bridge, config).state_dict()}
    write_dfgan(content, tmp_path / "netG_001.pth")
    for name, manifest in (("netG", "netG_nf8"), ("netD", "netD_attention_nf8")):
        written = torch.load(tmp_path / f"{name}_001.pth", weights_only=True)
        assert {key: list(tensor.shape) for key, tensor in written.items()} == shapes[manifest]
    generator = load_generator(tmp_path / "netG_001.pth")
    for name, tensor in generator.state_dict().items():
        assert torch.equal(tensor, content["networks"][f"ema.{name}"]), name
    with pytest.raises(WeightsError, match="must have netG in its name"):
        write_dfgan(content, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"model\.image_size = 256, not 56"):
        small = build_config(values | {"data": {"image_size": 56}, "model": {"channels": 2, "image_size": 56}})
        write_dfgan({"config": small.model_dump(), "networks": make_system(bridge, small).state_dict()}, tmp_path / "y")


def test_what_is_no_whole_file_of_theirs_is_named(states, tmp_path):
    path = tmp_path / "netG.pth"
    for name in ("fc.weight", "lstm.bias"):
        torch.save({n: tensor for n, tensor in states("netG_nf8").items() if n != name}, path)
        with pytest.raises(WeightsError, match=rf"netG\.pth lacks {name}, which every ratgan"):
            load_generator(path)
    torch.save({n: tensor for n, tensor in states("netG_nf8").items() if n != "block3.c2.weight"}, path)
    with pytest.raises(WeightsError, match=r"generator in .*netG\.pth doesn't fit: missing: blocks\.3\.conv2\.weight"):
        load_generator(path)


# ---------------------------------------------------------------- training


TINY = {
    "model.channels": 2, "model.state_dim": 8, "data.train_size": 24, "data.test_size": 20, "train.batch_size": 4,
    "train.precision": "fp32", "train.penalty_every": 2, "train.evaluate_every": 0,
}  # fmt: skip


def tiny(**more):
    return load_config("mini:ratgan", TINY | {key.replace("__", "."): value for key, value in more.items()})


@pytest.mark.parametrize("attention", [False, True])
def test_a_resumed_run_equals_the_uninterrupted_one_and_draws(attention, tmp_path):
    config = tiny(train__max_steps=4, train__sample_every=4, model__attention=attention)
    whole = resumed_equals_whole(config, tmp_path)
    assert [line["penalty"] > 0 for line in whole.history()] == [False, True] * 2
    exported = load_generator(tmp_path / "whole" / "generator.safetensors")
    assert sample(exported, exported.bridge, "a red bird in the snow", seed=1).images.shape == (1, 3, 56, 56)


@pytest.mark.parametrize("recurrent", [True, False])
def test_a_picture_does_not_depend_on_its_batch_and_late_blocks_take_another_caption(recurrent):
    bridge = SimpleNamespace(embed_dim=16, pixel_mean=torch.zeros(1))
    config = build_config({
        "system": "ratgan", "model": {"channels": 2, "image_size": 56, "state_dim": 8, "recurrent": recurrent},
        "data": {"image_size": 56},
    })  # fmt: skip
    generator = make_system(bridge, config).generator.eval().double()
    torch.manual_seed(1)
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # gates open, affines that listen
    noise, sentence = torch.randn(3, 100).double(), torch.randn(3, 16).double()
    with torch.no_grad():
        together = generator(noise, sentence)
        alone = torch.cat([generator(noise[i : i + 1], sentence[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(alone, together)
        late = noise, sentence.roll(1, 0)
        assert torch.equal(generator(noise, sentence, late, generator.late_blocks), together)
        assert not torch.allclose(generator(noise, sentence, late, 2), together)
        assert not torch.allclose(generator(noise, sentence.roll(1, 0)), together)


def test_a_batch_in_parts_gives_the_gradients_of_the_whole():
    bridge, found = SimpleNamespace(embed_dim=16, pixel_mean=torch.zeros(1)), []
    for parts in (1, 2):
        system = make_system(bridge, build_config({
            "system": "ratgan", "model": {"channels": 2, "image_size": 56, "state_dim": 8, "attention": True},
            "data": {"image_size": 56}, "train": {"precision": "fp32", "batch_size": 4, "accumulate": parts},
        })).double()  # fmt: skip
        torch.manual_seed(0)
        images, sentence, z = (torch.randn(4, *shape).double() for shape in ((3, 56, 56), (16,), (100,)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "float", torch.Tensor.double)  # the penalty insists on single precision
            optimizers = Optimizers(system, system.config)
            report = train_step(system, optimizers, Batch(images, Text(sentence), {"z": z}), system.config, 1)
        found.append((report.noted, {n: p.grad for n, p in system.named_parameters() if p.grad is not None}))
    (noted, gradients), (cut, learned) = found
    assert cut == pytest.approx(noted, rel=1e-9)
    for name, gradient in gradients.items():
        torch.testing.assert_close(learned[name], gradient, rtol=1e-7, atol=1e-10)


def test_as_published_the_last_picture_meets_no_other_caption():
    bridge = SimpleNamespace(embed_dim=16, pixel_mean=torch.zeros(1))
    losses = []
    for reference in (False, True):
        system = make_system(bridge, build_config({
            "system": "ratgan", "model": {"channels": 2, "image_size": 56, "state_dim": 8, "reference": reference},
            "data": {"image_size": 56}, "train": {"precision": "fp32"},
        }))  # fmt: skip
        torch.manual_seed(0)
        sentence = torch.randn(4, 16)
        batch = Batch(torch.randn(4, 3, 56, 56), Text(sentence), {"z": torch.randn(4, 100)})
        noted = system.discriminator_losses(batch, Step(1)).noted
        logits = system.judge(batch.images, sentence.roll(-1, 0))
        torch.testing.assert_close(noted["logit_mismatch"], logits[: 4 - reference].mean())
        losses.append(noted["loss_mismatch"].item())
    assert losses[0] != losses[1]


@pytest.mark.parametrize(("name", "steps"), [("birds", 220_800), ("flowers", 175_800), ("coco", 413_880)])
def test_the_published_settings(name, steps):
    config = load_config(f"{name}:ratgan")
    model, train = config.model, config.train
    assert (model.channels, model.affines, model.reference) == (64, 6 if name == "flowers" else 4, True)
    assert (train.recipe, train.batch_size, train.lr_g, train.lr_d, train.max_steps) == ("paper", 24, 1e-4, 4e-4, steps)
    assert (train.penalty_weight, train.penalty_power, train.penalty_every) == (2.0, 6.0, 1)
