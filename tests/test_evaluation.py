"""The measures: known answers, known limits, and no number that depends on the batch size."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import scipy.linalg
import torch
from launch import launch

from galiplib import evaluation, load_config, load_generator
from galiplib.clip.bridge import ClipBridge
from galiplib.clip.training import new_clip, vocabulary_of
from galiplib.config import EvalConfig, GalipConfig
from galiplib.data import minibirds
from galiplib.distributed import Workers
from galiplib.evaluation import EvaluationError
from galiplib.evaluation.judge import FEATURES, JUDGED, load_judge
from galiplib.images import to_images
from galiplib.system import TextToImage
from galiplib.systems.galip import Generator

IMAGES = 600  # halves of halves still have more pictures than the judge has features
OWN = ("judge",)  # what ImageNet's network sees is tests/test_eyes.py's
few_samples = pytest.mark.filterwarnings("ignore:Fréchet distance from")


@pytest.fixture(scope="module")
def judge():
    return load_judge()


@pytest.fixture(scope="module")
def data():
    return {split: minibirds.build(split, IMAGES // 2, seed=31) for split in ("seen", "test")}


@pytest.fixture(scope="module")
def bridge(data):
    torch.manual_seed(0)
    texts = [text for split in data.values() for captions in split.captions for text in captions]
    geometry = dict(embed_dim=16, image_resolution=56, vision_layers=2, vision_width=64, vision_patch_size=14)
    geometry |= dict(context_length=24, transformer_width=32, transformer_heads=1, transformer_layers=1)
    return ClipBridge(new_clip(geometry, vocabulary_of(texts)))


@pytest.fixture(scope="module")
def generator(bridge):
    torch.manual_seed(1)
    config = GalipConfig(channels=4, noise_dim=8, image_size=56, code_channels=8, fusion_blocks=1)
    return Generator(bridge, config)


class Replay(TextToImage):
    """A generator that hands out given pictures in turn, whatever it is asked for."""

    noise_dim = 4

    def __init__(self, images):
        super().__init__(bridge=None)
        self.images, self.next = images, 0

    def forward(self, noise, sentence):
        self.next += len(noise)
        return self.images[self.next - len(noise) : self.next]


# ---------------------------------------------------------------- ranges


def test_ranges():
    images = torch.tensor([-1.5, -1.0, 0.0, 0.5, 1.0, 3.0]).view(6, 1, 1, 1)
    expected = {
        "signed": torch.tensor([-1, -1, 0, 0.5, 1, 1]),
        "unit": torch.tensor([0, 0, 0.5, 0.75, 1, 1]),
        "byte": torch.tensor([0, 0, 128, 191, 255, 255], dtype=torch.uint8),
    }
    for wanted, values in expected.items():
        result = evaluation.to_range(images, wanted)
        torch.testing.assert_close(result.flatten(), values, rtol=0, atol=0)
    with pytest.raises(ValueError, match="signed, unit, byte"):
        evaluation.to_range(images, "percent")


def test_every_pixel_value_survives_the_way_there_and_back():
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    back = evaluation.to_range(to_images(pixels), "byte").permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(back, pixels)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_pictures_that_are_not_finite_are_named(judge, bridge, value):
    images = torch.zeros(7, 3, 56, 56)
    images[5, 1, 2, 3] = value
    captions = ["a red bird"] * 7
    with pytest.raises(EvaluationError, match="picture 5 "):
        evaluation.to_range(images)
    with pytest.raises(EvaluationError, match="picture 5 "):
        evaluation.caption_accuracy(judge, images, captions)
    with pytest.raises(EvaluationError, match="picture 5 "):
        evaluation.clip_similarity(bridge, images, captions, batch_size=2)
    with pytest.raises(EvaluationError, match="picture 5 "):
        evaluation.generate(Replay(images), bridge, captions, batch_size=3)


# ---------------------------------------------------------------- Fréchet distance


def reference_distance(real, fake):
    """The formula as Heusel et al. (2017) print it, with scipy's matrix square root."""
    real, fake = real.double().numpy(), fake.double().numpy()
    covariances = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    means = np.square(real.mean(0) - fake.mean(0)).sum()
    return means + np.trace(covariances[0] + covariances[1] - 2 * root)


def gaussian(count, width, seed, shift=0.0):
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=rng, dtype=torch.float64)
    return torch.randn(count, width, generator=rng, dtype=torch.float64) @ mix + shift


