import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a thread a process, of tests in parallel and of what they start

import pytest
import torch

from galiplib.clip.bridge import CLIP, ClipBridge
from galiplib.clip.training import new_clip, vocabulary_of
from galiplib.config import load_config

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background, where tests of Ctrl-C would wait
    signal.signal(signal.SIGINT, signal.default_int_handler)
# A file is a worker's (--dist loadfile), so that its fixtures are made once; begun first, what takes longest:
LONGEST = "browser page processes parity onnx survival launch elastic compiling".split()
TINY = {
    "model.channels": 4,
    "model.code_channels": 8,
    "model.disc_channels": 16,
    "model.head_channels": 8,
    "model.fusion_blocks": 1,
    "model.projected": "",  # notebook 12's second pair of eyes takes as long as all the rest
    "model.energy": 0,
    "train.batch_size": 4,
    "data.train_size": 24,
    "data.test_size": 20,
    "train.evaluate_every": 0,  # an evaluation takes seconds: those who need one ask for it
    "eval.features": ("judge",),  # ImageNet's network takes 15 ms a picture
    "train.precision": "fp32",  # the same on every machine
    "clip.precision": "fp32",
}


def pytest_collection_modifyitems(items):
    rank = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="session")
def tiny_config():
    """Profile mini with small networks and few pictures (the CLIP is the shipped one)."""
    return lambda **more: load_config("mini", {**TINY, **{key.replace("__", "."): v for key, v in more.items()}})


@pytest.fixture(scope="session")
def small_clip():
    """An untrained CLIP of 4 blocks on 56 px with a few words."""
    torch.manual_seed(0)
    geometry = {
        "embed_dim": 32, "image_resolution": 56, "vision_layers": 4, "vision_width": 64, "vision_patch_size": 8,
        "context_length": 16, "transformer_width": 64, "transformer_heads": 2, "transformer_layers": 2,
    }  # fmt: skip
    words = ["a red bird with black wings", "this is a small blue bird that has a white belly in the snow"]
    return new_clip(geometry, vocabulary_of(words)).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def small_bridge(small_clip):
    return ClipBridge(small_clip)


@pytest.fixture(scope="session")
def published_clip():
    """A CLIP as ViT-B/32 with the weights behind the reference numbers."""
    from test_parity import rule

    model = CLIP(512, 224, 12, 768, 32, 77, 49408, 512, 8, 12).float()
    model.load_state_dict({name: rule("clip.", name, tuple(t.shape)) for name, t in model.state_dict().items()})
    return model.eval().requires_grad_(False)
