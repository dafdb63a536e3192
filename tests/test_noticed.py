"""What people notice, as numbers: known answers, and each fault seen by its measure."""

import math
import sys

import pytest
import torch

from galiplib import evaluation, load_generator
from galiplib.config import EvalConfig
from galiplib.data import minibirds
from galiplib.evaluation import evaluate_folder, features, measures
from galiplib.evaluation.comparison import Comparison
from galiplib.evaluation.judge import blur, load_judge
from galiplib.evaluation.noticed import BANDS, OPEN, VARIED
from galiplib.images import save_png, to_images
from galiplib.runs.run import Run

few_samples = pytest.mark.filterwarnings("ignore:Fréchet distance from")
NOTICED = (*BANDS, "colourfulness", "saturation", "rim")
OF_A_CAPTION = ("diversity", "pixel_spread", *VARIED)


@pytest.fixture(scope="module")
def birds():
    return minibirds.build("seen", 40, seed=7)


@pytest.fixture(scope="module")
def pictures(birds):
    return to_images(birds.images)


def plain(*colour, side=8):
    """A picture of one colour, in [-1, 1]."""
    return torch.tensor(colour).float().view(1, 3, 1, 1).expand(1, 3, side, side)


# ---------------------------------------------------------------- single pictures


@pytest.mark.parametrize(("waves", "band"), [(2, 0), (5, 1), (10, 2), (16, 2), (17, 3)])
def test_a_wave_is_counted_in_its_band(waves, band):
    """`waves` half waves over 32 pixels: of Nyquist's frequency waves / 32, down as along."""
    wave = torch.cos(math.pi / 32 * waves * (torch.arange(32) + 0.5))
    for picture in (wave.expand(1, 3, 48, 32), wave[:, None].expand(1, 3, 32, 48)):
        shares = evaluation.spectrum(picture, (1 / 8, 1 / 4, 1 / 2))
        torch.testing.assert_close(shares, torch.eye(4)[band][None], atol=1e-5, rtol=0)


def test_shares_sum_to_one_but_of_nothing(pictures):
    shares = evaluation.spectrum(pictures, (1 / 8, 1 / 4, 1 / 2))
    torch.testing.assert_close(shares.sum(1), torch.ones(len(pictures)))
    assert (evaluation.spectrum(plain(0.3, -0.5, 1.0), (1 / 2,)) < 1e-5).all()
    brighter = evaluation.spectrum(0.5 * pictures + 0.2, (1 / 8, 1 / 4, 1 / 2))  # contrast and mean are no matter
    torch.testing.assert_close(brighter, shares, atol=1e-5, rtol=1e-3)


def test_energy_is_that_of_parseval():
    """One edge below all frequencies: nothing lies there, all the rest above it; against the FFT of the mirrored."""
    x = torch.rand(1, 1, 12, 16, generator=torch.Generator().manual_seed(0)).expand(1, 3, 12, 16)
    mirrored = torch.cat([x[0, 0], x[0, 0].flip(1)], 1)
    energy = torch.fft.fft2(torch.cat([mirrored, mirrored.flip(0)], 0)).abs().square()
    energy[0, 0] = 0
    radius = torch.hypot(torch.fft.fftfreq(24)[:, None].abs() * 2, torch.fft.fftfreq(32).abs() * 2)
    expected = (energy[radius > 0.5].sum() / energy.sum()).item()
    assert evaluation.spectrum(x, (0.5,))[0, 1].item() == pytest.approx(expected, rel=1e-4)


def test_colourfulness_and_saturation_by_hand():
    red, grey, black = plain(1, -1, -1), plain(0.2, 0.2, 0.2), plain(-1, -1, -1)
    found = evaluation.saturation(torch.cat([red, grey, black, plain(1, 0, 0)]))
    assert found.tolist() == pytest.approx([1, 0, 0, 0.5])
    assert evaluation.colourfulness(grey).item() == pytest.approx(0, abs=1e-3)
    # red alone: no variance, red - green is 255, yellow - blue 127.5
    assert evaluation.colourfulness(red).item() == pytest.approx(0.3 * math.hypot(255, 127.5))
    half = torch.cat([red, plain(-1, 1, -1)], 3)  # red beside green: red - green is +-255, yellow - blue 127.5
    assert evaluation.colourfulness(half).item() == pytest.approx(255 + 0.3 * 127.5)


