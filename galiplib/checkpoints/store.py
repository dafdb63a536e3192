"""Checkpoints of a run: whole or absent, the last few and the best, and a damaged one costs only its own steps."""

from __future__ import annotations

import hashlib
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from ..config import SECTIONS, Config, build_config, fitting
from ..files import WeightsError, load_torch, write_atomically

FOLDER = "checkpoints"
KIND = "galiplib generator"  # of a finished run's exported file
LATER = {"train": {"range_weight": 0.0}}  # keys younger than some runs -> what these runs did without them


class CheckpointError(OSError):
    """A checkpoint that can't be written; the message says where, why, and what stays valid."""


class Checkpoints:
    """`<run>/checkpoints/step_<number>.pt`, and `best.pt`.

    Args:
        run: the run's folder.
        keep: how many of the numbered ones to keep.
    """

    def __init__(self, run: str | Path, keep: int = 2) -> None:
        self.folder, self.keep = Path(run) / FOLDER, keep
        self.best = self.folder / "best.pt"

    def numbered(self) -> list[Path]:
        """The checkpoints by step, newest first; `best.pt` is not among them."""
        found = [path for path in self.folder.glob("step_*.pt") if re.fullmatch(r"step_\d+\.pt", path.name)]
        return sorted(found, key=lambda path: int(path.stem[5:]), reverse=True)

    def save(self, state: dict[str, Any], best: bool = False) -> None:
        """Write the state of a step (`state["step"]`); the older ones go once it is whole.

        Raises:
            CheckpointError: if it can't be written, as on a full disk. What was there is still there.
        """
        path = self.best if best else self.folder / f"step_{state['step']:06d}.pt"
        try:
            write_atomically(path, lambda stream: torch.save(state, stream))
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            there = [old.name for old in self.numbered()]
            kept = f"{', '.join(there)} is still valid" if there else "no earlier one exists"
            raise CheckpointError(
                f"can't write the checkpoint {path}: {error}; {kept}. Make room or mend the folder, then start again"
            ) from error
        if not best:
            for old in self.numbered()[self.keep :]:
                old.unlink(missing_ok=True)

    def load(self) -> dict[str, Any] | None:
        """The newest state that is whole, with a warning for each damaged one; None if there is no checkpoint.

        Raises:
            WeightsError: if there are some, and all are damaged.
        """
        problems = []
        for path in self.numbered():
            try:
                state = load_torch(path)
                if not isinstance(state, dict) or "step" not in state or "networks" not in state:
                    raise WeightsError(f"{path} is no checkpoint of a run")
            except WeightsError as error:
                problems.append(str(error))
                continue
            for problem in problems:
                warnings.warn(f"{problem}; going on from {path.name}", stacklevel=3)
            return state
        if problems:
            listed = "; ".join(problems)
            raise WeightsError(f"{listed}. No whole checkpoint is left: delete {self.folder} to start this run anew")
        return None

    def load_best(self, step: int) -> dict[str, Any] | None:
        """The state of the best evaluation, if it is whole and of that step, else None."""
        try:
            state = load_torch(self.best)
        except WeightsError:
            return None
        return state if state["step"] == step else None

    def sweep(self) -> None:
        """Delete what a process that was killed while it wrote has left half-written; only under the run's lock."""
        for path in self.folder.glob(".*.pt.*"):
            path.unlink(missing_ok=True)

    def forget_after(self, step: int) -> None:
        """Delete the numbered checkpoints of later steps, which a rollback has undone."""
        for path in self.numbered():
            if int(path.stem[5:]) > step:
                path.unlink(missing_ok=True)


class ReadOnlyCheckpoints(Checkpoints):
    """The same for processes that read what another one writes."""

    def save(self, state: dict[str, Any], best: bool = False) -> None:
        pass

    def sweep(self) -> None:
        pass

    def forget_after(self, step: int) -> None:
        pass


def find_checkpoints(folder: str | Path = "outputs") -> list[Path]:
    """The run folders with a checkpoint, and the authors' state_epoch_*.pth, anywhere below a folder."""
    folder = Path(folder)
    runs = {path.parent.parent for path in folder.glob(f"**/{FOLDER}/step_*.pt")}
    return sorted(runs) + sorted(folder.glob("**/state_epoch_*.pth"))


def recorded_config(values: dict[str, Any]) -> Config:
    """The `Config` that a file of ours recorded: keys that came later have the value that their absence meant then."""
    then: dict[str, Any] = {
        section: {**LATER.get(section, {}), **values[section]} for section in SECTIONS if section in values
    }
    if "system" not in values:  # RATLIP was a setting of GALIP's networks
        settings = then.get("model", {})
        ratlip = settings.get("attention") or settings.get("conditioning", "affine") != "affine"
        system = "ratlip" if ratlip else "galip"
        then |= {"system": system, "model": fitting(system, settings)}
    return build_config({**values, **then})


def fingerprint(generator: Any) -> str:
    """The first 16 hexadecimal digits of a SHA-256 over generator, its CLIP, and the size of its pictures."""
    if noted := getattr(generator, "noted", None):  # in an ONNX file
        return noted
    digest = hashlib.sha256(str(generator.image_size).encode())
    for module in (generator, generator.bridge.model):
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
