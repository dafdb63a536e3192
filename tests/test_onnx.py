"""ONNX files: the pictures of torch, said what they are, refused when broken; and the engine that draws."""

import re
import shutil
import sys
import warnings

import numpy as np
import pytest
import torch
from test_before import BEFORE
from test_cli import fails, galip

from galiplib import WeightsError, load_generator, sample
from galiplib.blocks import split_condition
from galiplib.build import make_bridge, make_generator
from galiplib.checkpoints import onnx
from galiplib.checkpoints.loading import export_onnx
from galiplib.clip.damsm import TextEncoder, vocabulary_of
from galiplib.clip.damsm_files import DamsmBridge
from galiplib.config import build_config
from galiplib.images import to_uint8
from galiplib.sampling.provenance import Origin, fingerprint, read_png, save_picture
from galiplib.sampling.recipe import Recipe
from galiplib.sampling.sample import collect, replay
from galiplib.systems.ratlip import RecurrentCondition

onnxruntime = pytest.importorskip("onnxruntime", reason="extra fast")
pytest.importorskip("onnxscript", reason="extra fast")
ModelProto = pytest.importorskip("onnx", reason="extra fast").ModelProto
TINY, CAPTIONS = BEFORE / "galip.safetensors", ["a red bird with black wings", "a blue bird in the snow"]


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A tiny GALIP in torch, its ONNX file with weights in fp16, and what was compared."""
    path = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    shutil.copy(BEFORE / "clip.safetensors", path.parent)  # a run's own, which its file doesn't hold
    files, found = export_onnx(TINY, path, half=True)
    assert files == [path, path.with_suffix(".text.onnx")]
    return load_generator(TINY), path, found


@pytest.fixture
def cache(exported, tmp_path, monkeypatch):
    """A cache of exports of its own, which holds the tiny generator's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept = onnx.kept_at(exported[0])
    kept.parent.mkdir(parents=True)
    return shutil.copy(exported[1], kept)


# ---------------------------------------------------------------- files


def test_pictures_and_sentences_are_those_of_torch_in_any_number(exported):
    generator, path, found = exported
    assert found.difference < 1e-4 and found.decibels > 45
    loaded = load_generator(path)
    assert (loaded.noise_dim, loaded.image_size) == (generator.noise_dim, generator.image_size)
    tokens = generator.bridge.tokenize(CAPTIONS + CAPTIONS[:1])
    reads = onnx.session(path.with_suffix(".text.onnx").read_bytes())
    sentence = generator.bridge.encode_text(tokens)
    for cut in (tokens, tokens[:, : int(tokens.argmax(1).max()) + 1]):  # zeros behind a caption change nothing
        np.testing.assert_allclose(reads.run(None, {"tokens": cut.numpy()})[0], sentence, atol=1e-5)
    noise = torch.randn(3, generator.noise_dim)
    for size in (1, 3):
        torch.testing.assert_close(loaded(noise[:size], sentence[:size]), generator(noise[:size], sentence[:size]),
                                   rtol=0, atol=1e-4)  # fmt: skip


def test_the_file_says_what_it_is_and_names_no_path_of_the_machine(exported):
    generator, path, _ = exported
    content = path.read_bytes()
    _, record = onnx.opened(content, path)
    assert (record["system"], record["stored"], record["licence"]) == (
        "galip",
        "fp16",
        "MIT, as galiplib, which draws them",
    )
    assert record["vocabulary"] == generator.bridge.model.vocabulary and record["noise_inputs"] == generator.noise_dim
    assert record["weights"] == fingerprint(generator) == fingerprint(load_generator(path))  # they were in fp16 before
    assert record["config"]["system"] == "galip" and record["difference"] < 1e-4
    assert not re.search(rb"/(work|home|root|usr|tmp)/|\.py\b", content)
    assert len(content) < 1.3 * TINY.stat().st_size + 4e5  # with the CLIP's vision tower in it


def test_it_is_taken_by_sample_evaluation_and_comparison(exported, tmp_path):
    from galiplib.config import load_config
    from galiplib.evaluation import compare

    generator, path, _ = exported
    ours, theirs = (sample(one, one.bridge, CAPTIONS, 2, seed=3) for one in (load_generator(path), generator))
    assert (ours.engine, theirs.engine) == ("onnx", "torch")
    torch.testing.assert_close(ours.images, theirs.images, rtol=0, atol=1e-4)
    protocol = {"eval.images": 20, "eval.features": ["judge"], "eval.diversity": 1, "data.test_size": 20}
    table = compare({"torch": TINY, "onnx": path}, load_config("mini", protocol), progress=False).table
    assert table.loc["onnx", "frechet_distance"] == pytest.approx(table.loc["torch", "frechet_distance"], rel=1e-3)


