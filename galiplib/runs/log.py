"""What a run writes down as it goes: lines of JSON, and the same for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Callable
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..files import write_atomically
from ..training import StepReport

TENSORBOARD_EVERY = 10  # steps between its scalars


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file, [] if there is none; a last line that a crash cut off is left out."""
    found = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


class RunLog:
    """The logs of a run folder, open for appending; what lies behind `step` is forgotten, as it will come again."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second, and only training needs it

        self.folder = folder
        self.files = {name: folder / f"{name}.jsonl" for name in ("metrics", "evaluations", "events")}
        self._streams: dict[str, Any] = {}
        self.forget_after(step)
        self.board = SummaryWriter(folder / "tensorboard", purge_step=step + 1)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._streams.values():
            stream.close()
        self.board.close()

    def step(self, report: StepReport) -> None:
        values = report.record()
        self._write("metrics", values)
        if report.step % TENSORBOARD_EVERY == 0 or report.skipped:
            for name, value in values.items():
                if name != "step":
                    self.board.add_scalar(f"train/{name}", float(value), report.step)

    def evaluation(self, step: int, results: dict[str, Any]) -> None:
        self._write("evaluations", {"step": step, **results})
        for name, value in results.items():
            for part, number in value.items() if isinstance(value, dict) else (("", value),):
                if isinstance(number, (int, float)):
                    self.board.add_scalar(f"evaluation/{name}{'/' if part else ''}{part}", number, step)

    def samples(self, step: int, drawn: Callable[[], Path]) -> None:
        path = drawn()
        self.board.add_image("samples", np.asarray(Image.open(path).convert("RGB")), step, dataformats="HWC")

    def event(self, step: int, kind: str, **facts: Any) -> None:
        self._write("events", {"step": step, "event": kind, **facts})

    def flush(self) -> None:
        for stream in self._streams.values():
            stream.flush()

    def forget_after(self, step: int) -> None:
        """Cut the metrics and evaluations of later steps; events stay."""
        for name in ("metrics", "evaluations"):
            if stream := self._streams.pop(name, None):
                stream.close()
            if self.files[name].is_file():
                kept = [json.dumps(line) + "\n" for line in read_lines(self.files[name]) if line["step"] <= step]
                write_atomically(self.files[name], methodcaller("write", "".join(kept).encode()))

    def _write(self, name: str, values: dict[str, Any]) -> None:
        if name not in self._streams:
            self._streams[name] = open(self.files[name], "a")
        self._streams[name].write(json.dumps(values) + "\n")
        if name != "metrics":
            self._streams[name].flush()


class NoLog:
    """A log that writes nothing, for processes that leave it to another one."""

    def __enter__(self) -> NoLog:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None
