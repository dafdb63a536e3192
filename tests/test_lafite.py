"""LAFITE computes what its authors' networks and losses compute, on weights rebuilt from their names; and trains.

The reference numbers were computed with the authors' public classes (fp32, CPU); names, shapes and numbers lie in
tests/reference/lafite_*. Their files hold code: what happens to it is tested, too.
"""

import json
import math
import os
import pickle
import sys
import types
import zlib
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from named_weights import close

from galiplib.build import make_bridge, make_system
from galiplib.checkpoints.loading import load_discriminator, load_generator
from galiplib.clip.bridge import ClipBridge
from galiplib.config import ConfigError, build_config, load_config
from galiplib.files import WeightsError
from galiplib.runs.run import Run
from galiplib.sampling.bf16 import to_bf16
from galiplib.sampling.sample import sample
from galiplib.system import Batch, Step, Text
from galiplib.systems.lafite import contrast, geometry
from galiplib.training import Optimizers, random_of, train_step, update_ema

HERE = Path(__file__).parent / "reference"
SLOW = ("mapping.fc", ".pre_0.", ".pre_1.")
SIZES = {"channels": 32, "most_channels": 64, "image_size": 64}  # of the network of the numbers
NETWORKS = (("generator", "G", "G_ema"), ("discriminator", "D", "D"))


def rule(network, name, shape):
    """The reference value of a tensor, from the authors' name of it: normal numbers seeded by that name.

    Learning rates are equalised, so that weights have variance 1, over the rate of a slow layer.
    """
    seed = zlib.crc32(f"lafite.{network}.{name}".encode())
    value = np.random.RandomState(seed).standard_normal(tuple(shape)).astype(np.float32)
    slow, last = any(part in name for part in SLOW), name.split(".")[-1]
    if last == "noise_strength":
        value = 0.1 + 0.02 * value
    elif len(shape) <= 1:
        value = (1.0 if name.endswith("affine_0.bias") else 0.0) + (2.0 if slow else 0.02) * value
    elif slow:
        value = 100 * value
    return torch.from_numpy(np.asarray(value, dtype=np.float32)).reshape(tuple(shape))


def make(bridge=None, embed_dim=512, sizes=SIZES, device="cpu", **model):
    """The system in fp32, by default as published."""
    bridge = bridge or SimpleNamespace(embed_dim=embed_dim, pixel_mean=torch.zeros(1, device=device))
    model = {"reference": True, **sizes, **model}
    side = 256 if model["image_size"] == "reference" else model["image_size"]
    values = {"system": "lafite", "model": model, "data": {"image_size": side},
              "train": {"recipe": "paper", "precision": "fp32"}}  # fmt: skip
    with torch.device(device):
        return make_system(bridge, build_config(values))


def names_of(module):
    """Name -> shape, without what the authors don't save."""
    return {name: list(t.shape) for name, t in module.state_dict().items() if name != "path_mean"}


def published(bridge=None, **model):
    """The same with weights by the rule."""
    system = make(bridge, **model)
    for ours, theirs, _ in NETWORKS:
        module = system.get_submodule(ours)
        made = {name: rule(theirs, name, shape) for name, shape in names_of(module).items()}
        module.load_state_dict(made, strict=False)
    return system


@pytest.fixture(scope="module")
def reference():
    return {name: torch.from_numpy(value) for name, value in np.load(HERE / "lafite_outputs.npz").items()}


@pytest.fixture(scope="module")
def generator():
    """A small one with trained-like weights, of our recipe."""
    return published(embed_dim=16, sizes={"channels": 4, "most_channels": 8, "image_size": 56}, noise_dim=12,
                     reference=False).generator.eval()  # fmt: skip


def enlarged(pictures):
    return pictures.repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_the_published_networks_have_our_tensors_by_name():
    shapes = json.loads((HERE / "lafite_state_dict.json").read_text())
    for sizes, ending in ((SIZES, "_small"), ({"image_size": "reference"}, "")):
        system = make(sizes=sizes, device="meta")
        for ours, _, theirs in NETWORKS:
            wanted = {n: s for n, s in shapes[theirs + ending].items() if not n.endswith("resample_filter")}
            assert names_of(system.get_submodule(ours)) == wanted


