"""The authors' checkpoint format: read, used, written back. The numbers themselves are pinned by test_parity.py."""

import argparse
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import galiplib
from galiplib.build import make_system
from galiplib.checkpoints import published as reference
from galiplib.checkpoints.loading import export_reference, load_discriminator, load_generator
from galiplib.clip.bridge import CLIP
from galiplib.config import build_config
from galiplib.files import WeightsError
from galiplib.runs.run import Run

SIZES = {"channels": 2, "code_channels": 4, "fusion_blocks": 2, "disc_channels": 6, "head_channels": 4}
SYSTEMS = {"galip": {}, "ratlip": {"conditioning": "recurrent-reference"}}
galip_alone = pytest.mark.parametrize("system", ["galip"])
pytestmark = pytest.mark.filterwarnings("ignore:model.conditioning = 'recurrent-reference'")


@pytest.fixture(scope="module")
def clip_model():
    torch.manual_seed(3)
    return CLIP(16, 56, 4, 64, 8, 77, 49408, 64, 1, 1).float().eval().requires_grad_(False)


@pytest.fixture(params=list(SYSTEMS))
def system(request):
    return request.param


@pytest.fixture
def published(clip_model, system):
    """Small networks of the published structure with random weights."""
    model = SIZES | SYSTEMS[system]
    config = build_config(
        {"system": system, "clip": {"convention": "reference"}, "model": model, "train": {"recipe": "paper"}}
    )
    networks = make_system(galiplib.ClipBridge(clip_model, "reference"), config).eval()
    for parameter in networks.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    for name, buffer in networks.named_buffers():
        buffer.fill_(11) if name.endswith("num_batches_tracked") else torch.nn.init.uniform_(buffer, 0.5, 1.5)
    return reference.Published(
        config, networks.generator.bridge, networks.generator, networks.discriminator, networks.head, epoch=7
    )


@pytest.fixture
def file(tmp_path, published):
    path = tmp_path / "state_epoch_007.pth"
    published.unused = {
        f"DBlocks.{index}.conv_s.{name}": torch.randn(shape)
        for index in (0, 1)
        for name, shape in (("weight", (64, 64, 1, 1)), ("bias", (64,)))
    }
    export_reference(published, path)
    return path


def change(file, edit):
    content = torch.load(file, weights_only=True)
    edit(content)
    torch.save(content, file)


def same(one, other):
    assert list(one["model"]) == list(other["model"]) and one["epoch"] == other["epoch"]
    for network in one["model"]:
        assert list(one["model"][network]) == list(other["model"][network])
        for name, tensor in one["model"][network].items():
            assert torch.equal(tensor, other["model"][network][name]), name


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
@pytest.mark.parametrize("with_clip", [True, False])
def test_generator_draws_the_same_from_their_file(file, published, clip_model, prefix, with_clip):
    def ddp(content):
        model = content["model"]
        for network, state in model.items():
            model[network] = {prefix + name: tensor for name, tensor in state.items()}
        content["epoch"] = "best" if prefix else 7

    change(file, ddp)
    generator = load_generator(file, clip_model if with_clip else None)
    noise, sentence = torch.randn(2, 100), torch.randn(2, 16)
    with torch.no_grad():
        images = generator(noise, sentence)
        torch.testing.assert_close(images, published.generator(noise, sentence))
    assert images.shape == (2, 3, 224, 224) and not generator.training
    if with_clip:
        assert generator.bridge.model is clip_model  # the frozen CLIP is kept once
    else:
        with pytest.raises(ValueError, match=re.escape('load_generator(path, clip_model=load_clip("ViT-B/32"))')):
            generator.bridge.tokenize("a bird")


