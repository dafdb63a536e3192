"""Start a training in several processes from a notebook, by accelerate's launcher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .config import Config, build_config


def train_in_processes(folder: str | Path, config: Config, processes: int, device: str = "auto") -> None:
    """Train a run to its end, a process a GPU; then open the folder with `Run` as ever.

    From a shell, `torchrun --nproc-per-node N -m galiplib.cli train ...` does the same, and restarts what fails.

    Args:
        processes: at most as many as there are GPUs, unless `device` is "cpu".

    Raises:
        ConfigError, DataError, ...: whatever a process raises, as torch.distributed's ChildFailedError or
            ProcessRaisedException with its message.
    """
    from accelerate import notebook_launcher

    notebook_launcher(_train, (str(folder), config.model_dump(), device), num_processes=processes, use_port="0")


def _train(folder: str, config: dict[str, Any], device: str) -> None:
    from .runs import Run

    for _ in Run(folder, build_config(config), device).train():
        pass
