import json
import os
import pickle
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from galiplib.build import dataset_of
from galiplib.clip.bridge import bpe_tokenizer
from galiplib.config import load_config
from galiplib.data import datasets, decoding, layouts, minibirds, pictures
from galiplib.data.datasets import DataError, dataset, describe, open_dataset

REAL = Path(__file__).parents[2] / "shared" / "data"


def photo(path, size=(40, 30), colour=(200, 30, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)


def text(path, *captions):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(captions) + "\n")


def keys(folder, split, *names):
    (folder / split).mkdir(parents=True, exist_ok=True)
    (folder / split / "filenames.pickle").write_bytes(pickle.dumps(list(names), protocol=2))


@pytest.fixture
def opened():
    """`open_dataset` without a bar; any warning is an error."""

    def run(*args, **kwargs):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return open_dataset(*args, progress=False, **kwargs)

    return run


@pytest.fixture
def faces(tmp_path):
    """Six faces of different colours, 60x40, in the layout of `faces`, all in train."""
    names = [f"face{i}" for i in range(6)]
    for i, name in enumerate(names):
        noise = np.random.default_rng(i).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(noise).save(tmp_path / "images" / f"{name}.jpg")
        text(tmp_path / "text" / f"{name}.txt", f"face number {i}", "a face")
    keys(tmp_path, "train", *names)
    return tmp_path


def with_bad_row(faces, key="bad"):
    """The faces with one more key, whose files the test makes."""
    keys(faces, "train", *[f"face{i}" for i in range(6)], key)
    return faces


def opened_with_warning(folder, match, name="faces"):
    with pytest.warns(UserWarning, match=match) as seen:
        photos = open_dataset(name, folder, progress=False)
    assert len(seen) == 1
    return photos


# ---------------------------------------------------------------- layouts


def test_birds_are_read_and_cropped(tmp_path, opened):
    minibirds.write_cub(tmp_path, {"train": 6, "test": 4}, size=50)
    train, test = opened("birds", tmp_path), opened("birds", tmp_path, "test")
    assert (len(train), len(test)) == (6, 4)
    assert train.captions == [list(item.captions) for item in train.items]
    assert all(len(texts) == 10 for texts in train.captions)
    assert train.items[0].box == (4.0, 5.0, 42.0, 40.0)
    assert train.picture(0).size == (50, 50)  # 1.5 times a box of nearly everything
    assert train.summary() == "birds train: 6 pictures, 60 captions"


def test_box_is_cropped_as_in_the_literature(tmp_path, opened):
    minibirds.write_cub(tmp_path, {"train": 1}, size=200)
    (tmp_path / "CUB_200_2011" / "bounding_boxes.txt").write_text("1 100.0 60.0 41.0 20.0\n")
    picture = opened("birds", tmp_path).picture(0)
    # centre (120, 70), half a side int(0.75 * 41) = 30
    with Image.open(opened("birds", tmp_path).items[0].image) as whole:
        assert np.array_equal(np.asarray(picture), np.asarray(whole.convert("RGB"))[40:100, 90:150])
    clipped = decoding.square_around((0, 0, 20, 30), (100, 100), Path("a.jpg"))
    assert clipped == (0, 0, 32, 37)


def test_ids_of_boxes_need_not_be_contiguous(tmp_path, opened):
    minibirds.write_cub(tmp_path, {"train": 2}, size=50)
    root = tmp_path / "CUB_200_2011"
    names = [line.split()[1] for line in (root / "images.txt").read_text().split("\n")[:2]]
    (root / "images.txt").write_text(f"17 {names[0]}\n5 {names[1]}\n")
    (root / "bounding_boxes.txt").write_text("5 1 2 3 4\n17 5 6 7 8\n99 1 1 1 1\n")
    assert [item.box for item in opened("birds", tmp_path).items] == [(5, 6, 7, 8), (1, 2, 3, 4)]


@pytest.mark.parametrize("listed", ["image_00001", "image_00001.jpg"])
def test_flowers_with_and_without_suffix(tmp_path, opened, listed):
    photo(tmp_path / "images" / "image_00001.jpg")
    text(tmp_path / "text" / "image_00001.txt", "a red flower")
    keys(tmp_path, "train", f" {listed}\n")
    (item,) = opened("flowers", tmp_path).items
    assert item == datasets.Item(listed, tmp_path / "images" / "image_00001.jpg", ("a red flower",))


