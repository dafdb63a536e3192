"""Comparisons: fair, kept on disk, loadable."""

import json

import pytest
import torch

from galiplib import training
from galiplib.checkpoints.loading import load_generator
from galiplib.config import ConfigError
from galiplib.runs import ablation

pytestmark = pytest.mark.filterwarnings("ignore:Fréchet distance from 10 and 10 samples")
SMALL = {
    "model.channels": 4, "model.code_channels": 8, "model.disc_channels": 16, "model.head_channels": 8,
    "model.fusion_blocks": 1, "model.projected": "", "train.batch_size": 4, "data.train_size": 24, "data.test_size": 20,
    "eval.features": ["judge"], "eval.diversity": 2,
}  # fmt: skip
VARIANTS = {"affine": SMALL, "as meant": SMALL | {"system": "ratlip"}}


def test_ab_measures_every_variant_with_every_seed_and_repeats_nothing(tmp_path, monkeypatch):
    seen, step = [], training.train_step

    def watched(*args, **more):
        batch = args[2]
        seen.append((batch.images, batch.text.sentence, batch.noise["z"]))
        return step(*args, **more)

    monkeypatch.setattr(training, "train_step", watched)
    rows = ablation.ab(VARIANTS, [0, 1], 2, tmp_path, images=40, progress=False)
    assert list(zip(rows.variant, rows.seed, strict=True)) == [(v, s) for s in (0, 1) for v in VARIANTS]
    named = [f"caption_accuracy.{name}" for name in ("body", "wing", "belly", "background")]
    assert rows.accuracy.tolist() == pytest.approx(rows[named].mean(axis=1).tolist())
    assert rows.parameters.nunique() == 2 and rows.frechet_distance.nunique() == 4 and (rows.seconds > 0).all()

    for one, other in zip(seen[:2], seen[2:4], strict=True):  # same seed, same data and noise for all variants
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(seen[0][2], seen[1][2]) and not torch.equal(seen[0][2], seen[4][2])

    generator = load_generator(rows.generator[1])
    assert generator.recurrent is not None
    with torch.no_grad():
        assert generator(torch.randn(2, 100), torch.randn(2, 128)).shape == (2, 3, 56, 56)

    trained = []
    monkeypatch.setattr(ablation, "_run", lambda config, *_: trained.append(config) or {"accuracy": 0.5})
    again = ablation.ab(VARIANTS, [0, 1], 2, tmp_path, images=40, progress=False)
    assert not trained and again.equals(rows)
    (tmp_path / "affine_seed1.json").unlink()  # as if stopped before it
    ablation.ab(VARIANTS, [0, 1], 2, tmp_path, images=40, progress=False)
    assert [(config.train.seed, config.system) for config in trained] == [(1, "galip")]
    own = {"affine": 3, "as meant": 2}
    rows = ablation.ab(VARIANTS, [0], own, tmp_path, images=40, progress=False)  # another budget is another run
    assert len(trained) == 2 and trained[-1].train.max_steps == 3 and rows.steps.tolist() == [3, 2]
    assert json.loads((tmp_path / "affine_seed0.json").read_text())["row"] == {"accuracy": 0.5}


def test_spread_over_the_seeds():
    table = ablation.pd.DataFrame({"variant": ["b", "a", "b", "a"], "accuracy": [0.1, 0.5, 0.3, 0.5]})
    spread = ablation.spread(table, ["accuracy"])
    assert list(spread.index) == ["b", "a"]
    assert spread.loc["b"].tolist() == pytest.approx([0.2, 0.02**0.5]) and spread.loc["a"].tolist() == [0.5, 0.0]


def test_step_seconds_of_every_variant_in_turns(tmp_path):
    seconds = ablation.step_seconds(VARIANTS, 2, tmp_path)
    assert seconds.shape == (2, 2) and list(seconds) == list(VARIANTS) and (seconds > 0).all(axis=None)


def test_unknown_setting_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(ConfigError, match="did you mean model.conditioning"):
        ablation.ab({"affine": SMALL, "other": {"system": "ratlip", "model.conditionning": "affine"}}, [0], 2, tmp_path)
    assert not list(tmp_path.iterdir())
