"""The figures of the course and its drawings."""

import re
from importlib import resources
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import ImageFont

from galiplib.course import plotting
from galiplib.data import minibirds

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def birds():
    return minibirds.build("train", 24)


def test_figures_come_from_every_kind_of_input(birds, small_bridge):
    signed = torch.tensor(birds.images[:3]).permute(0, 3, 1, 2) / 127.5 - 1
    features, _ = small_bridge.encode_image(signed)
    shares = {"body": 0.9, "wing": 0.8, "belly": None, "background": 1.0}
    results = {"caption_accuracy": shares, "caption_accuracy_real": shares, "chance": {"body": 0.1}}
    results["errors"] = {"caption_accuracy": {"body": 0.1}}
    records = [{"step": 0, "loss_d": 1.0, "similarity": 0.1}, {"step": 5, "loss_d": np.nan, "penalty": 0.2}]
    figures = [
        plotting.image_grid(birds.images),
        plotting.image_grid(signed, titles=["costs $5", "or $6", "a_b"]),
        plotting.picture_table(signed[None], ["costs $5"], ["a", "b", "c $6"], "title"),
        plotting.feature_maps(signed, features, small_bridge.taps),
        plotting.similarity_matrix(torch.eye(3), signed, ["a", "b $x", "c $y"]),
        plotting.similarity_matrix(np.eye(2, 3), ["one", "two"], ["a", "b", "c"]),
        plotting.training_curves(records),
        plotting.training_curves([{"grad_norm_g": 1.0}], plotting.PANELS | plotting.GRADIENT_PANEL),
        plotting.accuracy_bars(results),
    ]
    for figure in figures:
        assert isinstance(figure, Figure)
        figure.draw_without_rendering()
    assert len(figures[0].axes) == 24
    assert plotting.plt.get_fignums() == []  # nothing is shown twice


def test_figures_refuse_what_does_not_fit(birds):
    with pytest.raises(ValueError, match="2 titles for 24 pictures"):
        plotting.image_grid(birds.images, titles=["a", "b"])
    with pytest.raises(ValueError, match=r"matrix \(2, 2\) for 24 pictures and 1 captions"):
        plotting.similarity_matrix(np.eye(2), birds.images, ["a"])
    with pytest.raises(ValueError, match="nothing to plot"):
        plotting.training_curves([{"step": 1}])
    with pytest.raises(ValueError, match="no caption accuracy"):
        plotting.accuracy_bars({"chance": {"body": 0.1}})
    with pytest.raises(ValueError, match="unknown part 'critic': one of data, clip"):
        plotting.pipeline("critic")


def test_running_mean_leaves_gaps_out():
    values = np.array([1.0, np.nan, 3.0, 5.0, 7.0])
    assert plotting.running_mean(values, 3).tolist() == [1.0, 2.0, 4.0, 5.0, 6.0]
    assert np.isnan(plotting.running_mean(np.array([np.nan, np.nan, np.nan]), 2)).all()


def test_a_table_of_pictures_names_rows_and_columns():
    pictures = torch.zeros(2, 3, 3, 8, 8)
    figure = plotting.picture_table(pictures, ["a", "b"], ["x", "y", "z"], "title")
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["x", "y", "z", "", "", ""]
    assert [text.get_text() for text in figure.texts] == ["title", "a", "b"]
    with pytest.raises(ValueError, match="1 and 3 names for 2 rows"):
        plotting.picture_table(pictures, ["a"], ["x", "y", "z"])


# ---------------------------------------------------------------- the drawings


def drawing(name):
    return ElementTree.fromstring(resources.files("galiplib.course").joinpath(name).read_text())


@pytest.mark.parametrize("part", plotting.PARTS)
def test_every_part_is_drawn_and_lit(part):
    root = ElementTree.fromstring(plotting.pipeline(part).data)
    assert f"show-{part}" in root.get("class").split()
    assert f".show-{part} .{part}" in root.findtext(f"{SVG}style")
    lit = [group for group in root.iter(f"{SVG}g") if part in group.get("class").split()]
    assert 2 <= len(lit) < len(list(root.iter(f"{SVG}g")))


@pytest.mark.parametrize("name", ["galip.svg", "picture_input.svg", "family.svg"])
def test_boxes_hold_their_text(name):
    letters = int(re.search(r"font: (\d+)px", drawing(name).findtext(f"{SVG}style"))[1])
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", letters)  # a wide one
    boxes = [group for group in drawing(name).iter(f"{SVG}g") if "box" in group.get("class").split()]
    assert len(boxes) >= 15
    for group in boxes:
        x, y, width, height = (float(group.find(f"{SVG}rect").get(key)) for key in ("x", "y", "width", "height"))
        for line in group.iterfind(f"{SVG}text"):
            if line.get("class") != "note":
                half = font.getlength(line.text) / 2
                assert x + 4 < float(line.get("x")) - half and float(line.get("x")) + half < x + width - 4, line.text
                assert y + 12 < float(line.get("y")) < y + height - 4, line.text


def test_classes_of_a_drawing_are_its_own():
    for name in set(plotting.PARTS.values()):
        own = {part for part, file in plotting.PARTS.items() if file == name}
        styled = re.findall(r"\.show-(\w+) \.(\w+)", drawing(name).findtext(f"{SVG}style"))
        assert {shown for shown, _ in styled} == own and all(shown == lit for shown, lit in styled)
