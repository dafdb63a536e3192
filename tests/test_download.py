"""Downloading: resumed, checked, unpacked safely. A server on this machine serves archives of the real structure."""

import hashlib
import io
import pickle
import re
import tarfile
import threading
import warnings
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from galiplib.data import download as module
from galiplib.data.download import SOURCES, DownloadError, Source, download

SHIPPED = dict(SOURCES)
KEYS = pickle.dumps(["001.Albatross/a"], protocol=2)


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(files: dict[str, bytes], mode: str = "w:gz", links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


class Server(ThreadingHTTPServer):
    """Serves `files`, notes every request as (path, first byte asked for, bytes sent), misbehaves as told."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.log = {}, []
        self.ranges, self.cut, self.html, self.status, self.shift = True, None, False, None, 0
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, content = self.server, self.server.files[self.path[1:]]
        asked = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked and server.ranges else 0
        if server.status:
            server.log.append((self.path[1:], start, 0))
            return self.send_error(server.status)
        if start and start >= len(content):
            server.log.append((self.path[1:], start, 0))
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            return self.end_headers()
        body = content[start : start + server.cut] if server.cut else content[start:]
        server.log.append((self.path[1:], start, len(body)))
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start + server.shift}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Type", "text/html; charset=utf-8" if server.html else "application/octet-stream")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.0)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def fetch(server, monkeypatch, tmp_path):
    """fetch(name, contents) -> the folder: `download` with the real table, but the test's server, contents and sums."""

    def fetch(name: str, *contents: bytes, md5: str | None = None):
        sources = []
        for source, content in zip(SHIPPED[name], contents, strict=True):
            server.files[source.file] = content
            known = md5 or (source.md5 and hashlib.md5(content).hexdigest())
            url = f"{server.url}/{source.file}"
            sources.append(Source(url, source.file, source.makes, known, source.members, source.target))
        monkeypatch.setitem(SOURCES, name, tuple(sources))
        return download(name, tmp_path / name, progress=False)

    return fetch


def content_of(folder) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and "downloads" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


BIRDS_META = {"birds/train/filenames.pickle": KEYS, "birds/test/filenames.pickle": KEYS}
CUB = {"CUB_200_2011/images/001.Albatross/a.jpg": b"jpeg" * 5000, "CUB_200_2011/images.txt": b"1 a", "x.txt": b""}
FACES = {"img_align_celeba/000001.jpg": bytes(range(256)) * 400}


def test_table_is_complete():
    assert list(SOURCES) == ["birds", "flowers", "faces", "coco", "cc3m", "cc12m"]
    for source in (source for sources in SOURCES.values() for source in sources):
        assert source.url.startswith(("https://", "http://images.cocodataset.org/"))
        assert source.makes and (source.md5 is None or re.fullmatch("[0-9a-f]{32}", source.md5))
        assert source.md5 or source.url.startswith("https://drive.")  # plain http is checked
    files = [source.file for sources in SOURCES.values() for source in sources]
    assert len(set(files)) == len(files)


# ---------------------------------------------------------------- layouts


@pytest.mark.parametrize(
    "captions",
    [
        {"birds/text/001.Albatross/a.txt": b"a bird\n"},
        {"birds/text.zip": zipped({"text/001.Albatross/a.txt": b"a bird\n"}), "__MACOSX/birds/._text.zip": b"x"},
        {"birds/text.zip": zipped({"001.Albatross/a.txt": b"a bird\n"})},
    ],
)
def test_birds(fetch, captions):
    folder = fetch("birds", zipped(BIRDS_META | captions), tarred(CUB))
    assert content_of(folder) == {
        "train/filenames.pickle": KEYS,
        "test/filenames.pickle": KEYS,
        "text/001.Albatross/a.txt": b"a bird\n",
        "CUB_200_2011/images/001.Albatross/a.jpg": b"jpeg" * 5000,
        "CUB_200_2011/images.txt": b"1 a",
    }


def test_flowers(fetch):
    text = {
        "cvpr2016_flowers/text_c10/class_00001/image_00001.txt": b"a flower\n",
        "cvpr2016_flowers/text_c10/class_00001/image_00001.h5": b"x",
        "cvpr2016_flowers/text_c10/class_00001.t7": b"x",
    }
    folder = fetch("flowers", tarred(text), tarred({"jpg/image_00001.jpg": b"jpeg"}, "w"))
    assert content_of(folder) == {"images/image_00001.jpg": b"jpeg", "text/image_00001.txt": b"a flower\n"}


def test_faces_says_what_is_missing_until_it_is_there(fetch):
    with pytest.warns(UserWarning, match=r"captions of faces .* have no public link"):
        folder = fetch("faces", zipped(FACES))
    assert list(content_of(folder)) == ["images/000001.jpg"]
    (folder / "text").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fetch("faces", zipped(FACES))


def test_coco(fetch):
    meta = {
        "coco/train/filenames.pickle": KEYS,
        "coco/test/filenames.pickle": KEYS,
        "coco/train2014-text.zip": zipped({"train2014/COCO_train2014_1.txt": b"one"}),
        "coco/val2014-text.zip": zipped({"val2014-text/COCO_val2014_2.txt": b"two"}),
    }
    folder = fetch("coco", zipped(meta), zipped({"val2014/a.jpg": b"v"}), zipped({"train2014/b.jpg": b"t"}))
    assert content_of(folder) == {
        "train/filenames.pickle": KEYS,
        "test/filenames.pickle": KEYS,
        "text/COCO_train2014_1.txt": b"one",
        "text/COCO_val2014_2.txt": b"two",
        "images/val2014/a.jpg": b"v",
        "images/train2014/b.jpg": b"t",
    }


@pytest.mark.parametrize("name, place", [("cc3m", "text/train/<key>.txt"), ("cc12m", "text/<key>.txt")])
def test_conceptual_captions_say_how_to_fetch_them(tmp_path, name, place):
    with pytest.raises(DownloadError) as caught:
        download(name, tmp_path)
    for piece in ("img2dataset --url_list", f"{name}.tsv", f"{tmp_path}/{place}", "\\t"):
        assert piece in str(caught.value)
    (tmp_path / "text").mkdir()
    assert download(name, tmp_path) == tmp_path


def test_unknown_name_lists_the_valid_ones(tmp_path):
    with pytest.raises(ValueError, match="'bird' .* birds, flowers, faces, coco, cc3m, cc12m"):
        download("bird", tmp_path)


def test_default_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "cc3m" / "text").mkdir(parents=True)
    assert str(download("cc3m")) == "data/cc3m"