@pytest.mark.parametrize("shift", [0.0, 3.0, 100.0])
def test_frechet_distance_is_the_closed_form(shift):
    real, fake = gaussian(500, 12, 1, shift), gaussian(400, 12, 2, shift + 0.5)
    result = evaluation.frechet_distance(real, fake)
    assert result.value == pytest.approx(reference_distance(real, fake), rel=1e-6)
    assert result[1:] == (500, 400)
    assert evaluation.frechet_distance(fake, real).value == pytest.approx(result.value, rel=1e-6)


def test_frechet_distance_of_gaussians_that_are_known():
    base = gaussian(200_000, 1, 3)
    base = (base - base.mean()) / base.std()
    # N(0, 1) and N(3, 2^2): (0 - 3)^2 + (1 - 2)^2
    assert evaluation.frechet_distance(base, 2 * base + 3).value == pytest.approx(10, rel=1e-6)


def test_identical_sets_have_no_distance():
    real = gaussian(300, 20, 4)
    assert evaluation.frechet_distance(real, real).value == pytest.approx(0, abs=1e-6)
    assert evaluation.frechet_distance(real, real.flip(0)).value == pytest.approx(0, abs=1e-6)


def test_floor_is_the_distance_of_disjoint_halves():
    real = gaussian(401, 8, 5)
    first, second = evaluation.halves(real)
    rows = {tuple(row.tolist()) for row in torch.cat([first, second])}
    assert len(first) == len(second) == 200 and len(rows) == 400
    floor = evaluation.frechet_floor(real)
    assert floor == evaluation.frechet_distance(first, second) == evaluation.frechet_floor(real)
    assert floor.value < 0.1 * evaluation.frechet_distance(first, second + 3).value


def test_frechet_distance_refuses_what_has_none():
    with pytest.raises(EvaluationError, match="not 5 and 1"):
        evaluation.frechet_distance(torch.rand(5, 2), torch.rand(1, 2))
    with pytest.raises(EvaluationError, match=r"\(5, 2\), \(5, 3\)"):
        evaluation.frechet_distance(torch.rand(5, 2), torch.rand(5, 3))
    with pytest.raises(EvaluationError, match="finite"):
        evaluation.frechet_distance(torch.rand(5, 2), torch.full((5, 2), math.nan))
    with pytest.warns(UserWarning, match="5 and 9 samples, fewer than the 6 features"):
        evaluation.frechet_distance(torch.rand(5, 6), torch.rand(9, 6))


# ---------------------------------------------------------------- captions


def test_caption_accuracy_near_one_on_real_pictures_near_chance_on_shuffled(judge, data):
    chosen = evaluation.plan(data["seen"].captions, 600)
    rows, captions = chosen.rows, chosen.captions
    images = to_images(data["seen"].images[rows])
    right = evaluation.caption_accuracy(judge, images, captions)
    assert set(right) == set(JUDGED)
    assert min(share.value for share in right.values()) > 0.97, right
    # Six of the ten kinds of caption name the body, six the wing, six the belly, three the background.
    assert {name: share.count for name, share in right.items()} == {
        "body": 360,
        "wing": 360,
        "belly": 360,
        "background": 180,
    }
    order = np.random.default_rng(0).permutation(len(rows))
    shuffled = evaluation.caption_accuracy(judge, images, [captions[i] for i in order])
    for name, share in shuffled.items():
        assert share.value == pytest.approx(1 / len(minibirds.ATTRIBUTES[name]), abs=0.1), name


def test_an_attribute_counts_only_where_it_is_named(judge, data):
    images = to_images(data["seen"].images[:3])
    body = minibirds.ATTRIBUTES["body"]
    captions = [f"a {body[label]} bird" for label in data["seen"].labels[:2, 0]] + ["a small bird"]
    accuracy = evaluation.caption_accuracy(judge, images, captions)
    assert (accuracy["body"].value, accuracy["body"].count) == (1.0, 2)
    assert accuracy["wing"].count == 0 and math.isnan(accuracy["wing"].value)
    with pytest.raises(EvaluationError, match="no caption names any"):
        evaluation.caption_accuracy(judge, images, ["a small bird", "a bird", "a large bird"])
    with pytest.raises(EvaluationError, match="3 pictures, but 1 captions"):
        evaluation.caption_accuracy(judge, images, ["a red bird"])


# ---------------------------------------------------------------- what is drawn


