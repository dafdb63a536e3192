"""Measure a generator: every number from one pass over its pictures, with its error and what it is to be read beside.

The Fréchet distance is named after what it is over: the judge's features for mini birds, the run's CLIP for
photographs, InceptionV3's (only then an FID) on request. The judge has learned to look past blur and grain: it sees
what is drawn and how varied, less how sharply.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..build import dataset_of, held_out_data, make_bridge, make_data
from ..clip.bridge import ClipBridge
from ..clip.files import load_clip
from ..config import Config, EvalConfig
from ..data import minibirds
from ..data.batches import Source
from ..distributed import same_failure
from ..images import EvaluationError
from .crowds import Names, halved_distance
from .features import Extractor, extractor
from .folders import evaluate_folder
from .frechet import Statistics, frechet_of
from .given import as_asked
from .judge import JUDGED, Judge, load_judge
from .measures import (
    Measured,
    diversity,
    kernel_distance,
    mean_of,
    precision_recall,
    r_precision,
    share_of,
)
from .passes import KEPT, Eyes, FakeSide, RealSide, batches
from .protocol import Plan, draw, embed_captions, evaluating, plan
from .rows import Rows
from .statistics_files import load_statistics, real_statistics

CAPTIONS, TRIES = 50, 4  # of which diversity draws pictures, and how many of each


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        plan: what was drawn.
        scores: name -> of every picture of the plan, (N,); see `FakeSide`.
        values: name -> number, or for caption accuracies attribute -> share; what `evaluate` describes.
        errors: their standard errors, by the same names, where there is one.
        left_out: name -> why it could not be measured.
    """

    plan: Plan
    scores: dict[str, Tensor]
    values: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Values, `errors` and `left_out`, for a JSON file."""
        return self.values | {"errors": self.errors, "left_out": self.left_out}

    def add(self, name: str, measured: Measured | float) -> None:
        """Note a value, with its error if there is one."""
        value, error = measured[:2] if isinstance(measured, Measured) else (measured, math.nan)
        self.values[name] = value
        if math.isfinite(error):
            self.errors[name] = error

    def attempt(self, name: str, measure: Callable[[], Measured | dict[str, Measured]]) -> None:
        """Note what a measure gives, or why it can't be taken of so few."""
        try:
            found = measure()
        except EvaluationError as error:
            self.left_out[name] = str(error)
            return
        for own, measured in found.items() if isinstance(found, dict) else ((name, found),):
            self.add(own, measured)


