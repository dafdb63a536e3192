"""The page that draws, as a folder for any static web server: `python site/page/make_page.py outputs/page`.

Its pictures are made in the browser, by ONNX Runtime's WebAssembly, which comes by npm (package.json, once). Look at it
by `python -m http.server --directory outputs/page`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnx import ModelProto

from galiplib.checkpoints.loading import load_with_config, noted
from galiplib.checkpoints.onnx import export
from galiplib.clip.bridge import bpe_tokenizer
from galiplib.clip.files import clip_record
from galiplib.data.minibirds import ATTRIBUTES, COLOURS, PLACES
from galiplib.files import write_json

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build"
RUNTIME = {"ort.wasm.bundle.min.mjs": "ort.js", "ort-wasm-simd-threaded.wasm": "ort.wasm.gz"}  # in onnxruntime-web/dist
SETS = (tuple(COLOURS), ATTRIBUTES["size"], ATTRIBUTES["beak_length"], tuple(PLACES.values()))  # words that are alike
MINE = "models.json"  # by which a folder is known for a page

SHOWN: dict[str, dict[str, Any]] = {
    "mini": {
        "title": "Mini birds",
        "about": "Drawn birds, 56 x 56 pixels: a small world of 38 words.",
        "examples": ["a small red bird with black wings", "a blue bird with yellow wings at sunset",
                     "a white bird in a meadow"],
    },
    "birds64": {
        "title": "Birds from photographs",
        "about": "Learned from photographs of birds, 64 x 64 pixels: small birds on twigs or water, some a mere lump.",
        "examples": ["a small red bird with black wings", "this bird is yellow with a black head",
                     "a blue bird with a white belly"],
    },
    "flowers64": {
        "title": "Flowers from photographs",
        "about": "Learned from photographs of flowers, 64 x 64 pixels: a beginning.",
        "examples": ["this flower has pink petals", "a yellow flower with a brown center",
                     "the petals are white and the leaves are green"],
    },
}  # fmt: skip


class PageError(RuntimeError):
    """Why there is no page; the message says what to do."""


def npm_modules(folder: Path = HERE) -> Path:
    """The node_modules of a folder's package.json and package-lock.json, installed under `build/npm` if they aren't.

    Raises PageError where npm is missing or fails.
    """
    there, wanted = BUILD / "npm" / folder.name, (folder / "package-lock.json").read_bytes()
    done = there / "node_modules" / "installed.json"
    if done.exists() and done.read_bytes() == wanted:
        return done.parent
    if not (npm := shutil.which("npm")):
        raise PageError("what runs in the browser comes by npm, and there is none: apt-get install npm, or nodejs.org")
    there.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("package*.json"):
        shutil.copy(file, there)
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    print(f"npm ci in {there} (some 25 MB, once) ...", flush=True)
    ran = subprocess.run(command, cwd=there, capture_output=True, text=True)
    if ran.returncode:
        raise PageError(f"npm ci failed in {there}: {ran.stderr.strip()[-400:]}")
    done.write_bytes(wanted)
    return done.parent


def words_of(vocabulary: Sequence[int]) -> list[str]:
    """A small CLIP's whole words, the likeliest first, by the BPE numbers of its pieces.

    First those of mini birds' CLIP, then the others as frequent as BPE found them. A piece that ends five other words
    or more is an ending rather than a word; among fewer than three letters hardly any is one.
    """
    tokenizer = bpe_tokenizer()
    ends = Counter(last for _, last in tokenizer.bpe_ranks)
    core = set(clip_record("mini")["vocabulary"])
    pieces = {number: tokenizer.decoder[number] for number in sorted(vocabulary, key=lambda n: (n not in core, n))}
    whole = {n: piece.removesuffix("</w>") for n, piece in pieces.items() if piece.endswith("</w>")}
    likely = (w for n, w in whole.items() if n in core or (ends[pieces[n]] < 5 and len(w) > 2))
    return [word for word in likely if word.isalpha()]


def write_models(names: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """Write shipped generators, what the page has to know of each -> its list of them.

    What generators around one CLIP have in common, its text side and the frozen weights that they look through, is
    written once.
    """
    facts: dict[str, dict[str, Any]] = {}
    around: dict[str, dict[str, ModelProto]] = {}  # generators by CLIP
    for name in names:
        generator, config = load_with_config(name)
        exported = export(generator, noted(name, config), half=True)
        draws, reads = ModelProto.FromString(exported.draws), ModelProto.FromString(exported.reads or b"")
        record = json.loads(next(p.value for p in draws.metadata_props if p.key == "record"))
        words = words_of(record["vocabulary"])
        known = [[p for p in alike if all(w in words for w in p.split())] for alike in SETS]
        keys = ("checkpoint", "weights", "vocabulary", "context_length", "image_size", "noise_inputs", "licence")
        facts[name] = {"name": name, **SHOWN[name], **{key: record[key] for key in keys}, "words": words}
        facts[name]["sets"] = [alike for alike in known if len(alike) > 1]
        facts[name]["text"] = write_packed(reads, folder / f"clip_{record['clip']}_text.planes.gz")
        around.setdefault(record["clip"], {})[name] = draws
    for clip, generators in around.items():
        if len(generators) > 1:
            shared = write_packed(taken_out(list(generators.values())), folder / f"clip_{clip}_eyes.planes.gz")
            for name in generators:
                facts[name]["shared"] = shared
        for name, draws in generators.items():
            facts[name]["generator"] = write_packed(draws, folder / f"{name}.planes.gz")
            (folder / f"{name}.json").write_text(json.dumps(facts[name]), encoding="utf-8")
    return [{"name": name, "title": SHOWN[name]["title"]} for name in names]


def taken_out(models: Sequence[ModelProto]) -> ModelProto:
    """Take what weights some models have in common out of them -> a model of these alone."""
    same = set.intersection(*({w.SerializeToString() for w in model.graph.initializer} for model in models))
    shared = ModelProto()
    shared.graph.initializer.extend(w for w in models[0].graph.initializer if w.SerializeToString() in same)
    for model in models:
        own = [w for w in model.graph.initializer if w.SerializeToString() not in same]
        model.graph.ClearField("initializer")
        model.graph.initializer.extend(own)
    return shared


def write_packed(model: ModelProto, path: Path) -> dict[str, Any]:
    """Write (a part of) a model as the worker unpacks it -> its entry in the list.

    Weights in fp16 pack better with their halves apart: sign and exponent repeat themselves, the rest is noise.
    """
    model.ClearField("metadata_props")  # what the page needs of it stands in its facts
    body = model.SerializeToString(deterministic=True)
    path.write_bytes(packed(body[::2] + body[1::2]))
    return as_entry(path)


def as_entry(file: Path) -> dict[str, Any]:
    return {"file": file.name, "bytes": file.stat().st_size}


def packed(data: bytes) -> bytes:
    """gzip, the same bytes for the same data."""
    return gzip.compress(data, 9, mtime=0)


def build_page(out: str | Path, generators: Sequence[str] = tuple(SHOWN), home: str = "") -> Path:
    """Write the page into a folder, whole or not at all -> the folder.

    Args:
        generators: names of `SHOWN`; the first one draws at once, the others when they are chosen.
        home: an address to link to as "The course".

    Raises PageError where npm or a generator is missing, or the folder holds anything but a page.
    """
    out = Path(out)
    if unknown := [name for name in generators if name not in SHOWN]:
        raise PageError(f"no generator of the page: {', '.join(unknown)}; there are {', '.join(SHOWN)}")
    if out.exists() and not (out / MINE).exists() and (not out.is_dir() or any(out.iterdir())):
        raise PageError(f"{out} is there already and is no page: choose another folder")
    distribution = npm_modules() / "onnxruntime-web" / "dist"
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        folder = Path(temporary) / "page"
        shutil.copytree(HERE / "static", folder)
        for theirs, ours in RUNTIME.items():
            data = (distribution / theirs).read_bytes()
            (folder / ours).write_bytes(packed(data) if ours.endswith(".gz") else data)
        merges = "\n".join(" ".join(pair) for pair in bpe_tokenizer().bpe_ranks)
        (folder / "merges.txt.gz").write_bytes(packed(merges.encode()))
        models = write_models(generators, folder)
        write_json(folder / MINE, {"runtime": as_entry(folder / "ort.wasm.gz"), "home": home, "models": models})
        shutil.rmtree(out, ignore_errors=True)
        folder.rename(out)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description="write the page that draws", allow_abbrev=False)
    parser.add_argument("out", nargs="?", type=Path, default=Path("outputs/page"))
    parser.add_argument("--generators", nargs="+", default=list(SHOWN), metavar="NAME", help=f"of {', '.join(SHOWN)}")
    parser.add_argument("--home", default="", help="an address to link to as the course's")
    chosen = parser.parse_args()
    try:
        out = build_page(chosen.out, chosen.generators, chosen.home)
    except PageError as error:
        sys.exit(str(error))
    files = sorted(out.iterdir(), key=lambda file: -file.stat().st_size)
    for file in files:
        print(f"{file.stat().st_size:11,}  {file.name}")
    print(f"{sum(file.stat().st_size for file in files):11,}  in {out}; python -m http.server --directory {out}")


if __name__ == "__main__":
    main()
