"""One torchrun command per host."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from flagvega.launch.rendezvous import Rendezvous


def torchrun_argv(node: int, num_ranks: int, rendezvous: Rendezvous, log_dir: str, program: Sequence[str]) -> list[str]:
    """The command that starts ``program`` once per rank of host ``node``.

    Ranks of one host meet at a port that torchrun finds free; those of several at the given one.
    Nothing is restarted in place: a rank that left takes the job with it, and the supervisor judges.
    """
    if rendezvous.port:
        meeting = [
            "--rdzv-backend=static",
            f"--node-rank={node}",
            f"--master-addr={rendezvous.address}",
            f"--master-port={rendezvous.port}",
        ]
    else:
        meeting = [
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={rendezvous.address}:0",
            f"--local-addr={rendezvous.address}",
        ]
    return [
        *(sys.executable, "-P", "-m", "torch.distributed.run"),
        f"--nnodes={rendezvous.num_nodes}",
        f"--nproc-per-node={num_ranks}",
        *meeting,
        "--rdzv-id=flagvega",
        "--max-restarts=0",
        f"--log-dir={log_dir}",
        "--no-python",
        "--",  # else torchrun takes the program's own arguments for its own, where they begin alike
        *program,
    ]
