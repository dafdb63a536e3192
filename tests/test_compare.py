"""The table of checkpoints: what is best, what is quoted, and that nothing is measured twice."""

import csv
import re
import shutil
from importlib import resources
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from galiplib.config import MODELS, load_config
from galiplib.course.plotting import draw_comparison
from galiplib.evaluation import Comparison, EvaluationError, compare
from galiplib.evaluation.comparison import label_of, published
from galiplib.files import WEIGHTS, WeightsError
from galiplib.runs.run import Run

pytestmark = pytest.mark.filterwarnings("ignore:Fréchet distance from")
SMALL = {"eval.features": ("judge",), "eval.images": 40, "eval.diversity": 2, "data.test_size": 20}


def record(distance, accuracy, floor=2.0):
    return {
        "frechet_distance": distance, "frechet_floor": floor, "frechet_images": 500, "clip_similarity": 0.3,
        "clip_similarity_real": 0.4, "caption_accuracy": {"body": accuracy, "wing": 1.0}, "images_measured": 1000,
        "caption_accuracy_real": {"body": 1.0, "wing": 1.0}, "features": ["judge"],
        "errors": {"frechet_distance": 0.25, "caption_accuracy": {"body": 0.03, "wing": 0.04}}, "left_out": {},
    }  # fmt: skip


def test_best_real_and_quoted_rows():
    quotes = {"GALIP (paper)": {"fid": 10.08, "clip_similarity": 0.3164}}
    found = Comparison({"early": record(9.0, 0.8), "late": record(12.0, 0.9)}, quotes)
    assert list(found.table.index) == ["early", "late", "real pictures", "GALIP (paper) (quoted)"]
    assert found.best("frechet_distance") == ["early"] and found.best("caption_accuracy") == ["late"]
    assert found.table.loc["real pictures", "frechet_distance"] == 2.0  # the floor is no competitor
    assert found.errors.loc["late", "caption_accuracy"] == pytest.approx(0.025)
    text = found.markdown()
    assert "| early | 0.900 ± 0.025 |" in text and "| late | **0.950 ± 0.025** |" in text
    assert "**9.000 ± 0.25**" in text and "CLIP similarity ↑" in text and "Fréchet distance (judge) ↓" in text
    assert "| GALIP (paper) (quoted) |  | 10.1 |" in text and "no comparison" in text
    assert "<b>9.000" in found._repr_html_()
    alone = Comparison({"one": record(9.0, 0.8)}, {})
    assert alone.best("frechet_distance") == [] == found.best("clip_similarity")  # one alone, and two equal
    assert "**" not in alone.markdown() and "it is no FID" in alone.markdown()


def test_published_figures():
    birds = published("birds")
    assert birds["GALIP (paper)"] == {"fid": 10.08, "clip_similarity": 0.3164}
    assert birds["RATLIP"]["fid"] == 13.28 and published("minibirds") == {}
    assert {len(published(name)) > 3 for name in ("birds", "coco", "faces", "flowers")} == {True}


def test_published_figures_say_whose_they_are_and_by_which_protocol():
    rows = list(csv.DictReader(resources.files("galiplib.evaluation").joinpath("published.csv").open(encoding="utf-8")))
    assert len({(row["data"], row["model"]) for row in rows}) == len(rows)
    assert {row["whose"] for row in rows} == {"own", "quoted", "measured"} and all(row["source"] for row in rows)
    assert {bool(row["protocol"]) == bool(row["fid"]) for row in rows} == {True}
    elsewhere = {(row["model"].split()[0], row["fid"]) for row in rows if row["protocol"] == "other data"}
    assert elsewhere == {("AttnGAN", "125.98"), ("DF-GAN", "137.60")}

    lines = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8").splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("| | CUB birds |"))
    for line in lines[head + 2 : head + 8]:  # the README's table quotes the file
        system, *cells = line.strip("| ").split(" |")
        for data, cell in zip(("birds", "coco", "flowers", "faces"), cells, strict=False):
            own = [row for row in rows if row["data"] == data and row["model"].startswith(system.split(",")[0])]
            measures = ("fid", "inception_score", "clip_similarity")
            known = {float(row[key]) for row in own for key in measures if row[key]}
            assert {float(number) for number in re.findall(r"\d*\.\d+", cell)} <= known, line


