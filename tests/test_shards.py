"""Data sets in WebDataset shards: written, read by number, trained from, and everything that can be wrong with them."""

import json
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from galiplib.build import make_bridge, make_data, make_shards
from galiplib.config import load_config
from galiplib.data import DataError, minibirds, shard_writing, shards
from galiplib.data.batches import TrainingData
from galiplib.data.datasets import open_dataset
from galiplib.data.embeddings import sentence_embeddings
from galiplib.data.shard_writing import DrawnBirds, ResizedPhotos, check_shards, encoded, write_shards
from galiplib.data.shards import open_shards, shuffled_rows
from galiplib.runs.run import Run

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    """Profile mini's 60 + 20 birds in shards of 25, with embeddings."""
    folder = tmp_path_factory.mktemp("birds")
    config = load_config("mini", {"data.train_size": 60, "data.test_size": 20})
    make_shards(config, folder, per_shard=25, progress=False)
    return folder


@pytest.fixture
def copy(birds, tmp_path):
    """The same, to be damaged."""
    return shutil.copytree(birds, tmp_path / "copy")


def opened(folder, split="train", size=56, **more):
    return open_shards(folder, split, size, progress=False, **more)


def write_like_img2dataset(folder, shards, per_shard, stats=True, captions=None, size=(90, 70)):
    """Shards with key.jpg, key.txt, key.json and a _stats.json, grey values rising from picture to picture."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with webdataset.TarWriter(str(folder / f"{shard:05d}.tar"), encoder=False) as archive:
            for place in range(per_shard):
                row = shard * per_shard + place
                text = f"picture number {row}" if captions is None else captions[row]
                fields = {"caption": text, "url": "x", "status": "success", "key": f"{row:09d}"}
                pixels = np.full((size[1], size[0], 3), row % 256, dtype=np.uint8)
                archive.write({
                    "__key__": f"{row:09d}", "jpg": encoded(pixels, "jpg"), "txt": (text or "").encode(),
                    "json": json.dumps(fields).encode(),
                })  # fmt: skip
        if stats:
            (folder / f"{shard:05d}_stats.json").write_text(json.dumps({"successes": per_shard}))


# ---------------------------------------------------------------- writing and reading


def test_what_is_written_comes_back_and_webdataset_reads_it_too(birds):
    drawn, shards = minibirds.build("train", 60), opened(birds)
    assert [path.name for path in sorted((birds / "train").glob("*.tar"))] == ["00000.tar", "00001.tar", "00002.tar"]
    assert len(shards) == 60 and list(shards.captions) == drawn.captions
    rows = np.array([59, 0, 24, 25, 26])
    pixels, shown = shards.pixels(rows, np.random.default_rng(0))  # mini birds are neither cropped nor flipped
    assert np.array_equal(pixels, drawn.images[rows]) and np.array_equal(shown, rows)
    files = [str(path) for path in sorted((birds / "train").glob("*.tar"))]
    read = list(webdataset.WebDataset(files, shardshuffle=False).decode("rgb8"))
    assert [sample["json"]["captions"] for sample in read] == drawn.captions
    assert all(np.array_equal(sample["png"], image) for sample, image in zip(read, drawn.images, strict=True))
    assert len(opened(birds, "test")) == 20


def test_photographs_are_stored_as_training_crops_them(tmp_path):
    minibirds.write_cub(tmp_path / "cub", {"train": 10, "test": 4}, size=160)
    config = load_config("birds", {"data.folder": str(tmp_path / "cub"), "data.image_size": 64})
    photos = open_dataset("birds", tmp_path / "cub", "train", 64, progress=False)
    shards = make_shards(config, tmp_path / "shards", 4, embed=False, progress=False)["train"]
    assert list(shards.captions) == photos.captions
    for seed in (0, 1):
        (loose, _), (packed, _) = (s.pixels(np.arange(10), np.random.default_rng(seed)) for s in (photos, shards))
        assert loose.shape == packed.shape == (10, 64, 64, 3)
        assert np.abs(loose.astype(int) - packed).mean() < 3  # JPEG once more; another crop or flip is 30 off
    config = config.model_copy(update={"data": config.data.model_copy(update={
        "name": "shards", "folder": str(tmp_path / "shards"), "image_size": 96})})  # fmt: skip
    with pytest.raises(DataError, match="stored for 64 px: set data.image_size=64"):
        make_data(config)


def test_interrupted_writing_goes_on_to_the_same_bytes(birds, tmp_path, monkeypatch):
    samples = DrawnBirds("train", 60, 56, 0)
    draw, drawn, stops = samples.sample, [], [40]

    def stop_at_40(row):
        drawn.append(row)
        if row in stops:
            stops.remove(row)
            raise KeyboardInterrupt
        return draw(row)

    samples.sample = stop_at_40
    made = {"data": "minibirds", "count": 60, "seed": 0, "split": "train", "size": 56}
    with pytest.raises(KeyboardInterrupt):
        write_shards(samples, tmp_path / "train", made, 25, progress=False)
    assert sorted(p.name for p in tmp_path.glob("train/[!.]*")) == ["00000.tar", "manifest.json"]
    with pytest.raises(DataError, match="manifest.json: the shards are not finished; the same `galip shards` command"):
        opened(tmp_path)
    drawn.clear()
    write_shards(samples, tmp_path / "train", made, 25, progress=False)
    assert min(drawn) == 25  # the finished shard is kept
    for name in ("00000.tar", "00001.tar", "00002.tar", "manifest.json"):
        assert (tmp_path / "train" / name).read_bytes() == (birds / "train" / name).read_bytes()
    drawn.clear()
    write_shards(samples, tmp_path / "train", made, 25, progress=False)
    assert not drawn


def test_nothing_is_overwritten(copy, tmp_path):
    config = load_config("mini", {"data.train_size": 60, "data.test_size": 20})
    with pytest.raises(DataError, match=r"tells of other shards: per_shard \(25, now 30\)"):
        make_shards(config, copy, 30, embed=False, progress=False)
    other = load_config("mini", {"data.train_size": 61, "data.test_size": 20})
    with pytest.raises(DataError, match=r"count \(60, now 61\).*Choose another folder"):
        make_shards(other, copy, 25, embed=False, progress=False)
    (copy / "train" / "manifest.json").unlink()
    with pytest.raises(DataError, match="00000.tar is there, but no manifest.json"):
        make_shards(config, copy, 25, embed=False, progress=False)
    shards = load_config("mini", {"data.name": "shards", "data.folder": str(copy)})
    with pytest.raises(DataError, match="is in shards already"):
        make_shards(shards, tmp_path / "x", progress=False)


def test_a_picture_that_breaks_is_left_out_and_noted(tmp_path):
    minibirds.write_cub(tmp_path / "cub", {"train": 10}, size=160)
    photos = open_dataset("birds", tmp_path / "cub", "train", 64, progress=False)
    path = photos.items[3].image
    path.write_bytes(path.read_bytes()[:3000])
    write_shards(ResizedPhotos(photos), tmp_path / "out" / "train", {}, 4, progress=False)
    manifest = json.loads((tmp_path / "out" / "train" / "manifest.json").read_text())
    assert [entry["samples"] for entry in manifest["shards"]] == [3, 4, 2]
    assert manifest["left_out"] == {"undecodable image": 1}
    assert list(opened(tmp_path / "out", size=64).captions) == photos.captions[:3] + photos.captions[4:]


# ---------------------------------------------------------------- the order, and batches


@pytest.mark.parametrize("count", [1, 255, 256, 257, 16_384, 16_500, 50_001])
def test_an_epoch_has_every_row_once_and_any_part_of_it_can_be_had(count):
    whole = shuffled_rows(count, 7, 2, 0, count)
    assert np.array_equal(np.sort(whole), np.arange(count))
    random = np.random.default_rng(0)
    for _ in range(20):
        start = int(random.integers(count))
        stop = int(random.integers(start, count)) + 1
        assert np.array_equal(shuffled_rows(count, 7, 2, start, stop), whole[start:stop])
    if count > 255:
        for other in (shuffled_rows(count, 7, 3, 0, count), shuffled_rows(count, 8, 2, 0, count)):
            assert (other == whole).mean() < 0.05


def test_a_batch_is_made_of_pictures_from_everywhere():
    rows = shuffled_rows(1_000_000, 0, 0, 320, 352)
    assert len({row // 256 for row in rows}) > 16 and np.ptp(rows) > 500_000


def test_parts_of_a_batch_make_the_whole(birds, tmp_path, tiny_config):
    bridge = make_bridge(tiny_config())
    minibirds.write_cub(tmp_path / "cub", {"train": 30}, size=100)
    photos = open_dataset("birds", tmp_path / "cub", "train", 56, progress=False)
    for source in (opened(birds), minibirds.build("train", 30), photos):
        data = TrainingData(bridge, source)
        for step in (1, 3, 8, 9):
            images, sentences = data.batch(step, 12, 5)
            parts = [data.batch(step, 12, 5, slice(first, first + 3)) for first in (0, 3, 6, 9)]
            assert torch.equal(torch.cat([own for own, _ in parts]), images)
            assert all(torch.equal(every, sentences) for _, every in parts)


def test_pictures_and_captions_belong_together(birds, tiny_config):
    bridge, shards = make_bridge(tiny_config()), opened(birds)
    data = TrainingData(bridge, shards)
    drawn = minibirds.build("train", 60)
    known = {image.tobytes(): texts for image, texts in zip(drawn.images, drawn.captions, strict=True)}
    images, sentences = data.batch(2, 20, 0)
    for image, sentence in zip(images, sentences, strict=True):
        pixels = ((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        own = sentence_embeddings(bridge, known[pixels.tobytes()])
        assert np.abs(own - sentence.numpy()).max(1).min() < 1e-5


def test_worker_processes_change_nothing(birds, tiny_config):
    bridge = make_bridge(tiny_config())
    plain, ahead = TrainingData(bridge, opened(birds)), TrainingData(bridge, opened(birds), workers=2)
    for step, seed in ((1, 0), (2, 0), (3, 0), (9, 0), (10, 0), (11, 1)):  # on, a jump, another order
        for one, other in zip(plain.batch(step, 8, seed), ahead.batch(step, 8, seed), strict=True):
            assert torch.equal(one, other)


def test_an_error_in_a_worker_is_the_same_one_line(copy, tiny_config):
    data = TrainingData(make_bridge(tiny_config()), opened(copy), workers=1)
    for path in (copy / "train").glob("*.tar"):
        path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"^\S+\.tar is cut: it ends at byte 5,000, not at [\d,]+ or later$"):
        data.batch(1, 8, 0)


def test_a_worker_that_is_killed_is_told_of(birds, tiny_config):
    data = TrainingData(make_bridge(tiny_config()), opened(birds), workers=1)
    data.batch(1, 8, 0)
    (worker,) = multiprocessing.active_children()
    died = r"DataLoader worker \(pid.* (exited unexpectedly|is killed by signal)"  # by when torch notices it
    with pytest.raises((DataError, RuntimeError), match=died):
        os.kill(worker.pid, signal.SIGKILL)
        for step in range(2, 8):
            data.batch(step, 8, 0)


@pytest.mark.slow
def test_ctrl_c_ends_a_run_with_worker_processes_after_its_step(birds, tmp_path):
    """The whole process group gets it, as from a terminal."""
    settings = [f"data.folder={birds}", "data.name=shards", "data.workers=2", "model.channels=4", "train.batch_size=4",
                "model.disc_channels=16", "train.evaluate_every=0", "train.sample_every=1000"]  # fmt: skip
    command = [sys.executable, "-m", "galiplib.cli", "train", "--out", str(tmp_path / "run"), "--device", "cpu"]
    command += [word for setting in settings for word in ("--set", setting)]
    # where the tests themselves run in the background, Ctrl-C is ignored from the start
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    run = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    while run.poll() is None and not (tmp_path / "run" / "metrics.jsonl").is_file():
        time.sleep(0.2)
    os.killpg(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=300)
    assert run.returncode == 130 and "Traceback" not in said
    assert re.search(r"galip: stopped after step \d+ of 600; the same command or cell goes on from there", said)
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pid, 0)  # nothing of the group is left


def test_a_run_on_shards_that_stops_and_resumes_is_the_one_that_was_never_interrupted(tmp_path, tiny_config):
    config = load_config("mini", {"data.train_size": 24, "data.test_size": 6})
    make_shards(config, tmp_path / "birds", per_shard=10, progress=False)
    shards = {"data__name": "shards", "data__folder": str(tmp_path / "birds"), "train__max_steps": 5,
              "train__evaluate_every": 0, "train__sample_every": 100, "train__batch_size": 8}  # fmt: skip
    whole = Run(tmp_path / "whole", tiny_config(**shards), "cpu", progress=False)
    list(whole.train())
    run = Run(tmp_path / "stopped", tiny_config(**shards), "cpu", progress=False)
    for report in run.train():
        if report.step == 4:  # in the second epoch
            break
    resumed = Run(tmp_path / "stopped", tiny_config(**shards, data__workers=1), "cpu", progress=False)
    assert resumed.step == 4
    list(resumed.train())
    for one, other in zip(whole.system.state_dict().values(), resumed.system.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    one, other = ([{**line, "seconds": 0} for line in run.history()] for run in (whole, resumed))
    assert len(one) == 5 and one == other


def test_embeddings_are_those_of_each_caption_and_an_interrupted_pass_goes_on(copy, tiny_config, monkeypatch):
    bridge, shards = make_bridge(tiny_config()), opened(copy)
    texts = [text for own in shards.captions for text in own]
    sentences = shards.sentences(bridge)
    np.testing.assert_allclose(sentences[np.arange(600)], sentence_embeddings(bridge, texts), atol=1e-5)
    before = sentences[np.arange(600)]
    (path,) = (copy / "train" / "index").glob("captions-*.f32")
    path.unlink()
    monkeypatch.setattr("galiplib.data.shards.ENCODED", 100)

    def stop_after_two(windows):
        for done, start in enumerate(windows):
            if done == 2:
                raise KeyboardInterrupt
            yield start

    with pytest.raises(KeyboardInterrupt):
        shards.sentences(bridge, stop_after_two)
    starts = []
    shards.sentences(bridge, lambda windows: starts.extend(windows) or windows)
    assert starts == [200, 300, 400, 500]
    np.testing.assert_allclose(shards.sentences(bridge)[np.arange(600)], before, atol=1e-5)


def test_what_is_held_in_memory_does_not_grow_with_the_samples(tmp_path):
    sizes = []
    for count in (40, 400):
        write_like_img2dataset(tmp_path / str(count), 1, count, size=(8, 8), captions=["a caption"] * count)
        with pytest.warns(UserWarning, match="for testing"):
            shards = opened(tmp_path / str(count), size=8)
        shards.pixels(np.arange(8))
        assert shards.captions[7] == ["a caption"]
        sizes.append(len(pickle.dumps(shards)))
    assert abs(sizes[0] - sizes[1]) < 20  # digits of the counts


# ---------------------------------------------------------------- img2dataset


def test_img2datasets_shards_open_as_they_are(tmp_path, tiny_config):
    write_like_img2dataset(tmp_path, 3, 20)
    with pytest.warns(UserWarning, match="no train and test folders: its last 6 are for testing"):
        config = tiny_config(data__name="shards", data__folder=str(tmp_path), data__image_size=32)
        train = make_data(config)
        test = make_data(config, "test")
    assert len(train) == 54 and len(test) == 6
    assert train.captions[0] == ["picture number 0"] and test.captions[0] == ["picture number 54"]
    pixels, _ = test.pixels(np.arange(6))
    assert pixels.shape == (6, 32, 32, 3)
    assert np.abs(pixels.mean((1, 2, 3)) - np.arange(54, 60)).max() < 1.5
    with pytest.warns(UserWarning):
        some = opened(f"{tmp_path}/{{00001..00002}}.tar", size=32)
    assert len(some) == 36 and some.captions[0] == ["picture number 20"]
    with pytest.raises(DataError, match=r"00003.tar is missing \(2 of the 4 shards"):
        opened(f"{tmp_path}/{{00001..00004}}.tar", size=32)


def test_samples_that_lack_something_are_left_out_and_counted(tmp_path):
    captions = ["a", None, "  ", "d"]
    write_like_img2dataset(tmp_path, 1, 4, captions=captions, stats=False)
    with webdataset.TarWriter(str(tmp_path / "00001.tar"), encoder=False) as archive:
        archive.write({"__key__": "a", "txt": b"no picture"})
        picture = encoded(np.zeros((9, 9, 3), np.uint8), "jpg")
        archive.write({"__key__": "b", "jpg": picture, "txt": b"two\n captions\n"})
        archive.write({"__key__": "c", "webp": b"x"})
    with pytest.warns(UserWarning) as warned:
        shards = opened(tmp_path, size=8)
    assert (
        "3 pictures; left out: 2 with empty captions (00000.tar, 000000001, 00000.tar, 000000002), "
        "1 with no picture (00001.tar, a), 1 with missing captions (00001.tar, c)"
    ) in str(warned[0].message)
    assert list(shards.captions) == [["a"], ["d"]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert list(opened(tmp_path, "test", size=8).captions) == [["two", "captions"]]


def test_a_set_without_any_caption_is_an_error(tmp_path):
    write_like_img2dataset(tmp_path, 2, 3, captions=[None] * 6)
    with pytest.raises(
        DataError, match=r"no sample .* can be used: 6 with empty captions \(.*\). Right would be key.jpg"
    ):
        opened(tmp_path, size=8)


def test_an_unfinished_shard_is_an_error(tmp_path):
    write_like_img2dataset(tmp_path, 2, 12)
    (tmp_path / "00001_stats.json").unlink()
    with pytest.raises(DataError, match="00001.tar has no 00001_stats.json"):
        opened(tmp_path, size=8)


@pytest.mark.filterwarnings("ignore:.*for testing")
def test_shards_that_come_or_go_after_the_index_are_named(tmp_path):
    write_like_img2dataset(tmp_path, 2, 12, stats=False)
    opened(tmp_path, size=8)
    shutil.copy(tmp_path / "00001.tar", tmp_path / "00002.tar")
    with pytest.raises(DataError, match=r"00002.tar is not in .*index.sqlite \(1 shards are new\): .*delete"):
        opened(tmp_path, size=8)
    (tmp_path / "00002.tar").unlink()
    (tmp_path / "00000.tar").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="00000.tar is missing, .*bring it back"):
        opened(tmp_path, size=8)


@pytest.mark.filterwarnings("ignore:.*for testing")
def test_an_interrupted_index_goes_on(tmp_path, monkeypatch):
    write_like_img2dataset(tmp_path, 3, 12)
    scan, scanned, stops = shards.scan, [], [2]

    def stop_in_the_third(path, left_out):
        scanned.append(path.name)
        for number, item in enumerate(scan(path, left_out)):
            if number == 5 and stops and len(scanned) > stops[0]:
                stops.clear()
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(shards, "scan", stop_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path, size=8)
    assert not (tmp_path / "index" / "index.sqlite").exists()
    texts = list(opened(tmp_path, size=8).captions)
    assert scanned == ["00000.tar", "00001.tar", "00002.tar", "00002.tar"]
    assert texts == [[f"picture number {row}"] for row in range(33)]


@pytest.mark.filterwarnings("ignore:.*for testing")
def test_an_index_can_lie_elsewhere_and_says_so_if_it_must(tmp_path, monkeypatch):
    write_like_img2dataset(tmp_path / "cc", 1, 12)
    shards = opened(tmp_path / "cc", size=8, index=tmp_path / "place")
    assert (tmp_path / "place" / "index.sqlite").is_file() and not (tmp_path / "cc" / "index").exists()
    assert shards.captions[0] == ["picture number 0"]
    (tmp_path / "cc" / "index").write_text("in the way")
    with pytest.raises(OSError, match=r"can't write .*index .*data.index can name another folder"):
        opened(tmp_path / "cc", size=8)


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("keep", [0, 700, 512 * 100, 512 * 100 + 77, -1024])
def test_a_cut_shard_is_named_when_it_is_indexed(tmp_path, keep):
    write_like_img2dataset(tmp_path, 2, 60, stats=False)
    path = tmp_path / "00001.tar"
    path.write_bytes(path.read_bytes().rstrip(b"\0")[:keep] if keep < 0 else path.read_bytes()[:keep])
    with pytest.raises(DataError, match="00001.tar is cut"):
        opened(tmp_path, size=8)
    assert not (tmp_path / "index" / "index.sqlite").exists()


def test_zeros_in_the_middle_of_a_shard_do_not_end_it_silently(tmp_path):
    write_like_img2dataset(tmp_path, 1, 60, stats=False)
    path = tmp_path / "00000.tar"
    content = bytearray(path.read_bytes())
    at = content.index(b"000000030.jpg")
    content[at : at + 4096] = bytes(4096)  # as a download leaves them that wrote its pieces in any order
    path.write_bytes(content)
    with pytest.raises(DataError, match="00000.tar"):
        opened(tmp_path, size=8)


def test_what_is_no_tar_file_is_named(tmp_path):
    tmp_path.joinpath("00000.tar").write_bytes(b"<html>not found</html>" * 100 + bytes(1024))
    with pytest.raises(DataError, match="00000.tar is cut or no tar file"):
        opened(tmp_path, size=8)


def test_shards_must_be_those_of_the_manifest(copy):
    shard, manifest = copy / "train" / "00001.tar", copy / "train" / "manifest.json"
    content = shard.read_bytes()
    shard.write_bytes(content[:-512])
    with pytest.raises(DataError, match=r"00001.tar has [\d,]+ bytes, .*manifest.json says [\d,]+: it is cut"):
        opened(copy)
    shard.unlink()
    with pytest.raises(DataError, match="00001.tar is missing, .*manifest.json lists it"):
        opened(copy)
    shard.write_bytes(content)
    shutil.copy(shard, copy / "train" / "00007.tar")
    with pytest.raises(DataError, match="00007.tar is not in .*manifest.json"):
        opened(copy)
    (copy / "train" / "00007.tar").unlink()
    manifest.write_text('{"shards": 3}')
    with pytest.raises(DataError, match="manifest.json is damaged"):
        opened(copy)


def test_checksums_find_what_sizes_do_not(copy):
    assert check_shards(copy, progress=False) == 4
    shard = copy / "train" / "00002.tar"
    content = bytearray(shard.read_bytes())
    content[3000] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match="00002.tar is not what was written"):
        check_shards(copy, progress=False)
    with pytest.raises(DataError, match="only shards that `galip shards` made can be checked"):
        check_shards(copy / "train", progress=False)


@pytest.mark.filterwarnings("ignore:.*for testing")
def test_a_broken_picture_is_replaced_by_the_next(tmp_path):
    write_like_img2dataset(tmp_path, 1, 20, stats=False)
    path = tmp_path / "00000.tar"
    content = bytearray(path.read_bytes())
    at = content.index(b"000000005.jpg") + 512
    content[at : at + 200] = b"x" * 200
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"left out: .*00000.tar, picture at byte \d+: undecodable image"):
        pixels, rows = opened(tmp_path, size=8).pixels(np.array([4, 5]))
    assert rows.tolist() == [4, 6] and np.abs(pixels.mean((1, 2, 3)) - [4, 6]).max() < 1.5


def test_a_damaged_index_says_what_to_delete(copy):
    index = copy / "train" / "index"
    path = index / "index.sqlite"
    path.write_bytes(path.read_bytes()[:-4096])
    with pytest.raises(DataError, match=f"index.sqlite is damaged .*malformed.*: delete {index}"):
        opened(copy)
    path.write_text("{")
    with pytest.raises(DataError, match=f"index.sqlite is damaged .*delete {index}"):
        opened(copy)


def test_missing_folders_and_splits_are_named(tmp_path, copy, tiny_config):
    for folder, message in ((tmp_path / "none", "there is no folder"), (tmp_path, "holds no shards: right would be")):
        with pytest.raises(DataError, match=message):
            opened(folder)
    shutil.rmtree(copy / "test")
    with pytest.raises(DataError, match="test holds no .tar files"):
        opened(copy, "test")
    with pytest.raises(DataError, match="needs data.folder"):
        make_data(tiny_config(data__name="shards"))


def test_command_line(birds, tmp_path, monkeypatch, capsys):
    from galiplib import cli

    def galip(*arguments):
        monkeypatch.setattr("sys.argv", ["galip", *map(str, arguments)])
        cli.main()

    small = ["--set", "data.train_size=12", "--set", "data.test_size=6", "--per-shard", 5]
    galip("shards", *small, "--no-embeddings", "--out", tmp_path / "out")
    assert "train: 12 pictures" in capsys.readouterr().out
    galip("shards", "--check", "--out", tmp_path / "out")
    assert "5 shards are as they were written" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        galip("shards", *small[:-1], 6, "--out", tmp_path / "out")
    assert stop.value.code == 2 and "tells of other shards" in capsys.readouterr().err

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(shard_writing, "_write_shard", interrupted)
    with pytest.raises(SystemExit) as stop:
        galip("shards", *small, "--out", tmp_path / "other")
    assert stop.value.code == 130 and "the same command goes on" in capsys.readouterr().err


# ---------------------------------------------------------------- the plan on paper


def test_the_tables_of_the_plan_are_those_that_the_script_makes(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import scaling

    text = scaling.TEXT.read_text()
    assert scaling.with_tables(text, json.loads(scaling.PIECES.read_text())) == text


def test_the_formula_of_an_all_reduce(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import scaling

    links = scaling.Links("", inside=1e9 / scaling.LINK_SHARE, outside=1e8 / scaling.LINK_SHARE)
    monkeypatch.setattr(scaling, "LATENCY", 0)
    assert scaling.all_reduce(1e9, 1, links) == 0
    assert scaling.all_reduce(1e9, 2, links) == pytest.approx(1)  # half the bytes there, half back
    assert scaling.all_reduce(1e9, 8, links) == pytest.approx(2 * 7 / 8)
    assert scaling.all_reduce(1e9, 16, links) == pytest.approx(2 * 7 / 8 + 1.25)  # an eighth, ten times as slow
    pieces = json.loads(scaling.PIECES.read_text())
    for gpu in scaling.GPUS:
        for links in scaling.LINKS:
            plain, overlapped = (scaling.efficiency(pieces, gpu, links, 64, 32, overlap) for overlap in (False, True))
            assert 0 < plain <= overlapped < 1