@pytest.mark.parametrize(
    "break_it, said",
    [
        (lambda content: content[:5000], "damaged"),
        (lambda content: b"nothing of the kind", "damaged or no ONNX file"),
        (lambda content: content.replace(b"galiplib generator", b"sombody generators"), "somebody else's"),
        (lambda content: content[:90_000] + bytes([content[90_000] ^ 1]) + content[90_001:], "damaged"),
    ],
)
def test_broken_and_foreign_files_are_refused_in_a_sentence(exported, tmp_path, break_it, said):
    path = tmp_path / "broken.onnx"
    path.write_bytes(break_it(exported[1].read_bytes()))
    with pytest.raises(WeightsError, match=said) as error:
        load_generator(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_text_side_another_clip_and_raw_weights_are_refused(exported, small_clip):
    _, path, _ = exported
    with pytest.raises(WeightsError, match="reads captions"):
        load_generator(path.with_suffix(".text.onnx"))
    with pytest.raises(WeightsError, match="another CLIP"):
        load_generator(path, small_clip)
    with pytest.raises(WeightsError, match="one set of weights"):
        load_generator(path, ema=False)
    with pytest.raises(WeightsError, match="ONNX file already"):
        export_onnx(path, path.with_name("again.onnx"))


def test_what_differs_or_cannot_be_traced_is_not_written(exported, tmp_path, monkeypatch):
    def surprising(self, noise, text):
        return type(exported[0]).picture_of(self, noise if float(noise.sum()) > 0 else -noise, text)

    tiny = load_generator(TINY)
    monkeypatch.setattr(tiny, "picture_of", surprising.__get__(tiny), raising=False)
    with pytest.raises(WeightsError, match="can't be exported as ONNX"):
        onnx.export(tiny, {})
    monkeypatch.setattr(onnx, "traced", lambda *_: ModelProto(ir_version=99))
    with pytest.raises(WeightsError, match="ONNX Runtime can't run this system") as error:
        export_onnx(TINY, tmp_path / "x.onnx")
    assert "\n" not in str(error.value)
    models = map(ModelProto.FromString, (exported[2].draws, exported[2].reads))
    monkeypatch.setattr(onnx, "traced", lambda *_: next(models))  # not once more
    monkeypatch.setattr(onnx, "MOST", 1e-12)
    with pytest.raises(WeightsError, match="nothing is written"):
        export_onnx(TINY, tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_a_missing_runtime_is_named_with_what_brings_it(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for ask in (lambda: load_generator(exported[1]), lambda: onnx.by_engine(exported[0], "onnx")):
        with pytest.raises(ImportError, match=r"galiplib\[fast\]"):
            ask()


# ---------------------------------------------------------------- other systems


def untrained(name, bridge=None, **model):
    config = build_config({"system": name, "model": model})
    torch.manual_seed(0)
    return make_generator(bridge or make_bridge(config), config).eval().requires_grad_(False)


@pytest.mark.slow
def test_words_and_an_lstm_over_captions_of_any_length():
    """AttnGAN with DAMSM, whose packed sequences torch's exporter doesn't know."""
    vocabulary = vocabulary_of(CAPTIONS)
    torch.manual_seed(0)
    bridge = DamsmBridge(TextEncoder(len(vocabulary)), vocabulary).eval()
    found = onnx.export(untrained("attngan", bridge, channels=4, image_size=32), {})
    reads = onnx.session(found.reads)
    tokens = bridge.tokenize([*CAPTIONS, "a red bird"])
    given = [torch.from_numpy(value) for value in reads.run(None, {"tokens": tokens.numpy()})]
    for value, wanted in zip(given, (*bridge.encode_words(tokens), tokens == 0), strict=True):
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, model",
    [("ratlip", {"conditioning": "recurrent-reference", "channels": 4, "code_channels": 8, "fusion_blocks": 1,
                 "image_size": 14}),
     ("lafite", {"channels": 4, "most_channels": 8, "noise_dim": 8, "image_size": 8})],
)  # fmt: skip
def test_a_batch_as_a_sequence_and_a_truncation_of_its_own(name, model):
    generator = untrained(name, **model)
    found = onnx.export(generator, {}, text=False)
    assert found.reads is None and found.difference < 1e-4
    record = onnx.opened(found.draws, "x")[1]
    assert record["noise_inputs"] == generator.noise_dim + (name == "lafite")


def test_an_lstm_over_affines_whose_share_is_one_or_several():
    """RATLIP's and RAT-GAN's: several states for a block, one for each of its affines."""

    class Affines(torch.nn.Module):
        def __init__(self, parts):
            super().__init__()
            self.cell, self.parts = RecurrentCondition(8, 6, 4), parts

        def forward(self, noise, sentence):
            return torch.stack(
                [part.flatten(1).mean(1) for part in split_condition(self.cell(noise, sentence), self.parts)]
            )

    given = {"noise": torch.randn(16, 8), "sentence": torch.randn(16, 6)}
    for parts in (2, 4):
        module = Affines(parts).requires_grad_(False)
        wanted = module(**given)
        run = onnx.session(onnx.traced(onnx.with_onnx_lstms(module), given, ["states"]).SerializeToString())
        found = run.run(None, {name: value.numpy() for name, value in given.items()})[0]
        np.testing.assert_allclose(found, wanted, atol=1e-6)


# ---------------------------------------------------------------- the engine


def test_auto_takes_what_is_kept_where_it_pays_and_never_exports_for_a_few(cache, exported, monkeypatch):
    generator, said = exported[0], []
    monkeypatch.setattr(onnx, "export", None)  # what would be called to export
    assert onnx.by_engine(generator, "auto", 8, said.append) is generator
    assert onnx.engine_of(onnx.by_engine(generator, "auto", onnx.PICTURES, said.append)) == "onnx"
    assert onnx.by_engine(generator, "torch", 9999, said.append) is generator
    with pytest.raises(ValueError, match="can't draw an ONNX file"):
        onnx.by_engine(load_generator(exported[1]), "torch")
    onnx.kept_at(generator).unlink()
    assert onnx.by_engine(generator, "auto", onnx.MANY - 1, said.append) is generator
    assert said == []


def test_an_export_is_made_once_said_and_made_anew_if_damaged(cache, exported, monkeypatch):
    generator, path, found = exported
    kept, said, made = onnx.kept_at(generator), [], []

    def export(*_, **__):
        made.append(1)
        return onnx.Exported(found.draws, None, 0.0, 0.0)

    monkeypatch.setattr(onnx, "export", export)
    kept.write_bytes(b"half of it")
    for _ in range(2):
        assert onnx.engine_of(onnx.by_engine(generator, "onnx", 1, said.append)) == "onnx"
    assert len(made) == len(said) == 1 and str(kept) in said[0] and kept.read_bytes() == found.draws


def test_auto_goes_back_to_torch_where_an_export_fails_and_onnx_says_why(cache, exported, monkeypatch):
    def fails(*_, **__):
        raise WeightsError("no such operator")

    generator, said = exported[0], []
    onnx.kept_at(generator).unlink()
    monkeypatch.setattr(onnx, "export", fails)
    assert onnx.by_engine(generator, "auto", onnx.MANY, said.append) is generator
    assert "drawn by torch: no such operator" in said
    with pytest.raises(WeightsError, match="no such operator"):
        onnx.by_engine(generator, "onnx", 1, said.append)


def test_replay_takes_the_engine_that_drew_and_says_so_where_it_can_not(cache, exported, tmp_path):
    generator, recipe = exported[0], Recipe(CAPTIONS[0], 5)
    drew = onnx.by_engine(generator, "onnx", 1)
    origin = Origin.of(drew, TINY)
    image = collect(drew, drew.bridge, [recipe]).images[0]
    png = save_picture(image, tmp_path / "bird.png", recipe, origin)
    assert read_png(png)[1].engine == "onnx" and origin.weights == Origin.of(generator, TINY).weights
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert replay(png).engine == "onnx"
        assert save_picture(image, png, recipe, Origin.of(generator, TINY)) == png  # either engine's is there already
    by_torch = replay_quietly(png, "torch")
    assert by_torch.engine == "torch"
    assert abs(to_uint8(by_torch.images).astype(int) - to_uint8(image[None])).max() <= 1
    onnx.kept_at(generator).unlink()
    assert replay_quietly(png, "auto").engine == "torch"  # no export for one picture
    other = save_picture(-image, tmp_path / "other.png", recipe, origin)
    with pytest.warns(UserWarning, match="drawn by onnx then and by torch now"):
        replay(other)


def replay_quietly(png, engine):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return replay(png, engine=engine)


def test_the_commands_say_which_engine_drew(cache, exported, monkeypatch, capsys, tmp_path):
    out = tmp_path / "bird.png"
    asked = "sample", CAPTIONS[0], "--count", 1, "--out", out
    galip(monkeypatch, *asked, "--weights", TINY, "--engine", "onnx")
    assert read_png(out)[1].engine == "onnx"
    capsys.readouterr()
    said = fails(monkeypatch, capsys, *asked, "--weights", exported[1], "--precision", "bf16")
    assert "bf16 is torch's" in said and said.count("\n") == 1
