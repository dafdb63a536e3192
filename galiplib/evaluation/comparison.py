"""One table that compares checkpoints: every number with its error, the real pictures' beside them, quotes marked."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ..build import held_out_data
from ..checkpoints.loading import find, load_generator
from ..clip.bridge import CLIP
from ..config import Config, load_config
from ..data.batches import Source
from ..files import write_atomically, write_json
from ..images import EvaluationError
from .evaluate import measure_generator
from .features import default_features

if TYPE_CHECKING:  # loaded when a table is made
    import pandas as pd


COLUMNS = {  # its heading; whether more is better (1), less (-1), or neither in itself; the key of real pictures
    "caption_accuracy": ("caption accuracy", 1, "caption_accuracy_real"),
    "caption_accuracy_held_out": ("caption accuracy, held out", 1, ""),
    "fid": ("FID", -1, ""),
    "kid": ("KID", -1, ""),
    "frechet_distance": ("Fréchet distance ({features})", -1, "frechet_floor"),
    "kernel_distance": ("kernel distance ({features})", -1, ""),
    "imagenet_frechet_distance": ("Fréchet distance (imagenet)", -1, "imagenet_frechet_floor"),
    "imagenet_kernel_distance": ("kernel distance (imagenet)", -1, ""),
    "precision": ("precision ({features})", 1, ""),
    "recall": ("recall ({features})", 1, ""),
    "density": ("density ({features})", 0, ""),
    "coverage": ("coverage ({features})", 1, ""),
    "diversity": ("diversity of a caption ({features})", 0, "diversity_real"),
    "imagenet_diversity": ("diversity of a caption (imagenet)", 0, "imagenet_diversity_real"),
    "pixel_spread": ("pixel spread of a caption, of 255", 0, "pixel_spread_real"),
    "effective_backgrounds": ("effective backgrounds, of 4", 1, "effective_backgrounds_real"),
    "effective_bellies": ("effective bellies, of 10", 1, "effective_bellies_real"),
    "fine_energy": ("fine energy", 0, "fine_energy_real"),
    "colourfulness": ("colourfulness", 0, "colourfulness_real"),
    "saturation": ("saturation", 0, "saturation_real"),
    "rim": ("rim, of 255", 0, "rim_real"),
    "clip_similarity": ("CLIP similarity", 1, "clip_similarity_real"),
    "clip_score": ("CLIPScore", 1, "clip_score_real"),
    "r_precision": ("R-precision", 1, "r_precision_real"),
    "bird_share": ("share taken for birds", 1, "bird_share_real"),
    "colour_following": ("colours as asked", 1, "colour_probe"),
    "topiq": ("TOPIQ-NR", 1, "topiq_real"),
    "ssim": ("SSIM", 1, ""),
    "ms_ssim": ("MS-SSIM", 1, ""),
    "lpips": ("LPIPS", -1, ""),
}


@dataclass(frozen=True)
class Comparison:
    """Evaluations side by side."""

    records: dict[str, dict[str, Any]]  # label -> what `Evaluation.record` gave
    quotes: dict[str, dict[str, float]]  # label -> published values, of another protocol; none is marked as best
    real: ClassVar[str] = "real pictures"  # their row

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row a checkpoint, then `real pictures`, then quotes; a column a measure, numbers."""
        rows = {**self.records, self.real: {key: self.first.get(real) for key, (_, _, real) in COLUMNS.items()}}
        rows |= {f"{label} (quoted)": values for label, values in self.quotes.items()}
        return self._frame(rows, power=1).dropna(axis=1, how="all")

    @cached_property
    def errors(self) -> pd.DataFrame:
        """The standard errors, in the table's shape; NaN where there is none."""
        rows = {label: record["errors"] for label, record in self.records.items()}
        return self._frame(rows, power=2).reindex_like(self.table)  # attributes are taken as independent

    @staticmethod
    def _frame(rows: dict[str, dict[str, Any]], power: int) -> pd.DataFrame:
        """Numbers as they are, of accuracies by attribute the mean."""
        import pandas as pd

        def number(found: Any) -> Any:
            own = found.values() if isinstance(found, dict) else ()
            return sum(one**power for one in own) ** (1 / power) / len(own) if own else found

        values = {key: {label: number(row.get(key)) for label, row in rows.items()} for key in COLUMNS}
        return pd.DataFrame(values, dtype=float)

    @property
    def first(self) -> dict[str, Any]:
        """A record: what is said of the real pictures is the same in all."""
        return next(iter(self.records.values()))

    @property
    def measured(self) -> list[str]:
        """The labels of the rows that were measured here."""
        return list(self.records)

    def best(self, key: str) -> list[str]:
        """The labels of the best measured rows of a column; none where all are equal, or more is not better."""
        own, better = self.table.loc[self.measured, key].dropna(), COLUMNS[key][1]
        return list(own.index[own * better == (own * better).max()]) if better and own.nunique() > 1 else []

    def titles(self) -> dict[str, str]:
        """Column -> its heading, with an arrow towards the better."""
        arrows, over = {1: " ↑", -1: " ↓", 0: ""}, self.first["features"][0]
        own = {key: column for key, column in COLUMNS.items() if key in self.table}
        return {key: title.format(features=over) + arrows[better] for key, (title, better, _) in own.items()}

    def cells(self) -> pd.DataFrame:
        """The table as text: value ± standard error, the best in bold (Markdown)."""

        def text(value: float, error: float, best: bool) -> str:
            if math.isnan(value):
                return ""
            shown = f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 10 else f"{value:.3f}"
            shown += "" if math.isnan(error) else f" ± {error:.0f}" if error >= 100 else f" ± {error:.2g}"
            return f"**{shown}**" if best else shown

        found = self.table.astype(object)
        for key in self.titles():
            best = [label in self.best(key) for label in found.index]
            found[key] = list(map(text, self.table[key], self.errors[key], best))
        return found

    def markdown(self) -> str:
        """The table in Markdown, with what was measured on how many pictures below it."""
        lines = ["| | " + " | ".join(self.titles().values()) + " |", "|---" * (len(self.titles()) + 1) + "|"]
        lines += [f"| {label} | {' | '.join(row)} |" for label, *row in self.cells().itertuples(name=None)]
        return "\n".join([*lines, "", self.note()])

    def note(self) -> str:
        """On what the numbers are, in a sentence or two."""
        found = f"{self.first['images_measured']:,} pictures each; ± is a standard error."
        if "frechet_images" in self.first:
            side = f"{self.first['frechet_images']:,} pictures a side, as is the real pictures' (the floor)"
            no_fid = "" if "fid" in self.first else "; over these features it is no FID"
            found += f" Fréchet distances are of {side}{no_fid}."
        if self.quotes:
            found += " Quoted rows are published figures of other protocols: orientation, no comparison."
        return found

    def save(self, folder: str | Path, name: str = "comparison") -> list[Path]:
        """Write NAME.csv and NAME.md; returns their paths."""
        both = self.table.join(self.errors.dropna(axis=1, how="all").add_suffix("_error"))
        table, text = (Path(folder) / f"{name}.{end}" for end in ("csv", "md"))
        write_atomically(table, lambda stream: stream.write(both.to_csv(index_label="model").encode()))
        write_atomically(text, lambda stream: stream.write((self.markdown() + "\n").encode()))
        return [table, text]

    def _repr_html_(self) -> str:
        shown = self.cells().rename(columns=self.titles()).replace(r"\*\*(.*)\*\*", r"<b>\1</b>", regex=True)
        return shown.to_html(escape=False, border=0) + f"<p>{self.note()}</p>"