def evaluate(
    generator: nn.Module,
    bridge: ClipBridge,
    data: dict[str, Source],
    config: EvalConfig,
    judge: Judge | None = None,
    note: dict[str, Any] | None = None,
    progress: bool = True,
) -> Evaluation:
    """Measure a generator; the same numbers for the same arguments, whatever the batch size and number of processes.

    Pictures are drawn of the captions that `plan` chooses (`eval.images`, `eval.per_caption`), looked at once by every
    network, and forgotten; memory grows by some hundred bytes a picture. Of several processes (torch.distributed) each
    takes its share, and torchmetrics gathers.

    Args:
        data: the split "test", or for mini birds "seen" (new birds of trained combinations) and "test" (combinations
            held out): then half of the pictures are of each, and all but caption_accuracy_held_out is of "seen".
        judge: for mini birds.
        note: says what the real pictures are, for `eval.statistics: cache`.

    Returns:
        An `Evaluation` with the values, over the features of the first of `eval.features`:
        frechet_distance: half of the real pictures against those generated of the others, a picture of each row, mean
            over several ways to halve: as many a side (frechet_images) as in frechet_floor, which is real against
            real. A generator as good as the real pictures gets the floor.
        frechet_all: every generated picture (images_measured) against every real one (frechet_all_real), or against
            `eval.statistics`, as distances are published; the more pictures the smaller.
        kernel_distance; precision, recall, density, coverage; diversity (mean distance of the features of pictures of
            one caption) and diversity_real (of any two real ones).
        Over InceptionV3's they are called fid (frechet_all), fid_halves (frechet_distance), fid_floor, fid_images,
            fid_real_images, kid, inception_precision, ...; over further ones they have the extractor's name in front.
        clip_similarity, clip_similarity_real: mean cosine with the caption, in the run's input convention of CLIP
            (clip_convention; "reference" compares with published ones). clip_score, clip_score_real: CLIPScore, in
            CLIP's own. r_precision, r_precision_real: how often a picture's own caption fits it best among 100.
        ssim, ms_ssim, lpips, topiq, topiq_real: as `eval.metrics` asks.
        caption_accuracy, caption_accuracy_held_out: attribute -> share of generated pictures in which the
            judge sees what the caption asked for; caption_accuracy_real: of real ones, the ceiling; chance.
        images: pictures generated, over both splits; images_measured: of the first; features: extractors' names.

    Raises:
        EvaluationError: for a missing split, too few pictures, or a generated picture that is not finite.
    """
    main = "seen" if judge else "test"
    if missing := {main, "test"} - set(data):
        raise EvaluationError(f"evaluation needs the splits {main} and test; missing: {sorted(missing)}")
    images = config.images
    if judge and images != "all":
        images -= images // 2
    chosen = plan(data[main].captions, images, config.per_caption, config.seed)
    if len(chosen.real) < 4:
        raise EvaluationError(f"an evaluation needs four different real pictures, not {len(chosen.real)}")
    extractors = [_extractor(name, bridge, judge, config) for name in config.features or _usual(judge)]
    with evaluating(generator), evaluating(bridge):
        eyes = Eyes(bridge, extractors, judge)
        real = RealSide(data[main], chosen, eyes, extractors, config.batch_size, progress)
        fake = FakeSide(generator, bridge, eyes, extractors, judge, config, real, progress)
        result = Evaluation(chosen, fake.scores)
        for index, one in enumerate(extractors):
            names = Names(one.name, index == 0)
            whole = _whole(one, data[main], config, note, progress) if index == 0 else None
            _compare_crowds(result, names, real, fake, whole)
        if config.diversity:
            _measure_diversity(result, generator, bridge, extractors[0], config, real)
        _measure_scores(result, real, fake, bridge)
        count = len(chosen)
        if judge:
            other = images if images == "all" else config.images // 2
            held_out = plan(data["test"].captions, other, config.per_caption, config.seed)
            _measure_accuracies(result, generator, bridge, judge, held_out, config, progress)
            count += len(held_out)
    result.values.update(images=count, images_measured=len(chosen), features=[one.name for one in extractors])
    return result


def _whole(
    look: Extractor, data: Source, config: EvalConfig, note: dict[str, Any] | None, progress: bool
) -> Statistics | None:
    """The real pictures' statistics that `eval.statistics` names."""
    if config.statistics is None:
        return None
    if config.statistics != "cache":
        return load_statistics(config.statistics, look.dim)[0]
    if note is None:
        raise EvaluationError("eval.statistics: cache needs a note of what the real pictures are")
    return real_statistics(data, look, note, progress=progress)


def _usual(judge: Judge | None) -> tuple[str, ...]:
    return ("judge",) if judge else ("clip",)


def _extractor(name: str, bridge: ClipBridge, judge: Judge | None, config: EvalConfig) -> Extractor:
    if name == "judge" and judge is None:
        raise EvaluationError("eval.features: the judge knows mini birds only; use clip or inception")
    device = bridge.pixel_mean.device
    parts = {"judge": {"judge": judge}, "clip": {"bridge": bridge}}
    return extractor(name, **parts.get(name, {"weights": config.inception, "device": device}))


def _compare_crowds(result: Evaluation, names: Names, real: RealSide, fake: FakeSide, whole: Statistics | None) -> None:
    """Distances between the features of all real and all generated pictures."""
    ours, theirs = real.moments[names.extractor], fake.moments[names.extractor]
    result.add(names("frechet_distance"), halved_distance(ours, theirs))
    result.add(names("frechet_floor"), halved_distance(ours, ours))
    result.values[names("frechet_images")] = len(real.plan.real) // 2
    whole = whole or ours.statistics()
    result.add(names("frechet_all"), frechet_of(whole, theirs.statistics()).value)
    result.values[names("frechet_all_real")] = whole.count
    kept_real, kept_fake = real.features[names.extractor][:KEPT], fake.features[names.extractor]
    result.attempt(names("kernel_distance"), lambda: kernel_distance(kept_real, kept_fake))
    result.attempt(
        names("precision"),
        lambda: {names(name): found for name, found in precision_recall(kept_real, kept_fake).items()},
    )


