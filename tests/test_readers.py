"""What people's files look like: text, pictures and folders go through one reader each, and nothing is passed over."""

import codecs
import io
import json
import os
import sqlite3
import sys
import tarfile
import types
import unicodedata
import warnings

import numpy as np
import pytest
from PIL import Image

from galiplib.data import BadRow, decoding
from galiplib.data.captions import NOT_TEXT, captions_of, read_captions, read_table
from galiplib.data.datasets import DataError, describe, open_dataset
from galiplib.data.index import Index
from galiplib.data.shards import open_shards
from galiplib.evaluation import EvaluationError, list_pictures, read_pictures
from galiplib.sampling.folder import read_captions as read_recipes


def picture(path, number=0, form=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 9), (20 * number % 256, 90, 30)).save(path, form, **options)


def opened(folder, split="train"):
    """A split and what is left out of it: reason -> names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        photos = open_dataset("folder", folder, split, 8, progress=False)
    return photos, photos.left_out


def both(folder):
    splits = [opened(folder, split) for split in ("train", "test")]
    found = {item.key: item.captions for photos, _ in splits for item in photos.items}
    return found, {reason: names for _, left_out in splits[::-1] for reason, names in left_out.items()}


# ---------------------------------------------------------------- text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_is_decoded_by_its_byte_order_mark(tmp_path, encoding, end):
    mark = "" if encoding.startswith("utf-8") else "\ufeff"
    text = mark + end.join(["ein grüner Vogel", "", "鳥 🐦", " third\u2028line "])
    wanted = ("ein grüner Vogel", "鳥 🐦", "third\u2028line")
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    assert read_captions(tmp_path / "a.txt") == captions_of(text.encode(encoding), "x") == wanted
    assert [recipe.caption for recipe in read_recipes(tmp_path / "a.txt")] == list(wanted)
    table = tmp_path / "captions.csv"
    table.write_bytes((mark + end.join(["Image , CAPTION", 'a.jpg,"é, b"', "b.jpg,c"])).encode(encoding))
    assert read_table(table).captions == {"a.jpg": ["é, b"], "b.jpg": ["c"]}


UNDECODABLE = {
    "cp1252": "a café".encode("cp1252"),
    "UTF-16 without a mark": "a bird".encode("utf-16-le"),
    "cut UTF-16": codecs.BOM_UTF16_LE + "a bird".encode("utf-16-le")[:-1],
    "half a pair in UTF-16": codecs.BOM_UTF16_BE + b"\xd8\x3d" + "a".encode("utf-16-be"),
    "a surrogate in UTF-8": b"a \xed\xa0\xbd bird",
    "a zero": b"a \0 bird",
}


@pytest.mark.parametrize("content", UNDECODABLE.values(), ids=UNDECODABLE)
def test_what_is_no_text_is_left_out_and_named(tmp_path, content):
    for number in range(3):
        picture(tmp_path / f"{number}.jpg", number)
        (tmp_path / f"{number}.txt").write_text("a bird")
    keys = [item.key for item in opened(tmp_path)[0].items]
    (tmp_path / keys[0]).with_suffix(".txt").write_bytes(content)
    photos, left_out = opened(tmp_path)
    assert [item.key for item in photos.items] == keys[1:]
    assert left_out == {NOT_TEXT: [keys[0].replace(".jpg", ".txt:1")]}
    with pytest.raises(ValueError, match="line 1: is no text in UTF-8"):
        read_recipes((tmp_path / keys[0]).with_suffix(".txt"))


def test_one_bad_line_costs_no_other(tmp_path):
    left_out = []
    content = "good\n\ufeff joined files \n".encode() + b"caf\xe9\nlast"
    assert captions_of(content, tmp_path / "a.txt", left_out) == ("good", "joined files", "last")
    assert [str(error) for error in left_out] == [f"{tmp_path / 'a.txt'}:3: {NOT_TEXT}"]


def test_tables_leave_out_single_lines(tmp_path):
    lines = [b"image,caption", b"0.jpg,a bird", b"1.jpg,caf\xe9", b"2.jpg,a bird", b"2.jpg,caf\xe9", b"caf\xe9.jpg,x"]
    for number in range(4):
        picture(tmp_path / f"{number}.jpg", number)
    (tmp_path / "captions.csv").write_bytes(b"\n".join([*lines, b"3.jpg,b"]))
    found, left_out = both(tmp_path)
    assert found == {"0.jpg": ("a bird",), "2.jpg": ("a bird",), "3.jpg": ("b",)}
    assert left_out == {NOT_TEXT: ["captions.csv:3", "captions.csv:5", "captions.csv:6"]}
    (tmp_path / "captions.csv").unlink()
    half, whole = r'"\ud83d bird"', '"a \u2028\x85 \\ud83d\\udc26 bird"'  # lines end at \n only
    rows = [rf'{{"image": "0.jpg", "captions": [{half}, {whole}]}}', rf'{{"Image": "1.jpg", "Text": {half}}}']
    rows += [rf'{{"file_name": "{n}.jpg", "caption": "c"}}' for n in (2, 3)]
    (tmp_path / "captions.jsonl").write_text("\ufeff" + "\n".join(rows), encoding="utf-8")
    found, left_out = both(tmp_path)
    assert found == {"0.jpg": ("a \u2028\x85 🐦 bird",), "2.jpg": ("c",), "3.jpg": ("c",)}
    assert left_out == {NOT_TEXT: ["captions.jsonl:1", "captions.jsonl:2"]}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("captions.csv", 'image,caption\n0.jpg,"a\n1.jpg,b\n', "after line 1: unexpected end.*quotes"),
        ("captions.csv", 'image,caption\n0.jpg,"a\n1.jpg,b\n2.jpg,a 3"\n', "before line 4: a quote stays open"),
        ("captions.csv", 'image,caption\n0.jpg,"a\n1.jpg,"b"\n', "after line 1: .*quotes"),
        ("captions.csv", "image,caption,Caption\n0.jpg,a,b\n", "two columns are called 'caption'"),
        ("captions.tsv", 'image\tcaption\n0.jpg\t"a\n1.jpg\tb\n', "captions.tsv, after line 1"),
        ("captions.tsv", "image,caption\n0.jpg,a\n", "captions.tsv: the header is"),
    ],
)
def test_open_quotes_and_headers_are_told(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        open_dataset("folder", tmp_path, progress=False)


def test_tables_by_tabs_and_with_several_lines(tmp_path):
    for number in range(3):
        picture(tmp_path / f"{number}.jpg", number)
    (tmp_path / "Captions.TSV").write_text('FILE\tText\n0.jpg\ta 3" bird, red\n1.jpg\t"one\nand two"\n2.jpg\tx\n')
    found, left_out = both(tmp_path)
    assert found == {"0.jpg": ('a 3" bird, red',), "1.jpg": ("one\nand two",), "2.jpg": ("x",)} and not left_out


def tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_shards_read_text_as_folders_do(tmp_path):
    stream = io.BytesIO()
    Image.new("RGB", (9, 9)).save(stream, "JPEG")
    texts = ["\ufeffa b".encode(), b"a\rb", "a é".encode("utf-16"), b"caf\xe9\nb", *UNDECODABLE.values()]
    members, wanted = [("README", b"x"), ("._0.jpg", b"x")], []
    for number, text in enumerate(texts):
        members += [(f"{number:03d}.jpg", stream.getvalue()), (f"{number:03d}.TXT", text)]
        try:
            wanted.append(list(captions_of(text, "x")))
        except BadRow:
            continue
    members += [("x.jpg", stream.getvalue()), ("x.json", b'\xef\xbb\xbf{"Caption": ["\\ud83d", "d"], "exif": "\xe9"}')]
    tar(tmp_path / "0.tar", members)
    with pytest.warns(UserWarning) as warned:
        shards = open_shards(tmp_path, "train", 8, progress=False)
    assert list(shards.captions) == wanted == [["a b"], ["a", "b"], ["a é"], ["b"]]  # the last, "d", is for testing
    said = str(warned[0].message)
    assert f"1 with no file with a suffix (0.tar, README), 8 with {NOT_TEXT} (0.tar, 003:1, 0.tar, 004:1, " in said
    database = sqlite3.connect(tmp_path / "index" / "index.sqlite")  # as earlier versions wrote it: without names
    database.executescript("ALTER TABLE left_out DROP COLUMN named;")
    database.close()
    with pytest.warns(UserWarning, match=f"left out: 1 with no file with a suffix, 8 with {NOT_TEXT}$"):
        open_shards(tmp_path, "train", 8, progress=False)
    assert Index(tmp_path / "index" / "index.sqlite").pictures == 5


def test_recipes_from_tables_and_from_our_own_manifest(tmp_path):
    (tmp_path / "a.tsv").write_text("Seed\tCaption \n3\ta bird, red\n")
    (recipe,) = read_recipes(tmp_path / "a.tsv")
    assert (recipe.caption, recipe.seed) == ("a bird, red", 3)
    line = {"file": "0001.png", "caption": "a\u2028bird", "seed": 4, "settings": {"truncation": 0.5}, "weights": "x"}
    noted = {"checkpoint": "mini", "ema": True, "precision": "fp32"}
    (tmp_path / "manifest.jsonl").write_text(json.dumps({**line, **noted}, ensure_ascii=False), encoding="utf-8")
    (recipe,) = read_recipes(tmp_path / "manifest.jsonl")
    assert (recipe.caption, recipe.seed, recipe.truncation) == ("a\u2028bird", 4, 0.5)
    (tmp_path / "b.jsonl").write_text('{"caption": "a"}\n{"caption": "b", "sede": 3}\n')
    with pytest.raises(ValueError, match="b.jsonl, line 2: unknown sede"):
        read_recipes(tmp_path / "b.jsonl")


# ---------------------------------------------------------------- pictures


def turned(stream, image):
    exif = Image.Exif()
    exif[0x0112] = 3
    image.save(stream, "PNG", exif=exif.tobytes())


def masked(stream, image):
    image = image.convert("RGBA")
    image.putalpha(Image.new("L", image.size, 60))
    image.save(stream, "WEBP", lossless=True)


def deep(stream, image):
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(stream, "TIFF")


def indexed(stream, image):
    image.quantize(4).save(stream, "GIF", transparency=0)


@pytest.mark.parametrize("write", [turned, masked, deep, indexed])
def test_every_way_to_a_picture_is_the_same(tmp_path, write):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    stream = io.BytesIO()
    write(stream, image)
    (tmp_path / "own").mkdir()
    (tmp_path / "shards").mkdir()
    members = []
    for number in range(2):
        (tmp_path / "own" / f"{number}.png").write_bytes(stream.getvalue())  # whatever its name says
        (tmp_path / "own" / f"{number}.txt").write_text("a picture")
        members += [(f"{number}.png", stream.getvalue()), (f"{number}.txt", b"a picture")]
    tar(tmp_path / "shards" / "0.tar", members)
    wanted = np.asarray(decoding.read_image(tmp_path / "own" / "0.png"))
    paths, captions = list_pictures(tmp_path / "own")
    assert captions is None and (read_pictures(paths) == wanted).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for photos in (opened(tmp_path / "own")[0], open_shards(tmp_path / "shards", "train", 16, progress=False)):
            assert np.array_equal(np.asarray(photos.picture(0)), wanted)


def test_sixteen_bits_with_a_transparent_grey():
    image = Image.fromarray(np.array([[256, 65535, 300]], np.uint16))
    image.info["transparency"] = 300
    assert np.asarray(decoding.to_rgb(image))[0, :, 0].tolist() == [1, 255, 255]


def test_endings_that_pillow_reads(tmp_path):
    endings = {
        ".jfif": "JPEG", ".JPE": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".gif": "GIF", ".avif": "AVIF",
        ".bmp": "BMP", ".webp": "WEBP",
    }  # fmt: skip
    for number, (ending, form) in enumerate(endings.items()):
        picture(tmp_path / f"{number}{ending}", number, form)
        (tmp_path / f"{number}.txt").write_text("a picture")
    frames = [Image.new("RGB", (12, 9), colour) for colour in ("red", "blue")]
    for name in ("moving.gif", "moving.webp", "pages.tiff", "moving.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        (tmp_path / name).with_suffix(".txt").write_text("red")
        red, _, blue = np.asarray(decoding.read_image(tmp_path / name))[0, 0]
        assert red > 200 > blue
    found, left_out = both(tmp_path)
    assert len(found) == 12 and left_out.keys() == {"animation, its first frame read"}
    assert set(left_out.popitem()[1]) <= {"moving.gif", "moving.webp", "pages.tiff", "moving.png"}


def test_pictures_that_are_refused_say_why(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "find_spec", lambda name: None)
    decoding._formats.cache_clear()
    for number in range(2):
        picture(tmp_path / f"{number}.jpg", number)
    (tmp_path / "2.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "3.jpg").write_bytes(b"\0\0\0\x18ftypmif1 and more")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "4.tif")
    lines = [json.dumps({"image": f"{n}.{e}", "caption": "x"}) for n, e in enumerate("jpg jpg heic jpg tif".split())]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    _, left_out = both(tmp_path)
    heic, floating = "HEIC picture (pip install pillow-heif reads it)", "floating-point pixels"
    assert {reason: sorted(names) for reason, names in left_out.items()} == {
        heic: ["2.heic", "3.jpg"],
        floating: ["4.tif"],
    }
    with pytest.raises(EvaluationError, match="2.heic can't be read: HEIC picture .pip install pillow-heif"):
        read_pictures([tmp_path / "2.heic"])


def test_an_installed_heif_reader_is_used(tmp_path, monkeypatch):
    module, calls = types.ModuleType("pillow_heif"), []
    module.register_heif_opener = lambda: calls.append(1)
    monkeypatch.setitem(sys.modules, "pillow_heif", module)
    monkeypatch.setattr(decoding, "find_spec", lambda name: name == "pillow_heif")
    decoding._formats.cache_clear()
    assert decoding._formats()[-1] == "HEIF" and decoding._formats() and calls == [1]
    decoding._formats.cache_clear()


# ---------------------------------------------------------------- folders


def own(folder, names, captions=True):
    for number, name in enumerate(names):
        picture(folder / name, number)
        if captions:
            (folder / name).with_suffix(".txt").write_text(f"number {number}")
    return folder


def test_links_are_followed_and_loops_end(tmp_path):
    folder = own(tmp_path / "own", ["a.jpg", "deep/er/b.jpg"])
    own(tmp_path / "disk", ["c.jpg", "more/d.jpg"])
    os.symlink(tmp_path / "disk", folder / "linked")
    os.symlink(folder, tmp_path / "disk" / "more" / "loop")
    os.symlink(folder / "deep" / "er", folder / "again")
    os.symlink(tmp_path / "nowhere", folder / "gone.jpg")
    found, left_out = both(folder)
    assert set(found) == {"a.jpg", "deep/er/b.jpg", "linked/c.jpg", "linked/more/d.jpg"}
    assert left_out == {"missing image": ["gone.jpg"]}
    (folder / "gone.jpg").unlink()
    assert list_pictures(folder)[0] == [folder / name for name in sorted(found)]


def test_what_is_in_no_row_is_named(tmp_path, capsys):
    names = own(tmp_path, ["a.jpg", "b.jpg", "in/c.jpg"]) and ["layers.psd", "in/film.mp4"]
    for name in (*names, "Thumbs.db", "about.md", "a.json", ".hidden"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "gone.txt").write_text("no picture")
    (tmp_path / "in" / "a.caption").write_text("no picture")
    wanted = {
        "captions without a picture": ["gone.txt", "in/a.caption"],
        "file that is not read": ["in/film.mp4", "layers.psd"],
    }
    assert both(tmp_path)[1] == wanted
    with pytest.warns(
        UserWarning, match=r"2 captions without a picture \(gone.txt, in/a.caption\), 2 file that is not"
    ):
        open_dataset("folder", tmp_path, progress=False)
    describe("folder", tmp_path, progress=False)
    assert "2 file that is not read (in/film.mp4, layers.psd)" in capsys.readouterr().out
    (tmp_path / "captions.csv").write_text("image,caption\na.jpg,x\nin/../in//c.jpg,y\n")
    assert both(tmp_path)[1] == {
        "picture that captions.csv doesn't list": ["b.jpg"],
        "file that is not read": [
            "a.txt",
            "b.txt",
            "gone.txt",
            "in/a.caption",
            "in/c.txt",
            "in/film.mp4",
            "layers.psd",
        ],
    }


@pytest.mark.parametrize("table", [True, False])
def test_names_may_be_composed_and_capitalised_otherwise(tmp_path, table):
    apart, whole = (unicodedata.normalize(form, "é") for form in ("NFD", "NFC"))
    pictures = [f"caf{apart}.jpg", "IMG_1.JPG", f"Stra{apart}/x.jpg", "plain.jpg"]
    texts = [f"caf{whole}.txt", "img_1.TXT", f"Stra{apart}/X.txt", "plain.txt"]
    own(tmp_path, pictures, captions=False)
    if table:
        listed = [f"caf{whole}.jpg", "img_1.jpg", f"STRA{whole}/x.jpg", "plain.jpg"]
        (tmp_path / "captions.csv").write_text("image,caption\n" + "".join(f"{name},{name}\n" for name in listed))
    else:
        listed = pictures
        for name, text in zip(pictures, texts, strict=True):
            (tmp_path / text).write_text(name)
    found, left_out = both(tmp_path)
    assert found == {name: (name,) for name in listed} and not left_out


def test_named_layouts_find_such_names_too(tmp_path):
    apart, whole = (unicodedata.normalize(form, "é") for form in ("NFD", "NFC"))
    own(tmp_path / "images", [f"{apart}.JPG", "b.jfif"], captions=False)
    (tmp_path / "text").mkdir()
    for name in (f"{apart}.txt", "B.txt"):
        (tmp_path / "text" / name).write_text(name)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "filenames.pickle").write_bytes(f"(lp0\nV{whole}\naVb\na.".encode("raw_unicode_escape"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        photos = open_dataset("flowers", tmp_path, progress=False)
    assert [item.image.name for item in photos.items] == [f"{apart}.JPG", "b.jfif"]


def test_a_picture_has_one_row_in_one_split(tmp_path):
    folder = own(tmp_path / "own", [f"{number}.jpg" for number in range(20)], captions=False)
    os.link(folder / "0.jpg", folder / "twin.jpg")
    os.symlink("0.jpg", folder / "soft.jpg")
    ways = [f"{folder}/{{}}", "./{}", "../own/../own/{}", "{}", ".\\{}"]
    lines = [f"{ways[number % 3].format(f'{number}.jpg')},one" for number in range(20) if number % 3 != 2]
    lines += [f"{ways[3 + number % 2].format(f'{number}.jpg')},two" for number in range(20)]
    (folder / "captions.csv").write_text("\n".join(["image,caption", *lines, "twin.jpg,x", "soft.jpg,y"]))
    splits = [{item.image.resolve() for item in opened(folder, split)[0].items} for split in ("train", "test")]
    assert not splits[0] & splits[1] and len(splits[0] | splits[1]) == 20 and len(splits[1]) == 2
    found, left_out = both(folder)
    assert found["0.jpg"] == ("one", "two") and found["2.jpg"] == ("two",)
    assert sorted(left_out["second path to a picture"]) == ["soft.jpg", "twin.jpg"]
    text = "image,caption,split\n" + "".join(f"{n}.jpg,x,train\n" for n in range(20)) + "twin.jpg,x,test\n"
    (folder / "captions.csv").write_text(text)
    assert [item.key for item in opened(folder, "test")[0].items] == ["twin.jpg"]
    assert opened(folder)[1] == {"second path to a picture": ["0.jpg"]}  # soft.jpg is no other picture
    (folder / "captions.csv").write_text(f"{text}./0.jpg,x,test\n")
    with pytest.raises(DataError, match="line 23: 0.jpg is in two splits"):
        opened(folder)


def test_lists_of_both_splits_share_no_picture(tmp_path):
    own(tmp_path / "images", ["a.jpg", "b.jpg", "c.jpg"])
    os.rename(tmp_path / "images", tmp_path / "text")
    own(tmp_path / "images", ["a.jpg", "b.jpg", "c.jpg"], captions=False)
    for split, keys in (("train", "abca"), ("test", "c")):
        (tmp_path / split).mkdir()
        listed = "".join(f"S'{key}'\na" for key in keys)
        (tmp_path / split / "filenames.pickle").write_bytes(f"(l{listed}.".encode())
    with pytest.warns(UserWarning, match="1 picture of the test split .images/c.jpg., 1 second path to a picture"):
        photos = open_dataset("faces", tmp_path, progress=False)
    assert [item.key for item in photos.items] == ["a", "b"]
    assert len(open_dataset("faces", tmp_path, "test", progress=False)) == 1


# ---------------------------------------------------------------- pictures to measure


def test_manifests_of_pictures_made_elsewhere(tmp_path):
    folder = own(tmp_path / "made", ["a.png", "in/b.png", "._a.png"], captions=False)
    manifest = folder / "manifest.jsonl"
    for encoding in ("utf-8-sig", "utf-16"):
        manifest.write_text('{"file": "a.png", "caption": "é"}\n{"file": "in/B.PNG", "caption": "b"}', encoding)
        assert list_pictures(folder) == ([folder / "a.png", folder / "in" / "b.png"], ["é", "b"])
    for line in ('{"file": "a.png", "caption": null}', '{"file": "a.png", "caption": " "}'):
        manifest.write_text(line)
        with pytest.raises(EvaluationError, match="has no caption of 1 pictures: a.png"):
            list_pictures(folder)
    manifest.write_bytes(b'{"file": "a.png", "caption": "x"}\n{"file": "b.png", "caption": "caf\xe9"}')
    with pytest.raises(EvaluationError, match=f"manifest.jsonl:2: {NOT_TEXT}"):
        list_pictures(folder)
    picture(folder / "sheet.png")
    picture(folder / "new.png")
    manifest.write_text('{"file": "a.png", "caption": "x"}\n{"file": "in/b.png", "caption": "y"}')
    with pytest.warns(UserWarning, match="doesn't list 1 pictures beside it: new.png"):
        list_pictures(folder)


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    "typed",
    [
        "A Red bird, with black WINGS.", "a 'red' bird with 'black wings'", "a “red” bird with ‘black’ wings…",
        "a red-bird with black wi\u00adngs!", "(a red bird) — with: black/wings?", "a red bird with black wings’",
        "a\u200b red «bird» with `black´ wings;",
    ],
)  # fmt: skip
def test_marks_make_no_word_unknown(small_bridge, typed):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert small_bridge.tokenize(typed).equal(small_bridge.tokenize("a red bird with black wings"))
        assert small_bridge.unread(typed) == ""


def test_unknown_words_are_told_as_typed(small_bridge):
    with pytest.warns(UserWarning, match="left out: D'Or, Zebra, cafe\u0301, like, won’t, 🦓$"):
        small_bridge.tokenize("'Zebra'-like bird: the bird's cafe\u0301, D'Or; a won’t, 🦓.")