@pytest.mark.slow
def test_compare_checkpoints_and_an_export(tiny_config, tmp_path, monkeypatch):
    config = tiny_config(train__max_steps=2, train__checkpoint_every=1, train__evaluate_every=0, model__channels=2)
    run = Run(tmp_path / "run", config, "cpu", progress=False)
    list(run.train())
    shutil.copy(WEIGHTS / "generator_mini.safetensors", tmp_path / "shipped.safetensors")
    paths = [*sorted((tmp_path / "run" / "checkpoints").glob("step_*.pt")), tmp_path / "shipped.safetensors"]
    found = compare(paths, "mini", SMALL, tmp_path / "out", progress=False)
    assert found.measured == ["run step_000001", "run step_000002", "shipped"]
    assert found.best("frechet_distance") == found.best("caption_accuracy") == ["shipped"]
    saved = pd.read_csv(tmp_path / "out" / "comparison.csv", index_col="model")
    assert saved.loc["shipped", "ssim"] == pytest.approx(found.table.loc["shipped", "ssim"])
    assert saved.loc["shipped", "clip_similarity_error"] > 0
    assert (tmp_path / "out" / "comparison.md").read_text() == found.markdown() + "\n"
    draw_comparison(found).savefig(tmp_path / "comparison.png", dpi=150)
    width, height = Image.open(tmp_path / "comparison.png").size
    assert width > 1000 and height > 500

    def again(*args):
        raise AssertionError("measured a second time")

    monkeypatch.setattr("galiplib.evaluation.comparison.measure_generator", again)
    repeated = compare(paths[::-1], "mini", SMALL, tmp_path / "out", progress=False)
    assert repeated.table.loc["shipped"].equals(found.table.loc["shipped"])
    with pytest.raises(AssertionError, match="second time"):  # another protocol is another evaluation
        compare(paths[:1], "mini", SMALL | {"eval.seed": 1}, tmp_path / "out", progress=False)


SIX = sorted(MODELS.keys() - {"residual", "features"})


@pytest.mark.slow
def test_systems_side_by_side(tmp_path):
    """One table of generators of all systems, whatever they ask of captions and noise."""
    small = {"model.channels": 2, "data.train_size": 4, "data.test_size": 20, "train.precision": "fp32"}
    for name in SIX:
        run = Run(tmp_path / "runs" / name, load_config(f"mini:{name}", small), "cpu", progress=False)
        run.export(tmp_path / f"{name}.safetensors")
    paths = [tmp_path / f"{name}.safetensors" for name in SIX]
    found = compare(paths, "mini", SMALL | {"eval.diversity": 0, "eval.metrics": ()}, tmp_path, progress=False)
    assert found.measured == SIX
    similarity = found.table.loc[SIX, "clip_similarity"]
    assert (similarity < found.first["clip_similarity_real"]).all() and similarity.nunique() == len(SIX)


def test_labels_and_errors(tmp_path):
    assert label_of("outputs/mini/train/checkpoints/step_000400.pt") == "train step_000400"
    assert label_of("outputs/mini/train") == "train" and label_of("a/state_epoch_100.pth") == "state_epoch_100"
    with pytest.raises(EvaluationError, match="no checkpoints"):
        compare([])
    with pytest.raises(EvaluationError, match="two checkpoints are called train"):
        compare(["a/train", "b/train"])
    with pytest.raises(WeightsError, match="absent.pt"):
        compare([tmp_path / "absent.pt"], "mini", SMALL)
