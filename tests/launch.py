"""Several processes on this machine, as torchrun starts them, for tests."""

import os
import socket

import torch
import torch.multiprocessing as mp

CONTEXT = mp.get_context("forkserver")  # a server that has imported all this once, and computed nothing, forks them
CONTEXT.set_forkserver_preload(
    ["pytest", "torch.distributed", "torch._dynamo", "galiplib.runs.run", "galiplib.evaluation"]
)


def launch(work, processes, *args):
    """Call `work(rank, *args)` in so many gloo processes; an exception in one ends all and is raised here."""
    mp.start_processes(_start, (processes, free_port(), work, args), processes, start_method="forkserver")


def begin(work, processes, *args):
    """Start the same and leave them alone: nobody ends the others when one fails -> the processes."""
    port = free_port()
    started = [CONTEXT.Process(target=_start, args=(rank, processes, port, work, args)) for rank in range(processes)]
    for process in started:
        process.start()
    return started


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _start(rank, processes, port, work, args):
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    try:
        work(rank, *args)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
