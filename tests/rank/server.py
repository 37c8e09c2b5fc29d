"""A process that has torch and megatron-core loaded and forks ranks from itself: importing them takes seconds.

``python -P -m tests.rank.server`` reads one JSON line per job from standard input and answers each with one, once no
process of the job is left: see :class:`tests.rank.client.Server`.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

PRELOADED = (
    "backends.megatron.__main__",
    "backends.megatron.run",
    "backends.megatron.facade",
    "hardware.cpu.device",
    "hardware.emulated.device",
    "megatron.core.datasets.helpers",
    "megatron.core.dist_checkpointing.optimizer",
    "megatron.core.models.gpt.gpt_layer_specs",
    "megatron.core.optimizer",
    "megatron.core.optimizer_param_scheduler",
    "megatron.core.pipeline_parallel.schedules",
    "megatron.core.transformer.moe.token_dispatcher",
    "megatron.core.transformer.multi_latent_attention",
    "torch._dynamo",
    "torch.testing",
)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LINGER_S = 2.0
"""How long ranks may go on once one of them has failed."""


def main() -> None:
    """Serve until standard input ends."""
    for name in PRELOADED:
        importlib.import_module(name)
    import torch

    from backends.megatron.arguments import complete
    from flagvega.platform import all_chips

    complete({})  # both read tables, and keep them
    all_chips()
    torch.set_num_threads(1)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # what ranks leave behind is ours to end
    gc.collect()
    gc.freeze()
    print(json.dumps({"ready": True}), flush=True)
    for line in iter(sys.stdin.readline, ""):
        print(json.dumps(_run(json.loads(line))), flush=True)


def _run(job: Mapping[str, Any]) -> dict[str, Any]:
    """Run a job's ranks: ``codes`` by rank (minus the signal that ended it), CPU seconds, whether it took too long."""
    before = os.times()
    started: list[int] = []
    for rank in job["ranks"]:
        pid = os.fork()
        if pid == 0:
            _be_rank(rank, job, started[0] if started else 0)
        with suppress(PermissionError):  # the child has done so already
            os.setpgid(pid, started[0] if started else pid)
        started.append(pid)
    try:
        codes, timed_out = _wait(started, time.monotonic() + job["timeout_s"])
    finally:
        with suppress(ProcessLookupError):
            os.killpg(started[0], signal.SIGKILL)
        _reap()
    after = os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return {"codes": [codes.get(pid, -signal.SIGKILL) for pid in started], "timed_out": timed_out, "cpu_s": cpu_s}


def _wait(pids: list[int], deadline: float) -> tuple[dict[int, int], bool]:
    """Exit codes by process; those still running at the deadline, or too long after a failure, have none."""
    codes: dict[int, int] = {}
    with _watched(pids) as watched:
        while watched:
            left_s = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([*watched, sys.stdin.fileno()], [], [], left_s)
            if sys.stdin.fileno() in ready:  # nothing is asked during a job: the client is gone
                break
            if not ready:
                return codes, not any(codes.values())
            for descriptor in set(ready) & set(watched):
                pid = watched.pop(descriptor)
                _, status = os.waitpid(pid, 0)
                codes[pid] = os.waitstatus_to_exitcode(status)
            if any(codes.values()):
                deadline = min(deadline, time.monotonic() + LINGER_S)
    return codes, False


@contextmanager
def _watched(pids: list[int]) -> Iterator[dict[int, int]]:
    """Descriptors that are readable once their process has ended."""
    descriptors = {os.pidfd_open(pid): pid for pid in pids}
    try:
        yield dict(descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _reap() -> None:
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def _be_rank(rank: Mapping[str, Any], job: Mapping[str, Any], group: int) -> None:
    """Become a rank of the job; never returns."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        with suppress(PermissionError):
            os.setpgid(0, group)
        _redirect(rank["log"])
        os.environ.update(rank["env"])
        sys.argv = [job["program"], *job["words"]]
        if job["mutation"]:
            from tests.rank import mutations

            getattr(mutations, job["mutation"])()
        code = importlib.import_module(job["program"]).main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _redirect(log: str) -> None:
    nothing, file = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for source, target in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(source, target)


if __name__ == "__main__":
    main()