@pytest.mark.parametrize("inner", ["", "jpg"])
def test_coco_with_and_without_jpg_folder(tmp_path, opened, inner):
    for split, part in (("train", "train2014"), ("test", "val2014")):
        photo(tmp_path / "images" / part / inner / f"COCO_{part}_1.jpg")
        text(tmp_path / "text" / f"COCO_{part}_1.txt", "a cat", "", "  a grey cat ")
        keys(tmp_path, split, f"COCO_{part}_1")
    assert opened("coco", tmp_path).captions == [["a cat", "a grey cat"]]
    assert opened("coco", tmp_path, "test").items[0].image.parts[-2] == (inner or "val2014")


def test_coco_without_lists_is_split_by_folder(tmp_path):
    for part in ("train2014", "val2014"):
        photo(tmp_path / "images" / part / f"COCO_{part}_1.jpg")
        text(tmp_path / "text" / f"COCO_{part}_1.txt", "a cat")
    with pytest.warns(UserWarning, match="val2014"):
        photos = open_dataset("coco", tmp_path, "test", progress=False)
    assert [item.key for item in photos.items] == ["COCO_val2014_1"]


def test_conceptual_captions_share_a_text_file(tmp_path, opened):
    for split in ("train", "test"):
        photo(tmp_path / "cc3m" / "images" / split / "0007_a.jpg")
        text(tmp_path / "cc3m" / "text" / split / "0007.txt", f"the {split} caption")
        keys(tmp_path / "cc3m", split, "0007_a")
    photo(tmp_path / "cc12m" / "images" / "part_1" / "0009_b_c.jpg")
    text(tmp_path / "cc12m" / "text" / "part_1" / "0009.txt", "a caption")
    keys(tmp_path / "cc12m", "train", "part_1/0009_b_c")
    assert opened("cc3m", tmp_path / "cc3m").captions == [["the train caption"]]
    assert opened("cc3m", tmp_path / "cc3m", "test").captions == [["the test caption"]]
    assert opened("cc12m", tmp_path / "cc12m").captions == [["a caption"]]


@pytest.mark.parametrize("name", datasets.NAMES)
def test_missing_folder_says_what_is_expected(tmp_path, name):
    with pytest.raises(DataError) as error:
        open_dataset(name, tmp_path / "nowhere")
    message = str(error.value)
    assert str(tmp_path / "nowhere") in message
    assert "captions.csv" in message if name == "folder" else f"galip download {name}" in message
    assert 4 <= len(message.split("\n")) <= 8


def test_default_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="data.flowers"):
        open_dataset("flowers")


def test_unknown_names():
    with pytest.raises(DataError, match="'bird'.*birds, flowers"):
        open_dataset("bird")
    with pytest.raises(DataError, match="'val'.*train, test"):
        open_dataset("birds", split="val")
    with pytest.raises(DataError, match="image_size"):
        open_dataset("birds", image_size=0)


def test_entries_answer_what_a_run_asks():
    birds, photos = dataset("minibirds"), dataset("birds")
    assert birds.held_out == ("seen", "test") and birds.judged and len(birds.captions) == 4
    assert photos.held_out == ("test",) and not photos.judged and not photos.captions
    config = load_config("birds", {"data.folder": "x", "data.image_size": 64})
    assert photos.note(config.data) == {
        "data": "birds", "split": "test", "size": 64, "folder": "x",
        "crop": "square of 1.5 times the bounding box, then short side to 76, centre",
    }  # fmt: skip
    assert photos.cache_name(config.data, "test").endswith("-test") and birds.cache_name(config.data) is None
    with pytest.raises(DataError, match="unknown data set 'bird': one of minibirds, birds, .*, folder, shards"):
        dataset_of(load_config("mini", {"data.name": "bird"}))


# ---------------------------------------------------------------- lists of keys


def test_python_2_list(tmp_path):
    path = tmp_path / "filenames.pickle"
    path.write_bytes(b"(lp0\nS'a/b'\np1\naS'caf\\xe9'\np2\naS'caf\\xc3\\xa9 '\np3\na.")
    assert layouts.read_keys(path) == ["a/b", "café", "café"]


def test_malicious_list_is_refused_and_not_run(faces, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (faces / "train" / "filenames.pickle").write_bytes(pickle.dumps(["face0", Evil()], protocol=protocol))
        with pytest.raises(DataError, match="filenames.pickle holds more than a list of strings.*mkdir.*refused"):
            open_dataset("faces", faces)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x02]q\x00(X\x05", b"\x80\x02]q\x00(X\x05\x00\x00\x00face0", b"hello"])
def test_damaged_list(faces, content):
    (faces / "train" / "filenames.pickle").write_bytes(content)
    with pytest.raises(DataError, match="filenames.pickle is no readable pickle"):
        open_dataset("faces", faces)


@pytest.mark.parametrize("content", ["face0", {"face0": 1}, [1, 2], [["face0"]]])
def test_list_of_something_else(faces, content):
    (faces / "train" / "filenames.pickle").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match="filenames.pickle holds no list of strings"):
        open_dataset("faces", faces)


