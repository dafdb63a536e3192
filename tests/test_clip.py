import clip
import pytest
import torch
import torch.nn.functional as F

from galiplib.clip import files as clip_files
from galiplib.clip import training as clip_training
from galiplib.clip.bridge import CLIP, ClipBridge, default_prompt_layers, default_taps, run_block
from galiplib.config import load_config
from galiplib.data import minibirds
from galiplib.data.batches import CaptionIndex
from galiplib.files import WeightsError


def test_bridge_computes_what_clip_computes():
    torch.manual_seed(0)
    model = CLIP(32, 48, 3, 64, 16, 77, 49408, 64, 2, 2).float().eval()
    bridge = ClipBridge(model)
    tokens = clip.tokenize(["a red bird", "a large blue bird with a long beak"]).long()
    images = torch.rand(2, 3, 48, 48) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(bridge.encode_text(tokens), model.encode_text(tokens))
        torch.testing.assert_close(bridge.encode_image(images)[1], model.encode_image(bridge.preprocess(images)))
        block, x = model.visual.transformer.resblocks[0], torch.randn(2, 10, 64)
        torch.testing.assert_close(run_block(block, x), block(x.transpose(0, 1)).transpose(0, 1))


def test_tapped_features_and_mapper_shapes(small_bridge):
    features, embedding = small_bridge.encode_image(torch.zeros(2, 3, 56, 56))
    assert features.shape == (2, 3, 64, 7, 7) and embedding.shape == (2, 32)
    prompts = torch.randn(2, small_bridge.prompt_layers, 64)
    assert small_bridge.map_features(features[:, 0], prompts).shape == (2, 64, 7, 7)
    other = small_bridge.map_features(features[:, 0], prompts + 1)
    assert not torch.allclose(other, small_bridge.map_features(features[:, 0], prompts))


def test_geometry_scales_with_depth():
    assert default_taps(12) == (1, 4, 8) and default_prompt_layers(12) == 8
    assert default_taps(24) == (2, 8, 16) and default_prompt_layers(24) == 16
    taps = default_taps(4)
    assert len(set(taps)) == 3 and max(taps) < 4


def test_conventions_differ_as_published(small_clip):
    images = torch.rand(1, 3, 56, 56) * 2 - 1
    ours, theirs = ClipBridge(small_clip), ClipBridge(small_clip, convention="reference")
    once = images * 0.5 + 0.5
    torch.testing.assert_close(ours.preprocess(images) * ours.pixel_std + ours.pixel_mean, once)
    twice = theirs.preprocess(images) * ours.pixel_std + ours.pixel_mean
    torch.testing.assert_close(twice, (once + 1) / 2)
    assert ours.preprocess(torch.zeros(1, 3, 80, 80)).shape == (1, 3, 56, 56)


def test_small_tokenizer_drops_unknown_words_and_refuses_empty(small_bridge):
    known = small_bridge.tokenize("a red bird")
    with pytest.warns(UserWarning, match="left out: xylophone$"):
        assert torch.equal(small_bridge.tokenize("a red xylophone bird"), known)
    with pytest.raises(ValueError, match="caption 1 is empty"):
        small_bridge.tokenize(["a bird", "  "])
    with pytest.raises(ValueError, match="none of the words"):
        small_bridge.tokenize("zebra")
    assert small_bridge.tokenize("a red bird " * 30).shape == (1, 16)


def test_wrong_bridge_arguments(small_clip):
    with pytest.raises(ValueError, match="clip, reference"):
        ClipBridge(small_clip, convention="other")
    with pytest.raises(ValueError, match="outside this CLIP.s 4 blocks"):
        ClipBridge(small_clip, taps=(1, 9))


def test_contrastive_loss_is_symmetric_cross_entropy():
    image, text = torch.randn(5, 8), torch.randn(5, 8)
    similarity = 7 * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    wanted = -(similarity.log_softmax(0).diag().mean() + similarity.log_softmax(1).diag().mean()) / 2
    torch.testing.assert_close(clip_training.contrastive_loss(image, text, 7.0), wanted)


