import pickle
import random

import numpy as np
import pytest
from PIL import Image

from galiplib.data import minibirds
from galiplib.data.minibirds import ATTRIBUTES, Bird, asked, build, caption, counterfactuals, random_bird, render


def test_render_is_deterministic_and_shows_the_colours():
    bird = Bird("red", "blue", "yellow", "snow", "black", "long", "large")
    picture = render(bird, pose=3)
    assert picture.shape == (56, 56, 3) and picture.dtype == np.uint8
    assert np.array_equal(picture, render(bird, pose=3))
    assert not np.array_equal(picture, render(bird, pose=4))
    large = render(bird, pose=3, size=224).reshape(-1, 3).astype(int)
    for name in ("red", "blue", "yellow"):
        near = np.abs(large - minibirds.COLOURS[name]).max(1) < 16
        assert near.mean() > 0.02, f"hardly any {name} pixels"


def test_splits_share_no_combination():
    trained = {(b.body, b.wing, b.belly) for b, _ in minibirds.birds("train", 4000)}
    held_out = {(b.body, b.wing, b.belly) for b, _ in minibirds.birds("test", 500)}
    seen = {(b.body, b.wing, b.belly) for b, _ in minibirds.birds("seen", 500)}
    assert not trained & held_out and seen <= {c for c in trained | seen} and not seen & held_out
    assert all(not bird.held_out for bird, _ in minibirds.birds("seen", 500))
    # Every single colour and every body-wing pair of a held-out combination is still trained.
    pairs = {(body, wing) for body, wing, _ in trained}
    assert {(body, wing) for body, wing, _ in held_out} <= pairs


def test_captions_name_what_is_there():
    data = build("train", 300)
    columns = list(ATTRIBUTES)
    named = set()
    for texts, labels in zip(data.captions, data.labels, strict=True):
        assert len(texts) == minibirds.CAPTIONS_PER_IMAGE
        for text in texts:
            for attribute, index in asked(text).items():
                assert labels[columns.index(attribute)] == index, text
                named.add(attribute)
            assert " a orange" not in text
    assert named == {"body", "wing", "belly", "background"}


def test_single_attribute_captions_occur():
    counts = [len(asked(text)) for text in build("train", 20).captions[0]]
    assert counts.count(1) >= 4


@pytest.mark.parametrize("attribute", ["body", "wing", "belly"])
def test_counterfactuals_change_one_colour(attribute):
    bird = random_bird(random.Random(0))
    text = caption(bird, ("body", "wing", "belly"), random.Random(1))
    swapped = counterfactuals(text, attribute)
    assert len(swapped) == 10 and swapped.count(text) == 1
    for index, other in enumerate(swapped):
        wanted = {**asked(text), attribute: index}
        assert asked(other) == wanted


def test_counterfactual_needs_the_attribute():
    with pytest.raises(ValueError, match="does not name the wing"):
        counterfactuals("a red bird", "wing")


@pytest.mark.parametrize(
    ("split", "count", "message"), [("valid", 3, "train, seen, test"), ("train", 0, "at least one")]
)
def test_bad_split_or_count(split, count, message):
    with pytest.raises(ValueError, match=message):
        minibirds.birds(split, count)


def test_write_cub_layout(tmp_path):
    minibirds.write_cub(tmp_path, {"train": 3, "test": 2}, size=64)
    keys = pickle.loads((tmp_path / "train" / "filenames.pickle").read_bytes())
    assert len(keys) == 3
    for key in keys:
        with Image.open(tmp_path / "CUB_200_2011" / "images" / f"{key}.jpg") as image:
            assert image.size == (64, 64)
        assert len((tmp_path / "text" / f"{key}.txt").read_text().splitlines()) == 10
    assert len((tmp_path / "CUB_200_2011" / "bounding_boxes.txt").read_text().splitlines()) == 5
