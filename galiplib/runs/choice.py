"""Which generator to begin with.

To draw: of those at hand the one whose pictures look most real, as far as it was measured. To train: what `train.start`
names, if it fits.
"""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..checkpoints.loading import generator_config, generator_record, load_generator
from ..checkpoints.store import Checkpoints, find_checkpoints
from ..config import Config, ConfigError, changed
from ..data import DataError
from ..files import WeightsError, load_torch
from ..system import System
from .log import read_lines

SHIPPED = "mini"  # what `load_generator` calls the weights in the package
CLIP = ("clip.name", "clip.convention", "clip.taps", "clip.prompt_layers", "clip.damsm")  # what decides which it is
JUDGING = ("model.disc_channels", "model.head_channels", "model.projected", "model.energy")  # of discriminators only


def best_at_hand(out: str | Path = "outputs", profile: str = "mini") -> tuple[str, dict[str, float]]:
    """What to load, and what there was to choose from: weights -> Fréchet distance over ImageNet's features, in floors.

    Compared are the finished runs below `out`, each by its newest checkpoint and its best one on the way, and the
    shipped weights, all of `profile` or its variants. Where no run has such a distance on record (without the
    network's package, or of before it) it is the run of notebook 05, or else the shipped weights.
    """
    usual = Path(out) / profile.replace(":", "-") / "train"
    runs = find_checkpoints(out)
    found = {str(path): floors for run in runs for path, floors in _recorded(run, _base(profile)).items()}
    if not found:
        return str(usual) if usual in runs else SHIPPED, {}
    record = generator_record()
    if _base(record["config"]["profile"]) == _base(profile):
        found[SHIPPED] = _floors(record.get("metrics", {}))
    found = {source: floors for source, floors in found.items() if floors < math.inf}
    return min(found, key=found.__getitem__), found


def _base(profile: str) -> str:
    """A profile's name without its variant's."""
    return profile.partition(":")[0]


def _floors(results: dict[str, Any]) -> float:
    """The distance of an evaluation's record over its floor, infinite if it was not measured."""
    return results.get("imagenet_frechet_distance", math.inf) / results.get("imagenet_frechet_floor", 1.0)


def _recorded(run: Path, profile: str) -> dict[Path, float]:
    """The checkpoints of a finished run of a profile that were measured: in floors, by what `load_generator` takes."""
    kept, made, said = Checkpoints(run), run / "config.json", run / "results.json"
    config = json.loads(made.read_text()) if made.is_file() else {}
    newest = next(iter(kept.numbered()), None)
    step = int(newest.stem[5:]) if newest else 0
    if not newest or _base(config.get("profile", "")) != profile or step < config["train"]["max_steps"]:
        return {}
    lines = {line["step"]: _floors(line) for line in read_lines(run / "evaluations.jsonl")}
    found = {run: lines.get(step, math.inf)}
    if said.is_file() and said.stat().st_mtime >= newest.stat().st_mtime:  # by `galip evaluate --weights RUN --out RUN`
        results = json.loads(said.read_text())
        if Path(results.get("weights", "")).resolve() == run.resolve():
            found[run] = _floors(results)
    with suppress(WeightsError):  # there is none, or it is damaged
        found[kept.best] = lines.get(load_torch(kept.best)["step"], math.inf)
    return {path: floors for path, floors in found.items() if floors < math.inf}


def check_start(config: Config, pictures: int) -> None:
    """Whether a training on so many pictures can begin with the generator that `train.start` names.

    Raises:
        WeightsError: if there is none, or it doesn't say how it was trained.
        ConfigError: for another system, CLIP or generator than the configuration's; names the keys.
        DataError: for fewer than two pictures: no caption could be another picture's.
    """
    start, other = str(config.train.start), []
    for key, (there, here) in changed(config, generator_config(start)).items():
        if key in ("system", *CLIP) or (key.startswith("model.") and not key.startswith(JUDGING)):
            other.append(f"{key} ({there!r} there, {here!r} here)")
    if other:
        raise ConfigError(
            f"train.start = {start} is another generator than this training's: {', '.join(other)}. Set these keys to "
            "what they are there, or leave train.start out to begin anew"
        )
    if pictures < 2:
        raise DataError(f"{pictures} training picture is too few to go on from {start}: it takes 2, better 100 or more")


def begin(config: Config, system: System) -> None:
    """Give the generator and its average the weights that `train.start` names; discriminators begin anew."""
    system.averaged().load_state_dict(load_generator(str(config.train.start)).state_dict())
    system.start_average()