def test_word_pairs_are_distributions():
    index = CaptionIndex([["red wings", "a red bird"], ["a blue bird", "a bird"]])
    pairs, of_text, of_image = clip_training.word_pair_targets(index)
    assert "red wings" in pairs and of_image.shape == (2, len(pairs)) and of_text.shape == (4, len(pairs))
    torch.testing.assert_close(of_image.sum(1), torch.ones(2))
    named = of_text[index.texts.index("red wings")]
    assert named[pairs.index("red wings")] > 0 and named[pairs.index("blue bird")] == 0


def test_training_a_small_clip_lowers_its_loss():
    config = load_config("mini", {"clip.max_steps": 12, "clip.batch_size": 16, "clip.layers": 1, "clip.width": 64})
    data = minibirds.build("train", 40)
    vocabulary = clip_training.vocabulary_of([text for texts in data.captions for text in texts])
    torch.manual_seed(0)
    model = clip_training.new_clip(clip_training.clip_geometry(config.clip, config.data), vocabulary)
    reports = list(clip_training.train_clip(ClipBridge(model, trainable=True), data, config.clip))
    assert [r.step for r in reports] == list(range(1, 13))
    first, last = (sum(r.word_pairs for r in part) for part in (reports[:4], reports[-4:]))
    assert last < first


def test_an_interrupted_training_of_a_small_clip_goes_on_exactly(tmp_path, monkeypatch):
    changes = {"clip.max_steps": 6, "clip.batch_size": 8, "clip.layers": 1, "clip.width": 64}
    config, data = load_config("mini", changes), minibirds.build("train", 20)
    monkeypatch.setattr(clip_training, "SAVED_EVERY", 2)
    clip_training.learn_clip(config, data, {}, tmp_path / "whole.safetensors", progress=False)
    advance, done = clip_training.ClipTraining.advance, []

    def interrupted(training):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(training.step)
        return advance(training)

    monkeypatch.setattr(clip_training.ClipTraining, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        clip_training.learn_clip(config, data, {}, tmp_path / "parts.safetensors", progress=False)
    monkeypatch.setattr(clip_training.ClipTraining, "advance", lambda training: (done.append(0), advance(training))[1])
    clip_training.learn_clip(config, data, {}, tmp_path / "parts.safetensors", progress=False)
    assert len(done) == 3 + 4 and not (tmp_path / "parts.safetensors.part").exists()
    whole, parts = (clip_files.load_clip(tmp_path / f"{name}.safetensors") for name in ("whole", "parts"))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name]), name


def test_shipped_clip_knows_its_birds():
    bridge = ClipBridge(clip_files.load_clip("mini"))
    for split in ("seen", "test"):
        measured = clip_training.measure(bridge, minibirds.build(split, 100, seed=9))
        assert min(measured["prompt"].values()) > 0.95 and min(measured["counterfactual"].values()) > 0.95
    record = clip_files.clip_record()
    assert {"command", "seed", "data", "metrics", "steps"} <= set(record)


def test_save_and_load_round_trip(tmp_path, small_clip):
    geometry = {
        "embed_dim": 32, "image_resolution": 56, "vision_layers": 4, "vision_width": 64, "vision_patch_size": 8,
        "context_length": 16, "transformer_width": 64, "transformer_heads": 2, "transformer_layers": 2,
    }  # fmt: skip
    path = tmp_path / "clip.safetensors"
    clip_files.save_clip(path, small_clip, geometry, {"seed": 1})
    loaded = clip_files.load_clip(path)
    assert loaded.vocabulary == small_clip.vocabulary
    for name, tensor in small_clip.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor.half().float())


def test_damaged_missing_or_foreign_clip_files(tmp_path):
    whole = clip_files.SHIPPED["mini"].read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="cut.safetensors is damaged"):
        clip_files.load_clip(cut)
    with pytest.raises(WeightsError, match="no weights file"):
        clip_files.load_clip(tmp_path / "absent.safetensors")
    with pytest.raises(WeightsError, match="known names: mini, .*ViT-B/32"):
        clip_files.load_clip("ViT-Z/99")
    with pytest.raises(WeightsError, match="galiplib judge"):
        clip_files.load_clip(clip_files.SHIPPED["mini"].with_name("judge.safetensors"))
