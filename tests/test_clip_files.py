"""Files with the format of OpenAI's: the archive (traced, fp16, with its three facts) and state dicts."""

import argparse
import shutil
import urllib.error
import warnings

import clip
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import galiplib
from galiplib.clip.bridge import CLIP, ClipBridge
from galiplib.clip.files import SHIPPED
from galiplib.files import WeightsError


class Archive(nn.Module):
    """What OpenAI traced: the model's tensors under their names, and input_resolution, ... beside them."""

    def __init__(self, model: CLIP, resolution: int) -> None:
        super().__init__()
        for name, child in model.named_children():
            self.add_module(name, child)
        for name in ("positional_embedding", "text_projection", "logit_scale"):
            setattr(self, name, getattr(model, name))
        for name, value in (("input_resolution", resolution), ("context_length", 77), ("vocab_size", 49408)):
            self.register_buffer(name, torch.tensor(value))

    def forward(self, x):
        return x + self.logit_scale


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return CLIP(32, 64, 3, 64, 16, 77, 49408, 64, 1, 2).float().eval()


def save_archive(model, path):
    half = CLIP(32, 64, 3, 64, 16, 77, 49408, 64, 1, 2).half()
    half.load_state_dict(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(Archive(half, 64), torch.zeros(1), check_trace=False), path)


def test_archive_gives_a_frozen_fp32_clip(tmp_path, model):
    path = tmp_path / "ViT-tiny.pt"
    save_archive(model, path)
    loaded = galiplib.load_clip(path)
    assert type(loaded) is CLIP and not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, model.state_dict()[name].half().float())
    images, tokens = torch.rand(2, 3, 64, 64) * 2 - 1, clip.tokenize(["a red bird", "a small bird"]).long()
    bridge = ClipBridge(loaded)
    assert bridge.image_size == 64 and bridge.grid == 4
    with torch.no_grad():
        torch.testing.assert_close(bridge.encode_text(tokens), loaded.encode_text(tokens))
        torch.testing.assert_close(bridge.encode_image(images)[1], loaded.encode_image(bridge.preprocess(images)))
    assert galiplib.load_clip(path, dtype=torch.bfloat16).visual.conv1.weight.dtype == torch.bfloat16
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(WeightsError, match="ViT-tiny.pt is damaged: its end is missing"):
        galiplib.load_clip(path)


def test_state_dict_keeps_fp32_exactly(tmp_path, model):
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    loaded = galiplib.load_clip(tmp_path / "clip.pt")
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_state_dicts_as_trainings_wrap_them(tmp_path, model):
    state = model.state_dict()
    ddp = {f"module.{name}": tensor for name, tensor in state.items()}
    for content in (
        ddp,
        {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
        {"epoch": 3, "model_state_dict": state, "optimizer_state_dict": {}, "loss": 1.2},
        {"epoch": 3, "name": "mine", "state_dict": ddp, "optimizer": {}},
        {**state, "input_resolution": 64, "context_length": 77, "vocab_size": 49408},
        {"state_dict": {f"model.{name}": tensor for name, tensor in state.items()}, "hyper_parameters": {"lr": 1e-4}},
        {"model": {name: tensor + 1 for name, tensor in state.items()}, "model_ema": state, "best": np.float32(0.3)},
        {
            **{f"ema_model.{name}": t for name, t in state.items()},
            "initted": torch.tensor(True),
            "online_model.x": ddp["module.visual.proj"],
        },
        {"args": argparse.Namespace(lr=1e-4), "model": {"n_averaged": torch.tensor(3), **ddp}},
    ):
        torch.save(content, tmp_path / "clip.pt")
        loaded = galiplib.load_clip(tmp_path / "clip.pt").state_dict()
        assert loaded.keys() == state.keys() and all(torch.equal(loaded[name], state[name]) for name in state)
    safetensors.torch.save_file(state, tmp_path / "theirs.safetensors", {"format": "pt"})
    loaded = galiplib.load_clip(tmp_path / "theirs.safetensors").state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    shutil.copy(SHIPPED["mini"], tmp_path / "small.bin")  # the content says what it is
    assert galiplib.load_clip(tmp_path / "small.bin").vocabulary


def test_files_that_are_no_clip(tmp_path, model):
    path = tmp_path / "clip.pt"
    state = dict(model.state_dict())
    torch.save({name: t for name, t in state.items() if name != "text_projection"}, path)
    with pytest.raises(WeightsError, match="lacks 'text_projection'; found: dict with positional_embedding, "):
        galiplib.load_clip(path)
    torch.save({"text_model.embeddings.position_ids": torch.zeros(1)}, path)  # as transformers names it
    with pytest.raises(WeightsError, match="lacks .*; found: dict with text_model.embeddings.position_ids"):
        galiplib.load_clip(path)
    torch.save({"model": {"netG": state, "netD": {}}}, path)
    with pytest.raises(WeightsError, match="no state dict of a CLIP .* but dict with netG .*, netD"):
        galiplib.load_clip(path)
    with pytest.raises(WeightsError, match="holds 'galiplib generator', not 'galiplib clip'"):
        galiplib.load_clip(SHIPPED["mini"].with_name("generator_mini.safetensors"))
    torch.save({**state, "ln_final.extra": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="ln_final.extra"):
        galiplib.load_clip(path)
    torch.save([1, 2], path)
    with pytest.raises(WeightsError, match="no state dict of a CLIP .* but list"):
        galiplib.load_clip(path)
    torch.save({"step": 3, "networks": {}}, path)
    with pytest.raises(WeightsError, match="no state dict of a CLIP .* but dict with step, networks"):
        galiplib.load_clip(path)
    path.write_bytes(b"GIF89a nonsense")
    with pytest.raises(WeightsError, match="damaged or no file of torch.save"):
        galiplib.load_clip(path)


def test_by_name_without_a_network_says_where_the_file_belongs(tmp_path, monkeypatch):
    def offline(url):
        raise urllib.error.URLError("no network here")

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(WeightsError) as caught:
        galiplib.load_clip("ViT-B/32")
    message = str(caught.value)
    assert "no network here" in message and "ViT-B-32.pt elsewhere" in message
    assert str(tmp_path / ".cache" / "clip" / "ViT-B-32.pt") in message and "clip.name" in message


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_by_name_reads_the_cached_file(tmp_path, monkeypatch, model):
    """The whole way of `clip.load`, with a small model in place of the published one and its own checksum."""
    import hashlib

    file = tmp_path / ".cache" / "clip" / "ViT-B-32.pt"
    file.parent.mkdir(parents=True)
    save_archive(model, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setitem(clip.clip._MODELS, "ViT-B/32", f"https://example.invalid/{digest}/ViT-B-32.pt")
    loaded = galiplib.load_clip("ViT-B/32")
    torch.testing.assert_close(loaded.visual.proj, model.visual.proj.half().float())
