"""AttnGAN computes what its authors' networks compute, reads their files, and trains as every system does.

The reference numbers were computed with the authors' public classes (fp32, CPU); they lie in tests/reference/attngan_*.
"""

import math
import pickle
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from named_weights import arrays, close, enlarged, named_state, numbers, resumed_equals_whole
from PIL import Image

from galiplib import cli
from galiplib.build import make_bridge, make_system
from galiplib.checkpoints.attngan import to_ours
from galiplib.checkpoints.loading import load_generator
from galiplib.clip.damsm import ImageEncoder, Inception
from galiplib.clip.damsm_files import load_damsm
from galiplib.config import ConfigError, build_config, load_config
from galiplib.files import WeightsError
from galiplib.images import to_uint8
from galiplib.sampling.bf16 import to_bf16
from galiplib.sampling.sample import sample
from galiplib.system import Batch, Text
from galiplib.systems import attngan
from galiplib.systems.attngan import AttnGAN, Discriminator, Generator, sides
from galiplib.training import Optimizers, train_step

DAMSM = SimpleNamespace(embed_dim=256, word_dim=256, project_words=lambda words: words)
NETWORKS = {  # of the manifest -> settings that differ from the published birds'
    "netG": {},
    "netG_coco": {"channels": 48, "residual_blocks": 3},
    "netG_gf8": {"channels": 8},
    "netG_dcgan_gf16": {"channels": 16, "residual_blocks": 0, "one_picture": True},
}


def configured(**model):
    return build_config(
        {
            "system": "attngan",
            "model": {"image_size": 256, "reference": True, **model},
            "data": {"image_size": 256},
            "train": {"recipe": "paper", "precision": "fp32", "lr_g": 2e-4, "lr_d": 2e-4},
        }
    )


def theirs_of(discriminator, names):
    """Their names of a discriminator's tensors, which stand in our order -> ours."""
    return dict(zip(names, discriminator.state_dict(), strict=True))


def published_discriminator(number, network, **model):
    found = Discriminator(256, configured(**model).model, 64 << number, 4)
    state = named_state(f"attngan.netD{number}", network)
    names = theirs_of(found, state)
    found.load_state_dict({names[name]: value for name, value in state.items()})
    return found


@pytest.fixture(scope="module")
def reference():
    return arrays("attngan")


@pytest.fixture(scope="module")
def text(reference):
    return Text(reference["sent"], reference["words"].mT, reference["mask"])


@pytest.fixture(scope="module")
def noise(reference):
    return torch.cat([reference["noise"], reference["eps"]], dim=1)


# ---------------------------------------------------------------- the same function


def test_the_published_networks_have_our_tensors():
    manifest = numbers("attngan_state_dict")
    for network, model in NETWORKS.items():
        with torch.device("meta"):
            ours = Generator(DAMSM, configured(**model).model).state_dict()
        theirs = {to_ours(name): shape for name, shape in manifest[network].items()}
        assert {name: list(value.shape) for name, value in ours.items()} == theirs
    for network, d in (("netD0", 64), ("netD1", 64), ("netD2", 64), ("netD2_coco", 96)):
        with torch.device("meta"):
            ours = Discriminator(256, configured(disc_channels=d).model, 64 << int(network[4]), 4)
        assert [list(value.shape) for value in ours.state_dict().values()] == list(manifest[network].values())


@torch.no_grad()
def test_pictures_and_judgements_are_the_published_ones(reference, text, noise, tmp_path):
    path = tmp_path / "netG_epoch_600.pth"
    torch.save({f"module.{name}": value for name, value in named_state("attngan.netG", "netG").items()}, path)
    generator = load_generator(path)
    given = []  # to each attention: map, words, mask
    for refine in generator.refine:
        refine.attention.register_forward_hook(lambda own, inputs, _: given.append((own, *inputs)))
    with pytest.warns(UserWarning, match="pictures depend on the others of their batch"):
        made = generator(noise, text)
    for (attention, x, words, mask), side in zip(given, (64, 128), strict=True):
        shares = attention.shares(x, attention.source(words.mT[..., None])[..., 0], mask)  # (B, side * side, L)
        every = side // 8
        close(
            shares.mT.unflatten(2, (side, side))[:, :, ::every, ::every], reference[f"attention{side}_every_{every}th"]
        )
    close(made.mean, reference["mu"])
    close(made.log_variance, reference["logvar"])
    for number, fake in enumerate(made.images):
        side, every = 64 << number, 2 << number
        close(fake[:2, :, ::every, ::every], reference[f"fake{side}"])
        close(torch.stack([fake.mean((1, 2, 3)), fake.flatten(1).std(1)]), reference[f"fake{side}_mean_std"])
        judge = published_discriminator(number, f"netD{number}").eval()
        features = judge(fake)
        close(features.mean(1), reference[f"netD{number}_mean"])
        close(judge.matching(features, text.sentence).sigmoid(), reference[f"netD{number}_cond"])
        close(judge.real(features).sigmoid(), reference[f"netD{number}_uncond"])
    close(made.images[2][-1, :, ::8, ::8], reference["last_in_batch_fake256"])
    length = reference["lens"][-1]
    shortest = Text(text.sentence[-1:], text.words[-1:, :length], text.mask[-1:, :length])
    for alone, wanted in ((text[-1:], "last_alone_padded_fake256"), (shortest, "last_alone_fake256")):
        close(generator.picture_of(noise[-1:], alone)[0, :, ::8, ::8], reference[wanted])