def test_a_plan_goes_through_rows_and_captions_evenly(data):
    captions = data["seen"].captions
    chosen = evaluation.plan(captions, 2 * len(captions))
    assert sorted(chosen.rows) == sorted([*range(len(captions))] * 2) and len(chosen) == 2 * len(captions)
    kinds = [captions[row].index(text) for row, text in zip(chosen.rows, chosen.captions, strict=True)]
    assert set(kinds) == set(range(10))
    pairs = set(zip(chosen.rows.tolist(), kinds, strict=True))
    assert len(pairs) >= 0.98 * len(chosen)  # a bird may have one caption twice
    assert chosen.first.sum() == len(chosen.real) == len(captions)
    np.testing.assert_array_equal(chosen.real[chosen.place], chosen.rows)
    np.testing.assert_array_equal(chosen.rows[chosen.first], chosen.real)
    assert not np.array_equal(chosen.rows, evaluation.plan(captions, 2 * len(captions), seed=1).rows)


def test_all_captions_means_every_caption_so_many_times():
    captions = [["a", "b", "c"], [], ["d"], ["e", "f"]]
    chosen = evaluation.plan(captions, "all")
    assert sorted(chosen.captions) == list("abcdef") and 1 not in chosen.rows
    assert all(text in captions[row] for row, text in zip(chosen.rows, chosen.captions, strict=True))
    twice = evaluation.plan(captions, "all", per_caption=2)
    assert twice.captions == [text for text in chosen.captions for _ in range(2)] and twice.first.sum() == 3
    assert len(evaluation.plan(captions, 20)) == 20
    with pytest.raises(EvaluationError, match="no captions"):
        evaluation.plan([[], []], 5)
    with pytest.raises(EvaluationError, match="eval.images = 5 must be a multiple of eval.per_caption = 2"):
        evaluation.plan(captions, 5, per_caption=2)


# ---------------------------------------------------------------- generating


def test_batch_size_changes_no_picture(generator, bridge, data):
    captions = evaluation.plan(data["seen"].captions, 13).captions
    small, large = (evaluation.generate(generator, bridge, captions, seed=5, batch_size=b) for b in (3, 13))
    assert small.shape == (13, 3, 56, 56)
    torch.testing.assert_close(small, large, rtol=1e-4, atol=1e-4)
    assert not torch.equal(large, evaluation.generate(generator, bridge, captions, seed=6, batch_size=13))


def test_noise_is_normal_and_each_row_its_own():
    noise = evaluation.noise_of_pictures(range(500), 100, seed=0)
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert len({tuple(row[:3].tolist()) for row in noise}) == 500
    torch.testing.assert_close(evaluation.noise_of_pictures([7], 100, seed=0)[0], noise[7], rtol=0, atol=0)


def test_modes_are_restored_even_after_an_error(generator, bridge):
    generator.train()
    generator.fusion.eval()
    evaluation.generate(generator, bridge, ["a red bird"])
    broken = Replay(torch.full((1, 3, 8, 8), math.nan)).train()
    with pytest.raises(EvaluationError):
        evaluation.generate(broken, bridge, ["a red bird"])
    assert generator.training and not generator.fusion.training and broken.training
    with pytest.raises(EvaluationError, match="no captions"):
        evaluation.generate(generator, bridge, [])


# ---------------------------------------------------------------- everything


ACCURACIES = ("caption_accuracy", "caption_accuracy_held_out", "caption_accuracy_real", "chance")
CLOSE = dict(rel=1e-3, abs=1e-5)


def close(first, second):
    """Two evaluations agree up to rounding."""
    assert list(first.values) == list(second.values) and first.left_out == second.left_out
    for key, value in first.values.items():
        if isinstance(value, (dict, float)):
            assert value == pytest.approx(second.values[key], **CLOSE), key
        else:
            assert value == second.values[key], key
    for key, error in first.errors.items():
        assert error == pytest.approx(second.errors[key], rel=1e-2, abs=1e-4), key
    for name, scores in first.scores.items():
        torch.testing.assert_close(scores, second.scores[name], rtol=1e-3, atol=1e-4, equal_nan=True)


