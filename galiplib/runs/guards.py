"""What watches over a run: when to go back to a good checkpoint, and when to give up."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ..config import TrainConfig
from ..training import StepReport


class TrainingFailed(RuntimeError):
    """A run that went back as often as it may; the message says what happened and what to try."""


@dataclass
class Guard:
    """Counts what goes wrong. All of it is part of a checkpoint.

    Attributes:
        skipped: steps left out so far, as a loss or gradient was not finite.
        in_a_row: those of them since the last good step.
        rollbacks: how often the run went back.
        best: the lowest distance of an evaluation so far, and its step.
    """

    skipped: int = 0
    in_a_row: int = 0
    rollbacks: int = 0
    best: float = math.inf
    best_step: int = 0

    def after_step(self, report: StepReport, config: TrainConfig) -> str | None:
        """Count a step -> why the run must go back, or None."""
        self.skipped += report.skipped
        self.in_a_row = self.in_a_row + 1 if report.skipped else 0
        if config.recipe == "stable" and self.in_a_row > config.max_skipped:
            return f"{self.in_a_row} steps in a row had a loss or gradient that was not finite"
        return None

    def after_evaluation(self, step: int, distance: float, config: TrainConfig) -> str | None:
        """Count an evaluation -> why the run must go back, or None; a new best is remembered."""
        worst = self.best * config.rollback_factor
        if distance < self.best:
            self.best, self.best_step = distance, step
        elif config.recipe == "stable" and config.rollback_factor and distance > worst:
            return (
                f"the evaluation gave a distance of {distance:.4g}, more than {config.rollback_factor:g} times the "
                f"best one, {self.best:.4g} at step {self.best_step}"
            )
        return None

    def roll_back(self, step: int, reason: str, config: TrainConfig) -> None:
        """Count a rollback.

        Raises:
            TrainingFailed: if there were `train.max_rollbacks` already.
        """
        if self.rollbacks >= config.max_rollbacks:
            raise TrainingFailed(
                f"step {step}: {reason}; the run has gone back {self.rollbacks} times already "
                "(train.max_rollbacks). To try: half of train.lr_g and train.lr_d, a larger batch (train.batch_size "
                "with train.accumulate), train.precision=fp32."
                + (" The best checkpoint is kept in checkpoints/best.pt" if self.best_step else "")
            )
        self.rollbacks, self.in_a_row = self.rollbacks + 1, 0

    def state(self) -> dict[str, Any]:
        return asdict(self)