@torch.no_grad()
def test_pictures_and_logits_are_the_published_ones(reference):
    system = published().eval()
    generator, z, text = system.generator, reference["z"], reference["txt"]
    close(generator.mapping(z), reference["ws0"])
    fake = generator(z, 3 * text)  # sentences of any length
    close(fake[:2, :, ::2, ::2], reference["fake_every_2nd_pixel"])
    close(torch.stack([fake.mean((1, 2, 3)), fake.flatten(1).std(1)]), reference["fake_mean_std"])
    truncated = generator(torch.cat([z, torch.full((4, 1), 0.7)], dim=1), text)
    close(truncated[:2, :, ::2, ::2], reference["fake_psi07_every_2nd_pixel"])
    layers = [layer for block in generator.synthesis.values() for layer in block.children()]
    styles = [layer.style(reference["ws0"], text) for layer in layers]
    gain = [layer.weight.shape[1] ** -0.5 if layer.weight.shape[0] == 3 else 1.0 for layer in layers]
    close(styles[0], reference["style_first"])
    close(styles[-1] * gain[-1], reference["style_last"])
    close(torch.stack([s.norm(dim=1) * g for s, g in zip(styles, gain, strict=True)]), reference["style_norms"])
    real = enlarged(reference["real_32"])
    logits, features = system.discriminator(real, text)
    close(logits, reference["logits"])
    close(features, reference["d_fts"])
    close(system.discriminator(real[:2], text[:2])[0], reference["logits_first_two_alone"])
    logits, features = system.discriminator(fake, text)
    close(logits, reference["logits_fake"])
    close(features.norm(dim=1), reference["d_fts_fake_norms"])
    for layer in layers:
        if hasattr(layer, "noise_strength"):
            layer.noise_strength.zero_()
    close(generator(z, text)[:2, :, ::2, ::2], reference["fake_no_noise_every_2nd_pixel"])


def test_contrasts_are_the_published_ones(reference):
    for name, wanted in steps()["contra_loss_d_fts_txt"].items():
        temperature, rows = map(float, name.replace("temp", "").replace("lam", "").split("_"))
        close(contrast(reference["d_fts"], reference["txt"], temperature, rows, reference=True), wanted)
    ours = contrast(reference["d_fts"], reference["txt"], 0.5)
    cosines = F.normalize(reference["d_fts"]) @ reference["txt"].t()
    for column in range(4):  # which picture belongs to this text?
        close(ours[column], -F.cross_entropy(cosines[:, column] / 0.5, torch.tensor(column)))


def steps():
    return json.loads((HERE / "lafite_train_step.json").read_text())


@pytest.fixture(scope="module")
def bridge(published_clip):
    return ClipBridge(published_clip)


SETTINGS = {
    "itd10_itc10": {},
    "image_features": {"from_pictures": 1.0},
    "lam05_all_terms": {"contrasts": (5.0, 10.0, 3.0, 2.0), "rows": 0.5},
}
LOSSES = {"g": ("Gmain", "Loss/G/loss"), "g_path": ("Greg", "Loss/G/reg"), "d": ("Dmain", "Loss/D/loss"),
          "d_r1": ("Dreg", "Loss/D/reg")}  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS)
def test_losses_and_gradients_are_the_published_ones(reference, bridge, setting):
    """Every phase on the same weights, the noise of pixels off; CLIP sees the picture at (90, 37) on white."""
    system = published(bridge, **SETTINGS[setting])
    for name, parameter in system.generator.named_parameters():
        if name.endswith("noise_strength"):
            parameter.data.zero_()
    noise = system.draw(4, partial(random_of, 0, step=1))
    random = [torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))
              for seed, shape in ((106, (4, 512)), (107, (2, 3, 64, 64)))]  # fmt: skip
    path = random[1].repeat_interleave(2, 0)  # of every other picture
    noise |= {"crop": torch.tensor([[0, 90.5 / 160, 37.5 / 160]]).expand(4, -1), "path": path}
    for phase in LOSSES:
        noise |= {f"{phase} direction": random[0], f"{phase} z": reference["z"][:, None].expand(-1, 2, -1)}
        noise[f"{phase} pixels"] = torch.zeros(4, sum(side**2 for side in system.generator.noise_sides))
    real, text = enlarged(reference["real_32"]), Text(reference["txt"], picture=reference["img"])
    close(system.text_of(Batch(real, text, noise), "d"),
          reference["img_perturbed" if setting == "image_features" else "txt_perturbed"])  # fmt: skip
    for phase in system.phases():
        theirs, total = LOSSES[phase.name]
        if (wanted := steps()["phases"].get(f"{setting}.{theirs}")) is None:
            continue
        places = torch.tensor([0, 2, 1, 3] if phase.name == "g_path" else [0, 1, 2, 3])  # theirs are the first two
        of_phase = {n: value if n == "path" else value[places] for n, value in noise.items()}
        losses = phase.losses(Batch(real, text[places], of_phase), Step(1))
        close(losses.total.item() / phase.every, wanted[total])
        for name, key in (("logit_real", "real"), ("logit_fake", "fake")):
            if name in losses.noted:
                close(losses.noted[name].item(), wanted[f"Loss/scores/{key}"])
        (network,) = system.learners(phase.learns)
        network.zero_grad(set_to_none=True)
        losses.total.backward(inputs=list(network.parameters()))
        norms = {n: 0.0 if p.grad is None else p.grad.norm().item() for n, p in network.named_parameters()}
        assert norms.keys() == wanted["grad_norms"].keys()
        for name, norm in norms.items():
            assert norm == pytest.approx(wanted["grad_norms"][name], rel=1e-3, abs=1e-9), (phase.name, name)
        if phase.name == "g":
            close(system.generator.mapping.w_avg, reference["w_avg_after_Gmain"])
        if phase.name == "g_path":
            close(system.generator.path_mean, wanted["pl_mean_after"])


