"""What the hosts of a serving run share: a folder, what they are about to run, and the key of their instances."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from flagvega import __version__
from flagvega.config.spec import Spec
from flagvega.errors import Fault, PreflightError
from flagvega.launch.join import compare
from flagvega.layout.serving import ServePlan, serve_plan_to_json
from flagvega.records import read_json, write_text, writing
from flagvega.serve.probe import KEY_ENV

KEY_FILE: Final = "job/instances.key"
"""The key that instances ask for where hosts share a run and the user exports none; of the folder, not of one run."""
AGREED_FILE: Final = "job/agreed.json"
"""What the hosts of the run have alike, for those that join it again."""
KEY_BYTES: Final = 32
FOLDER_FACT: Final = "folder"


def read_key(run_dir: Path) -> str:
    """The key in the folder, made by the host that comes first; readable for its user alone."""
    path = run_dir / KEY_FILE
    if not path.exists():
        with writing(path):
            made = path.with_name(f".{secrets.token_hex(8)}.key")
            write_text(made, secrets.token_urlsafe(KEY_BYTES), 0o600)
            with suppress(FileExistsError):
                os.link(made, path)  # another host may be as far: there is one key
            made.unlink()
    return path.read_text(encoding="utf-8")


def shared_facts(spec: Spec, plan: ServePlan, run_dir: Path) -> dict[str, Any]:
    """What all hosts must have alike. How each starts its instances is its own: programs may be in unlike places."""
    services = {each.name: {"engine": each.engine, "arguments": dict(each.arguments)} for each in spec.services}
    return {
        # Says nothing about the key.
        FOLDER_FACT: hashlib.sha256(read_key(run_dir).encode()).hexdigest(),
        "plan": serve_plan_to_json(plan),
        "services": services,
        "gateway": dict(spec.blocks.get("gateway", {})),
        f"{KEY_ENV} is exported": KEY_ENV in os.environ,
        "versions": {"flagvega": __version__},
    }


def check_agreed(run_dir: Path, facts: Mapping[str, Any], position: int) -> None:
    """PreflightError where a host that joins again would run something else than the run does."""
    if faults := compare(read_json(run_dir / AGREED_FILE), facts, position):
        raise PreflightError(faults)


@contextmanager
def unshared_told(run_dir: Path) -> Iterator[None]:
    """Hosts that differ in their folder are told that, and nothing else."""
    try:
        yield
    except PreflightError as error:
        if any(fault.where == FOLDER_FACT for fault in error.faults):
            fix = (
                "give all hosts one shared experiment.exp_dir: how their instances do, and when to stop, is told there"
            )
            raise PreflightError(Fault("the hosts do not share this folder", str(run_dir), fix)) from error
        raise