@pytest.mark.parametrize("key", ["../secret", "a/../../secret", "/etc/secret", "", "..\\secret", "a\0b"])
def test_keys_stay_in_their_folder(faces, key):
    photo(faces / "secret.jpg")
    photos = opened_with_warning(with_bad_row(faces, key), "1 unsafe key")
    assert len(photos) == 6
    assert photos.left_out == {"unsafe key": [repr(key)]}


# ---------------------------------------------------------------- splits that are made


def test_made_split_is_the_same_and_disjoint(tmp_path):
    names = [f"n{i:02d}" for i in range(40)]
    for name in names:
        photo(tmp_path / "images" / f"{name}.jpg", (8, 8))
        text(tmp_path / "text" / f"{name}.txt", "a flower")
    with pytest.warns(UserWarning, match="split is made here.*not the literature's") as seen:
        train = open_dataset("flowers", tmp_path, progress=False)
    assert len(seen) == 1 and seen[0].filename == __file__
    with pytest.warns(UserWarning):
        test = open_dataset("flowers", tmp_path, "test", progress=False)
    trained, tested = ({item.key for item in photos.items} for photos in (train, test))
    assert not trained & tested and trained | tested == set(names)
    assert len(tested) == 4
    assert tested == layouts.held_out(names[::-1], 10)


def test_made_split_of_birds_holds_out_classes(tmp_path):
    minibirds.write_cub(tmp_path, {"train": 60}, size=16)
    (tmp_path / "train" / "filenames.pickle").unlink()
    splits = []
    for split in ("train", "test"):
        with pytest.warns(UserWarning, match="quarter of the classes"):
            splits.append(open_dataset("birds", tmp_path, split, progress=False))
    trained, tested = ({item.key.partition("/")[0] for item in photos.items} for photos in splits)
    assert not trained & tested
    assert len(tested) == len(trained | tested) // 4
    assert sum(map(len, splits)) == 60


def test_a_single_list_leaves_the_rest_for_the_other_split(faces):
    keys(faces, "train", "face0.jpg", "face3")
    with pytest.warns(UserWarning, match="does not list"):
        test = open_dataset("faces", faces, "test", progress=False)
    assert [item.key for item in test.items] == ["face1", "face2", "face4", "face5"]


def test_held_out_is_at_least_one_and_never_all():
    assert [len(layouts.held_out(map(str, range(n)), 10)) for n in (0, 1, 2, 19, 20, 100)] == [0, 0, 1, 1, 2, 10]


# ---------------------------------------------------------------- rows that can't be used


def test_missing_and_empty_files(faces):
    for name, captions in (("c1", ()), ("c2", ("", "  "))):
        photo(faces / "images" / f"{name}.jpg")
        text(faces / "text" / f"{name}.txt", *captions)
    photo(faces / "images" / "c3.jpg")
    text(faces / "text" / "c4.txt", "no picture")
    keys(faces, "train", "face0", "c1", "c2", "c3", "c4")
    photos = opened_with_warning(faces, "left out 4")
    assert photos.left_out == {
        "empty captions": ["text/c1.txt", "text/c2.txt"],
        "missing captions": ["text/c3.txt"],
        "missing image": ["images/c4"],
    }
    assert photos.summary() == (
        "faces train: 1 pictures, 2 captions; left out 4: 2 empty captions (text/c1.txt, text/c2.txt), "
        "1 missing captions (text/c3.txt), 1 missing image (images/c4)"
    )


def test_many_names_are_not_all_shown(faces):
    keys(faces, "train", "face0", *[f"gone{i}" for i in range(9)])
    photos = opened_with_warning(faces, "9 missing image")
    assert photos.summary().endswith("9 missing image (images/gone0, images/gone1, images/gone2, ...)")


def test_odd_caption_bytes(faces):
    (faces / "text" / "face0.txt").write_bytes(b"\xef\xbb\xbfa \x93nice\x94 face\r\n\r\n\tanother \r\n")
    photos = opened_with_warning(faces, r"1 caption that is no UTF-8 text \(text/face0.txt:1\)")
    assert photos.items[0].captions == ("another",)


def test_captions_with_a_byte_order_mark_and_old_line_ends(faces, opened):
    for encoding in ("utf-16", "utf-8-sig"):
        (faces / "text" / "face0.txt").write_bytes("a café\ranother\r\n\nthird".encode(encoding))
        assert opened("faces", faces).items[0].captions == ("a café", "another", "third")


