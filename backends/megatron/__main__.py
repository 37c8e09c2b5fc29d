"""The rank program: ``python -P -m backends.megatron --run-dir DIR``, started once per device."""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from pathlib import Path

import torch.distributed as dist

from backends.megatron.events import Events
from backends.megatron.session import find_own_place, read_settings
from flagvega.errors import ExitCode, FlagvegaError


def main() -> int:
    """Run this rank to its end; its exit code, also told as its last event."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--profile", action="store_true", help="measure instead of training")
    given = parser.parse_args()
    settings = read_settings(given.run_dir)
    me = find_own_place(settings.plan)
    events = Events(settings.run_dir, me.rank)
    events.tell("start", place=str(me))
    try:
        program = importlib.import_module(f"backends.megatron.{'probe' if given.profile else 'run'}")
        code: int = program.run(settings, me, events)
    except FlagvegaError as error:
        events.tell("exit", code=int(error.exit_code), reason=str(error), error=type(error).__name__)
        print(error, file=sys.stderr, flush=True)
        return int(error.exit_code)
    except BaseException as error:
        name = type(error).__name__
        events.tell("exit", code=int(ExitCode.INTERNAL), reason=f"{name}: {error}", error=name)
        raise
    events.tell("exit", code=code, reason="done" if code == 0 else "stopped on request")
    dist.barrier()
    dist.destroy_process_group()
    return code


if __name__ == "__main__":  # saving starts helper processes that import this module
    warnings.filterwarnings("ignore", module="megatron")
    sys.exit(main())
