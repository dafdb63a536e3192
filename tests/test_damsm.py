"""DAMSM computes what its authors' encoders and losses compute, reads their files without running anything, and learns.

The reference numbers were computed with the authors' public classes (fp32, CPU); they lie in tests/reference/damsm_*.
"""

import copyreg
import os
import pickle
import warnings

import numpy as np
import pytest
import torch
from named_weights import arrays, close, enlarged, named_state, numbers
from PIL import Image

from galiplib.build import make_bridge, make_data
from galiplib.checkpoints.loading import load_generator
from galiplib.clip.damsm import ImageEncoder, Inception, TextEncoder, attend, cut, damsm_losses, vocabulary_of, words_of
from galiplib.clip.damsm_files import DamsmBridge, load_damsm, load_image_encoder, read_vocabulary
from galiplib.clip.damsm_training import learn_damsm
from galiplib.config import ConfigError, load_config
from galiplib.evaluation.evaluate import measure_generator
from galiplib.files import WeightsError
from galiplib.runs.run import Run
from galiplib.sampling.sample import sample


@pytest.fixture(scope="module")
def reference():
    return arrays("damsm")


@pytest.fixture(scope="module")
def text_encoder():
    encoder = TextEncoder(len(numbers("damsm_captions")["vocabulary"]))
    encoder.load_state_dict(named_state("damsm.text", "text_encoder"))
    return encoder.eval()


@pytest.fixture(scope="module")
def image_encoder(tmp_path_factory):
    path = tmp_path_factory.mktemp("damsm") / "image_encoder200.pth"
    torch.save({f"module.{name}": value for name, value in named_state("damsm.image", "image_encoder").items()}, path)
    return load_image_encoder(path).eval()


# ---------------------------------------------------------------- the same function


def test_captions_are_cleaned_numbered_and_cut_as_the_authors_do(reference):
    facts = numbers("damsm_captions")
    assert [words_of(caption) for caption in facts["captions"]] == facts["words"]
    vocabulary = vocabulary_of(facts["captions"])
    assert list(vocabulary) == facts["vocabulary"]
    numbered = [[vocabulary[word] for word in words] for words in facts["words"]]
    assert numbered == facts["ids"]
    for numbers_of, row, length in zip(numbered, reference["tokens"], reference["lens"], strict=True):
        chosen = cut(numbers_of, facts["words_num"], np.random.RandomState(facts["numpy_seed_before_each_crop"]))
        assert chosen == row[:length].tolist()
    bridge = DamsmBridge(TextEncoder(len(vocabulary)), vocabulary)
    for caption, wanted in zip(facts["new_captions"], facts["new_ids"], strict=True):
        if wanted:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                assert bridge.tokenize(caption).tolist() == [wanted]
            assert ["unknownword" in str(one.message) for one in said] == ["unknownword" in caption] * len(said)
        else:
            with pytest.raises(ValueError, match="knows none of the words of '...'"):
                bridge.tokenize(caption)


@torch.no_grad()
def test_sentences_and_words_are_the_published_ones(reference, text_encoder):
    sentence, words = text_encoder(reference["tokens"])
    close(sentence, reference["sent"])
    close(words.mT, reference["words"])
    for row, length in enumerate(reference["lens"]):  # alone, and without a batch to be padded for
        alone, its_words = text_encoder(reference["tokens"][row : row + 1, :length])
        torch.testing.assert_close(alone[0], sentence[row])
        torch.testing.assert_close(its_words[0], words[row, :length])


