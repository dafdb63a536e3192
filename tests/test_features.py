import os
import urllib.error

import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from galiplib.evaluation import EvaluationError, features, frechet_distance
from galiplib.evaluation.judge import load_judge


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """InceptionV3's weights in torch-fidelity's format, at random."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *args: None)
        path = tmp_path_factory.mktemp("weights") / "inception.pth"
        whatever = path.with_name("empty.pth")
        torch.save({}, whatever)
        state = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(whatever)).state_dict()
        torch.save({name: t for name, t in state.items()}, path)
    return path


def test_judge_and_clip_by_name(small_bridge):
    images = torch.rand(3, 3, 56, 56) * 2 - 1
    judge = features.extractor("judge", judge=load_judge())
    clip = features.extractor("clip", bridge=small_bridge)
    assert judge(images).shape == (3, judge.dim) == (3, 128)
    assert clip(images).shape == (3, clip.dim) == (3, 32)
    torch.testing.assert_close(clip(images), small_bridge.encode_image(images)[1])
    with pytest.raises(EvaluationError, match="picture 1 is not finite"):
        judge(torch.stack([images[0], images[1] * float("nan")]))


@pytest.mark.slow
def test_inception_from_a_file_gives_fid(inception_file):
    inception = features.extractor("inception", weights=inception_file)
    assert features.measure_name("frechet_all", inception.name, first=False) == "fid"
    assert features.measure_name("kernel_distance", inception.name, first=True) == "kid"
    for other in features.EXTRACTORS.keys() - {"inception"}:
        names = [features.measure_name(name, other, first) for first in (True, False) for name in features.PUBLISHED]
        assert not any("fid" in name or "kid" in name for name in names)
    found = inception(torch.rand(2, 3, 56, 56) * 2 - 1)
    assert found.shape == (2, inception.dim) == (2, 2048) and found.isfinite().all()
    with pytest.warns(UserWarning, match="2 and 2 samples, fewer than the 2048 features"):
        frechet_distance(found[:, :2048], found.flip(0) + 1)


def test_another_extractor_is_a_class_and_a_line(monkeypatch):
    class Means(features.Extractor):
        name, dim = "means", 3

        def __init__(self, device="cpu", **_):
            self.device = device

        def extract(self, images):
            return images.to(self.device).mean((2, 3))

    monkeypatch.setitem(features.EXTRACTORS, Means.name, Means)
    look = features.extractor("means", judge=None, bridge=None, weights=None, device="cpu")
    torch.testing.assert_close(look(torch.ones(2, 3, 4, 4)), torch.ones(2, 3))
    assert features.measure_name("frechet_distance", look.name, first=False) == "means_frechet_distance"


class Code:
    def __reduce__(self):
        return os.system, ("touch ran_code",)


def test_inception_that_cannot_be_had(tmp_path, monkeypatch, inception_file):
    with pytest.raises(EvaluationError, match="no weights file .*absent.pth"):
        features.extractor("inception", weights=tmp_path / "absent.pth")
    torch.save({"fc.weight": Code()}, tmp_path / "evil.pth")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EvaluationError, match="could run code: refused"):
        features.extractor("inception", weights=tmp_path / "evil.pth")
    assert not (tmp_path / "ran_code").exists()

    def offline(*args, **kwargs):
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", offline)
    with pytest.raises(EvaluationError, match="no network here.*fetch https://.*pth elsewhere and give its path"):
        features.extractor("inception")
    with pytest.raises(EvaluationError, match="feature extractor 'vgg': one of judge, clip, imagenet, inception"):
        features.extractor("vgg")