def test_a_rim_is_seen_by_its_height_and_only_it(pictures):
    framed = plain(0, 0, 0, side=10).clone()
    for side in (framed[:, :, 0], framed[:, :, -1], framed[..., 0], framed[..., -1]):
        side += 0.4 * (side == 0)  # once in the corners
    # of the line behind the rim only the two ends are the rim's
    assert evaluation.rim(framed).item() == pytest.approx(0.4 * (1 - 2 / 10) * 127.5)
    inner = plain(0, 0, 0, side=10).clone()
    inner[:, :, 4:6, 4:6] = 1
    assert evaluation.rim(inner).item() == 0
    assert evaluation.rim(pictures).mean() < 5  # real skies have gradients


def test_each_fault_is_seen_by_its_own_measure(pictures):
    soft = blur(pictures, torch.full((len(pictures),), 1.0))
    rimmed = pictures.clone()
    rimmed[:, :, :2] = rimmed[:, :, :2].lerp(torch.ones(()), 0.5)
    gaudy = pictures.mean(1, keepdim=True).lerp(pictures, 1.6).clamp(-1, 1)
    usual, of = evaluation.noticed(pictures), evaluation.noticed
    ratio = lambda name, x: (of(x)[name].mean() / usual[name].mean()).item()  # noqa: E731
    assert ratio("fine_energy", soft) < 0.5 and ratio("saturation", soft) == pytest.approx(1, abs=0.1)
    assert ratio("rim", rimmed) > 3 and ratio("rim", gaudy) < 1.5
    assert ratio("saturation", gaudy) > 1.2 < ratio("colourfulness", gaudy)
    assert tuple(usual) == NOTICED and all(len(v) == len(pictures) and v.dtype == torch.float64 for v in usual.values())
    alone = [of(one[None]) for one in pictures[:3]]
    for name in NOTICED:
        torch.testing.assert_close(torch.cat([one[name] for one in alone]), usual[name][:3], rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------- pictures of one caption


def test_effective_number_of_equally_frequent_ones_is_their_count():
    assert evaluation.effective_number(torch.arange(40) % 4)[:2] == pytest.approx((4, 0), abs=1e-6)
    assert evaluation.effective_number(torch.zeros(9))[:2] == pytest.approx((1, 0), abs=1e-6)
    uneven = torch.tensor([0] * 75 + [1] * 25)
    found = evaluation.effective_number(uneven)
    assert found.value == pytest.approx(4 / 3**0.75) and found.count == 100
    generator = torch.Generator().manual_seed(0)
    drawn = [evaluation.effective_number((torch.rand(100, generator=generator) < 0.25).long()) for _ in range(300)]
    assert torch.tensor([one.value for one in drawn]).std().item() == pytest.approx(found.error, rel=0.2)


def test_pixel_spread_is_within_a_caption():
    pixels = torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 5.0], [5.0, 5.0]])
    assert evaluation.pixel_spread(pixels, [0, 0, 1, 1]).tolist() == pytest.approx([0.5**0.5 / 2 * 127.5, 0])


def test_birds_that_fit_a_caption_have_what_it_names_and_differ_in_the_rest(birds):
    for texts, labels in zip(birds.captions[:10], birds.labels[:10], strict=True):
        truth = dict(zip(minibirds.ATTRIBUTES, labels, strict=True))
        for number, text in enumerate(texts):
            bird, _ = minibirds.fitting(text, number)
            own = dict(zip(minibirds.ATTRIBUTES, bird.labels(), strict=True))
            assert all(own[name] == truth[name] for name in minibirds.asked(text)), text
            if "bill" in text or "beak" in text:
                assert (bird.beak_colour, bird.beak_length) == tuple(
                    minibirds.ATTRIBUTES[name][truth[name]] for name in ("beak_colour", "beak_length")
                )
            assert bird.size in text or not {"small", "large"} & set(text.split())
            assert not bird.held_out and bird.body not in (bird.wing, bird.belly)
    made = [minibirds.fitting(OPEN, number) for number in range(200)]
    assert {(bird.body, bird.wing) for bird, _ in made} == {("blue", "yellow")}
    assert {bird.background for bird, _ in made} == set(minibirds.PLACES) and len({pose for _, pose in made}) == 200
    assert minibirds.fitting(OPEN, 3) == made[3]
    assert minibirds.fitting("a red bird with red wings", 0)[0].wing == "red"  # what was never drawn, too


