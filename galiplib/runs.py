"""Run folders: a training that describes itself, goes on where it stopped, and exports its generator.

    <folder>/config.json           what the run is made of
    <folder>/metrics.jsonl         a line a step
    <folder>/evaluations.jsonl     a line an evaluation
    <folder>/samples/              the same captions and noise over the steps
    <folder>/clip.safetensors      the small CLIP, if the run trained its own (clip.name: own)
    <folder>/checkpoint.pt         everything needed to go on
    <folder>/generator.safetensors the EMA generator of a finished run, with its record
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from . import evaluation, minibirds
from .clip_bridge import CLIP, ClipBridge
from .clip_files import load_clip
from .clip_training import learn_clip
from .config import Config, ConfigError, build_config, changed
from .datasets import open_dataset
from .files import WeightsError, load_torch, save_weights, write_atomically, write_json
from .generator import Generator
from .judge import load_judge
from .sampling import contact_sheet, sample, save_png
from .training import Networks, Optimizers, StepReport, train
from .training_data import Source, TrainingData

KIND = "galiplib generator"
# may change between stop and resume
FREE_KEYS = ("eval.", "train.checkpoint_every", "train.sample_every", "train.evaluate_every")
EVALUATED = 1000  # pictures of an evaluation on the way
SAMPLE_CAPTIONS = (
    "a red bird with black wings and a white belly in the snow",
    "a blue bird with yellow wings and an orange belly in a meadow",
    "a yellow bird with green wings and a purple belly in the sky",
    "a white bird with pink wings and a brown belly at sunset",
)


def pick_device(name: str = "auto") -> torch.device:
    """"auto" -> cuda, else mps, else cpu; another name as it stands."""
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
    """A split of the configured data set: mini birds are rendered, photographs opened.

    Args:
        progress: wraps the drawing of mini birds (a tqdm, say); photographs have their own bar, unless it is `iter`.
    """
    data = config.data
    if data.name == "minibirds":
        count = data.train_size if split == "train" else data.test_size
        return minibirds.build(split, count, data.image_size, data.seed, progress)
    return open_dataset(data.name, data.folder, split, data.image_size, progress is not iter)


def cache_name(config: Config, split: str = "train") -> str | None:
    """What the captions' embeddings of a split are stored under; mini birds' are made anew."""
    data = config.data
    if data.name == "minibirds":
        return None
    place = "" if data.folder is None else hashlib.sha256(str(Path(data.folder).resolve()).encode()).hexdigest()[:8]
    return "-".join(filter(None, (data.name, place, split)))


def measure_generator(
    generator: Generator, bridge: ClipBridge, config: Config, images: int | None = None,
    splits: dict[str, Source] | None = None, progress: bool = True,
) -> dict[str, Any]:
    """Measure a generator on captions it has not seen, as its data set allows (see `evaluation`).

    Args:
        images: pictures to generate; by default `eval.images`.
        splits: the held-out splits, if they have been made already.
    """
    settings = config.eval if images is None else config.eval.model_copy(update={"images": images})
    splits = splits or {split: make_data(config, split) for split in held_out_splits(config)}
    if config.data.name == "minibirds":
        return evaluation.evaluate(generator, bridge, load_judge(), splits, settings, progress)
    return evaluation.evaluate_photos(generator, bridge, splits["test"], settings, progress)


class Run:
    """A training run in a folder; opening a folder that has a checkpoint goes on from it.

    With `clip.name` "own", opening it the first time trains the small CLIP of the run on its data.

    Raises:
        ConfigError: if the folder holds a run of another configuration; names the keys.
        WeightsError: for a damaged checkpoint.
        OSError: if the folder can't be written; names it.
    """

    def __init__(self, folder: str | Path, config: Config, device: str = "auto", progress: bool = True) -> None:
        self.folder, self.config, self.step = Path(folder), config, 0
        self._check_folder()
        self.device = pick_device(device)
        self.progress = progress
        clip_file = self.folder / "clip.safetensors"
        if config.clip.name == "own" and not clip_file.is_file():
            learn_clip(config, self.source, self.held_out, clip_file, self.device, progress)
        self.bridge = make_bridge(with_own_clip(config, self.folder), self.device)
        self.networks = Networks(self.bridge, config)
        self.optimizers = Optimizers(self.networks, config.train)
        if self.checkpoint.is_file():
            self._resume()

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def finished(self) -> bool:
        return self.step >= self.config.train.max_steps

    def _bar(self, desc: str):
        return partial(tqdm, desc=desc, mininterval=1) if self.progress else iter

    @cached_property
    def source(self) -> Source:
        """The training split."""
        return make_data(self.config, "train", self._bar("birds"))

    @cached_property
    def held_out(self) -> dict[str, Source]:
        """The splits to measure on."""
        return {split: make_data(self.config, split, self._bar("birds")) for split in held_out_splits(self.config)}

    @cached_property
    def data(self) -> TrainingData:
        """The training split with its captions through CLIP; made when first asked for, unless set before."""
        bar = self._bar("captions through CLIP")
        return TrainingData(self.bridge, self.source, cache_name(self.config), progress=bar)

    @cached_property
    def sample_captions(self) -> list[str]:
        """Four captions for the sample grids, of photographs those of held-out ones."""
        if self.config.data.name == "minibirds":
            return list(SAMPLE_CAPTIONS)
        captions = self.held_out["test"].captions
        return [captions[place * len(captions) // 4][0] for place in range(4)]

    def train(self) -> Iterator[StepReport]:
        """Train to the end, yielding every step's report; logs, samples and checkpoints on the way.

        Stopping it (Ctrl-C, the notebook's stop button, leaving the loop) writes a checkpoint first.
        """
        reports = train(self.networks, self.bridge, self.optimizers, self.data, self.config.train, self.step)
        total = self.config.train.max_steps
        with open(self.metrics, "a") as log, tqdm(
            total=total, initial=self.step, desc="GALIP", disable=not self.progress, mininterval=1
        ) as bar:
            try:
                for report in reports:
                    self.step = report.step
                    log.write(json.dumps(dataclasses.asdict(report)) + "\n")
                    if self.step % self.config.train.sample_every == 0 or self.finished:
                        self._save_samples()
                    every = self.config.train.evaluate_every
                    if every and (self.step % every == 0 or self.finished):
                        self._evaluate()
                    if self.step % self.config.train.checkpoint_every == 0 and not self.finished:
                        log.flush()
                        self.save()
                    bar.set_postfix(d=f"{report.loss_d:.2f}", clip=f"{report.similarity:.2f}", refresh=False)
                    bar.update()
                    yield report
            finally:
                log.flush()
                self.save()
        self.export(self.folder / "generator.safetensors")

    def save(self) -> None:
        """Write the checkpoint: networks, EMA, optimizers, step; the old one stays until the new one is whole."""
        state = {
            "step": self.step,
            "config": self.config.model_dump(),
            "networks": self.networks.state_dict(),
            "optimizer_d": self.optimizers.d.state_dict(),
            "optimizer_g": self.optimizers.g.state_dict(),
        }
        write_atomically(self.checkpoint, lambda stream: torch.save(state, stream))

    def export(self, path: str | Path, record: dict[str, Any] | None = None) -> None:
        """Write the EMA generator as fp16 safetensors with configuration and provenance."""
        tensors = {name: tensor.half() for name, tensor in self.networks.ema.state_dict().items()}
        save_weights(path, KIND, tensors, {"config": self.config.model_dump(), "steps": self.step, **(record or {})})

    def history(self) -> list[dict[str, Any]]:
        """The reports of all steps so far, from metrics.jsonl."""
        return _read_lines(self.metrics)

    def evaluations(self) -> list[dict[str, Any]]:
        """The evaluations on the way: step, and what `evaluation.evaluate` returns."""
        return _read_lines(self.folder / "evaluations.jsonl")

    def _evaluate(self) -> None:
        results = measure_generator(self.networks.ema, self.bridge, self.config, EVALUATED, self.held_out, False)
        with open(self.folder / "evaluations.jsonl", "a") as log:
            log.write(json.dumps({"step": self.step, **results}) + "\n")

    def _save_samples(self) -> None:
        made = sample(self.networks.ema, self.bridge, self.sample_captions, count=4, seed=0)
        path = self.folder / "samples" / f"step_{self.step:06d}.png"
        save_png(contact_sheet(made.images, columns=4, scale=2), path, {"step": str(self.step)})

    def _check_folder(self) -> None:
        path = self.folder / "config.json"
        if path.is_file() and self.checkpoint.is_file():
            before = build_config(json.loads(path.read_text()))
            keys = {k: v for k, v in changed(self.config, before).items() if not k.startswith(FREE_KEYS)}
            if keys:
                listed = ", ".join(f"{key} ({old!r} -> {new!r})" for key, (old, new) in keys.items())
                raise ConfigError(
                    f"{self.folder} holds a run of another configuration: {listed}. Choose another folder, set these "
                    "keys back, or delete the folder to start anew"
                )
        write_json(path, self.config.model_dump())

    def _resume(self) -> None:
        try:
            state = load_torch(self.checkpoint)
            self.networks.load_state_dict(state["networks"])
            self.optimizers.d.load_state_dict(state["optimizer_d"])
            self.optimizers.g.load_state_dict(state["optimizer_g"])
            self.step = state["step"]
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            raise WeightsError(f"{error}; delete {self.checkpoint} to start this run anew") from None
        for path in (self.metrics, self.folder / "evaluations.jsonl"):  # what follows the checkpoint is made again
            kept = [json.dumps(line) + "\n" for line in _read_lines(path) if line["step"] <= self.step]
            write_atomically(path, lambda stream, kept=kept: stream.write("".join(kept).encode()))


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
