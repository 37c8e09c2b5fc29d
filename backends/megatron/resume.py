"""Where a run goes on from, and whether anything is left of it: the control side asks too, no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from backends.megatron.pretrained import is_pretrained
from backends.megatron.progress import read_extent
from flagvega.errors import Fault, VerdictError
from flagvega.records import read_json, verify_manifest

STATE: Final = "state.json"
"""Where a run stood, and of which model it is."""


def checkpoint_folder(arguments: Mapping[str, Any], run_dir: Path) -> Path:
    """Where a run writes its checkpoints."""
    return Path(arguments["save"] or run_dir / "checkpoints")


def find_good(folder: Path, hashes: bool = True) -> tuple[Path | None, dict[Path, str]]:
    """(the newest checkpoint whose files agree with its manifest, the newer ones that are damaged with the reason).

    Without ``hashes`` only sizes are looked at.
    """
    damaged = dict[Path, str]()
    for path in sorted(folder.glob("iter_*"), reverse=True) if folder.is_dir() else []:
        faults = verify_manifest(path, hashes=hashes)
        if not faults:
            return path, damaged
        damaged[path] = faults[0]
    return None, damaged


def none_is_good(folder: Path, damaged: Mapping[Path, str]) -> VerdictError:
    """Starting from zero would lose the user's work."""
    reasons = "; ".join(f"{path.name}: {reason}" for path, reason in damaged.items())
    fix = f"restore one, or move {folder} away to start from the beginning"
    return VerdictError(Fault(f"no checkpoint is good ({reasons})", str(folder), fix))


def find_source(arguments: Mapping[str, Any], run_dir: Path, newest: Callable[[Path], Path | None]) -> Path | None:
    """Where to go on from: the run's own checkpoints, else what ``load`` names; ``newest`` finds one in a folder."""
    own = newest(checkpoint_folder(arguments, run_dir))
    if own is not None or arguments["load"] is None:
        return own
    given = Path(arguments["load"])
    return given if is_pretrained(given) or (given / STATE).exists() else newest(given)


def takes_weights_only(arguments: Mapping[str, Any], run_dir: Path, source: Path) -> bool:
    """Whether a run that goes on from ``source`` begins at step 0."""
    return bool(arguments["finetune"]) and source.parent != checkpoint_folder(arguments, run_dir)


def read_state(source: Path, model: Mapping[str, Any]) -> dict[str, Any]:
    """Where the run stood that wrote a checkpoint; VerdictError when it is of another model."""
    state: dict[str, Any] = read_json(source / STATE)
    saved = state["model"]
    fix = "give both the same model"
    faults = [
        Fault(f"the checkpoint's model has {name} {saved[name]}, this run's {value}", str(source), fix)
        for name, value in model.items()
        if saved[name] != value
    ]
    if faults:
        raise VerdictError(faults)
    return state


def finished_step(arguments: Mapping[str, Any], run_dir: Path, model: Mapping[str, Any]) -> int | None:
    """The step at which nothing was left to train; None where something is.

    :raises VerdictError: as ranks do, when no checkpoint is good or it is of another model.
    """
    step: int | None = None
    # What is large is read in whole only where no rank would read it after.
    for hashes in (False, True):
        source = find_source(arguments, run_dir, partial(_newest, hashes=hashes))
        if source is None or is_pretrained(source):
            return None
        state = read_state(source, model)
        is_done = read_extent(arguments).is_done(state["step"], state["consumed_samples"])
        if takes_weights_only(arguments, run_dir, source) or not is_done:
            return None
        step = state["step"]
    return step


def _newest(folder: Path, hashes: bool) -> Path | None:
    good, damaged = find_good(folder, hashes)
    if good is None and damaged:
        raise none_is_good(folder, damaged)
    return good
