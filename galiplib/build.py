"""What a run is made of, from its configuration: device, CLIP, data, measurements, and captions to draw on the way."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from .clip.bridge import CLIP, ClipBridge
from .clip.files import load_clip
from .config import Config, ConfigError
from .data import minibirds
from .data.batches import Source
from .data.datasets import open_dataset
from .data.shards import open_shards

SAMPLE_CAPTIONS = (
    "a red bird with black wings and a white belly in the snow",
    "a blue bird with yellow wings and an orange belly in a meadow",
    "a yellow bird with green wings and a purple belly in the sky",
    "a white bird with pink wings and a brown belly at sunset",
)


def pick_device(name: str = "auto") -> torch.device:
    """ "auto" -> cuda, else mps, else cpu; another name as it stands."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def make_bridge(config: Config, device: str | torch.device = "cpu", clip_model: CLIP | None = None) -> ClipBridge:
    """The frozen CLIP of a configuration behind its bridge."""
    if config.clip.name == "own" and clip_model is None:
        raise ConfigError("clip.name = 'own' needs a run folder, where that CLIP lies; or give clip_model")
    model = clip_model or load_clip(config.clip.name, device)
    return ClipBridge(model, config.clip.convention, config.clip.taps, config.clip.prompt_layers).to(device)


def with_own_clip(config: Config, folder: Path) -> Config:
    """The configuration with the file of the CLIP that the run in `folder` has trained itself, if it has."""
    if config.clip.name != "own":
        return config
    clip = config.clip.model_copy(update={"name": str(folder / "clip.safetensors")})
    return config.model_copy(update={"clip": clip})


def held_out_splits(config: Config) -> tuple[str, ...]:
    """The splits that are measured on; mini birds has two."""
    return ("seen", "test") if config.data.name == "minibirds" else ("test",)


def make_data(config: Config, split: str = "train", progress=iter) -> Source:
    """A split of the configured data set: mini birds are rendered, photographs and shards opened.

    Args:
        progress: wraps the drawing of mini birds (a tqdm, say); photographs have their own bar, unless it is `iter`.
    """
    data = config.data
    if data.name == "minibirds":
        count = data.train_size if split == "train" else data.test_size
        return minibirds.build(split, count, data.image_size, data.seed, progress)
    if data.name == "shards":
        if data.folder is None:
            raise ConfigError("data.name = 'shards' needs data.folder: the folder of the shards, or a pattern of them")
        return open_shards(data.folder, split, data.image_size, data.index, progress is not iter)
    return open_dataset(data.name, data.folder, split, data.image_size, progress is not iter)


def cache_name(config: Config, split: str = "train") -> str | None:
    """What the captions' embeddings of a split are stored under; mini birds' are made anew."""
    data = config.data
    if data.name == "minibirds":
        return None
    place = "" if data.folder is None else hashlib.sha256(str(Path(data.folder).resolve()).encode()).hexdigest()[:8]
    return "-".join(filter(None, (data.name, place, split)))