# ---------------------------------------------------------------- in an evaluation


@pytest.fixture(scope="module")
def generator():
    return load_generator()


@few_samples
@pytest.mark.parametrize("judged", [True, False])
def test_every_measure_stands_beside_its_real_value(generator, birds, judged):
    settings = EvalConfig(features=("judge",) if judged else ("clip",), images=24, diversity=2, metrics=())
    judge = load_judge() if judged else None
    splits = {"seen": birds, "test": birds}
    found = evaluation.evaluate(generator, generator.bridge, splits, settings, judge, progress=False)
    record = found.record()
    for name in (*NOTICED, *(OF_A_CAPTION if judged else OF_A_CAPTION[:1])):
        assert math.isfinite(record[name]) and math.isfinite(record[f"{name}_real"]), name
    rows = found.plan.real
    expected = evaluation.noticed(to_images(birds.images[rows]))
    assert {name: record[f"{name}_real"] for name in NOTICED} == pytest.approx(
        {name: expected[name].mean().item() for name in NOTICED}, rel=1e-4
    )
    if judged:
        assert record["diversity_real_of"] == "pictures of one caption" and record["effective_backgrounds_real"] > 3
        assert record["errors"]["effective_bellies_real"] > 0 and "pixel_spread_real" not in record["left_out"]
    else:
        assert record["diversity_real_of"] == "any two pictures" and "pixel_spread_real" not in record
        assert "share a caption" in record["left_out"]["pixel_spread_real"]
    table = Comparison({"one": record}, {}).table
    assert table.loc["real pictures", "fine_energy"] == record["fine_energy_real"]
    assert {"saturation", "colourfulness", "rim", "pixel_spread"} < set(table)


def test_a_folder_is_noticed_too(generator, birds, pictures, tmp_path):
    for number, picture in enumerate(pictures[:12]):
        save_png(picture, tmp_path / f"{number:02}.png")
    look = features.extractor("judge", judge=load_judge())
    with pytest.warns(UserWarning, match="it says little"):
        found = evaluate_folder(tmp_path, birds, [look], generator.bridge, progress=False)
    assert found["rim"] == pytest.approx(evaluation.rim(pictures[:12]).mean().item(), rel=1e-3)
    assert found["rim_real"] == pytest.approx(evaluation.rim(pictures).mean().item(), rel=1e-3)


# ---------------------------------------------------------------- evaluations on the way


@few_samples
def test_a_run_looks_at_its_real_pictures_once(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr("galiplib.runs.run.EVALUATED", 20)
    looked, floors = [], []
    extract, halved = features.JudgeFeatures.extract, measures.halved_distance

    def counted(self, images):
        looked.append(len(images))
        return extract(self, images)

    def distance(real, other):
        floors.append(real is other)
        return halved(real, other)

    monkeypatch.setattr(features.JudgeFeatures, "extract", counted)
    for module in ("evaluate", "passes"):
        monkeypatch.setattr(sys.modules[f"galiplib.evaluation.{module}"], "halved_distance", distance)
    config = tiny_config(train__max_steps=3, train__evaluate_every=1, train__sample_every=9)
    run = Run(tmp_path, config, "cpu", progress=False)
    pictures = []
    for _ in run.train():
        pictures.append(sum(looked))
        looked.clear()
    assert pictures[0] == pictures[1] + 10 == pictures[2] + 10  # ten real ones of "seen", in the first evaluation only
    assert floors == [False, True, False, False]
    kept, run._real = run._real, None
    assert run._measure() == {key: value for key, value in run.evaluations()[-1].items() if key != "step"}
    assert run._real is not kept  # all of it was computed anew
