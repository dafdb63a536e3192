"""Fair comparisons: several variants of a configuration, the same budget, several seeds, one row a run.

What is finished lies on disk, so that an experiment that was stopped, or is asked for again, repeats nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from tqdm import tqdm

from ..build import cache_name, held_out_data, make_bridge, make_data, pick_device, with_own_clip
from ..checkpoints.store import recorded_config
from ..clip.bridge import ClipBridge
from ..clip.training import learn_clip
from ..config import ClipConfig, Config, DataConfig, load_config
from ..data.batches import Source, TrainingData
from ..evaluation import measure_generator
from ..files import write_json
from .run import Run

Variants = Mapping[str, Mapping[str, Any]]  # name -> overrides of the profile


def ab(
    variants: Variants, seeds: Sequence[int], steps: int | Mapping[str, int], folder: str | Path,
    profile: str = "mini", images: int = 1000, progress: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """Train every variant with every seed for the same number of steps, or its own, and measure its averaged generator.

    With the same seed, all variants see the same pictures, captions and noise in the same order.

    Args:
        folder: of the results, `<variant>_seed<n>.json` and the generator beside it as .safetensors. A run that lies
            there with the same configuration is not repeated.
        images: generated pictures that are measured.

    Returns:
        A row a run, seed by seed: variant, seed, steps; what `measure_generator` gives, its dictionaries spread
        (`caption_accuracy.body`, ...); `accuracy` and `accuracy_held_out`, the means of the attributes; `parameters`
        of the generator; `seconds` of its training steps; and `generator`, its file.

    Raises:
        ConfigError: for a variant that sets what the profile doesn't know.
    """
    own = dict.fromkeys(variants, steps) if isinstance(steps, int) else steps
    runs = {(name, seed): configure(variants[name], seed, own[name], profile) for seed in seeds for name in variants}
    total = sum(config.train.max_steps for config in runs.values())
    rows = []
    real: dict[str, Any] = {}
    with tqdm(total=total, desc="A/B", unit="step", mininterval=1, disable=not progress) as bar:
        for (name, seed), config in runs.items():
            bar.set_postfix_str(f"{name}, seed {seed}")
            path = Path(folder) / f"{name.replace(' ', '_')}_seed{seed}.json"
            generator, found = path.with_suffix(".safetensors"), json.loads(path.read_text()) if path.is_file() else {}
            if found.get("images") == images and recorded_config(found["config"]) == config:
                bar.update(config.train.max_steps)
            else:
                found = {"config": config.model_dump(mode="json"), "images": images}
                found["row"] = _run(config, generator, images, bar, real)
                write_json(path, found)
            said = {"variant": name, "seed": seed, "steps": config.train.max_steps}
            rows.append(said | found["row"] | {"generator": str(generator)})
    return pd.DataFrame(rows)


def configure(changes: Mapping[str, Any], seed: int, steps: int, profile: str = "mini") -> Config:
    """The configuration of one run."""
    return load_config(profile, {**changes, "train.max_steps": steps, "train.seed": seed, "train.evaluate_every": 0})


def step_seconds(variants: Variants, rounds: int, folder: str | Path, profile: str = "mini") -> pd.DataFrame:
    """Seconds of training steps, (rounds, variants): in turns, so that what slows the machine slows all alike."""
    with TemporaryDirectory() as scratch, ExitStack() as stack:
        loops = {}
        for name, changes in variants.items():
            run = _open(configure(changes, 0, rounds + 3, profile), Path(scratch) / name, Path(folder))
            loops[name] = stack.enter_context(closing(run.train()))
        for loop in loops.values():
            next(loop), next(loop)  # the first steps set things up
        return pd.DataFrame([{name: next(loop).seconds for name, loop in loops.items()} for _ in range(rounds)])


def spread(rows: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Mean and standard deviation (n - 1) of columns over the seeds, a row a variant in the order of `rows`."""
    return rows.groupby("variant", sort=False)[list(columns)].agg(["mean", "std"])


def prepare(config: Config, folder: str | Path) -> tuple[ClipBridge, TrainingData, dict[str, Source]]:
    """CLIP, training data and held-out splits of a configuration; kept for the next one that has the same.

    With `clip.name` "own", the small CLIP is trained first and kept in `folder`.
    """
    return _prepare(config.data, config.clip, Path(folder))


@lru_cache(maxsize=1)
def _prepare(data: DataConfig, clip: ClipConfig, folder: Path) -> tuple[ClipBridge, TrainingData, dict[str, Source]]:
    config, device = Config(data=data, clip=clip), pick_device()
    train_split = make_data(config)
    splits = held_out_data(config)
    clip_file = folder / "clip.safetensors"
    if clip.name == "own" and not clip_file.is_file():
        learn_clip(config, train_split, splits, clip_file, device, True)
    bridge = make_bridge(with_own_clip(config, folder), device)
    return bridge, TrainingData(bridge, train_split, cache_name(config)), splits


def _open(config: Config, run_folder: Path, folder: Path) -> Run:
    """A run with the data, and a CLIP of its own, that the others in `folder` have too."""
    _, data, splits = prepare(config, folder)
    if config.clip.name == "own":
        run_folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "clip.safetensors", run_folder)
    run = Run(run_folder, config, progress=False)
    run.source, run.data, run.held_out = data.source, data, splits
    return run


def _run(config: Config, file: Path, images: int, bar: tqdm, real: dict[str, Any]) -> dict[str, Any]:
    """Train, measure, write the generator -> the row. What was stopped goes on from the folder beside the file.

    `real` keeps the real pictures as they were seen, for the next run with the same data, CLIP and measures.
    """
    folder = file.with_suffix("")
    recorded = folder / "config.json"
    if recorded.is_file() and recorded_config(json.loads(recorded.read_text())) != config:
        shutil.rmtree(folder)
    run = _open(config, folder, file.parent)
    bar.update(run.step)
    for _ in run.train():
        bar.update()
    settings = config.model_copy(update={"eval": config.eval.model_copy(update={"images": images})})
    row: dict[str, Any] = {}
    seen_by = f"{settings.data} {settings.clip} {settings.eval}"
    found = measure_generator(run.system.ema, run.bridge, settings, run.held_out, False, real.get(seen_by))
    results, real[seen_by] = found.values, found.real
    for name, value in results.items():
        row |= {f"{name}.{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
    if "caption_accuracy" in results:
        for name, key in (("accuracy", "caption_accuracy"), ("accuracy_held_out", "caption_accuracy_held_out")):
            row[name] = sum(results[key].values()) / len(results[key])
    row["parameters"] = sum(parameter.numel() for parameter in run.system.generator.parameters())
    row["seconds"] = sum(report["seconds"] for report in run.history())
    run.export(file)
    shutil.rmtree(folder)
    return row
