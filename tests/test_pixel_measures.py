"""Pixel measures against known values, and the loading of weights that can't be downloaded here."""

import sys
import types
import urllib.error

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure
from torchvision.models import squeezenet1_1

from galiplib.data import minibirds
from galiplib.evaluation import EvaluationError, pixel_measure
from galiplib.evaluation.pixels import lpips_measure
from galiplib.images import to_images


@pytest.fixture(scope="module")
def birds():
    return to_images(minibirds.build("seen", 4, 64).images)


def test_ssim_of_a_picture_with_itself_and_by_hand(birds):
    ssim = pixel_measure("ssim")
    torch.testing.assert_close(ssim(birds, birds), torch.ones(4).double(), atol=1e-9, rtol=0)
    assert (ssim(birds, birds.roll(1, 0)) < 0.9).all()
    # of flat pictures only the term of the means is left: (2ab + c) / (a^2 + b^2 + c), c = .01^2
    flat = [torch.full((1, 3, 32, 32), 2 * value - 1) for value in (0.25, 0.75)]
    closed = (2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4)
    assert ssim(*flat).item() == pytest.approx(closed, abs=1e-9)
    unit, other = (one.double() / 2 + 0.5 for one in (birds, birds.roll(1, 0)))
    theirs = structural_similarity_index_measure(unit, other, reduction="none", data_range=1.0)
    torch.testing.assert_close(ssim(birds, birds.roll(1, 0)), theirs, atol=1e-6, rtol=0)


def test_photographs_of_another_size_are_resized(birds):
    large = torch.nn.functional.interpolate(birds, scale_factor=2, mode="bilinear")
    assert (pixel_measure("ssim")(birds, large) > 0.9).all()


def test_ms_ssim_needs_large_pictures(birds):
    ms_ssim = pixel_measure("ms_ssim")
    large = torch.nn.functional.interpolate(birds, size=192)
    torch.testing.assert_close(ms_ssim(large, large), torch.ones(4).double(), atol=1e-4, rtol=0)
    with pytest.raises(EvaluationError, match="176 pixels a side, not 64"):
        ms_ssim(birds, birds)


@pytest.mark.parametrize("name", ["ssim", "ms_ssim"])
def test_pictures_that_are_not_finite_are_named(name):
    images = torch.zeros(3, 3, 176, 176)
    images[2, 0, 5, 5] = float("inf")
    with pytest.raises(EvaluationError, match="picture 2 is not finite"):
        pixel_measure(name)(images, torch.zeros_like(images))


def test_lpips_from_torchvisions_file(birds, tmp_path, monkeypatch):
    """The backbone's file where torchvision's download would put it, with random weights."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.manual_seed(0)
    torch.save(squeezenet1_1(weights=None).state_dict(), tmp_path / "checkpoints" / "squeezenet1_1-b8a52dc0.pth")
    lpips = lpips_measure("squeeze")
    assert lpips.paired
    torch.testing.assert_close(lpips(birds, birds), torch.zeros(4).double())
    assert (lpips(birds, birds.roll(1, 0)) > 0).all()


def test_lpips_offline_says_what_to_fetch(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(EvaluationError, match=r"weights of alexnet .*no network here.* put torchvision's file .*"):
        pixel_measure("lpips")
    with pytest.raises(EvaluationError, match="unknown LPIPS network 'resnet': one of alex, vgg, squeeze"):
        lpips_measure("resnet")
    with pytest.raises(EvaluationError, match="unknown pixel measure 'psnr': one of ssim, ms_ssim, lpips, topiq"):
        pixel_measure("psnr")


def test_topiq_through_pyiqa(birds, monkeypatch):
    """pyiqa itself is heavy and not installed for the tests: a stand-in with the interface that is used."""
    fake = types.ModuleType("pyiqa")
    fake.__spec__ = types.SimpleNamespace(name="pyiqa")
    made = []

    def create_metric(name, device):
        made.append((name, device.type))
        return lambda images: images.mean((1, 2, 3))[:, None]  # (B, 1), as pyiqa gives it

    fake.create_metric = create_metric
    monkeypatch.setitem(sys.modules, "pyiqa", fake)
    topiq = pixel_measure("topiq")
    assert made == [("topiq_nr", "cpu")] and not topiq.paired
    torch.testing.assert_close(topiq(birds), ((birds + 1) / 2).mean((1, 2, 3)).double())

    def offline(name, device):
        raise urllib.error.URLError("no network here")

    fake.create_metric = offline
    with pytest.raises(EvaluationError, match="TOPIQ's weights can't be had .*no network here"):
        pixel_measure("topiq")


def test_without_pyiqa_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EvaluationError, match=r"non-commercial licence.*galiplib\[iqa\]"):
        pixel_measure("topiq")