@torch.no_grad()
def test_attndcgans_picture_is_the_published_one(reference, text, noise, tmp_path):
    torch.save(named_state("attngan.netG", "netG_dcgan_gf16"), tmp_path / "bird_AttnDCGAN2.pth")
    generator = load_generator(tmp_path / "bird_AttnDCGAN2.pth")
    close(generator.picture_of(noise, text)[:2, :, ::8, ::8], reference["dcgan_gf16_fake256"])


def published_step(monkeypatch, double):
    """One step on the published networks, in single or double precision -> the system, its report, pictures after."""
    reference = {name: value.double() if double and value.is_floating_point() else value
                 for name, value in arrays("attngan").items()}  # fmt: skip
    text = Text(reference["sent"], reference["words"].mT, reference["mask"])
    noise = torch.cat([reference["noise"], reference["eps"]], dim=1)
    eyes = ImageEncoder(Inception()).eval().requires_grad_(False)
    state = named_state("damsm.image", "image_encoder")
    eyes.load_state_dict({n if n.startswith("emb_") else f"eyes.{n}": value for n, value in state.items()})
    system = AttnGAN(DAMSM, configured(channels=8, disc_channels=8))
    state = named_state("attngan.netG", "netG_gf8")
    system.generator.load_state_dict({to_ours(name): value for name, value in state.items()})
    for number in range(3):
        system.discriminator[number] = published_discriminator(number, f"netD{number}_df8", disc_channels=8)
    system.start_average()
    images = [enlarged(reference["real_32"], side)[reference["order"]] for side in (64, 128, 256)]
    classes = torch.tensor([3, 7, 3, 1])[reference["order"]]
    batch = Batch(images[-1], Text(text.sentence, text.words, text.mask, None, classes), {"z": noise})
    with monkeypatch.context() as patch:
        if double:
            system, eyes = system.double(), eyes.double()
            patch.setattr(torch.Tensor, "float", torch.Tensor.double)  # whatever insists on single precision
        patch.setattr(DAMSM, "encode_regions", eyes, raising=False)
        patch.setattr(system, "pyramid", lambda largest: images)  # theirs are no reduced ones
        report = train_step(system, Optimizers(system, system.config), batch, system.config, 1)
    with torch.no_grad(), pytest.warns(UserWarning):
        return system, report, system.generator.eval()(noise, text).images


def test_one_training_step_is_the_published_one(reference, monkeypatch):
    """What lies behind the discriminators' update is rounded, in the record, too: told by the same step in double.

    Adam's first step goes by the signs of gradients, the smallest ones' too, which single precision takes at random.
    """
    step = numbers("attngan_train_step")
    system, report, after = published_step(monkeypatch, double=False)
    exact, _, after_exact = published_step(monkeypatch, double=True)
    for number, side in enumerate((64, 128, 256)):
        close(report.noted[f"loss_d_{side}"], step[f"errD{number}"])
        names = theirs_of(system.discriminator[number], numbers("attngan_state_dict")[f"netD{number}_df8"])
        for name, norm in step["grad_norms"][f"netD{number}"].items():
            # one of these as recorded is that with a LeakyReLU, whose input is 4e-6, on its other side
            tolerance = 1e-3 if (number, name) == (2, "img_code_s16.3.bias") else 1e-4
            close(system.discriminator[number].get_parameter(names[name]).grad.norm(), norm, tolerance)
    for value, wanted in ((report.loss_kl, "kl_loss"), (report.loss_words, "words_loss"),
                          (report.loss_sentence, "sent_loss"), (report.loss_g, "errG")):  # fmt: skip
        close(value, step[wanted])
    norms = {to_ours(name): norm for name, norm in step["grad_norms"]["netG"].items()}
    found, right = ({n: s.generator.get_parameter(n).grad.norm().item() for n in norms} for s in (system, exact))
    crop = after[2][:2, :, 100:108, 100:108], after_exact[2][:2, :, 100:108, 100:108], reference["step_fake256_after"]
    shares = [torch.tensor([x[name] / norms[name] for name in norms]) for x in (found, right, norms)]
    for ours, double, theirs in (shares, crop):
        rounded, recorded = ((x - double).abs().max() / double.abs().max() for x in (ours, theirs))
        assert rounded < 4e-3 and recorded < 2 * rounded
    for network, wanted in (("netG", "running_mean_norms_after"), ("netD0", "running_mean_norms_after_netD0")):
        names = theirs_of(system.discriminator[0], numbers("attngan_state_dict")["netD0_df8"])
        for name, norm in step[wanted].items():
            ours = system.generator.get_buffer(to_ours(name)) if network == "netG" else (
                system.discriminator[0].get_buffer(names[name]))  # fmt: skip
            close(ours.norm(), norm)
    average = math.sqrt(sum(weight.pow(2).sum().item() for weight in system.ema.parameters()))
    assert average == pytest.approx(step["average_norm"], rel=1e-6)
    for fake, side in ((after[0], 64), (after[2], 256)):
        moments = torch.stack([fake.mean((1, 2, 3)), fake.flatten(1).std(1)])
        close(moments, reference[f"step_fake{side}_after_mean_std"], 1e-3)