# ---------------------------------------------------------------- the network


@pytest.fixture
def faces(fetch, tmp_path):
    """faces(content) downloads one checked archive; captions are in place, so nothing is warned of."""
    (tmp_path / "faces" / "text").mkdir(parents=True)
    return lambda content, **options: fetch("faces", content, **options)


def test_a_cut_connection_is_resumed_without_fetching_twice(server, faces):
    content = zipped(FACES)
    server.cut = 40_000
    folder = faces(content)
    assert [start for _, start, _ in server.log] == [0, 40_000, 80_000]
    assert sum(sent for _, _, sent in server.log) == len(content)
    assert (folder / "downloads" / "img_align_celeba.zip").read_bytes() == content


def test_an_interruption_keeps_the_part_and_the_same_call_goes_on(server, faces, monkeypatch, tmp_path, capsys):
    content, read = zipped(FACES), module._read
    part = tmp_path / "faces" / "downloads" / "img_align_celeba.zip.part"

    def interrupted(response):
        if part.exists() and part.stat().st_size > 20_000:
            raise KeyboardInterrupt
        return read(response)

    monkeypatch.setattr(module, "BLOCK", 10_000)
    monkeypatch.setattr(module, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        faces(content)
    kept = part.stat().st_size
    assert 20_000 < kept < len(content) and f"{kept:,} bytes are kept in {part}" in capsys.readouterr().out
    monkeypatch.setattr(module, "_read", read)
    folder = faces(content)
    assert server.log[-1] == ("img_align_celeba.zip", kept, len(content) - kept)
    assert not part.exists() and "images/000001.jpg" in content_of(folder)


def test_a_server_without_ranges_starts_over(server, faces, tmp_path):
    content = zipped(FACES)
    downloads = tmp_path / "faces" / "downloads"
    downloads.mkdir()
    (downloads / "img_align_celeba.zip.part").write_bytes(b"rubbish")
    server.ranges = False
    faces(content)
    assert server.log == [("img_align_celeba.zip", 0, len(content))]


@pytest.mark.parametrize("surplus", [b"", b"more"])
def test_a_part_that_is_whole_or_too_long(server, faces, tmp_path, surplus):
    content = zipped(FACES)
    downloads = tmp_path / "faces" / "downloads"
    downloads.mkdir()
    (downloads / "img_align_celeba.zip.part").write_bytes(content + surplus)
    faces(content)
    assert sum(sent for _, _, sent in server.log) == (len(content) if surplus else 0)


def test_another_range_than_asked_for_is_not_appended(server, faces, tmp_path):
    content = zipped(FACES)
    downloads = tmp_path / "faces" / "downloads"
    downloads.mkdir()
    (downloads / "img_align_celeba.zip.part").write_bytes(content[:100])
    server.shift = 5
    folder = faces(content)
    assert (folder / "downloads" / "img_align_celeba.zip").read_bytes() == content


def test_a_web_page_instead_of_the_file(server, faces, tmp_path):
    server.html = True
    with pytest.raises(DownloadError, match="a web page, not with the file") as caught:
        faces(b"<html>quota exceeded</html>")
    assert str(tmp_path / "faces" / "downloads" / "img_align_celeba.zip") in str(caught.value)
    assert f"{server.url}/img_align_celeba.zip" in str(caught.value) and len(server.log) == 1


@pytest.mark.parametrize("status, attempts", [(404, 1), (503, 1 + module.RETRIES)])
def test_refusals(server, faces, status, attempts):
    server.status = status
    with pytest.raises(DownloadError, match=f"answers {status} .* put it at .*img_align_celeba.zip; then call again"):
        faces(zipped(FACES))
    assert len(server.log) == attempts


def test_offline_says_what_to_do(faces, server, monkeypatch, tmp_path):
    faces(zipped(FACES))
    monkeypatch.setattr(module, "RETRIES", 1)
    server.shutdown()
    server.server_close()
    (tmp_path / "other" / "text").mkdir(parents=True)
    with pytest.raises(DownloadError) as caught:
        download("faces", tmp_path / "other", progress=False)
    place = tmp_path / "other" / "downloads" / "img_align_celeba.zip"
    assert f"can't fetch {server.url}/img_align_celeba.zip: " in str(caught.value) and "refused" in str(caught.value)
    assert f"put it at {place}" in str(caught.value)


# ---------------------------------------------------------------- files


def test_wrong_sum_names_both_and_the_next_call_fetches_anew(server, faces, tmp_path):
    content = zipped(FACES)
    with pytest.raises(DownloadError) as caught:
        faces(content, md5="0" * 32)
    assert "0" * 32 in str(caught.value) and hashlib.md5(content).hexdigest() in str(caught.value)
    downloads = tmp_path / "faces" / "downloads"
    assert [path.name for path in downloads.iterdir()] == ["img_align_celeba.zip.wrong"]
    faces(content)
    assert len(server.log) == 2


def test_calling_again_does_nothing(server, faces):
    content = zipped(FACES)
    folder = faces(content)
    picture = folder / "images" / "000001.jpg"
    picture.write_bytes(b"mine")
    (folder / "downloads" / "img_align_celeba.zip").unlink()  # may be deleted once unpacked
    faces(content)
    assert len(server.log) == 1 and picture.read_bytes() == b"mine"


def test_an_interrupted_unpacking_is_repeated(server, faces, monkeypatch):
    content = zipped(FACES | {"img_align_celeba/000002.jpg": b"second"})
    copy = module.shutil.copyfileobj

    def full(source, target, length):
        target.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.shutil, "copyfileobj", full)
    with pytest.raises(DownloadError, match="No space left on device"):
        faces(content)
    monkeypatch.setattr(module.shutil, "copyfileobj", copy)
    folder = faces(content)
    assert len(server.log) == 1
    assert content_of(folder)["images/000001.jpg"] == FACES["img_align_celeba/000001.jpg"]
    (folder / "images").rename(folder / "elsewhere")
    faces(content)  # what was unpacked is gone: unpacked again, not fetched
    assert (folder / "images" / "000002.jpg").exists() and len(server.log) == 1