@few_samples
def test_evaluate_is_the_same_for_every_batch_size(generator, bridge, judge, data):
    first, second = (
        evaluation.evaluate(generator, bridge, data, config, judge, progress=False)
        for config in (EvalConfig(features=OWN, images=240, batch_size=size, diversity=6) for size in (7, 64))
    )
    close(first, second)
    values = first.values
    assert {"frechet_all", "kernel_distance", "precision", "recall", "density", "coverage", "diversity", "ssim",
            "clip_score", "clip_score_real", "r_precision"} < values.keys()  # fmt: skip
    for key in ACCURACIES:
        assert list(values[key]) == list(JUDGED)
    assert values["images"] == 240 and values["frechet_images"] == 60 and values["images_measured"] == 120
    assert values["chance"] == {"body": 0.1, "wing": 0.1, "belly": 0.1, "background": 0.25}
    assert not {"fid", "kid"} & values.keys() and values["features"] == ["judge"]
    assert len(first.scores["clip_similarity"]) == len(first.plan) == 120
    json.dumps(first.record(), allow_nan=False)


@few_samples
def test_too_few_for_a_measure_is_said_and_the_rest_is_measured(generator, bridge, judge, data):
    found = evaluation.evaluate(
        generator, bridge, data, EvalConfig(features=OWN, images=40, diversity=2), judge, progress=False
    )
    assert found.left_out.keys() == {"r_precision", "r_precision_real"}
    assert "needs as many different captions" in found.left_out["r_precision"]
    assert math.isfinite(found.values["clip_similarity"]) and "r_precision" not in found.values


