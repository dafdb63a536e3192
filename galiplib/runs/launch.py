"""Start a training in several processes from a notebook or a script, as torchrun does from a shell.

The processes are spawned, each with an interpreter of its own, not forked: a fork of a kernel that has computed with
more than one thread waits for libgomp's threads for ever in its first parallel loop, and CUDA refuses to work in a fork
of a process that has only asked for GPUs (`torch.cuda.is_available`). torchrun's own launcher can be called from Python
too, but kills what hasn't ended thirty seconds after a Ctrl-C, in the middle of a step or a checkpoint.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing
from torch.distributed.elastic.utils.distributed import get_free_port

from ..build import pick_device
from ..config import Config, ConfigError, build_config
from .interrupts import Stopped
from .run import Run


def train_in_processes(folder: str | Path, config: Config, processes: int, device: str = "auto") -> None:
    """Train a run to its end, a process a GPU; then open the folder with `Run` as ever.

    What they print, progress and time left, appears here. Ctrl-C and the notebook's stop button end the run after its
    step, with a checkpoint; so does the end of the kernel. This process's threads are shared out among them. A script
    calls this under `if __name__ == "__main__":`, as always where processes are spawned.

    From a shell, `torchrun --nproc-per-node N -m galiplib.cli train ...` does the same, and restarts what fails.

    Args:
        processes: at most as many as there are GPUs, unless `device` is "cpu".

    Raises:
        ConfigError: if there are fewer GPUs, or no process is asked for.
        Stopped: (a KeyboardInterrupt) when asked to stop; says how to go on.
        torch.multiprocessing.ProcessRaisedException: with traceback and message of what a process raised.
        torch.multiprocessing.ProcessExitedException: if one was killed, with the signal's name.
    """
    kind = pick_device(device).type
    most = {"cuda": torch.cuda.device_count(), "mps": 1}.get(kind, max(1, processes))
    if not 1 <= processes <= most:
        raise ConfigError(f"processes = {processes}: right would be 1 to {most}, one a GPU, or device = 'cpu'")
    shared = {
        "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": get_free_port(), "OMP_NUM_THREADS": max(1, torch.get_num_threads() // processes),
    }  # fmt: skip
    told = multiprocessing.get_context("spawn").SimpleQueue()
    work = shared, told, str(folder), config.model_dump(), device
    context = multiprocessing.start_processes(_train, work, processes, join=False)
    interrupted, ended = False, False
    while not ended:
        try:
            ended = context.join()
        except KeyboardInterrupt:
            interrupted = True
            for process in filter(lambda process: process.is_alive(), context.processes):
                os.kill(process.pid, signal.SIGINT)
    if not told.empty():
        raise Stopped(*told.get())
    if interrupted:
        raise KeyboardInterrupt


def _train(rank: int, shared: dict[str, int], told: Any, folder: str, config: dict[str, Any], device: str) -> None:
    """One process of them, with the environment that torchrun gives."""
    if hasattr(os, "setsid"):  # a Ctrl-C that the whole process group gets would come twice: the parent hands it on
        os.setsid()
    os.environ |= {name: str(value) for name, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
    torch.set_num_threads(shared["OMP_NUM_THREADS"])  # the variable alone comes too late: torch is loaded
    try:
        for _ in Run(folder, build_config(config), device).train():
            pass
    except Stopped as stop:
        if rank == 0:
            told.put((str(stop), stop.signal))