# ---------------------------------------------------------------- as a system


@pytest.mark.parametrize(("reference_code", "alike"), [(False, True), (True, False)])
@torch.no_grad()
def test_a_picture_depends_on_its_batch_with_the_published_defect_only(text, noise, reference_code, alike):
    torch.manual_seed(0)
    generator = Generator(DAMSM, configured(channels=2, image_size=32, reference=reference_code).model).double().eval()
    captions = Text(text.sentence.double(), text.words.double(), text.mask)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        together = generator.picture_of(noise.double(), captions)
    assert bool(said) != alike
    alone = torch.cat([generator.picture_of(noise[i : i + 1].double(), captions[i : i + 1]) for i in range(4)])
    assert torch.allclose(alone, together, rtol=1e-9, atol=1e-12) == alike


@pytest.mark.parametrize(("image_size", "smallest"), [(32, 4), (56, 7), (256, 4)])
def test_three_sizes_of_pictures(image_size, smallest):
    config = build_config(
        {"system": "attngan", "model": {"channels": 2, "disc_channels": 2, "image_size": image_size},
         "data": {"image_size": image_size}}
    )  # fmt: skip
    system = AttnGAN(SimpleNamespace(embed_dim=16, word_dim=8), config)
    text = Text(torch.randn(2, 16), torch.randn(2, 5, 8), torch.zeros(2, 5, dtype=torch.bool))
    made = system.generator(torch.randn(2, 200), text).images
    assert [fake.shape[-1] for fake in made] == [image_size // 4, image_size // 2, image_size]
    assert [real.shape for real in system.pyramid(made[-1])] == [fake.shape for fake in made]
    for judge, fake in zip(system.discriminator, made, strict=True):
        features = judge(fake)
        assert features.shape[2:] == (smallest, smallest)
        assert judge.matching(features, text.sentence).shape == judge.real(features).shape == (2,)


def test_what_does_not_fit_is_refused(monkeypatch):
    with pytest.raises(ConfigError, match="model.image_size = 16 leaves no room for 3 sizes: 32 is the smallest"):
        sides(configured(image_size=16).model)
    tiny = {"model.channels": 2, "model.disc_channels": 2}
    for settings, problem in (
        ({"data.image_size": 64}, "data.image_size = 64 must be model.image_size = 56"),
        ({"train.accumulate": 2}, "train.accumulate must be 1: a loss of attngan compares the whole batch"),
        ({"train.shift": 2}, "train.shift, train.colour and train.cutout must be 0"),
    ):
        config = load_config("mini:attngan", tiny | settings)
        with pytest.raises(ConfigError, match=problem):
            make_system(make_bridge(config), config)
    monkeypatch.setattr(attngan, "processes", lambda: 2)
    with pytest.raises(ConfigError, match="model.reference must be false with several processes"):
        AttnGAN(DAMSM, configured())


def test_in_falling_length_each_keeps_what_belongs_to_it(reference, text, noise):
    system = AttnGAN(DAMSM, configured(channels=2, disc_channels=2, image_size=256))
    mixed = torch.tensor([2, 0, 3, 1])
    images = torch.arange(4.0)
    batch = Batch(images[mixed], text[mixed], {"z": noise[mixed]})
    sorted_batch = system.in_order(batch)
    assert torch.equal(sorted_batch.images, images)
    assert torch.equal(sorted_batch.text.sentence, text.sentence)
    assert torch.equal(sorted_batch.noise["z"], noise)


TINY = {
    "model.channels": 2, "model.disc_channels": 4, "data.train_size": 24, "data.test_size": 20, "train.batch_size": 4,
    "train.precision": "fp32", "train.evaluate_every": 0,
}  # fmt: skip


@pytest.mark.parametrize("recipe", ["stable", "paper"])
def test_a_resumed_run_equals_the_uninterrupted_one_and_draws(tmp_path, recipe):
    more = {"train.max_steps": 4, "train.sample_every": 4, "train.recipe": recipe}
    config = load_config("mini:attngan", TINY | more)
    resumed_equals_whole(config, tmp_path)
    exported = load_generator(tmp_path / "whole" / "generator.safetensors")
    assert sample(exported, exported.bridge, "a red bird in the snow", seed=1).images.shape == (1, 3, 56, 56)


# ---------------------------------------------------------------- their files


def test_their_file_draws_with_the_folder_of_its_text_encoder(tmp_path, monkeypatch, capsys):
    path = tmp_path / "bird_AttnGAN2.pth"
    torch.save(named_state("attngan.netG", "netG_gf8"), path)
    generator = load_generator(path)
    with pytest.raises(WeightsError, match=r"text_encoder\*\.pth and captions\.pickle .*--damsm FOLDER"):
        sample(generator, generator.bridge, "a red bird")
    words = numbers("damsm_captions")["vocabulary"]
    torch.save(named_state("damsm.text", "text_encoder"), tmp_path / "text_encoder200.pth")
    content = [[], [], dict(enumerate(words)), {word: number for number, word in enumerate(words)}]
    (tmp_path / "captions.pickle").write_bytes(pickle.dumps(content, 2))
    generator = load_generator(path, load_damsm(tmp_path))
    made = sample(generator, generator.bridge, ["a red bird", "a small blue bird with a white throat"], seed=3)
    assert made.images.shape == (2, 3, 256, 256)
    again = sample(generator, generator.bridge, "a small blue bird with a white throat", seed=3)
    assert torch.equal(made.images[1:], again.images)

    fast = to_bf16(load_generator(path, load_damsm(tmp_path)))
    assert (sample(fast, fast.bridge, "a red bird", seed=3).images - made.images[0]).abs().mean() < 0.05

    def galip(*arguments):
        monkeypatch.setattr(sys, "argv", ["galip", *map(str, arguments)])
        cli.main()

    command = "sample", "a red bird", "--weights", path, "--seed", 3, "--count", 1, "--out", tmp_path / "bird.png"
    with pytest.raises(SystemExit, match="2"):
        galip(*command)
    assert "captions.pickle that the generator was trained with, --damsm FOLDER" in capsys.readouterr().err
    galip(*command, "--damsm", tmp_path)
    with Image.open(tmp_path / "bird.png") as picture:
        assert (np.asarray(picture) == to_uint8(made.images[:1])[0]).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # which is how it says that a picture has become another
        galip("replay", tmp_path / "bird.png", "--damsm", tmp_path)


def test_what_is_no_whole_generator_of_theirs_is_named(tmp_path):
    path = tmp_path / "netG.pth"
    state = named_state("attngan.netG", "netG_gf8")
    torch.save({name: value for name, value in state.items() if not name.startswith("img_net2")}, path)
    with pytest.raises(WeightsError, match=r"netG\.pth doesn't fit: missing: to_rgb\.1\.weight"):
        load_generator(path)
    torch.save({name: value for name, value in state.items() if not name.startswith("h_net2")}, path)
    with pytest.raises(WeightsError, match=r"netG\.pth lacks h_net2\.upsample\.1\.weight, which every generator"):
        load_generator(path)
    torch.save(named_state("attngan.netD0", "netD0_df8"), path)
    with pytest.raises(WeightsError, match="AttnGAN"):
        load_generator(path)


@pytest.mark.parametrize(
    ("name", "channels", "blocks", "batch", "weight"), [("birds", 32, 2, 20, 5), ("coco", 48, 3, 14, 50)]
)
def test_the_published_settings(name, channels, blocks, batch, weight):
    config = load_config(f"{name}:attngan")
    model, train = config.model, config.train
    assert (model.channels, model.residual_blocks, model.damsm_weight, model.reference) == (
        channels,
        blocks,
        weight,
        True,
    )
    assert (train.recipe, train.batch_size, train.lr_g, train.lr_d) == ("paper", batch, 2e-4, 2e-4)
    assert (sides(model)[-3:], config.data.image_size) == ([64, 128, 256], 256)