def compare(
    checkpoints: Sequence[str | Path] | Mapping[str, str | Path], profile: str | Config = "mini",
    overrides: dict[str, Any] | None = None, folder: str | Path | None = None, quote: bool | None = None,
    clip_model: CLIP | None = None, progress: bool = True, device: str | torch.device = "cpu",
) -> Comparison:  # fmt: skip
    """Measure several generators by one protocol -> a table, and files.

    Args:
        checkpoints: whatever `load_generator` takes (EMA weights where there are any), by label or as `label_of` says.
        profile: a profile's name, or a configuration: its `data` and `eval` say what is measured, on how much.
        folder: comparison.csv and .md go there, and every evaluation: called again, only new ones are made.
        quote: put published figures of the data set beside them; by default where they are of the same CLIP.
        clip_model: for authors' files, which lack one.

    Raises EvaluationError for no checkpoints, or two of one label; WeightsError names one that can't be read.
    """
    config = profile if isinstance(profile, Config) else load_config(profile, overrides)
    if not isinstance(checkpoints, Mapping):
        labels = [label_of(path) for path in checkpoints]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise EvaluationError(f"two checkpoints are called {', '.join(twice)}: give a mapping label -> checkpoint")
        checkpoints = dict(zip(labels, checkpoints, strict=True))
    if not checkpoints:
        raise EvaluationError("there are no checkpoints to compare")
    for path in checkpoints.values():  # before hours of work
        find(path)
    splits: dict[str, Source] = held_out_data(config)
    records: dict[str, dict[str, Any]] = {}
    for label, path in checkpoints.items():
        generator = load_generator(path, clip_model, device)
        kept = folder and Path(folder) / "evaluations" / f"{_fingerprint(generator, config, splits)}.json"
        if kept and kept.is_file():
            records[label] = json.loads(kept.read_text())
            continue
        records[label] = measure_generator(generator, generator.bridge, config, splits, progress).record()
        if kept:
            write_json(kept, records[label])
    if quote is None:
        quote = (config.clip.name, config.clip.convention) == ("ViT-B/32", "reference")
    comparison = Comparison(records, published(config.data.name) if quote else {})
    if folder is not None:
        comparison.save(folder)
    return comparison


def published(data: str) -> dict[str, dict[str, float]]:
    """A data set's published figures, label -> measure -> value; published.csv has their sources, and doubts."""
    with resources.files(__package__).joinpath("published.csv").open(encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["data"] == data]
    return {row["model"]: {key: float(row[key]) for key in row.keys() & COLUMNS.keys() if row[key]} for row in rows}


def label_of(path: str | Path) -> str:
    """A checkpoint's name in a table: outputs/mini/train/checkpoints/step_000400.pt -> train step_000400."""
    path = Path(path)
    if path.suffix != ".pt":
        return path.stem if path.suffix in (".safetensors", ".pth") else path.name
    run = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    return f"{run.name} {path.stem}"


def _fingerprint(generator: Any, config: Config, splits: dict[str, Source]) -> str:
    """Tells an evaluation from all others: weights, data, protocol."""
    made_of = [config.data.model_dump(), *(source.fingerprint for source in splits.values())]
    protocol = [made_of, config.eval.model_dump(), default_features(judged=False)[0], *COLUMNS]
    digest = hashlib.sha256(json.dumps(protocol).encode())
    for tensor in generator.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    digest.update(generator.bridge.convention.encode())
    return digest.hexdigest()[:16]
