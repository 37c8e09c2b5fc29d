"""Has a checkpoint converted by a process of its own: control side, no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from backends.megatron.arguments import complete
from backends.megatron.check import unusable_values
from backends.megatron.family import DTYPES
from backends.megatron.request import located
from flagvega.config.spec import Spec
from flagvega.errors import ConfigError, Fault
from flagvega.layout.job import source_path


def export(
    spec: Spec, checkpoint: Path | None, folder: Path, dtype: str | None, tell: Callable[[float], None]
) -> Mapping[str, Any]:
    """Write a run's weights as a HuggingFace folder; what was written.

    ``checkpoint`` is one, or a folder of them; None: the run's own. ``dtype`` is by default that of the run.

    :raises ConfigError: with all that stands against it.
    """
    settings = complete(spec.arguments)
    if unusable := unusable_values(spec):
        raise ConfigError(unusable)
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(Fault(f"'{dtype}' is not known", "command line: dtype", f"one of {', '.join(DTYPES)}"))
    source = checkpoint or Path(settings["save"] or spec.exp_dir / "checkpoints")
    question = {
        "arguments": settings,
        "checkpoint": str(source.absolute()),
        "folder": str(folder),
        "dtype": dtype or next((name for name in ("bf16", "fp16") if settings[name]), "fp32"),
    }
    return _ask(question, spec, tell)


def _ask(question: Mapping[str, Any], spec: Spec, tell: Callable[[float], None]) -> Mapping[str, Any]:
    argv = [sys.executable, "-P", "-m", "backends.megatron.convert"]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=source_path(with_environment=True)
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(question))
        process.stdin.close()
        answer: dict[str, Any] = {}
        for line in process.stdout:
            answer = json.loads(line)
            if "done" in answer:
                tell(answer["done"])
    if "faults" in answer:
        raise ConfigError(located(spec, (Fault(**fault) for fault in answer["faults"])))
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, argv)
    written: dict[str, Any] = answer["written"]
    return written