def _measure_diversity(
    result: Evaluation, generator: nn.Module, bridge: ClipBridge, look: Extractor, config: EvalConfig, real: RealSide
) -> None:
    captions = list(dict.fromkeys(real.plan.captions))[: config.diversity]
    entries = [(text, number) for text in captions for number in range(TRIES)]
    found = []
    for start in range(0, len(entries), config.batch_size):
        part = entries[start : start + config.batch_size]
        text = embed_captions(bridge, [text for text, _ in part])
        numbers = range(len(real.plan) + start, len(real.plan) + start + len(part))  # noise of its own
        found.append(look(draw(generator, text, numbers, config.seed, text.device)))
    groups = [index // TRIES for index in range(len(entries))]
    result.add("diversity", mean_of(diversity(torch.cat(found), groups)))
    result.add("diversity_real", torch.pdist(real.features[look.name][:KEPT]).mean().item())


def _measure_scores(result: Evaluation, real: RealSide, fake: FakeSide, bridge: ClipBridge) -> None:
    """Means of what was noted of single pictures, and caption retrieval."""
    accuracies: dict[str, dict[str, Measured]] = {"caption_accuracy": {}, "caption_accuracy_real": {}}
    for name, scores in fake.scores.items():
        own = name.removesuffix("_real")
        if own in JUDGED:
            asked = scores[scores.isfinite()]
            accuracies["caption_accuracy" + name.removeprefix(own)][own] = share_of(asked)
        else:
            result.add(name, mean_of(scores))
    if accuracies["caption_accuracy"]:
        for name, found in accuracies.items():
            _add_accuracies(result, name, found)
        result.values["chance"] = {name: 1 / len(minibirds.ATTRIBUTES[name]) for name in JUDGED}
    result.values["clip_convention"] = bridge.convention
    captions = fake.plan.captions[: len(fake.image)]
    photos = real.features["clip"][torch.from_numpy(fake.plan.place[: len(fake.image)])]
    result.attempt("r_precision", lambda: share_of(r_precision(fake.image, fake.text, captions)))
    result.attempt("r_precision_real", lambda: share_of(r_precision(photos, fake.text, captions)))


def _measure_accuracies(
    result: Evaluation, generator: nn.Module, bridge: ClipBridge, judge: Judge, held_out: Plan, config: EvalConfig,
    progress: bool,
) -> None:  # fmt: skip
    """Caption accuracy on combinations that training never showed."""
    rows = {name: Rows() for name in JUDGED}
    look = extractor("judge", judge=judge)
    with same_failure():
        for numbers in batches(len(held_out), config.batch_size, "held-out combinations", progress):
            captions = [held_out.captions[number] for number in numbers.tolist()]
            text = embed_captions(bridge, captions)
            images = draw(generator, text, numbers.tolist(), config.seed, text.device)
            for name, hits in as_asked(judge, look(images), captions).items():
                rows[name].update(numbers, hits)
    found = {name: own.ordered() for name, own in rows.items()}
    _add_accuracies(result, "caption_accuracy_held_out", {n: share_of(own[own.isfinite()]) for n, own in found.items()})


def _add_accuracies(result: Evaluation, name: str, found: dict[str, Measured]) -> None:
    result.values[name] = {attribute: found[attribute].value for attribute in JUDGED}
    result.errors[name] = {n: one.error for n, one in found.items() if math.isfinite(one.error)}


# ---------------------------------------------------------------- from a configuration


def measure_generator(
    generator: nn.Module,
    bridge: ClipBridge,
    config: Config,
    splits: dict[str, Source] | None = None,
    progress: bool = True,
) -> Evaluation:
    """Measure a generator on captions it has not seen, as its data set and `eval` say (see `evaluate`).

    Args:
        splits: the held-out splits, if they have been made already.
    """
    splits = splits or held_out_data(config)
    judge = load_judge() if dataset_of(config).judged else None
    return evaluate(generator, bridge, splits, config.eval, judge, dataset_of(config).note(config.data), progress)


def measure_folder(
    folder: str | Path, config: Config, clip: str | None = None, progress: bool = True,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:  # fmt: skip
    """Measure pictures in a folder by a configuration's data set, CLIP and `eval.features` (see `evaluate_folder`).

    Args:
        clip: another CLIP, by name or file.
    """
    bridge = make_bridge(config, device, load_clip(clip) if clip else None)
    judge = load_judge() if dataset_of(config).judged else None
    look = _extractor((config.eval.features or _usual(judge))[0], bridge, judge, config.eval)
    real = make_data(config, dataset_of(config).held_out[0])
    return evaluate_folder(folder, real, look, bridge, judge, config.eval.batch_size, progress)


def distance_of(results: dict[str, Any]) -> float:
    """Of an evaluation's record, the distance that is watched while training: lower is better."""
    return results["frechet_distance"] if "frechet_distance" in results else results["fid"]
