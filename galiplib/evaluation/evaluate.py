"""Measure a generator: every number from one pass over its pictures, with its error and what it is to be read beside.

The Fréchet distance is named after what it is over: the judge's features for mini birds, the run's CLIP for
photographs, InceptionV3's (only then an FID) on request. The judge has learned to look past blur and grain: it sees
what is drawn and how varied, less how sharply. So EfficientNet-Lite2's stand beside either, which see that.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..build import dataset_of, held_out_data, make_bridge, make_data
from ..clip.bridge import ClipBridge
from ..clip.files import load_clip
from ..config import Config, EvalConfig
from ..data import minibirds
from ..data.batches import Source
from ..data.embeddings import unreadable
from ..data.pictures import some
from ..images import EvaluationError, TooFew
from ..system import TextToImage
from .features import (
    Extractor,
    ImagenetFeatures,
    default_features,
    extractor,
    load_statistics,
    measure_name,
    real_statistics,
)
from .judge import JUDGED, Judge, load_judge
from .measures import (
    FEWEST,
    Measured,
    Statistics,
    diversity,
    frechet_of,
    halved_distance,
    kernel_distance,
    mean_of,
    precision_recall,
    r_precision,
    share_of,
)
from .noticed import OPEN, OPEN_PICTURES, PixelFeatures, pixel_spread, variety
from .passes import (
    KEPT,
    FeatureNetworks,
    Pictures,
    Seen,
    drawn_pictures,
    fitting_pictures,
    folder_pictures,
    look_at,
    real_pictures,
)  # fmt: skip
from .photographs import bird_share, colour_following
from .pixels import pixel_measure
from .protocol import BATCH, Plan, evaluating, plan

TRIES = 4  # pictures of a caption that diversity compares
SPREAD = 200  # real photographs of which a pixel's deviation is taken


@dataclass(frozen=True)
class Evaluation:
    """What was measured."""

    plan: Plan | None  # what was drawn, of a generator
    scores: dict[str, Tensor]  # name -> of every picture (N,), see `passes.Seen`
    values: dict[str, Any] = field(default_factory=dict)  # see `evaluate`; caption accuracies are attribute -> share
    errors: dict[str, Any] = field(default_factory=dict)  # standard errors, by the same names, where there is one
    left_out: dict[str, str] = field(default_factory=dict)  # name -> why it could not be measured
    real: Seen | None = None  # the real pictures as they were seen, for another evaluation beside the same ones

    def record(self) -> dict[str, Any]:
        """Values, `errors` and `left_out`, for a JSON file."""
        return self.values | {"errors": self.errors, "left_out": self.left_out}

    def add(self, name: str, measured: Measured, attribute: str | None = None) -> None:
        """Note a value, of an attribute if need be, with its error if there is one."""
        values, errors, key = self.values, self.errors, name
        if attribute:
            values, errors, key = values.setdefault(name, {}), errors.setdefault(name, {}), attribute
        values[key] = measured.value
        if math.isfinite(measured.error):
            errors[key] = measured.error

    def attempt(self, name: str, measure: Callable[[], Measured | dict[str, Measured]]) -> None:
        """Note what a measure gives, or why it can't be taken of so few."""
        try:
            found = measure()
        except EvaluationError as error:
            self.left_out[name] = str(error)
        else:
            for own, measured in found.items() if isinstance(found, dict) else ((name, found),):
                self.add(own, measured)

    def add_scores(self, scores: dict[str, Tensor], suffix: str = "") -> None:
        """Note the means of what was said of single pictures; of the judge, the shares of what captions asked for."""
        for name, found in scores.items():
            attribute = name.removesuffix("_real")
            asked = found[found.isfinite()]
            if attribute not in JUDGED:
                self.add(name, mean_of(found))
            elif len(asked):
                self.add("caption_accuracy" + name.removeprefix(attribute) + suffix, share_of(asked), attribute)

    def add_spread(
        self, end: str, pictures: Callable[[Sequence[str]], Pictures], captions: Sequence[str],
        looks: Sequence[Extractor], judge: Judge | None, passed: tuple[int, bool],
    ) -> None:  # fmt: skip
        """Note how pictures of one caption differ, `TRIES` of each; of mini birds also what they have where it is open.

        `pictures` makes some of captions; names end in `end`.
        """
        own, tries = pictures(captions), [index // TRIES for index in range(len(captions))]
        pixels = PixelFeatures(own.get(torch.arange(1))[0].shape[1:])
        features = look_at(own, FeatureNetworks([*looks, pixels]), *passed).features
        for look in looks:
            name = "diversity" if look is looks[0] else f"{look.name}_diversity"
            self.add(name + end, mean_of(diversity(features[look.name], tries)))
        self.add(f"pixel_spread{end}", mean_of(pixel_spread(features[pixels.name], tries)))
        if judge:
            seen = look_at(pictures([OPEN] * OPEN_PICTURES), FeatureNetworks((), judge=judge), *passed)
            for name, number in variety(judge.answers(seen.features["judge"])).items():
                self.add(name + end, number)

    def of_few(self, name: str, measure: Callable[[], float]) -> None:
        """Note a value without an error, or why there is none."""
        self.attempt(name, lambda: Measured(measure(), math.nan, 0))

    def add_distances(self, look: Extractor, first: bool, real: Seen, fake: Seen, whole: Statistics | None) -> None:
        """Note what compares the features of all generated with those of all real pictures."""
        names = partial(measure_name, features=look.name, first=first)
        ours, theirs = real.moments[look.name], fake.moments[look.name]
        if self.plan:  # so that each generated picture belongs to a real one
            self.attempt(names("frechet_distance"), lambda: halved_distance(ours, theirs))
        self.attempt(names("frechet_floor"), lambda: real.floors[look.name])
        if names("frechet_floor") in self.values:
            self.values[names("frechet_images")] = real.pictures.count // 2
        of_all = partial(ours.distance, None, theirs, None)
        self.of_few(names("frechet_all"), lambda: frechet_of(whole, theirs.statistics()).value if whole else of_all())
        self.values[names("frechet_all_real")] = whole.count if whole else int(ours.count.sum())
        sides = real.features[look.name][:KEPT], fake.features[look.name][:KEPT]
        self.attempt(names("kernel_distance"), lambda: kernel_distance(*sides))
        shares = partial(precision_recall, *sides)
        self.attempt(names("precision"), lambda: {names(name): found for name, found in shares().items()})

    def add_photographs(
        self, look: ImagenetFeatures, real: Tensor, fake: Tensor, rows: Tensor, captions: Sequence[Sequence[str]],
        asked: Sequence[str],
    ) -> None:  # fmt: skip
        """Note what is asked of photographs; arguments as `photographs.colour_following`."""
        share = bird_share(look.network.classes(real))
        if share.value >= 0.5:  # a data set of birds
            self.add("bird_share", bird_share(look.network.classes(fake)))
            self.add("bird_share_real", share)
        for part, measured in colour_following(real, captions, rows, fake, asked).items():
            for name, found in measured.items():
                self.add(name, found, part)


def evaluate(
    generator: TextToImage, bridge: ClipBridge, data: dict[str, Source], config: EvalConfig,
    judge: Judge | None = None, note: dict[str, Any] | None = None, progress: bool = True, real: Seen | None = None,
) -> Evaluation:  # fmt: skip
    """Measure a generator; the same numbers for the same arguments, whatever the batch size and number of processes.

    Pictures of the captions that `plan` chooses are drawn, looked at once by every network, and forgotten; memory grows
    by some hundred bytes a picture.

    Args:
        data: the split "test", or for mini birds "seen" (new birds of trained combinations) and "test" (combinations
            held out): then half of the pictures are of each, and all but caption_accuracy_held_out is of "seen".
        note: says what the real pictures are, for `eval.statistics: cache`.
        real: `Evaluation.real` of an earlier evaluation with the same bridge, data, settings and judge; nothing of it
            is computed again.

    Returns:
        An `Evaluation` with the values, over the features of the first of `eval.features`:
        frechet_distance: half of the real pictures against those generated of the others, a picture of each row, mean
            over several ways to halve: as many a side (frechet_images) as in frechet_floor, real against real, which a
            generator as good as the real pictures gets.
        frechet_all: every generated picture (images_measured) against every real one (frechet_all_real), or against
            `eval.statistics`, as distances are published; the more pictures the smaller.
        kernel_distance; precision, recall, density, coverage; diversity (mean distance of the features of pictures of
            one caption); pixel_spread (`noticed.pixel_spread`); of mini birds effective_backgrounds, effective_bellies
            (`noticed.variety`). diversity_real_of says what diversity_real is of: pictures of one caption where such
            can be drawn, else any two.
        Over InceptionV3's they are called as in `features.PUBLISHED`, or inception_...; over further ones they have the
            extractor's name in front.
        clip_similarity: mean cosine with the caption, in the run's input convention of CLIP (clip_convention);
            clip_score: CLIPScore, in CLIP's own; r_precision: how often a picture's own caption fits best among 100.
        energy_eighth to fine_energy, colourfulness, saturation, rim: as `noticed.noticed` says, means.
        ssim, ms_ssim, lpips, topiq: as `eval.metrics` asks.
        caption_accuracy, caption_accuracy_held_out: attribute -> share of generated pictures in which the judge sees
            what the caption asked for; chance. Of photographs instead, over EfficientNet-Lite2's features (see
            `photographs`): bird_share; colour_following, colour_probe, colour_majority: part -> share. What ends in
            _real: the same of real pictures; pixel_spread_any_real: of any, not of one caption.
        images: pictures generated, over both splits; images_measured: of the first; features: extractors' names.
        What takes more pictures or captions than there are is left out, and `left_out` says how many.

    Raises:
        TooFew: for a split that is missing, as it is where it would be empty, or without a caption that CLIP can read.
        NotFinite: for a generated picture that is not.
    """
    main, chosen, others = _planned(bridge, data, config, judge)
    extractors, left_out = _looks(bridge, judge, config)
    measures = [pixel_measure(name, bridge.pixel_mean.device) for name in config.metrics]
    drawn, passed = partial(drawn_pictures, generator, bridge), (config.batch_size, progress)
    with evaluating(generator), evaluating(bridge):
        whole = None  # the real pictures' statistics that `eval.statistics` names
        if config.statistics == "cache":
            if note is None:
                raise EvaluationError("eval.statistics: cache needs a note of what the real pictures are")
            whole = real_statistics(data[main], extractors[0], note, progress=progress)
        elif config.statistics:
            whole = load_statistics(config.statistics, extractors[0].dim)[0]
        networks = FeatureNetworks(extractors, bridge, judge)
        real = real or look_at(real_pictures(data[main], chosen.real), networks, *passed)
        fake = look_at(drawn(chosen.captions, config.seed), networks, *passed, chosen, real, measures)
        result = Evaluation(chosen, fake.scores, left_out=left_out, real=real)
        for look in extractors:
            first = look is extractors[0]
            result.add_distances(look, first, real, fake, whole if first else None)
        if config.diversity:
            repeated = [text for text in dict.fromkeys(chosen.captions) for _ in range(TRIES)]
            asked = repeated[: TRIES * config.diversity], extractors, judge, passed
            result.add_spread("", lambda own: drawn(own, config.seed, len(chosen), "diversity"), *asked)  # other noise
            result.values["diversity_real_of"] = "pictures of one caption" if judge else "any two pictures"
            if judge:
                side = data[main].pixels(chosen.real[:1])[0].shape[1]
                result.add_spread("_real", lambda own: fitting_pictures(own, side), *asked)
            else:
                result.left_out["pixel_spread_real"] = "no two real pictures of this data set share a caption"
                photos = real.pictures.get(torch.arange(min(len(chosen.real), SPREAD)))[0].flatten(1)
                if len(photos) > 1:
                    result.values["pixel_spread_any_real"] = pixel_spread(photos, [0] * len(photos)).item()
                for look in extractors:
                    name = "diversity_real" if look is extractors[0] else f"{look.name}_diversity_real"
                    result.of_few(name, partial(_apart, real.features[look.name][:KEPT]))
        result.add_scores(fake.scores | {f"{name}_real": values for name, values in real.scores.items()})
        result.values["clip_convention"] = bridge.convention
        image, text = fake.pairs["image"], fake.pairs["text"]
        photos, captions = real.features["clip"][torch.from_numpy(chosen.place[:KEPT])], chosen.captions[:KEPT]
        result.attempt("r_precision", lambda: share_of(r_precision(image, text, captions)))
        result.attempt("r_precision_real", lambda: share_of(r_precision(photos, text, captions)))
        result.values.update(images=len(chosen), images_measured=len(chosen))
        if judge:
            held_out = others.captions
            own = drawn(held_out, config.seed, 0, "held-out combinations")
            result.add_scores(look_at(own, FeatureNetworks((), judge=judge), *passed).scores, "_held_out")
            result.values["chance"] = {name: 1 / len(minibirds.ATTRIBUTES[name]) for name in JUDGED}
            result.values["images"] += len(held_out)
    for look in extractors:
        if isinstance(look, ImagenetFeatures) and not judge:
            drew = [text for text, first in zip(chosen.captions, chosen.first, strict=True) if first][:KEPT]
            rows = torch.from_numpy(chosen.real[:KEPT])
            captions = [data[main].captions[row] for row in rows.tolist()]
            sides = real.features[look.name][:KEPT].clone(), fake.features[look.name].clone()  # no inference tensors
            result.add_photographs(look, *sides, rows, captions, drew)
    result.values["features"] = [look.name for look in extractors]
    return result


def evaluate_folder(
    folder: str | Path, data: Source, looks: Sequence[Extractor], bridge: ClipBridge, judge: Judge | None = None,
    batch_size: int = BATCH, progress: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Measure the pictures in a folder, whoever made them, against all real ones of a split, each once.

    Distances are over the features of `looks`; with captions (`list_pictures`) CLIP similarity by `bridge` and, of mini
    birds, caption accuracy by `judge` are among what `evaluate` gives, as `Evaluation.record`. Raises EvaluationError
    as `list_pictures` and `read_pictures` do.
    """
    pictures = folder_pictures(folder, bridge)
    captioned = (bridge, judge) if pictures.captions else ()
    with evaluating(bridge):
        fake = look_at(pictures, FeatureNetworks(looks, *captioned), batch_size, progress)
        real = look_at(real_pictures(data, np.arange(len(data))), FeatureNetworks(looks), batch_size, progress)
    result = Evaluation(None, fake.scores)
    for look in looks:
        result.add_distances(look, look is looks[0], real, fake, None)
    result.add_scores(fake.scores | {f"{name}_real": values for name, values in real.scores.items()})
    result.values.update(images=pictures.count, real_images=len(data), features=[look.name for look in looks])
    return result.record()


def check_evaluation(bridge: ClipBridge, data: dict[str, Source], config: Config) -> None:
    """What `measure_generator` would stumble over, said before there is a generator.

    Raises TooFew where there would be no Fréchet distance; EvaluationError or WeightsError for a network or a file of
    statistics that can't be had.
    """
    judge = load_judge() if dataset_of(config).judged else None
    main, chosen, _ = _planned(bridge, data, config.eval, judge)
    if len(chosen.real) < FEWEST:
        raise TooFew(f"it takes {FEWEST} held-out pictures, and the split {main} has {len(chosen.real)}")
    looks, _ = _looks(bridge, judge, config.eval)
    if config.eval.statistics not in (None, "cache"):
        load_statistics(config.eval.statistics, looks[0].dim)


def _planned(
    bridge: ClipBridge, data: dict[str, Source], config: EvalConfig, judge: Judge | None
) -> tuple[str, Plan, Plan]:
    """The split that is measured on, what is drawn of it, and of "test"; captions that CLIP can't read left out."""
    main = "seen" if judge else "test"
    if missing := {main, "test"} - set(data):
        needed = "split test" if main == "test" else f"splits {main} and test"
        raise TooFew(f"an evaluation needs the {needed}; empty or missing: {sorted(missing)}")
    images = others = config.images
    if judge and isinstance(images, int):
        images, others = images - images // 2, images // 2
    plans = []
    for split, count in {"test": others, main: images}.items():
        captions: Sequence[list[str]] = data[split].captions
        chosen = plan(captions, count, config.per_caption, config.seed)
        if unreadable(bridge, chosen.captions):
            bad = unreadable(bridge, sorted({text for texts in captions for text in texts}))
            shown = f"{len(bad):,} of the split {split}: {some(sorted(bad))}"
            warnings.warn(f"captions of which CLIP knows no word are left out, {shown}", stacklevel=3)
            captions = [[text for text in texts if text not in bad] for texts in captions]
            chosen = plan(captions, count, config.per_caption, config.seed)
        plans.append(chosen)
    return main, plans[-1], plans[0]


def _apart(features: Tensor) -> float:
    """The mean distance of any two of the features (N, D)."""
    if len(features) < 2:
        raise TooFew(f"the distance of any two real pictures takes two, not {len(features)}")
    return torch.pdist(features).mean().item()


def _looks(bridge: ClipBridge, judge: Judge | None, config: EvalConfig) -> tuple[list[Extractor], dict[str, str]]:
    """The extractors of `eval.features`, or else the default ones, and what is left out of these."""
    names, left_out = (config.features, {}) if config.features else default_features(judge is not None)
    parts = {"judge": judge, "bridge": bridge, "weights": config.inception, "device": bridge.pixel_mean.device}
    return [extractor(name, **parts) for name in names], left_out


# ---------------------------------------------------------------- from a configuration


def measure_generator(
    generator: TextToImage, bridge: ClipBridge, config: Config, splits: dict[str, Source] | None = None,
    progress: bool = True, real: Seen | None = None,
) -> Evaluation:  # fmt: skip
    """`evaluate` on the held-out `splits` of the configuration's data set, made here if they haven't been.

    `real` as there.
    """
    known, splits = dataset_of(config), splits or held_out_data(config)
    judge = load_judge() if known.judged else None
    return evaluate(generator, bridge, splits, config.eval, judge, known.note(config.data), progress, real)


def measure_folder(
    folder: str | Path, config: Config, clip: str | None = None, progress: bool = True,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:  # fmt: skip
    """`evaluate_folder` by a configuration's data set, `eval.features` and CLIP, or another one (by name or file)."""
    bridge = make_bridge(config, device, load_clip(clip) if clip else None)
    known = dataset_of(config)
    judge = load_judge() if known.judged else None
    looks, left_out = _looks(bridge, judge, config.eval)
    real = make_data(config, known.held_out[0])
    found = evaluate_folder(folder, real, looks, bridge, judge, config.eval.batch_size, progress)
    return found | {"left_out": found["left_out"] | left_out}


def distance_of(results: dict[str, Any]) -> float:
    """Of an evaluation's record, the distance that is watched while training: lower is better."""
    return results["frechet_distance"] if "frechet_distance" in results else results["fid"]
