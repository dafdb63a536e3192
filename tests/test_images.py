"""Pixels, contact sheets and PNG files."""

import re

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from galiplib.data import minibirds
from galiplib.images import contact_sheet, save_png, to_uint8, wrap


@pytest.fixture(scope="module")
def birds():
    return minibirds.build("train", 24, size=32)


def test_to_uint8():
    images = torch.tensor([-3.0, -1.0, 0.0, 1.0]).view(1, 1, 2, 2).repeat(1, 3, 1, 1)
    pixels = to_uint8(images)
    assert pixels.dtype == np.uint8 and pixels.shape == (1, 2, 2, 3)
    assert pixels[0, :, :, 0].tolist() == [[0, 0], [128, 255]]
    assert np.array_equal(to_uint8(pixels), pixels)
    with pytest.raises(ValueError, match=r"shape \(2, 2, 3\)"):
        to_uint8(pixels[0])
    with pytest.raises(FloatingPointError, match="1 of 1 pictures"):
        to_uint8(images / 0)


def test_contact_sheet_places_the_pictures(birds):
    sheet = np.asarray(contact_sheet(birds.images[:5], columns=3, scale=2, gap=6))
    assert sheet.shape == (2 * 64 + 3 * 6, 3 * 64 + 4 * 6, 3)
    fifth = sheet[6 + 64 + 6 :, 6 + 64 + 6 :][:64:2, :64:2]
    assert np.array_equal(fifth, birds.images[4])
    assert (sheet[6 + 64 + 6 :, -64:] == 255).all()  # no sixth picture


@pytest.mark.parametrize("number", [6, 2])
def test_contact_sheet_labels_pictures_or_rows(birds, number):
    plain = contact_sheet(birds.images[:6], columns=3, scale=3)
    captions = [texts[0] for texts in birds.captions[:number]]
    labelled = contact_sheet(birds.images[:6], columns=3, scale=3, captions=captions)
    assert labelled.width == plain.width and labelled.height > plain.height + 30
    text = np.asarray(labelled)[: labelled.height - plain.height]
    assert text.min() < 90  # something is written
    margin = np.asarray(labelled)[:, -6:]
    assert (margin == 255).all()  # and does not run out of the sheet
    with pytest.raises(ValueError, match="4 captions for 6 pictures in 2 rows"):
        contact_sheet(birds.images[:6], columns=3, captions=captions[:1] * 4)


def test_wrap_keeps_to_the_width():
    font = ImageFont.load_default(12)
    lines = wrap("a bird with an extraordinarilylongword " * 5, 80, font, max_lines=6)
    assert len(lines) == 6 and lines[-1].endswith("…")
    assert all(font.getlength(line) <= 80 for line in lines)
    assert wrap("", 80, font, max_lines=6) == []


def test_png_carries_its_origin(birds, tmp_path):
    metadata = {"caption": "ein Vögelchen 小鳥", "seed": 7, "checkpoint": "generator.safetensors"}
    path = save_png(birds.images[0], tmp_path / "new" / "bird.png", metadata)
    with Image.open(path) as picture:
        assert picture.text == {key: str(value) for key, value in metadata.items()}
        assert np.array_equal(np.asarray(picture), birds.images[0])
    assert [file.name for file in path.parent.iterdir()] == ["bird.png"]


def test_png_that_cannot_be_written(birds, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "file" / "bird.png"))):
        save_png(birds.images[0], tmp_path / "file" / "bird.png")
    with pytest.raises(ValueError, match="ends in .png"):
        save_png(birds.images[0], tmp_path / "bird.jpg")
    with pytest.raises(FloatingPointError):
        save_png(torch.full((3, 4, 4), float("nan")), tmp_path / "bird.png")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        save_png(birds.images[0], tmp_path / "bird.png")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]  # nothing half-written