@pytest.mark.parametrize("content", [b"", b"no picture at all", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_unreadable_header(faces, content):
    (faces / "images" / "bad.jpg").write_bytes(content)
    text(faces / "text" / "bad.txt", "a face")
    photos = opened_with_warning(with_bad_row(faces), "1 unreadable image")
    assert photos.left_out == {"unreadable image": ["images/bad.jpg"]}


@pytest.mark.parametrize("limit", [60 * 40, 1000])  # the larger picture warns in Pillow, or raises
def test_decompression_bomb(faces, monkeypatch, limit):
    photo(faces / "images" / "bad.jpg", (70, 60))
    text(faces / "text" / "bad.txt", "a face")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    if limit < 60 * 40:
        for i in range(6):
            photo(faces / "images" / f"face{i}.jpg", (20, 20))
    photos = opened_with_warning(with_bad_row(faces), "1 too many pixels")
    assert photos.left_out == {"too many pixels": ["images/bad.jpg"]}
    assert Image.MAX_IMAGE_PIXELS == limit


def test_thin_strip(faces):
    photo(faces / "images" / "bad.jpg", (501, 10))
    text(faces / "text" / "bad.txt", "a face")
    assert opened_with_warning(with_bad_row(faces), "long and thin").left_out["too long and thin"] == ["images/bad.jpg"]


def test_boxes(tmp_path):
    minibirds.write_cub(tmp_path, {"train": 8}, size=40)
    path = tmp_path / "CUB_200_2011" / "bounding_boxes.txt"
    path.write_text("1 4 4 30 30\n2 0 0 0 20\n3 50 2 10 10\n4 -30 0 20 20\n5 nan 1 2 3\n6 3 3 .5 .5\n8 -5 -5 60 60\n")
    with pytest.warns(UserWarning, match="5 box outside the image.*1 no bounding box"):
        photos = open_dataset("birds", tmp_path, progress=False)
    assert [item.box for item in photos.items] == [(4, 4, 30, 30), (-5, -5, 60, 60)]
    path.write_text("1 4 4 30\n")
    with pytest.raises(DataError, match="bounding_boxes.txt, line 1.*id x y w h"):
        open_dataset("birds", tmp_path, progress=False)
    path.write_text("\n1 4 4 30 x\n")
    with pytest.raises(DataError, match="bounding_boxes.txt, line 2.*not all numbers"):
        open_dataset("birds", tmp_path, progress=False)
    path.unlink()
    with pytest.raises(DataError, match="bounding_boxes.txt is missing.*CUB_200_2011.tgz"):
        open_dataset("birds", tmp_path, progress=False)


def test_nothing_usable(faces):
    for path in (faces / "text").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"nothing usable(.|\n)*6 missing captions(.|\n)*text/<key>.txt"):
        open_dataset("faces", faces, progress=False)


def test_long_captions_are_counted(faces):
    long = "a face with " + "very " * 80 + "red hair"
    text(faces / "text" / "face2.txt", "short", long)
    text(faces / "text" / "face3.txt", "a" + " b" * 74, "a" + " b" * 75, "hippopotamus " * 20)  # 77, 78 and 22 tokens
    photos = opened_with_warning(faces, r"2 captions are longer than CLIP reads.*\(face2, face3\)")
    assert photos.cut == ["face2", "face3"]
    assert photos.captions[2] == ["short", long]
    assert not photos.left_out
    with pytest.warns(UserWarning, match="4 captions"):
        open_dataset("faces", faces, progress=False, context_length=22)


def test_long_captions_are_counted_as_the_tokenizer_counts():
    words = ["bird's", "café", "don't", "(grey-white)", "12", "…", "supercalifragilistic", "a", "wing,", "\u4e2d\u6587"]
    random = np.random.default_rng(0)
    for _ in range(100):
        caption = " ".join(random.choice(words, random.integers(1, 40)))
        tokens = len(bpe_tokenizer().encode(caption)) + 2
        for limit in (10, 40, tokens - 1, tokens):
            assert datasets._is_cut(caption, limit) == (tokens > limit)


# ---------------------------------------------------------------- decoding


@pytest.fixture
def decoded(tmp_path):
    def run(image, name="a.png", upright=True, **options):
        image.save(tmp_path / name, **options)
        picture = decoding.read_image(tmp_path / name, upright)
        assert picture.mode == "RGB"
        return np.asarray(picture)

    return run


def test_modes_become_rgb(decoded):
    assert (decoded(Image.new("L", (4, 3), 77)) == 77).all()
    assert (decoded(Image.new("1", (4, 3), 1)) == 255).all()
    assert (decoded(Image.new("RGBA", (4, 3), (9, 9, 9, 0))) == 255).all()
    assert (decoded(Image.new("RGBA", (4, 3), (0, 0, 0, 127))) == 128).all()
    assert (decoded(Image.new("LA", (4, 3), (9, 0))) == 255).all()
    cmyk = decoded(Image.new("CMYK", (4, 3), (0, 255, 255, 0)), "a.jpg", quality=100)
    assert np.abs(cmyk.astype(int) - [255, 0, 0]).max() < 8


def test_palette_with_transparency_on_white(decoded):
    image = Image.new("P", (4, 2), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((0, 0), 1)
    assert decoded(image)[0, 0].tolist() == [200, 100, 50]
    pixels = decoded(image, transparency=0)
    assert pixels[0, 0].tolist() == [200, 100, 50]
    assert pixels[1, 1].tolist() == [255, 255, 255]


def test_16_bit_grey_keeps_its_high_bits(decoded):
    ramp = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    assert decoded(Image.fromarray(ramp))[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_exif_rotation(decoded, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    image = Image.new("RGB", (6, 4), "blue")
    assert decoded(image, "a.jpg", exif=exif).shape == (6, 4, 3)
    assert decoded(image, "a.jpg", upright=False, exif=exif).shape == (4, 6, 3)
    assert decoded(image, "a.jpg", exif=b"Exif\0\0damaged").shape == (4, 6, 3)


def test_boxes_count_in_stored_pixels(tmp_path, opened):
    minibirds.write_cub(tmp_path, {"train": 1}, size=40)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = next((tmp_path / "CUB_200_2011" / "images").glob("*/*.jpg"))
    photo(path, (40, 20), exif=exif)
    (tmp_path / "CUB_200_2011" / "bounding_boxes.txt").write_text("1 0 0 40 20\n")
    assert opened("birds", tmp_path).picture(0).size == (40, 20)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-600])


def test_truncated_picture(faces, opened):
    truncate(faces / "images" / "face2.jpg")
    photos = opened("faces", faces)
    with pytest.raises(DataError, match="face2.jpg: undecodable image .*truncated"):
        photos.picture(2)


def test_bomb_behind_an_honest_name_is_not_decoded(tmp_path):
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)  # a PNG of 3.6 billion pixels in a few bytes
    blob = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", 0)
    (tmp_path / "a.jpg").write_bytes(blob)
    with pytest.raises(DataError, match="a.jpg"):
        decoding.read_image(tmp_path / "a.jpg")


# ---------------------------------------------------------------- batches


def test_pixels_are_centre_crops(faces, opened):
    photos = opened("faces", faces, image_size=16)
    batch, rows = photos.pixels([3, 0])
    assert batch.shape == (2, 16, 16, 3) and batch.dtype == np.uint8 and rows.tolist() == [3, 0]
    whole = np.asarray(photos.picture(3).resize((28, 19), Image.Resampling.BILINEAR))  # 16 * 76 / 64 = 19
    assert np.array_equal(batch[0], whole[2:18, 6:22])


def test_pixels_match_torchvision(faces, opened):
    from torchvision.transforms import v2

    photos = opened("faces", faces, image_size=32)
    theirs = v2.Compose([v2.Resize(38), v2.CenterCrop(32)])
    ours, _ = photos.pixels([0, 1])
    for row in (0, 1):
        assert np.array_equal(ours[row], np.asarray(theirs(photos.picture(row))))


def test_random_crops_follow_from_the_generator(faces, opened):
    photos, again = opened("faces", faces, image_size=16), opened("faces", faces, image_size=16)
    rows = np.arange(6).repeat(20)
    batch, shown = photos.pixels(rows, np.random.default_rng(1))
    assert np.array_equal(batch, again.pixels(rows, np.random.default_rng(1))[0])
    assert np.array_equal(batch, photos.pixels(rows, np.random.default_rng(1))[0])  # now from memory
    assert not np.array_equal(batch, photos.pixels(rows, np.random.default_rng(2))[0])
    assert np.array_equal(shown, rows)
    whole = photos.resized(0)
    crops = {
        crop.tobytes(): (top, left, flip)
        for top in range(whole.shape[0] - 15)
        for left in range(whole.shape[1] - 15)
        for flip, crop in enumerate((whole[top : top + 16, left : left + 16],
                                     whole[top : top + 16, left : left + 16][:, ::-1]))
    }  # fmt: skip
    places = [crops[one.tobytes()] for one in batch[:20]]
    assert {top for top, _, _ in places} == {0, 1, 2, 3}
    assert {flip for _, _, flip in places} == {0, 1}
    assert len({left for _, left, _ in places}) > 6


def test_threads_change_nothing(faces, opened, monkeypatch):
    one = opened("faces", faces, image_size=16).pixels(range(6), np.random.default_rng(0))[0]
    monkeypatch.setattr(pictures, "_cpus", lambda: 4)
    assert np.array_equal(one, opened("faces", faces, image_size=16).pixels(range(6), np.random.default_rng(0))[0])


def test_large_splits_are_not_kept(faces, opened, monkeypatch):
    photos = opened("faces", faces, image_size=16)
    photos.pixels([0])
    assert photos._kept.keys() == {0}
    monkeypatch.setattr(pictures, "KEEP_BYTES", 6 * 3 * 19 * 28)
    photos = opened("faces", faces, image_size=16)
    photos.pixels([0])
    assert not photos._kept


@pytest.mark.parametrize("cpus", [1, 4])
def test_undecodable_picture_is_replaced_once_reported(faces, opened, monkeypatch, cpus):
    monkeypatch.setattr(pictures, "_cpus", lambda: cpus)
    good = opened("faces", faces, image_size=16).pixels([0, 2, 4, 0], np.random.default_rng(3))[0]
    for name in ("face2", "face5"):
        truncate(faces / "images" / f"{name}.jpg")
    photos = opened("faces", faces, image_size=16)
    with pytest.warns(UserWarning, match="face2.jpg: undecodable image") as seen:
        batch, rows = photos.pixels([0, 2, 4, 2], np.random.default_rng(3))
    assert len(seen) == 1
    assert rows.tolist() == [0, 3, 4, 3]
    assert np.array_equal(batch[[0, 2]], good[[0, 2]])  # the others are what they were
    with pytest.warns(UserWarning, match="face5.jpg") as seen:
        assert photos.pixels([5, 2])[1].tolist() == [0, 3]  # wraps around
    assert len(seen) == 1
    assert photos.left_out == {"undecodable image": ["images/face2.jpg", "images/face5.jpg"]}
    assert photos.summary().startswith("faces train: 4 pictures, 8 captions; left out 2")


def test_no_picture_decodable(faces, opened):
    for path in (faces / "images").iterdir():
        truncate(path)
    with pytest.warns(UserWarning), pytest.raises(DataError, match="none of the 6 pictures"):
        opened("faces", faces).pixels([0])


def test_rows_must_exist(faces, opened):
    photos = opened("faces", faces)
    for rows in ([6], [-1]):
        with pytest.raises(IndexError, match="0 to 5"):
            photos.pixels(rows)


# ---------------------------------------------------------------- own data


@pytest.fixture
def own(tmp_path):
    for i in range(10):
        photo(tmp_path / ("inner" if i % 2 else "") / f"{i}.png", (20 + i, 20))
    return tmp_path


NAMES = sorted(f"{'inner/' if i % 2 else ''}{i}.png" for i in range(10))


def own_keys(folder, opened):
    splits = [[item.key for item in opened("folder", folder, split).items] for split in ("train", "test")]
    assert sorted(splits[0] + splits[1]) == NAMES
    return splits


def test_own_text_files(own, opened):
    for name in NAMES:
        text((own / name).with_suffix(".txt"), f"picture {name}", "another")
    photo(own / ".thumbnails" / "x.png")
    photo(own / "._0.png")
    train, test = own_keys(own, opened)
    assert len(test) == 1
    assert opened("folder", own).items[0].captions == (f"picture {train[0]}", "another")


def test_own_csv(own, opened):
    lines = [f'{name},"picture, {name}"' for name in NAMES] + [f"{NAMES[0]},another"]
    (own / "captions.csv").write_text("\ufeffFile , Caption\n" + "\n".join(lines) + "\n", encoding="utf-8")
    _, test = own_keys(own, opened)
    assert len(test) == 1
    captions = {item.key: item.captions for split in ("train", "test") for item in opened("folder", own, split).items}
    assert captions[NAMES[0]] == (f"picture, {NAMES[0]}", "another")


def test_own_csv_with_split(own, opened):
    lines = [f"{name},picture,{'test' if i < 4 else ' Train'}" for i, name in enumerate(NAMES)]
    (own / "captions.csv").write_text("filename,text,split\n" + "\n".join(lines) + "\n")
    assert own_keys(own, opened) == [NAMES[4:], NAMES[:4]]


def test_own_json_lines(own, opened):
    lines = [{"image": name, "captions": ["one", "two"], "split": "train"} for name in NAMES[1:]]
    lines.append({"file": NAMES[0].replace("/", "\\"), "caption": "three", "split": "test"})
    (own / "captions.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    assert own_keys(own, opened) == [NAMES[1:], NAMES[:1]]
    assert opened("folder", own, "test").captions == [["three"]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("captions.csv", "picture,words\na,b\n", "header is 'picture,words'.*image or file"),
        ("captions.csv", "image;caption\na;b\n", "header is 'image;caption'.*comma"),
        ("captions.csv", "", "header is ''"),
        ("captions.csv", "image,caption\n0.png,a red, green one\n", "captions.csv, line 2.*quotes"),
        ("captions.csv", "image,caption\n0.png,ok\n,bird\n", "captions.csv, line 3: names no image"),
        ("captions.csv", "image,caption,split\n0.png,a,val\n", "captions.csv, line 2.*train or test, not 'val'"),
        ("captions.csv", "image,caption,split\n0.png,a,test\n2.png,b,\n", "2.png has no split"),
        ("captions.csv", "image,caption,split\n0.png,a,test\n0.png,b,train\n", "line 3: 0.png is in two splits"),
        ("captions.csv", "image,caption\n0.png," + "x" * 200_000, "captions.csv, after line 1: field larger"),
        ("captions.csv", 'image,caption\n0.png,"a\n2.png,b\n', "captions.csv, after line 1: unexpected end.*quotes"),
        ("captions.jsonl", '{"image": "0.png", "caption": "a"}\n{"image": \n', "captions.jsonl, line 2: is no JSON"),
        ("captions.jsonl", "[" * 100_000, "captions.jsonl, line 1: is no JSON"),
        ("captions.jsonl", '["0.png", "a"]\n', "captions.jsonl, line 1: must be of the form"),
        ("captions.jsonl", '{"image": "0.png", "title": "a"}\n', "captions.jsonl, line 1: must be of the form"),
        ("captions.jsonl", '{"picture": "0.png", "caption": "a"}\n', "line 1: names no image"),
        ("captions.jsonl", '{"image": 3, "caption": "a"}\n', "line 1: names no image"),
        ("captions.jsonl", '{"image": "0.png", "caption": 3}\n', "line 1: the captions must be"),
        ("captions.jsonl", '{"image": "0.png", "caption": "a", "split": 3}\n', "line 1: the split must be"),
    ],
)
def test_own_tables_with_mistakes(own, name, content, message):
    (own / name).write_text(content)
    with pytest.raises(DataError, match=message):
        open_dataset("folder", own, progress=False)


def test_own_rows_that_cannot_be_used(own):
    lines = ["gone.png,a", "../x.png,a", "/x.png,a", "0.png,", "2.png", "4.png,good", "6.png,good", "8.png,good"]
    (own / "captions.csv").write_text("image,caption,split\n" + "".join(f"{line},\n" for line in lines))
    left_out = {}
    for split in ("train", "test"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for reason, names in open_dataset("folder", own, split, progress=False).left_out.items():
                left_out.setdefault(reason, set()).update(names)
    assert left_out == {
        "missing image": {"gone.png"},
        "unsafe key": {"'../x.png'", "'/x.png'"},
        "empty captions": {"0.png", "2.png"},
        "picture that captions.csv doesn't list": {f"inner/{i}.png" for i in range(1, 10, 2)},
    }


def test_folder_of_img2dataset(tmp_path, opened):
    """What it leaves with `--output_format files`; of a failed download, only a row in the .parquet."""
    stems = [tmp_path / f"{shard:05d}" / f"{shard:05d}{number:04d}" for shard in (0, 1) for number in (0, 1, 3, 4, 5)]
    for stem in stems:
        photo(stem.with_suffix(".jpg"))
        text(stem.with_suffix(".txt"), f"caption of {stem.name}")
        stem.with_suffix(".json").write_text("{}")
    for shard in ("00000", "00001"):
        (tmp_path / f"{shard}.parquet").write_bytes(b"PAR1")
        (tmp_path / f"{shard}_stats.json").write_text("{}")
    train, test = opened("folder", tmp_path), opened("folder", tmp_path, "test")
    assert (len(train), len(test)) == (9, 1)
    assert {item.image for item in [*train.items, *test.items]} == {stem.with_suffix(".jpg") for stem in stems}
    assert all(item.captions == (f"caption of {item.image.stem}",) for item in train.items)


def test_two_tables(own):
    (own / "captions.csv").write_text("image,caption\n")
    (own / "captions.jsonl").write_text("")
    with pytest.raises(DataError, match="keep the one"):
        open_dataset("folder", own)


def test_own_folder_without_captions(own):
    with pytest.raises(DataError, match=r"9 missing captions(.|\n)*captions.jsonl"):
        open_dataset("folder", own, progress=False)


# ---------------------------------------------------------------- describing


def test_describe(faces, capsys):
    text(faces / "text" / "face0.txt", "one " * 90)
    photo(faces / "images" / "face1.jpg", (30, 80))
    Image.new("L", (50, 50)).save(faces / "images" / "face2.jpg")
    truncate(faces / "images" / "face3.jpg")
    keys(faces, "train", *[f"face{i}" for i in range(6)], "gone")
    with pytest.warns(UserWarning, match="face3") as seen:
        result = describe("faces", faces, ["train"], sheet=faces / "out" / "sheet.png", check=True, progress=False)
    assert len(seen) == 1  # what is left out at opening is printed, not warned of
    sheet = result.pop("sheet")
    assert json.loads(json.dumps(result)) == result
    assert result["splits"]["train"] == {
        "pictures": 5,
        "classes": 0,
        "captions": 9,
        "captions_per_picture": {"min": 1, "median": 2, "max": 2},
        "words_per_caption": {"min": 2, "median": 3, "max": 90},
        "size": {"median": [60, 40], "smallest": [60, 40], "largest": [50, 50]},
        "modes": {"RGB": 4, "L": 1},
        "left_out": {"missing image": 1, "undecodable image": 1},
        "cut_captions": 1,
        "frequent_words": ["one", "face", "number"],
    }
    printed = capsys.readouterr().out
    assert "train: 5 pictures, 9 captions" in printed
    assert "1 missing image (images/gone), 1 undecodable image (images/face3.jpg)" in printed
    with Image.open(faces / "out" / "sheet.png") as written:
        assert written.size == sheet.size == (5 * 138 + 10, sheet.height)


def test_sheet_shows_no_picture_twice(faces):
    truncate(faces / "images" / "face3.jpg")
    with pytest.warns(UserWarning, match="face3"):
        result = describe("faces", faces, ["train"], progress=False)
    assert result["sheet"].width == 5 * 138 + 10
    assert result["splits"]["train"]["left_out"] == {"undecodable image": 1}


def test_describe_counts_classes_and_is_repeatable(tmp_path, capsys):
    minibirds.write_cub(tmp_path, {"train": 30, "test": 5}, size=40)
    first, second = (describe("birds", tmp_path, image_size=32, progress=False) for _ in range(2))
    assert list(first["splits"]) == ["train", "test"]
    classes = {path.parent.name for path in (tmp_path / "text").glob("*/train_*.txt")}
    assert first["splits"]["train"]["classes"] == len(classes) > 1
    assert first.pop("sheet").tobytes() == second.pop("sheet").tobytes()
    assert first == second


def test_describe_counts_classes_of_flowers(tmp_path, opened):
    for name in ("image_00001", "image_00002", "image_00003", "image_00004"):
        photo(tmp_path / "images" / f"{name}.jpg")
        text(tmp_path / "text" / f"{name}.txt", "a flower")
    keys(tmp_path, "train", "image_00001.jpg", "image_00002", "image_00003", "image_00004")

    def classes():
        return describe("flowers", tmp_path, ["train"], progress=False)["splits"]["train"]["classes"]

    assert classes() == 0
    text(tmp_path / "image_class.txt", "image_00001 class_7", "image_00002 class_7", "image_00003 class_1", "other x")
    assert classes() == 2
    text(tmp_path / "image_class.txt", "image_00001")
    with pytest.raises(DataError, match="image_class.txt, line 1.*key class"):
        classes()


def test_describe_where_nothing_can_be_decoded(faces):
    for path in (faces / "images").iterdir():
        truncate(path)
    with pytest.warns(UserWarning), pytest.raises(DataError, match="none of the 6 pictures"):
        describe("faces", faces, ["train"], check=True, progress=False)


# ---------------------------------------------------------------- the real sets


@pytest.mark.parametrize(
    ("name", "folder", "train", "test"), [("birds", "birds", 2550, 1400), ("flowers", "flower", 820, 360)]
)
def test_real_sets(opened, name, folder, train, test):
    if not (REAL / folder).is_dir():
        pytest.skip(f"real data are absent: {folder}")
    assert len(opened(name, REAL / folder)) == train
    photos = opened(name, REAL / folder, "test", image_size=64)
    assert len(photos) == test
    assert {len(texts) for texts in photos.captions} == {10}
    batch, rows = photos.pixels(range(0, test, 40), np.random.default_rng(0))
    assert batch.shape == (len(rows), 64, 64, 3) and batch.std() > 30
