"""What cutting a bridge's messages into chunks gains: seconds from handing a tensor over to having it, by chunk size.

Two processes exchange fp32 activations as bf16 over loopback gloo, each way in turn; a chunk is on its way while the
next is converted. Medians; 0 is a message in one piece.
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import statistics
import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from flagvega.comm.neighbour import Neighbour, Shape
from flagvega.layout.plan import Boundary
from flagvega.layout.ranks import places
from hardware.cpu.device import CpuDevice
from tools.bench.bridge_overlap import make_plan

SIZES = (0, 256 << 10, 1 << 20, 4 << 20, 16 << 20)


def run_rank(rank: int, port: int, sequence: int, hidden: int, rounds: int, answer: Any) -> None:
    """Time round trips; the first rank answers."""
    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port, is_master=rank == 0, timeout=timedelta(seconds=60))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    forward, backward = dist.new_group(), dist.new_group()
    plan = make_plan(False)
    me, other = places(plan)[rank], places(plan)[1 - rank]
    shape = Shape(sequence, hidden, torch.float32, torch.device("cpu"))
    tensor = torch.randn(sequence, 1, hidden)
    take, give = (backward, forward) if rank == 0 else (forward, backward)
    times: dict[int, list[float]] = {size: [] for size in SIZES}
    sides = {
        size: Neighbour(me, replace(Boundary("bridge", "bf16"), chunk_bytes=size), [other], shape, 1, None, take, give,
                        CpuDevice())
        for size in SIZES
    }  # fmt: skip
    for _ in range(rounds):
        for size, side in sides.items():
            side.expect(1, 1)
            dist.barrier()
            begin = time.perf_counter()
            if rank == 0:
                side.give(tensor)
                side.take()
            else:
                side.give(side.take())
            times[size].append((time.perf_counter() - begin) / 2)
            side.outbox.finish()
    if rank == 0:
        answer.put({size: statistics.median(its[1:]) for size, its in times.items()})
    dist.destroy_process_group()


def main() -> int:
    """Print a line for each size of chunks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequence", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (port, options.sequence, options.hidden, options.rounds, answer)
    ranks = [context.Process(target=run_rank, args=(rank, *arguments)) for rank in range(2)]
    for process in ranks:
        process.start()
    medians = answer.get(timeout=600)
    for process in ranks:
        process.join()
    print(f"{options.sequence} x {options.hidden} in fp32, sent as bf16; one way, median of {options.rounds - 1}")
    for size, median_s in medians.items():
        print(f"chunk_bytes {size:>9}  {median_s * 1e3:8.2f} ms  x {medians[0] / median_s:.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
