"""Pictures in a folder: measured like a generator's, or refused with a clear word."""

import json

import numpy as np
import pytest
from PIL import Image

from galiplib import evaluation, load_generator
from galiplib.data import minibirds
from galiplib.evaluation import EvaluationError, evaluate_folder
from galiplib.evaluation.judge import load_judge
from galiplib.images import to_images

pytestmark = pytest.mark.filterwarnings("ignore:Fréchet distance from")


@pytest.fixture(scope="module")
def data():
    return minibirds.build("seen", 60, seed=5)


def write(folder, pixels, captions=None):
    folder.mkdir(exist_ok=True)
    lines = []
    for index, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{index:03}.png")
        if captions:
            lines.append(json.dumps({"file": f"{index:03}.png", "caption": captions[index]}))
    if captions:
        (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_real_pictures_with_their_captions_are_perfect(tmp_path, data):
    bridge, judge = load_generator().bridge, load_judge()
    look = evaluation.extractor("judge", judge=judge)
    captions = [own[0] for own in data.captions]
    found = evaluate_folder(write(tmp_path / "a", data.images, captions), data, [look], bridge, judge, 17, False)
    assert found["frechet_all"] == pytest.approx(0, abs=1e-3) and found["precision"] == found["recall"] == 1
    assert min(found["caption_accuracy"].values()) > 0.95 and found["images"] == found["real_images"] == 60
    assert "background" not in found["caption_accuracy"]  # which none of these captions names
    json.dumps(found, allow_nan=False)
    whole = evaluation.clip_similarity(bridge, to_images(data.images), captions)
    assert found["clip_similarity"] == pytest.approx(whole, abs=1e-4)
    plain = evaluate_folder(write(tmp_path / "b", data.images[:20] // 2), data, [look], bridge, judge, 100, False)
    assert plain["frechet_all"] > 10 and "clip_similarity" not in plain and "caption_accuracy" not in plain


def test_folders_that_cannot_be_measured(tmp_path, data):
    def refused(folder, message):
        with pytest.raises(EvaluationError, match=message):
            paths, _ = evaluation.list_pictures(folder)
            evaluation.read_pictures(paths)

    refused(tmp_path / "none", "no folder .*none")
    refused(write(tmp_path / "empty", []), "empty holds 0 pictures")
    refused(write(tmp_path / "one", data.images[:1]), "holds 1 pictures .*two are needed")
    mixed = write(tmp_path / "mixed", data.images[:3])
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(mixed / "x.png")
    refused(mixed, "x.png is 30 x 20 pixels, .*000.png is 56 x 56")
    broken = write(tmp_path / "broken", data.images[:3])
    (broken / "001.png").write_bytes(b"no picture")
    refused(broken, "001.png can't be read")
    captions = write(tmp_path / "captions", data.images[:3], ["a", "b", "c"])
    (captions / "002.png").unlink()
    refused(captions, "captions of 1 pictures that can't be had: .*002.png: missing image")
    (captions / "manifest.jsonl").write_text('{"file": "000.png"}\n')
    refused(captions, "every line needs 'file' and 'caption'")