def test_regions_codes_attention_and_losses_are_the_published_ones(reference, text_encoder, image_encoder):
    with torch.no_grad():
        regions, features = image_encoder.eyes(enlarged(reference["real_32"], 256))
    regions, code = image_encoder.emb_features(regions), image_encoder.emb_cnn_code(features)
    close(regions[:, :8], reference["regions_first8"])
    close(regions.mean(1), reference["regions_mean"])
    close(code, reference["code"])
    close(code - code.mean(0), reference["code"] - reference["code"].mean(0), 1e-3)

    tokens = reference["tokens"]
    sentence, words = text_encoder(tokens)
    length = reference["lens"][0]
    looks = attend(regions[:1].flatten(2), words[:1, :length], tokens[:1, :length] == 0)  # (1, 1, 289, L)
    close(looks[0, 0].T.unflatten(1, (17, 17)), reference["attention0"])

    wanted = numbers("damsm_losses")
    pairs = regions, code, words, tokens == 0, sentence
    close(damsm_losses(*pairs), list(wanted["plain"].values()))
    losses = damsm_losses(*pairs, reference["class_ids"])
    close(losses, list(wanted["classes"].values()))
    losses.sum().backward()
    for encoder, norms in ((text_encoder, "grad_norms_text"), (image_encoder, "grad_norms_image")):
        for name, norm in wanted[norms].items():
            close(encoder.get_parameter(name).grad.norm(), norm, 1e-3)
    assert all(weight.grad is None for weight in image_encoder.eyes.parameters())


def test_a_pair_of_the_same_class_is_no_negative(reference):
    torch.manual_seed(0)
    regions, code, sentence = torch.randn(3, 256, 2, 2), torch.randn(3, 256), torch.randn(3, 256)
    words, mask = torch.randn(3, 5, 256), torch.zeros(3, 5, dtype=torch.bool)
    alike = damsm_losses(regions, code, words, mask, sentence, torch.tensor([1, 1, 1]))
    torch.testing.assert_close(alike, torch.zeros(4))
    apart = damsm_losses(regions, code, words, mask, sentence, torch.tensor([1, 2, 3]))
    assert torch.equal(apart, damsm_losses(regions, code, words, mask, sentence))
    longer = torch.cat([words, torch.randn(3, 2, 256)], 1), torch.cat([mask, torch.ones(3, 2, dtype=torch.bool)], 1)
    torch.testing.assert_close(damsm_losses(regions, code, *longer, sentence), apart)  # padding has no say


def test_the_eyes_never_learn_nor_drift():
    encoder = ImageEncoder(Inception()).train()
    assert not any(part.training for part in encoder.eyes.modules())
    assert not any(weight.requires_grad for weight in encoder.eyes.parameters())


# ---------------------------------------------------------------- files

WORDS = {"<end>": 0, "red": 1, "bird": 2, "blue": 3}
CONTENT = [[[1, 2], [3, 2]], [[2]], {number: word for word, number in WORDS.items()}, WORDS]


def of_python_2(words):
    """[[[1, 2]], [], {}, words] as Python 2 writes it in protocol 2: text as bytes, whole numbers also as long ones."""
    items = b"".join(b"U" + bytes([len(w)]) + w.encode() + b"\x8a\x01" + bytes([n]) for w, n in words.items())
    return b"\x80\x02](](](K\x01K\x02ee]}}(" + items + b"ue."


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_the_vocabulary_is_read_from_every_kind_of_pickle(tmp_path, protocol):
    path = tmp_path / "captions.pickle"
    path.write_bytes(pickle.dumps(CONTENT, protocol))
    assert read_vocabulary(path) == WORDS
    path.write_bytes(of_python_2(WORDS))
    assert read_vocabulary(path) == WORDS


