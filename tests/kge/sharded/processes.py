"""A program on several processes of one group."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

Program = Callable[[int, Path], None]


def run_processes(program: Program, folder: Path, *, world_size: int = 2, backend: str = "gloo") -> None:
    """Run a program, which is given its rank and the folder, on processes of their own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["multifacet.kge.sharded.trainer"])
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = int(bound.getsockname()[1])
    processes = [
        context.Process(target=_enter, args=(program, backend, rank, world_size, port, str(folder)))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0


def _enter(program: Program, backend: str, rank: int, world_size: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    if backend == "nccl":
        torch.cuda.set_device(rank)
    dist.init_process_group(backend, rank=rank, world_size=world_size)
    program(rank, Path(folder))
    dist.destroy_process_group()
