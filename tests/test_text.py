"""What captions say reaches who wants it: words, real pictures' embeddings and classes, in training and sampling."""

import pickle
from dataclasses import fields

import numpy as np
import pytest
import torch

from galiplib.build import make_bridge, make_system, text_of
from galiplib.config import ConfigError
from galiplib.data import DataError, minibirds
from galiplib.data.batches import TrainingData
from galiplib.data.layouts import read_classes
from galiplib.evaluation import generate
from galiplib.sampling.sample import sample
from galiplib.system import Batch, Text, TextToImage
from galiplib.systems.galip import GALIP
from galiplib.training import Optimizers, train

LONG, SHORT = "a small red bird with black wings and a white belly in the snow", "a blue bird"
ALL = frozenset({"words", "picture", "classes"})


@pytest.fixture(scope="module")
def bridge(tiny_config):
    return make_bridge(tiny_config())


@pytest.fixture(scope="module")
def data(bridge):
    return TrainingData(bridge, minibirds.build("train", 12))


def test_words_end_where_their_caption_does_and_know_nothing_behind(bridge):
    tokens = bridge.tokenize([LONG, SHORT])
    text = text_of(bridge, tokens, ALL)
    assert text.words.shape == (2, int(tokens.argmax(1).max()) + 1, bridge.word_dim)
    ends = tokens.argmax(1)
    assert text.mask.tolist() == [[place > end for place in range(text.mask.shape[1])] for end in ends.tolist()]
    assert not text.words[text.mask].any()
    alone = text_of(bridge, bridge.tokenize([SHORT]), ALL)
    torch.testing.assert_close(text.words[1, : alone.words.shape[1]], alone.words[0], atol=1e-5, rtol=1e-5)
    last = text.words[torch.arange(2), ends]  # the end mark's, projected, is the sentence
    torch.testing.assert_close(last @ bridge.model.text_projection, text.sentence)
    assert text_of(bridge, tokens).words is None


@torch.no_grad()
def test_a_batch_holds_what_is_wanted_of_its_own_rows(data, bridge):
    images, sentence, words, mask, picture, classes = data.batch(2, 4, 0, wants=ALL)
    plain = data.batch(2, 4, 0)
    assert len(plain) == 2 and torch.equal(plain[0], images) and torch.equal(plain[1], sentence)
    last = words[torch.arange(4), (~mask).sum(1) - 1]
    torch.testing.assert_close(last @ bridge.model.text_projection, sentence, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(picture, bridge.encode_image(images)[1])
    assert len(set(classes.tolist())) == 4  # mini birds: each its own
    own = data.batch(2, 4, 0, slice(1, 3), ALL)
    torch.testing.assert_close(own[4][1:3], picture[1:3], atol=1e-5, rtol=1e-5)
    assert not own[4][[0, 3]].any()  # another process has them
    for whole, part in zip((sentence, words, mask, classes), (*own[1:4], own[5]), strict=True):
        assert torch.equal(whole, part)


def test_parts_and_shares_carry_every_field():
    text = Text(*(torch.arange(8.0)[:, None] + i for i in range(5)))
    batch = Batch(torch.zeros(8, 3, 2, 2), text, {"z": torch.zeros(8, 1)})
    second = batch.share(slice(4, 8), batch.images[4:]).split(2)[1]
    for number, field in enumerate(fields(Text)):
        assert getattr(second.text, field.name).flatten().tolist() == [6.0 + number, 7.0 + number]


class Reading(TextToImage):
    """Paints the mean of the words that aren't masked."""

    wants = frozenset({"words"})

    def __init__(self, bridge):
        super().__init__(bridge)
        self.noise_dim, self.image_size = 2, 8
        self.gain = torch.nn.Parameter(torch.ones(()))

    def picture_of(self, noise, text):
        kept = (~text.mask)[:, :, None]
        mean = (text.words * kept).sum(1) / kept.sum(1)  # (B, W)
        return self.gain * mean[:, :3, None, None].expand(-1, -1, 8, 8) / 8


@torch.no_grad()
def test_generators_that_want_words_are_given_them(bridge):
    generator = Reading(bridge)
    alone = [sample(generator, bridge, caption).images[0] for caption in (LONG, SHORT)]
    assert not torch.allclose(*alone)
    together = sample(generator, bridge, [LONG, SHORT], batch_size=2).images
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(generate(generator, bridge, [LONG, SHORT]), together, atol=1e-5, rtol=1e-5)
    ends = [sample(generator, bridge, LONG, towards=SHORT, share=share).images[0] for share in (0.0, 0.5, 1.0)]
    assert torch.equal(ends[0], alone[0]) and torch.equal(ends[2], alone[1]) and not torch.equal(ends[1], ends[0])


def test_a_system_gets_what_it_wants_and_nothing_else_is_computed(tiny_config, bridge, data, monkeypatch):
    seen = []

    class Wanting(GALIP):
        wants = ALL

        def discriminator_losses(self, batch, step):
            seen.append(batch.text)
            return super().discriminator_losses(batch, step)

    config = tiny_config(train__max_steps=1, train__accumulate=2)
    system = Wanting(bridge, config)
    system.start_average()
    list(train(system, Optimizers(system, config.train), data, config.train))
    assert [len(text.words) for text in seen] == [2, 2]
    for text in seen:
        assert text.words.shape[:2] == text.mask.shape and len(text.picture) == len(text.classes) == 2

    monkeypatch.setattr(bridge, "encode_words", None)  # a GALIP that reads words from here on fails
    plain = make_system(bridge, config)
    list(train(plain, Optimizers(plain, config.train), data, config.train))


def test_a_loss_over_the_whole_batch_takes_it_in_one_part(tiny_config, bridge):
    class Whole(GALIP):
        whole_batch = True

    Whole(bridge, tiny_config())
    with pytest.raises(ConfigError, match=r"train\.accumulate must be 1: a loss of galip compares the whole batch"):
        Whole(bridge, tiny_config(train__accumulate=2))


def test_classes_are_the_published_lists_or_folders(tmp_path):
    (tmp_path / "train").mkdir()
    assert read_classes("birds", tmp_path, "train")("001.Albatross/a") == "001.Albatross"
    assert read_classes("flowers", tmp_path, "train")("jpg/image_1") is None
    listed = tmp_path / "train" / "class_info.pickle"
    (tmp_path / "train" / "filenames.pickle").write_bytes(pickle.dumps(["a", "b", "c"], protocol=2))
    listed.write_bytes(pickle.dumps([7, 7, 3], protocol=2))
    class_of = read_classes("flowers", tmp_path, "train")
    assert [class_of(key) for key in "abcd"] == [7, 7, 3, None]
    listed.write_bytes(pickle.dumps(np.arange(3)))
    with pytest.raises(DataError, match=r"class_info\.pickle holds more than a list of strings or numbers"):
        read_classes("flowers", tmp_path, "train")