@pytest.mark.parametrize("system", ["galip"], indirect=True)
def test_generator_as_other_trainings_wrap_it(file, published, clip_model):
    content = torch.load(file, weights_only=True)
    networks, state = content["model"], content["model"]["netG"]
    other = {name: tensor + 1 for name, tensor in state.items()}

    def named(prefix, state=state):
        return {prefix + name: tensor for name, tensor in state.items()}

    forms = [
        networks, {"state_dict": networks, "epoch": 3}, {"model_state_dict": networks}, state, {"netG": state},
        {"params": other, "params_ema": named("module.")}, {"g": other, "g_ema": state, "d": {}},
        {"model": {"netG": named("_orig_mod.")}, "optimizers": None}, {"model": other, "ema": state},
        named("online_model.", other) | named("ema_model.") | {"initted": torch.tensor(True), "step": torch.tensor(3)},
        named("module.") | {"n_averaged": torch.tensor(4)},
        {**content, "FID": np.float64(14.2), "args": argparse.Namespace(lr=1e-4), "epoch": np.int64(3)},
    ]  # fmt: skip
    wanted = published.generator.state_dict()
    for form in forms:
        torch.save(form, file)
        found = load_generator(file, clip_model).state_dict()
        assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    bare = file.with_suffix(".safetensors")
    safetensors.torch.save_file(state, bare)
    assert torch.equal(load_generator(bare, clip_model).state_dict()["code.weight"], wanted["code.weight"])
    torch.save({"state_dict": {"visual.conv1.weight": torch.zeros(1)}, "epoch": 3}, file)
    with pytest.raises(WeightsError, match=r"is neither .*, but dict with state_dict \(visual.conv1.weight\), epoch"):
        load_generator(file, clip_model)


def test_discriminator_judges_the_same_from_their_file(file, published, clip_model):
    discriminator, head = load_discriminator(file, clip_model)
    features, sentence = torch.randn(3, 3, 64, 7, 7), torch.randn(3, 16)
    with torch.no_grad():
        logits = head(discriminator(features), sentence)
        torch.testing.assert_close(logits, published.head(published.discriminator(features), sentence))


def test_round_trip_changes_no_tensor(file, tmp_path, clip_model):
    for given in (clip_model, None):
        export_reference(file, tmp_path / "again.pth", given)
        same(torch.load(file, weights_only=True), torch.load(tmp_path / "again.pth", weights_only=True))


def test_names_and_their_order_are_the_published_ones(file, system):
    """Their optimizers count parameters in this order."""
    content = torch.load(file, weights_only=True)["model"]
    shapes = json.loads((Path(__file__).parent / "reference" / f"{system}_state_dict.json").read_text())
    assert list(content["netD"]) == list(shapes["netD"]) and list(content["netC"]) == list(shapes["netC"])
    assert list(content["netG"]) == [name for name in shapes["netG"] if name in content["netG"]]
    assert len(content["netG"]) > 300


@pytest.mark.parametrize("system", list(SYSTEMS))
def test_our_training_goes_into_their_code(tmp_path, tiny_config, system):
    """Their optimizers number the parameters of netG (its CLIP too), and of netD and netC, in their order."""
    config = tiny_config(
        system=system, train__max_steps=2, train__recipe="paper",
        model__image_size="reference", model__smooth_shortcut=False,
        model__noise_dim=100, train__sample_every=100, train__evaluate_every=0,
        **{f"model__{key}": value for key, value in SYSTEMS[system].items()},
    )  # fmt: skip
    run = Run(tmp_path / "run", config, "cpu", progress=False)
    list(run.train())
    path = tmp_path / "state_epoch_001.pth"
    export_reference(tmp_path / "run", path)
    content = torch.load(path, weights_only=True)
    names = list(content["model"]["netG"])
    assert names[0] == "fc_code.weight" and names[-1] == "to_rgb.1.bias"
    for optimizer, networks in (("optimizer_G", ["netG"]), ("optimizer_D", ["netD", "netC"])):
        tensors = [
            tensor
            for network in networks
            for name, tensor in content["model"][network].items()
            if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))  # no parameters
        ]
        theirs = torch.optim.Adam([torch.nn.Parameter(t.clone()) for t in tensors], lr=1e-4, betas=(0.0, 0.9))
        theirs.load_state_dict(content["optimizers"][optimizer])
        for index, moments in content["optimizers"][optimizer]["state"].items():
            assert moments["exp_avg_sq"].shape == tensors[index].shape
    number = len(content["optimizers"]["optimizer_G"]["param_groups"][0]["params"]) - 1  # to_rgb's bias is the last
    live = run.optimizers.adam["generator"].state[run.system.generator.to_rgb.bias]["exp_avg_sq"]
    assert torch.equal(content["optimizers"]["optimizer_G"]["state"][number]["exp_avg_sq"], live)
    with torch.no_grad():
        noise, sentence = torch.randn(1, 100), torch.randn(1, run.bridge.embed_dim)
        torch.testing.assert_close(load_generator(path)(noise, sentence), run.system.ema(noise, sentence))
    discriminator, head = load_discriminator(tmp_path / "run")
    for ours, loaded in ((run.system.discriminator, discriminator), (run.system.head, head)):
        for name, tensor in loaded.state_dict().items():
            assert torch.equal(tensor, ours.state_dict()[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"smooth_shortcut": True}, "smooth_shortcut = True"),
        ({"noise_gain": 2.0}, "noise_gain = 2.0"),
        (
            {"conditioning": "recurrent", "attention": False},
            "'recurrent' with model.attention = False is neither GALIP",
        ),
        ({"conditioning": "affine", "attention": True}, "'affine' with model.attention = True is neither GALIP"),
        ({"conditioning": "recurrent-reference", "attention": False}, "nor published RATLIP"),
    ],
)
@galip_alone
def test_networks_their_code_does_not_know_are_refused(tmp_path, published, changes, message):
    system = "ratlip" if "conditioning" in changes else "galip"
    published.config = build_config({"system": system, "model": published.config.model.model_dump() | changes})
    with pytest.raises(WeightsError, match=message):
        export_reference(published, tmp_path / "x.pth")


