"""What a run is made of, from its configuration: device, CLIP, data."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from tqdm import tqdm

from .clip.bridge import CLIP, ClipBridge
from .clip.damsm import WORDS
from .clip.damsm_files import ELSEWHERE, DamsmBridge, load_damsm
from .clip.files import SHIPPED, load_clip
from .config import Config, ConfigError, GalipConfig
from .data import SPLITS, EmptySplit
from .data.batches import Source
from .data.datasets import Dataset, dataset
from .data.shard_writing import PER_SHARD, write_shards
from .data.shards import Shards, open_shards
from .system import System, Text, TextToImage
from .systems import system_class


def pick_device(name: str = "auto") -> torch.device:
    """ "auto" -> cuda, else mps, else cpu; another name as it stands. Raises ConfigError for one that isn't here."""
    here = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if name == "auto":
        return torch.device(next(kind for kind, count in here.items() if count))
    kind, colon, number = str(name).partition(":")
    if kind not in here or bool(colon) != number.isdecimal():
        raise ConfigError(f"unknown device {name!r}: one of auto, cuda (cuda:0, cuda:1, ...), mps, cpu")
    if int(number or 0) >= here[kind]:
        listed = ", ".join(f"{count} of {kind}" for kind, count in here.items() if count)
        raise ConfigError(f"there is no device {name} that torch {torch.__version__} can use here, only {listed}")
    return torch.device(name)


def make_bridge(
    config: Config, device: str | torch.device = "cpu", clip_model: CLIP | DamsmBridge | None = None
) -> ClipBridge:
    """The frozen CLIP of a configuration behind its bridge; with `clip.damsm` the DAMSM in its place."""
    if config.clip.damsm is not None and not isinstance(clip_model, DamsmBridge):
        if isinstance(config.model, GalipConfig):
            raise ConfigError(f"clip.damsm can't serve the system {config.system}, which looks through CLIP's eyes")
        plain = config.model_copy(update={"clip": config.clip.model_copy(update={"damsm": None})})
        eyes = partial(make_bridge, plain, device, clip_model)
        unknown = config.clip.damsm == ELSEWHERE
        clip_model = DamsmBridge() if unknown else load_damsm(config.clip.damsm, eyes, WORDS)
    if isinstance(clip_model, DamsmBridge):
        return cast(ClipBridge, clip_model.to(device))
    if config.clip.name == "own" and clip_model is None:
        raise ConfigError("clip.name = 'own' needs a run folder, where that CLIP lies; or give clip_model")
    model = clip_model or load_clip(config.clip.name, device)
    return ClipBridge(model, config.clip.convention, config.clip.taps, config.clip.prompt_layers).to(device)


def context_of(config: Config) -> int:
    """How many tokens the CLIP of a configuration reads, begin and end among them; OpenAI's need not be there."""
    if config.clip.name == "own":
        return config.clip.context_length
    small = config.clip.name in SHIPPED or config.clip.name.endswith(".safetensors")
    return load_clip(config.clip.name).context_length if small else 77


def make_system(bridge: ClipBridge, config: Config) -> System:
    """The untrained networks of a configuration, on the CLIP's device; `train.seed` decides their weights."""
    torch.manual_seed(config.train.seed)
    system = system_class(config.system)(bridge, config)
    system.start_average()
    return system.to(bridge.pixel_mean.device).to(memory_format=torch.channels_last)


def make_generator(bridge: ClipBridge, config: Config) -> TextToImage:
    """The untrained generator of a configuration alone."""
    return system_class(config.system).make_generator(bridge, config.model)


def text_of(bridge: ClipBridge, tokens: Tensor, wants: Collection[str] = ()) -> Text:
    """Token ids (B, context) -> all that a generator `wants` of captions, on the bridge's device."""
    tokens = tokens.to(bridge.pixel_mean.device)
    if "words" not in wants:
        return Text(bridge.encode_text(tokens).float())
    sentence, words = bridge.encode_words(tokens)
    return Text(sentence.float(), words.float(), ~words.any(2))


def with_own_clip(config: Config, folder: Path) -> Config:
    """The configuration with the file of the CLIP that the run in `folder` has trained itself, if it has."""
    if config.clip.name != "own":
        return config
    clip = config.clip.model_copy(update={"name": str(folder / "clip.safetensors")})
    return config.model_copy(update={"clip": clip})


def dataset_of(config: Config) -> Dataset:
    """The entry of the configured data set."""
    return dataset(config.data.name)


def make_data(config: Config, split: str = "train", progress=iter) -> Source:
    """A split of the configured data set: mini birds are rendered, photographs and shards opened.

    Args:
        progress: wraps the drawing of mini birds (a tqdm, say); photographs have their own bar, unless it is `iter`.
    """
    return dataset_of(config).open(config.data, split, progress)


def held_out_data(config: Config, progress=iter) -> dict[str, Source]:
    """The splits that are measured on, those with pictures."""
    found = {}
    for split in dataset_of(config).held_out:
        with suppress(EmptySplit):
            found[split] = make_data(config, split, progress)
    return found


def cache_name(config: Config, split: str = "train") -> str | None:
    """What the captions' embeddings of a split are stored under; mini birds' are made anew."""
    return dataset_of(config).cache_name(config.data, split)


def make_shards(
    config: Config, folder: str | Path, per_shard: int = PER_SHARD, embed: bool = True, device: str = "auto",
    progress: bool = True,
) -> dict[str, Shards]:  # fmt: skip
    """Write the training and the test split of a configuration's data set as shards; called again, it goes on.

    Args:
        folder: to write to.
        per_shard: pictures in a shard.
        embed: also compute the embeddings of the training captions with the configuration's CLIP, on `device`; their
            file's name tells which CLIP, and a run with another makes its own.

    Returns:
        {split: the shards, opened}.

    Raises:
        ConfigError: if the CLIP is one that is trained by the run itself.
        DataError: if the data set can't be written, or the folder holds other shards.
        OSError: if the folder can't be written.
    """
    data, bridge, opened = config.data, make_bridge(config, pick_device(device)) if embed else None, {}
    for split in SPLITS:
        samples, made = dataset_of(config).samples(data, split, progress)
        made |= {"split": split, "size": data.image_size}
        write_shards(samples, Path(folder) / split, made, per_shard, progress)
        opened[split] = open_shards(folder, split, data.image_size, progress=progress)
    if bridge:
        opened["train"].sentences(bridge, partial(tqdm, desc="captions through CLIP") if progress else iter)
    return opened