# ---------------------------------------------------------------- our own recipe


@torch.no_grad()
def test_a_picture_does_not_depend_on_its_batch(generator):
    noise, sentence = torch.randn(4, 12), torch.randn(4, 16)
    together = generator(noise, sentence)
    for row in range(4):
        alone = generator(noise[row : row + 1], sentence[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("published", [False, True])
@torch.no_grad()
def test_only_published_a_logit_holds_the_texts_of_others(published):
    discriminator = make(embed_dim=16, sizes={"channels": 4, "most_channels": 8, "image_size": 8},
                         reference=published).discriminator.eval()  # fmt: skip
    images, text = torch.randn(4, 3, 8, 8), F.normalize(torch.randn(4, 16))
    changed = torch.cat([text[:1], text[1:].flip(0)])
    same = torch.allclose(discriminator(images, text)[0][0], discriminator(images, changed)[0][0])
    assert same is not published


@torch.no_grad()
def test_truncation_and_late_captions(generator):
    noise, sentence = torch.randn(2, 12), torch.randn(2, 16)
    generator.mapping.w_avg.normal_()
    factor = partial(torch.full, (2, 1))
    whole = generator(noise, sentence)
    torch.testing.assert_close(generator(torch.cat([noise, factor(1.0)], dim=1), sentence), whole)
    none = generator(torch.cat([noise, factor(0.0)], dim=1), sentence[:1].expand(2, -1))
    torch.testing.assert_close(none[0], none[1])
    late = noise, sentence.roll(1, 0)
    assert torch.equal(generator(noise, sentence, late, generator.late_blocks), whole)
    torch.testing.assert_close(generator(noise, sentence, late, 0), generator(noise, late[1]))
    assert not torch.allclose(generator(noise, sentence, late, 2), whole)


@pytest.mark.parametrize(("image_size", "side"), [(256, 4), (8, 4), (56, 7), (96, 6)])
def test_the_smallest_map(image_size, side):
    config = make(sizes={"image_size": image_size, "channels": 2, "most_channels": 16}, device="meta").settings
    assert geometry(config)[0] == (side, 16 if image_size > 56 else 2 * image_size // side)


def test_other_sizes_and_batches_in_parts_are_refused():
    with pytest.raises(ConfigError, match="50 must be 4, 5, 6 or 7 times a power of two"):
        make(sizes={"image_size": 50}, device="meta")
    config = tiny(data__image_size=64)
    with pytest.raises(ConfigError, match="data.image_size = 64 must be model.image_size = 56"):
        make_system(make_bridge(config), config)
    config = tiny(train__accumulate=2)
    with pytest.raises(ConfigError, match="train.accumulate must be 1"):
        make_system(make_bridge(config), config)


TINY = {
    "model.channels": 2, "model.most_channels": 8, "model.noise_dim": 8, "data.train_size": 24, "data.test_size": 20,
    "train.batch_size": 4, "train.precision": "fp32", "train.evaluate_every": 0,
}  # fmt: skip


def tiny(**more):
    return load_config("mini:lafite", TINY | {key.replace("__", "."): value for key, value in more.items()})


def test_lazy_phases_correct_adam_and_the_paper_keeps_an_average():
    config = tiny(train__lr_g=0.0025, train__lr_d=0.0025, train__recipe="paper")
    system = make_system(make_bridge(config), config)
    found = Optimizers(system, config.train)
    for role, share in (("generator", 4 / 5), ("discriminator", 16 / 17)):
        (group,) = found.adam[role].param_groups
        assert group["lr"] == pytest.approx(0.0025 * share)
        assert group["betas"] == pytest.approx((0, 0.99**share))
    before = [p.clone() for p in system.ema.parameters()]
    for p in system.generator.parameters():
        p.data += 1
    update_ema(system, 100, config.train.model_copy(update={"ema_half_life": 312.5}))
    for now, then in zip(system.ema.parameters(), before, strict=True):
        torch.testing.assert_close(now - then, torch.full_like(now, 1 - 0.5 ** (1 / 5)))  # 5% of 100 steps


def test_a_resumed_run_equals_the_uninterrupted_one_and_draws(tmp_path):
    """Also with pictures in place of half of the captions, and augmented."""
    config = tiny(train__max_steps=17, train__sample_every=17, model__from_pictures=0.5, train__shift=2)
    whole = Run(tmp_path / "whole", config, progress=False)
    first = {name: tensor.clone() for name, tensor in whole.system.state_dict().items()}
    list(whole.train())
    for report in Run(tmp_path / "parts", config, progress=False).train():
        if report.step == 9:
            break
    resumed = Run(tmp_path / "parts", config, progress=False)
    list(resumed.train())
    for name, tensor in whole.system.state_dict().items():
        assert torch.equal(tensor, resumed.system.state_dict()[name]), name
    for part in ("generator.synthesis", "generator.mapping.w_avg", "generator.path_mean", "discriminator", "ema"):
        names = [name for name in first if name.startswith(part)]
        assert any(not torch.equal(first[name], whole.system.state_dict()[name]) for name in names), part
    history = whole.history()
    assert all(math.isfinite(value) for line in history for value in line.values())
    assert [line["step"] for line in history if "path_length" in line] == [4, 8, 12, 16]
    assert [line["step"] for line in history if "penalty" in line] == [16]
    exported = load_generator(tmp_path / "whole" / "generator.safetensors")
    drawn = sample(exported, exported.bridge, "a red bird in the snow", count=2, truncation=0.5).images
    assert drawn.shape == (2, 3, 56, 56) and not torch.equal(drawn[0], drawn[1])
    fast = sample(to_bf16(exported), exported.bridge, "a red bird in the snow", count=2, truncation=0.5).images
    torch.testing.assert_close(fast, drawn, atol=0.2, rtol=0)
    with pytest.raises(WeightsError, match="holds no head"):
        load_discriminator(tmp_path / "whole")


def test_penalties_stay_in_single_precision():
    """In bf16 the two double backward passes see what they see in fp32."""
    found = {}
    for precision in ("fp32", "bf16"):
        config = tiny(train__precision=precision)
        system = make_system(make_bridge(config), config)
        noise = system.draw(4, partial(random_of, 0, step=1))
        batch = Batch(torch.rand(4, 3, 56, 56) * 0 + 0.3, Text(torch.ones(4, 128)), noise)
        phases = {phase.name: phase for phase in system.phases()}
        found[precision] = [phases[name].losses(batch, Step(1)).total for name in ("g_path", "d_r1")]
        report = train_step(system, Optimizers(system, config.train), batch, config.train, 16)
        assert all(math.isfinite(value) for value in report.noted.values())
    assert torch.equal(*map(torch.stack, found.values()))


@pytest.mark.parametrize(("name", "itd"), [("birds", 10), ("coco", 5)])
def test_the_published_settings(name, itd):
    config = load_config(f"{name}:lafite")
    assert config.model.contrasts == (itd, 10, 0, 0) and (config.model.temperature, config.model.rows) == (0.5, 0)
    assert config.clip.convention == "clip" and config.model.r1_weight == 10
    assert (config.model.channels, config.model.most_channels, config.model.noise_dim) == (128, 512, 512)
    assert geometry(config.model)[-1] == (256, 128) and config.model.reference
    assert (config.train.lr_g, config.train.lr_d, config.train.recipe) == (0.0025, 0.0025, "paper")
    assert config.train.max_steps * config.train.batch_size == pytest.approx(25_000_000, rel=1e-3)


# ---------------------------------------------------------------- the authors' files


class Persistent:
    """A module as the authors' code pickles it: its class's source, and its state."""

    def __init__(self, module):
        self.module = module

    def __reduce__(self):
        module = self.module
        state = {
            "_parameters": {n: p for n, p in module._parameters.items()},
            "_buffers": {n: b for n, b in module._buffers.items() if n != "path_mean"},
            "_modules": {n: Persistent(child) for n, child in module.named_children()},
            "_init_kwargs": {"scale": np.float64(3.0)}, "training": False,
        }  # fmt: skip
        meta = {"type": "class", "version": 6, "module_src": "open('ran_code', 'w')", "class_name": "G", "state": state}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
    """A function that writes a network snapshot of a small system."""
    monkeypatch.chdir(tmp_path)
    persistence = types.ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("the authors' loader runs code")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", persistence)

    def write(name="network-snapshot-000004.pkl", **more):
        system = published(embed_dim=32, sizes={"channels": 4, "most_channels": 8, "image_size": 16}, noise_dim=12)
        content = {"training_set_kwargs": {"path": "birds.zip"}, "G": Persistent(system.ema),
                   "D": Persistent(system.discriminator), "G_ema": Persistent(system.generator), **more}  # fmt: skip
        (tmp_path / name).write_bytes(pickle.dumps(content))
        return tmp_path / name, system.generator.eval()

    return write


@torch.no_grad()
def test_a_snapshot_draws_without_running_its_code(snapshot, small_clip):
    file, generator = snapshot()
    loaded = load_generator(file, small_clip)
    noise, sentence = torch.randn(2, 12), torch.randn(2, 32)
    assert torch.equal(loaded(noise, sentence), generator(noise, sentence))
    assert not Path("ran_code").exists()
    sample(loaded, loaded.bridge, "a red bird")
    with pytest.raises(WeightsError, match="holds a generator only"):
        load_discriminator(file, small_clip)
    with pytest.raises(WeightsError, match="one set of weights"):
        load_generator(file, small_clip, ema=False)


class Code:
    def __init__(self, function, *arguments):
        self.made_by = function, arguments

    def __reduce__(self):
        return self.made_by


@pytest.mark.parametrize(
    ("hidden", "named"),
    [(Code(os.system, "touch ran_code"), "posix.system"), (Code(eval, "1"), "builtins.eval"),
     (Code(getattr, "a", "upper"), "builtins.getattr"), (SimpleNamespace(), "types.SimpleNamespace")],
)  # fmt: skip
def test_a_snapshot_with_other_code_is_refused(snapshot, small_clip, hidden, named):
    file, _ = snapshot(augment_pipe=hidden)
    with pytest.raises(WeightsError, match=f"{named}, and loading that could run code: refused. Way out"):
        load_generator(file, small_clip)
    assert not Path("ran_code").exists()


def test_storages_with_code_inside_are_refused(snapshot, small_clip):
    inner = pickle.dumps(Code(os.system, "touch ran_code"))
    file, _ = snapshot(augment_pipe=Code(torch.storage._load_from_bytes, inner))
    with pytest.raises(WeightsError, match="damaged or no network snapshot"):
        load_generator(file, small_clip)
    assert not Path("ran_code").exists()


@torch.no_grad()
@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"G_ema": s}, lambda s: {f"module.{n}": t for n, t in s.items()}]
)
def test_the_way_out_is_read(snapshot, small_clip, tmp_path, wrap):
    _, generator = snapshot()
    state = {name: tensor for name, tensor in generator.state_dict().items() if name != "path_mean"}
    torch.save(wrap({**state, "synthesis.b4.resample_filter": torch.ones(4, 4)}), tmp_path / "lafite.pth")
    loaded = load_generator(tmp_path / "lafite.pth", small_clip)
    assert all(torch.equal(t, generator.state_dict()[name]) for name, t in loaded.state_dict().items())


def test_what_does_not_fit_is_named(snapshot, small_clip, tmp_path):
    file, generator = snapshot()
    (tmp_path / "cut.pkl").write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(WeightsError, match="cut.pkl is damaged"):
        load_generator(tmp_path / "cut.pkl", small_clip)
    state = generator.state_dict()
    state.pop("synthesis.b8.conv0.bias")
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(WeightsError, match=r"less.pth doesn't fit: missing: synthesis\.b8\.conv0\.bias"):
        load_generator(tmp_path / "less.pth", small_clip)
    torch.save({"mapping.w_avg": torch.zeros(12)}, tmp_path / "style.pth")
    with pytest.raises(WeightsError, match="which every generator of LAFITE's authors has"):
        load_generator(tmp_path / "style.pth", small_clip)