def test_perfect_pictures_reach_the_limits(generator, bridge, judge, data):
    """Real pictures in the generator's place must score as real ones, noise must not."""
    config = EvalConfig(features=OWN, images=IMAGES, batch_size=25, diversity=0)
    rows = {split: evaluation.plan(data[split].captions, IMAGES // 2).rows for split in data}
    pictures = torch.cat([to_images(data[split].images[rows[split]]) for split in ("seen", "test")])
    found = evaluation.evaluate(Replay(pictures), bridge, data, config, judge, progress=False)
    perfect = found.values
    assert perfect["caption_accuracy"] == perfect["caption_accuracy_real"]
    assert min(perfect["caption_accuracy_held_out"].values()) > 0.95
    assert perfect["clip_similarity"] == pytest.approx(perfect["clip_similarity_real"], abs=1e-6)
    assert perfect["r_precision"] == pytest.approx(perfect["r_precision_real"], abs=0.02)
    assert perfect["ssim"] == pytest.approx(1, abs=1e-4)
    # the crossed halves are those of the floor: no picture meets itself
    assert perfect["frechet_distance"] == pytest.approx(perfect["frechet_floor"], rel=1e-4)
    assert perfect["frechet_all"] == pytest.approx(0, abs=1e-3) and perfect["precision"] == 1
    noise = torch.rand(pictures.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    awful = evaluation.evaluate(Replay(noise), bridge, data, config, judge, progress=False).values
    assert awful["frechet_distance"] > 3 * awful["frechet_floor"] and awful["recall"] < 0.2
    assert awful["caption_accuracy"]["body"] < 0.4


@few_samples
def test_errors_say_how_much_another_seed_would_give(generator, bridge, judge, data):
    found = [
        evaluation.evaluate(
            generator, bridge, data, EvalConfig(features=OWN, images=240, seed=seed, diversity=0), judge, progress=False
        )
        for seed in range(3)
    ]
    for key in ("clip_similarity", "frechet_distance"):
        spread = np.std([one.values[key] for one in found], ddof=1)
        assert 0 < spread < 5 * found[0].errors[key], key  # captions and noise vary, the real pictures hardly


def test_several_features_each_with_its_name(generator, bridge, judge, data):
    config = EvalConfig(images=120, features=("judge", "clip"), diversity=0)
    with pytest.warns(UserWarning, match="fewer than the 128 features"):
        values = evaluation.evaluate(generator, bridge, data, config, judge, progress=False).values
    assert values["clip_frechet_distance"] != values["frechet_distance"] and "clip_precision" in values
    with pytest.raises(EvaluationError, match="the judge knows mini birds only"):
        evaluation.evaluate(generator, bridge, data, EvalConfig(features=("judge",)), progress=False)


@few_samples
def test_similarity_in_the_published_convention_and_true_clipscore(generator, bridge, judge, data):
    """The run's convention gives clip_similarity; CLIPScore always enters CLIP as CLIP was trained."""
    config = EvalConfig(features=OWN, images=40, diversity=0)
    own = evaluation.evaluate(generator, bridge, data, config, judge, progress=False).values
    theirs = ClipBridge(bridge.model, "reference")
    # the same generator: its mapper doesn't depend on the convention
    reference = evaluation.evaluate(generator, theirs, data, config, judge, progress=False).values
    assert (own["clip_convention"], reference["clip_convention"]) == ("clip", "reference")
    assert own["clip_score_real"] == pytest.approx(reference["clip_score_real"], abs=1e-6)
    assert own["clip_similarity_real"] != pytest.approx(reference["clip_similarity_real"], abs=1e-4)


def test_evaluate_names_a_missing_split(generator, bridge, judge, data):
    with pytest.raises(EvaluationError, match="missing: .'test'"):
        evaluation.evaluate(generator, bridge, {"seen": data["seen"]}, EvalConfig(), judge, progress=False)


@few_samples
def test_statistics_of_real_pictures_are_kept_and_checked(generator, bridge, judge, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    note = {"data": "minibirds", "split": "seen", "size": 56, "crop": "none"}
    config = EvalConfig(features=OWN, images=40, diversity=0, statistics="cache")
    first = evaluation.evaluate(generator, bridge, data, config, judge, note, progress=False).values
    (file,) = (tmp_path / "data" / "statistics").glob("minibirds-seen-56-judge-*.npz")
    assert first["frechet_all_real"] == len(data["seen"])
    _, said = evaluation.load_statistics(file)
    assert said["crop"] == "none" and said["features"] == "judge"
    monkeypatch.setattr("galiplib.evaluation.features.Moments", None)  # read, not made again
    again = evaluation.evaluate(generator, bridge, data, config, judge, note, progress=False).values
    assert again["frechet_all"] == pytest.approx(first["frechet_all"])
    look = evaluation.extractor("judge", judge=judge)
    with pytest.raises(EvaluationError, match="made of other pictures: crop"):
        evaluation.real_statistics(data["seen"], look, note | {"crop": "centre"}, file)
    other = tmp_path / "inception.npz"
    evaluation.save_statistics(other, evaluation.Statistics(torch.zeros(7), torch.eye(7), 99), {})
    wrong = config.model_copy(update={"statistics": str(other)})
    with pytest.raises(EvaluationError, match="over 7 features, and 128 are to be compared"):
        evaluation.evaluate(generator, bridge, data, wrong, judge, progress=False)


def _measure_a_share(rank, folder):
    """One of several processes of an evaluation."""
    Workers()
    found = evaluation.measure_generator(*_tiny(), progress=False)
    if rank == 0:
        torch.save({"record": found.record(), "scores": found.scores}, folder / "found.pt")


def _tiny():
    overrides = {
        "eval.features": OWN,
        "eval.images": 46,
        "eval.batch_size": 8,
        "eval.diversity": 3,
        "data.test_size": 21,
    }
    generator = load_generator()
    return generator, generator.bridge, load_config("mini", overrides)


@few_samples
@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path):
    """23 pictures of 21 birds, 12 of 3 captions: the first two don't divide."""
    launch(_measure_a_share, 2, tmp_path)
    both = torch.load(tmp_path / "found.pt", weights_only=True)
    alone = evaluation.measure_generator(*_tiny(), progress=False)
    record = alone.record()
    for key, value in record.items():
        if key not in ("errors", "left_out") and isinstance(value, (float, dict)):
            assert both["record"][key] == pytest.approx(value, rel=1e-3, abs=1e-5), key
    for name, scores in alone.scores.items():
        torch.testing.assert_close(both["scores"][name], scores, rtol=1e-3, atol=1e-4, equal_nan=True)


def test_heavy_libraries_wait_until_something_needs_them():
    """Those of figures and measures after importing, ONNX's after sampling by torch."""
    code = "import sys, galiplib.evaluation; print(*sys.modules); from galiplib import load_generator, sample; "
    code += "g = load_generator(); sample(g, g.bridge, 'a red bird'); print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported, sampled = (set(line.split()) for line in found.stdout.splitlines())
    assert "torch" in imported and not imported & {"matplotlib", "pandas", "scipy", "torchmetrics", "torchvision"}
    assert not [name for name in sampled if name.startswith("onnx")]


def test_judge_features_do_not_depend_on_the_batch(judge, data):
    images = to_images(data["seen"].images[:20])
    features = evaluation.judge_features(judge, images, batch_size=20)
    assert features.shape == (20, FEATURES)
    torch.testing.assert_close(evaluation.judge_features(judge, images, 3), features, rtol=1e-4, atol=1e-4)