class Runs:
    """Unpickled, it would make a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


class Registered:
    pass


def hostile(folder):
    copyreg.add_extension(Registered.__module__, Registered.__qualname__, 240)
    try:
        registered = pickle.dumps(Registered(), 2)
    finally:
        copyreg.remove_extension(Registered.__module__, Registered.__qualname__, 240)
    made = str(folder).encode()
    return {
        "reduce": pickle.dumps([[], [], {}, Runs(folder)]),
        "reduce of protocol 0": pickle.dumps(Runs(folder), 0),
        "inst": b"(S'" + made + b"'\nios\nmkdir\n.",
        "obj": b"(cos\nmkdir\nS'" + made + b"'\no.",
        "stack global": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93\x8c" + bytes([len(made)]) + made + b"\x85R.",
        "extension": registered,
        "persistent": b"Pos\n.",
        "numpy": pickle.dumps([[], [], {}, np.arange(3)]),
        "a set": pickle.dumps([[], [], {}, {"red", "blue"}]),
        "an array in words": pickle.dumps([[], [], {}, {"red": np.int64(0)}]),
        "no list": pickle.dumps({"red": 0}),
        "three": pickle.dumps(CONTENT[:3]),
        "a number twice": pickle.dumps([[], [], {}, {"red": 0, "blue": 0}]),
        "words for numbers": pickle.dumps([[], [], {}, {"red": "0"}]),
        "truncated": pickle.dumps(CONTENT)[:-9],
        "empty": b"",
        "noise": bytes(range(256)),
    }


def test_a_pickle_with_anything_else_is_refused_and_nothing_of_it_is_run(tmp_path):
    path, folder = tmp_path / "captions.pickle", tmp_path / "made"
    for title, content in hostile(folder).items():
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"captions\.pickle (is refused|holds no vocabulary)"):
            read_vocabulary(path)
        assert not folder.exists(), title


def test_a_folder_of_the_authors_is_read(tmp_path, reference):
    facts, state = numbers("damsm_captions"), named_state("damsm.text", "text_encoder")
    with pytest.raises(WeightsError, match=r"holds no text_encoder\*\.pth"):
        load_damsm(tmp_path)
    torch.save({"encoder.weight": torch.zeros(3, 300)}, tmp_path / "text_encoder50.pth")
    torch.save(state, tmp_path / "text_encoder200.pth")
    with pytest.raises(WeightsError, match=r"holds no captions\*\.pickle"):
        load_damsm(tmp_path)
    content = [[], [], dict(enumerate(facts["vocabulary"])), {w: n for n, w in enumerate(facts["vocabulary"])}]
    (tmp_path / "captions_DAMSM.pickle").write_bytes(pickle.dumps(content, 2))
    damsm = load_damsm(tmp_path)
    close(damsm.encode_text(damsm.tokenize(facts["captions"][1])), reference["sent"][1:2])
    with pytest.raises(WeightsError, match=r"its folder must hold image_encoder\*\.pth"):
        damsm.encode_regions(torch.zeros(1, 3, 32, 32))
    with pytest.raises(WeightsError, match=r"give the folder with text_encoder\*\.pth and captions\.pickle"):
        DamsmBridge().tokenize("a red bird")

    (tmp_path / "captions_DAMSM.pickle").write_bytes(pickle.dumps(CONTENT, 2))
    with pytest.raises(WeightsError, match=r"text_encoder200\.pth with captions_DAMSM\.pickle doesn't fit: encoder"):
        load_damsm(tmp_path)


def test_long_captions_are_cut_alike_at_every_reading(text_encoder):
    facts = numbers("damsm_captions")
    damsm = DamsmBridge(text_encoder, {word: n for n, word in enumerate(facts["vocabulary"])}, most=5)
    long, short = facts["captions"][0], facts["captions"][3]
    read = damsm.tokenize([long, short])
    assert read.shape == (2, 5)
    assert torch.equal(damsm.tokenize([long]), read[:1])
    words = [facts["vocabulary"][number] for number in read[0]]
    assert sorted([*words, *damsm.unread(long).split()]) == sorted(facts["words"][0])
    whole = DamsmBridge(text_encoder, damsm.vocabulary)
    assert (whole.tokenize(long).tolist()[0], whole.unread(long)) == (facts["ids"][0], "")


# ---------------------------------------------------------------- pretraining


def test_a_pretraining_goes_on_where_it_was_stopped_and_its_files_are_read(tmp_path, tiny_config):
    config = tiny_config()
    bridge, train, held_out = make_bridge(config), make_data(config), make_data(config, "test")
    settings = {"bridge": bridge, "batch_size": 8, "progress": False}
    whole = learn_damsm(train, held_out, tmp_path / "whole", epochs=3, **settings)
    learn_damsm(train, held_out, tmp_path / "parts", epochs=1, **settings)
    assert learn_damsm(train, held_out, tmp_path / "parts", epochs=3, **settings) == whole
    names = ["captions.pickle", "damsm.json", "image_encoder3.pth", "text_encoder3.pth"]
    for folder in ("whole", "parts"):
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == names
    first, second = (load_damsm(tmp_path / folder, lambda: bridge) for folder in ("whole", "parts"))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    regions, code = first.encode_regions(torch.zeros(2, 3, 56, 56))
    assert (regions.shape, code.shape) == ((2, 256, bridge.grid, bridge.grid), (2, 256))
    with pytest.raises(WeightsError, match=r"image_encoder3\.pth looks through a CLIP's eyes"):
        load_damsm(tmp_path / "whole")
    with pytest.raises(WeightsError, match="made otherwise: lr differ"):
        learn_damsm(train, held_out, tmp_path / "whole", epochs=4, lr=1e-3, **settings)


def test_systems_train_with_it_in_clips_place(tmp_path, tiny_config):
    plain = tiny_config()
    bridge, folder = make_bridge(plain), tmp_path / "damsm"
    learn_damsm(make_data(plain), make_data(plain, "test"), folder, bridge, 1, batch_size=8, progress=False)
    settings = {
        "clip.damsm": str(folder), "model.channels": 2, "model.disc_channels": 2, "train.batch_size": 4,
        "data.train_size": 24, "data.test_size": 20, "train.evaluate_every": 0, "train.precision": "fp32",
        "train.max_steps": 2, "train.sample_every": 2, "eval.features": ("judge",), "eval.images": 20,
        "eval.diversity": 0, "eval.metrics": (),
    }  # fmt: skip
    config = load_config("mini:attngan", settings)
    run = Run(tmp_path / "run", config, progress=False)
    list(run.train())
    assert run.system.generator.condition[0].in_features == run.bridge.embed_dim == 256
    generator = load_generator(tmp_path / "run")
    made = sample(generator, generator.bridge, "a red bird", seed=1).images
    moved = load_generator(tmp_path / "run", load_damsm(folder, image=False))  # its folder given by hand
    assert torch.equal(sample(moved, moved.bridge, "a red bird", seed=1).images, made)
    found = measure_generator(generator, generator.bridge, config, progress=False).record()
    assert found["clip_convention"] == "damsm"
    assert "clip_similarity" in found and "clip_score" not in found

    with pytest.raises(ConfigError, match="clip.damsm can't serve the system galip, which looks through CLIP's eyes"):
        make_bridge(tiny_config(clip__damsm=str(folder)))
    with pytest.raises(WeightsError, match=r"nowhere holds no text_encoder\*\.pth"):
        make_bridge(load_config("mini:dfgan", {"clip.damsm": str(tmp_path / "nowhere")}))


def test_photographs_in_a_folder_teach_it(tmp_path, small_bridge):
    random = np.random.default_rng(0)
    for number in range(30):
        picture = Image.fromarray(random.integers(0, 255, (60, 70, 3), dtype=np.uint8))
        picture.save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"...\na bird of colour {number}\n")
    config = load_config("mini", {"data.name": "folder", "data.folder": str(tmp_path)})
    train, held_out = make_data(config), make_data(config, "test")
    record = learn_damsm(train, held_out, tmp_path / "damsm", small_bridge, 1, batch_size=8, progress=False)
    assert 0 <= record["retrieval"] <= 1
    assert {"bird", "29"} <= read_vocabulary(tmp_path / "damsm" / "captions.pickle").keys()
    train.captions = [["..."]] * len(train)
    with pytest.raises(ValueError, match=r"captions has a word of ASCII letters or digits: \['\.\.\.'\]"):
        learn_damsm(train, held_out, tmp_path / "other", small_bridge, 1, batch_size=8, progress=False)


def test_without_inceptions_weights_it_says_what_to_do(tmp_path, tiny_config, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    config = tiny_config()
    with pytest.raises(WeightsError, match=r"no network.*inception_v3_google.*--eyes clip"):
        learn_damsm(make_data(config), make_data(config, "test"), tmp_path, batch_size=8, progress=False)