def test_a_file_placed_by_hand_is_checked_and_used(server, fetch, tmp_path):
    meta = zipped(BIRDS_META | {"birds/text/a.txt": b"a"})
    place = tmp_path / "birds" / "downloads" / "birds_metadata.zip"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"<html>saved the page, not the file</html>")
    with pytest.raises(DownloadError, match=r"birds_metadata.zip can't be used: it is damaged or no archive"):
        fetch("birds", meta, tarred(CUB))
    place.write_bytes(meta)
    fetch("birds", meta, tarred(CUB))
    assert [path for path, _, _ in server.log] == ["CUB_200_2011.tgz"]


def test_an_archive_of_something_else_is_refused(fetch):
    with pytest.raises(DownloadError, match=r"not the archive expected from .*: no .*text came out of it"):
        fetch("birds", zipped({"notes.md": b"x"}), tarred(CUB))


@pytest.mark.parametrize("name", ["birds/../../evil.txt", "/evil.txt", "birds/..\\..\\evil.txt", "C:/evil.txt"])
def test_zip_members_do_not_escape(fetch, tmp_path, name):
    with pytest.raises(DownloadError, match="would be written outside"):
        fetch("birds", zipped({name: b"evil"}), tarred(CUB))
    assert not list(tmp_path.rglob("evil*")) and not (tmp_path.parent / "evil.txt").exists()


@pytest.mark.parametrize(
    "files, links, message",
    [
        ({"jpg/../../evil.jpg": b"evil"}, {}, "would be written outside"),
        ({"/evil.jpg": b"evil"}, {}, "would be written outside"),
        ({"jpg/out/evil.jpg": b"evil"}, {"jpg/out": "../../.."}, "is a link or a device"),
    ],
)
def test_tar_members_do_not_escape(fetch, tmp_path, files, links, message):
    captions = tarred({"cvpr2016_flowers/text_c10/class_00001/image_00001.txt": b"a flower\n"})
    with pytest.raises(DownloadError, match=message):
        fetch("flowers", captions, tarred(files, links=links))
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize("cut", [300, 3000])
def test_damaged_archives(fetch, cut):
    captions = tarred({"x/text_c10/class_00001/image_00001.txt": bytes(i * i % 251 for i in range(99_999))})
    with pytest.raises(DownloadError, match="damaged or no archive"):
        fetch("flowers", captions[:-cut], tarred({}))
