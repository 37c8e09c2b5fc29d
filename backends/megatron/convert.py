"""A checkpoint of any layout as a HuggingFace folder, tensor by tensor.

``python -P -m backends.megatron.convert`` reads a question from standard input (:class:`Question` as JSON) and writes
JSON lines to standard output: ``{"done": share}`` as it goes on, then ``{"written": {...}}`` or ``{"faults": [...]}``.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from backends.megatron.arguments import complete
from backends.megatron.companions import write_tokenizer
from backends.megatron.family import DTYPES, describe
from backends.megatron.huggingface import FUSED_NORMS, VOCABULARY_ROWS, Stack, stacks, unstack
from backends.megatron.resume import STATE, find_good
from backends.megatron.safefile import INDEX, Entry, SafeFile, index_of, plan_files
from backends.megatron.saved import SavedTensors
from backends.megatron.shape import model_facts, shape_from_arguments
from backends.megatron.vocabulary import padded_vocab_size, vocab_size
from flagvega.errors import ConfigError, Fault
from flagvega.records import read_json, verify_manifest, write_json

ORIGIN: Final = "converted.json"
"""Which checkpoint a folder was made of, and how."""
EXPERTS: Final = "mlp.experts.experts."
"""megatron-core saves all experts of a layer as one tensor, expert by expert along its first dimension."""


@dataclass(frozen=True)
class Question:
    """What is to be converted."""

    arguments: Mapping[str, Any]
    """Engine arguments of the run that trained it."""
    checkpoint: str
    """A checkpoint, or a folder of them: then the newest good one."""
    folder: str
    """Where the HuggingFace model goes."""
    dtype: str
    """fp32, bf16 or fp16."""
    max_file_bytes: int = 5_000_000_000


def convert(question: Question, tell: Callable[[float], None]) -> dict[str, Any]:
    """Do it; what was written. A folder that was made in just this way before is left as it is.

    :raises ConfigError: when there is no good checkpoint, it is of another model, no HuggingFace family computes the
        same, or the folder holds something else.
    """
    source, notes = _choose(Path(question.checkpoint))
    config = describe(question.arguments, question.dtype)
    _check_model(source, question.arguments)
    folder = Path(question.folder)
    origin = {"checkpoint": str(source.resolve()), "step": read_json(source / STATE)["step"], "config": config}
    if folder.exists():
        _check_same(folder, origin)
        return _answer(folder, origin, [*notes, "it was there already"])
    scratch = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        _write_weights(SavedTensors(source), question, config, scratch, tell)
        notes += [note for note in [write_tokenizer(complete(question.arguments), scratch)] if note]
        write_json(scratch / "config.json", config)
        write_json(scratch / ORIGIN, origin)
        scratch.rename(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return _answer(folder, origin, notes)


def _choose(given: Path) -> tuple[Path, list[str]]:
    """The checkpoint that a path means."""
    if (given / STATE).exists():
        if faults := verify_manifest(given):
            raise ConfigError(Fault(f"the checkpoint is damaged: {faults[0]}", str(given)))
        return given, []
    good, damaged = find_good(given)
    notes = [f"{path.name} is damaged and was passed over: {reason}" for path, reason in damaged.items()]
    if good is None:
        raise ConfigError(Fault("; ".join(["there is no good checkpoint", *notes]), str(given), "train first"))
    return good, notes


def _check_model(source: Path, arguments: Mapping[str, Any]) -> None:
    saved, settings = read_json(source / STATE).get("model"), complete(arguments)
    if saved is None:
        raise ConfigError(Fault("was written by a version of flagvega that did not record its model", str(source)))
    tied = not settings["untie_embeddings_and_output_weights"]
    faults = [
        Fault(f"the checkpoint's model has {name} {saved[name]}, the YAML's {value}", str(source))
        for name, value in model_facts(settings, padded_vocab_size(arguments), tied).items()
        if saved[name] != value
    ]
    if faults:
        raise ConfigError(faults)


def _check_same(folder: Path, origin: Mapping[str, Any]) -> None:
    file = folder / ORIGIN
    if not file.exists() or read_json(file) != origin:
        fix = "delete it, or give another with to="
        raise ConfigError(Fault("is there already and holds something else", str(folder), fix))


def _answer(folder: Path, origin: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    num_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    facts = {name: origin[name] for name in ("checkpoint", "step")}
    config = origin["config"]
    return {"folder": str(folder), **facts, "family": config["model_type"], "dtype": config["dtype"],
            "weight_bytes": num_bytes, "notes": notes}  # fmt: skip


def _write_weights(
    saved: SavedTensors, question: Question, config: Mapping[str, Any], folder: Path, tell: Callable[[float], None]
) -> None:
    made_of = stacks(config["model_type"], shape_from_arguments(question.arguments))
    rows, dtype = vocab_size(question.arguments), getattr(torch, DTYPES[question.dtype])
    groups = {name: _entries(name, stack, rows) for name, stack in made_of.items()}
    files = plan_files(groups.values(), dtype, question.max_file_bytes)
    homes = {entry.name: file for file, entries in files.items() for entry in entries}
    opened: SafeFile | None = None
    current = ""
    for done, (name, stack) in enumerate(made_of.items()):
        entries = groups[name]
        if homes[entries[0].name] != current:
            if opened is not None:
                opened.close()
            current = homes[entries[0].name]
            opened = SafeFile(folder / current, files[current], dtype)
        assert opened is not None
        full = read_parameter(saved, name)
        full = full[:rows] if name in VOCABULARY_ROWS else full
        for entry, piece in zip(entries, unstack(stack, full) if len(entries) > 1 else [full], strict=True):
            _check_shape(entry, piece, saved.folder)
            opened.write(entry.name, piece)
        tell((done + 1) / len(made_of))
    assert opened is not None
    opened.close()
    if len(files) > 1:
        write_json(folder / INDEX, index_of(files, dtype))


def _entries(name: str, stack: Stack, rows: int) -> list[Entry]:
    """The tensors that a parameter becomes; rows that pad the vocabulary are left out."""
    if name in VOCABULARY_ROWS:
        return [Entry(piece.name, (rows, *piece.shape[1:])) for piece in stack.pieces]
    return [Entry(piece.name, piece.shape) for piece in stack.pieces]


def _check_shape(entry: Entry, piece: Tensor, folder: Path) -> None:
    if tuple(piece.shape) != entry.shape:
        what = f"{entry.name} would be {list(piece.shape)}, not {list(entry.shape)}"
        raise ConfigError(Fault(what, str(folder), "the YAML is of another model than the checkpoint"))


def read_parameter(saved: SavedTensors, name: str) -> Tensor:
    """A parameter by its global name, whatever the checkpoint calls it."""
    for candidate, entry in _spellings(name):
        if candidate in saved.names():
            return saved.tensor(candidate, entry)
    raise ConfigError(Fault(f"the checkpoint has no {name}", str(saved.folder)))


def _spellings(name: str) -> Iterator[tuple[str, int | None]]:
    """Names under which a parameter may be saved, each with the entry that is meant."""
    yield name, None
    for fused, plain in FUSED_NORMS.items():
        if name.endswith(plain):
            yield name.removesuffix(plain) + fused, None
    before, middle, rest = name.partition("mlp.experts.")
    expert, _, parameter = rest.partition(".")
    if middle and expert.isdecimal():
        yield f"{before}{EXPERTS}{parameter}", int(expert)


def main() -> None:
    """Answer one question from standard input."""
    torch.set_num_threads(1)
    question = Question(**json.load(sys.stdin))

    def say(**what: Any) -> None:
        print(json.dumps(what), flush=True)

    try:
        written = convert(question, lambda share: say(done=share))
    except ConfigError as error:
        say(faults=[asdict(fault) for fault in error.faults])
    else:
        say(written=written)


if __name__ == "__main__":
    main()