class Code:
    def __reduce__(self):
        return os.system, ("touch ran_code",)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["model"]["netG"].pop("fc_code.bias"), r"netG of .* doesn't fit: missing: code\.bias"),
        (lambda c: c["model"]["netG"].update(extra=torch.zeros(1)), "unexpected: extra"),
        (lambda c: c["model"]["netG"].update({"fc_code.bias": torch.zeros(5)}),
         r"code\.bias is \(5,\), expected \(196,\)"),
        (lambda c: c["model"]["netG"].pop("to_rgb.1.weight"), "lacks 'to_rgb.1.weight'"),
        (lambda c: c["model"].pop("netG"), "neither a checkpoint of galiplib .* nor of GALIP's authors"),
        (lambda c: c["model"].update(netG=3), "netG of .* is no state dict .* but int"),
        (lambda c: [c["model"]["netG"].pop(n) for n in list(c["model"]["netG"]) if n.startswith("GBlocks.")],
         r"lacks 'GBlocks\.'"),
        (lambda c: c.update(code=Code()), "could run code: refused"),
        (lambda c: c["model"]["netG"].pop("mapping.CLIP_ViT.conv1.weight"), "lacks mapping.CLIP_ViT.conv1.weight"),
    ],
)  # fmt: skip
@galip_alone
def test_files_that_do_not_fit_are_named(file, clip_model, edit, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    change(file, edit)
    with pytest.raises(WeightsError, match=message) as caught:
        load_generator(file, clip_model)
    assert "state_epoch_007.pth" in str(caught.value)
    assert not (tmp_path / "ran_code").exists()


@galip_alone
def test_truncated_file_and_generator_without_discriminator(file, tmp_path):
    change(file, lambda content: (content["model"].pop("netD"), content["model"].pop("netC")))
    load_generator(file)
    with pytest.raises(WeightsError, match="holds a generator only"):
        load_discriminator(file)
    with pytest.raises(WeightsError, match="holds a generator only: a run folder"):
        load_discriminator("mini")
    cut = tmp_path / "cut.pth"
    cut.write_bytes(file.read_bytes()[:-3000])
    with pytest.raises(WeightsError, match="cut.pth is damaged: its end is missing"):
        load_generator(cut)


@galip_alone
def test_another_clip_is_refused_or_named(file, clip_model):
    wider = CLIP(16, 56, 4, 128, 8, 77, 49408, 64, 1, 1).float()
    with pytest.raises(WeightsError, match=re.escape("(64, 4, 8, 7, 16) in the file, (128, 4, 8, 7, 16) given")):
        load_generator(file, wider)
    torch.manual_seed(9)
    other = CLIP(16, 56, 4, 64, 8, 77, 49408, 64, 1, 1).float()
    with pytest.warns(UserWarning, match="the file's is used inside the generator"):
        generator = load_generator(file, other)
    assert torch.equal(generator.bridge.model.visual.conv1.weight, clip_model.visual.conv1.weight)
    assert torch.equal(generator.bridge.model.text_projection, other.text_projection)
