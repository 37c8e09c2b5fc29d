"""The likeliest mistakes, as users make them: each is answered with exit code 2, its place and a hint.

``# <-`` marks the line that must be named.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from flagvega.cli import main

EXPERIMENT = """\
defaults:
  - train: tiny
  - _self_
experiment:
  exp_name: tiny
  exp_dir: outputs/tiny
  task:
    type: train
    backend: megatron
  runner:
    nnodes: 1
  envs:
    OMP_NUM_THREADS: 2
  cmds:
    before_start: ulimit -n 1024
action: run
"""
TASK = """\
system:
  tensor_model_parallel_size: 1
  precision:
    bf16: true
model:
  num_layers: 4
  hidden_size: 64
  optimizer:
    lr: 1e-3
data:
  data_path: corpus
  tokenizer:
    tokenizer_type: NullTokenizer
"""


@dataclass(frozen=True)
class Mistake:
    name: str
    key: str
    """What the place ends with."""
    says: str
    """A pattern that the fault's text or hint must match."""
    experiment: tuple[str, str] = ("", "")
    """(text, what the user wrote instead) in the experiment YAML."""
    task: tuple[str, str] = ("", "")
    """The same in the task YAML."""
    words: tuple[str, ...] = ()


MISTAKES = [
    Mistake("a letter is missing", "train.model.num_layer", "'num_layers'",
            task=("num_layers: 4", "num_layer: 4 # <-")),
    Mistake(
        "two letters are swapped",
        "train.system.tensor_model_paralell_size",
        "'tensor_model_parallel_size'",
        task=("tensor_model_parallel_size: 1", "tensor_model_paralell_size: 1 # <-"),
    ),
    Mistake(
        "the name that HuggingFace has",
        "train.model.num_hidden_layers",
        "'num_layers'",
        task=("num_layers: 4", "num_hidden_layers: 4 # <-"),
    ),
    Mistake(
        "the short name of a degree", "train.system.tp", "'tensor_model_parallel_size'",
        task=("tensor_model_parallel_size: 1", "tp: 1 # <-"),
    ),
    Mistake("a word for a number", "train.model.num_layers", "an integer, got the text 'four'",
            task=("num_layers: 4", "num_layers: four # <-")),
    Mistake("a broken number", "train.model.num_layers", "an integer, got 4.5",
            task=("num_layers: 4", "num_layers: 4.5 # <-")),
    Mistake("a comma for a decimal point", "train.model.optimizer.lr",
            "a number, got the text '0,001'\n.*decimal point",
            task=("lr: 1e-3", "lr: 0,001 # <-")),
    Mistake("a word for a switch", "train.system.precision.bf16", "true or false",
            task=("bf16: true", "bf16: enabled # <-")),
    Mistake("a list for one value", "train.model.hidden_size", "an integer, got the list",
            task=("hidden_size: 64", "hidden_size: [64] # <-")),
    Mistake("a value that is no choice", "train.model.position_embedding_type", "did you mean 'rope'",
            task=("  num_layers: 4", "  num_layers: 4\n  position_embedding_type: ropes # <-")),
    Mistake("an argument at the root", "num_layers", "train.model.num_layers",
            experiment=("action: run", "num_layers: 8 # <-")),
    Mistake("an argument in the experiment", "experiment.seq_length", "under train.system, train.model or train.data",
            experiment=("  exp_name: tiny", "  exp_name: tiny\n  seq_length: 8 # <-")),
    Mistake("an argument directly under train", "train.num_layers", "write it as train.model.num_layers",
            words=("train.num_layers=8",)),
    Mistake("the experiment's key at the root", "exp_dir", "write it as experiment.exp_dir",
            experiment=("action: run", "exp_dir: here # <-")),
    Mistake("the runner's key one level too high", "experiment.nproc_per_node", "experiment.runner.nproc_per_node",
            experiment=("  exp_name: tiny", "  exp_name: tiny\n  nproc_per_node: 8 # <-")),
    Mistake("a block of ours in the task", "train.system.cluster", "root of the experiment YAML",
            task=("  precision:", "  cluster: 8 # <-\n  precision:")),
    Mistake("a misspelt section", "train.modle", "'model'", task=("model:", "modle: # <-")),
    Mistake("train repeated in the task file", "train.train", "put under 'train' by itself",
            task=(TASK, "train: # <-\n" + re.sub("^", "  ", TASK, flags=re.MULTILINE))),
    Mistake("an argument given twice", "train.data.num_layers", "4 at .*tiny.yaml:6 train.model.num_layers, and 6 here",
            task=("  data_path", "  num_layers: 6 # <-\n  data_path")),
    Mistake("a key twice in one mapping", "model.num_layers", "already on line 6",
            task=("  hidden_size: 64", "  num_layers: 8 # <-")),
    Mistake("a word that YAML reads as a truth value", "train.model.normalization", "got false|in quotes",
            task=("  num_layers: 4", "  num_layers: 4\n  normalization: no # <-")),
    Mistake("a placeholder", "train.data.data_path", "fill in: data_path",
            task=("data_path: corpus", "data_path: xxxx # <-")),
    Mistake("FlagScale's placeholder", "train.data.data_path", "fill in: data_path",
            task=("data_path: corpus", "data_path: ${data_path:??} # <-")),
    Mistake("a variable that is not set", "train.data.data_path", "'NOT_SET_ANYWHERE' is not set",
            task=("data_path: corpus", "data_path: ${oc.env:NOT_SET_ANYWHERE} # <-")),
    Mistake("a reference to nothing", "experiment.exp_dir", "refers to a key 'exp_name'",
            experiment=("outputs/tiny", "outputs/${exp_name} # <-")),
    Mistake("a tab", "", "spaces, not with tabs", task=("  num_layers: 4", "\tnum_layers: 4 # <-")),
    Mistake("no blank behind the colon", "", "not YAML", task=("  num_layers: 4", "  num_layers:4 # <-")),
    Mistake("a task file that is not there", "defaults: train", "did you mean 'tiny'",
            experiment=("train: tiny", "train: tinny # <-")),
    Mistake("no task at all", "train", "defaults: ", experiment=("  - train: tiny\n", "")),
    Mistake("no name", "experiment.exp_name", "is missing", experiment=("  exp_name: tiny\n", "")),
    Mistake("an engine that there is not", "experiment.task.backend", "megatron",
            experiment=("backend: megatron", "backend: megatorn # <-")),
    Mistake("a task that there is not", "experiment.task.type", "one of: train",
            experiment=("type: train", "type: pretrain # <-")),
    Mistake("hydra's callbacks", "hydra.callbacks", "only hydra.run.dir is read",
            experiment=("action: run", "hydra: {callbacks: {}} # <-")),
    Mistake("an object in the YAML", "model.num_layers", "'!!python/name:os.system' is refused",
            task=("num_layers: 4", "num_layers: !!python/name:os.system x # <-")),
    Mistake("a mapping that is a word", "experiment.runner", "expected a mapping, got the text 'torchrun'",
            experiment=("  runner:\n    nnodes: 1", "  runner: torchrun # <-")),
    Mistake("an elastic number of hosts", "experiment.runner.nnodes", "an integer, got the text '1:4'",
            experiment=("nnodes: 1", 'nnodes: "1:4" # <-')),
    Mistake("a list in the environment", "experiment.envs.OMP_NUM_THREADS", "quotes",
            experiment=("OMP_NUM_THREADS: 2", "OMP_NUM_THREADS: [2] # <-")),
    Mistake("a shell variable in a command", "experiment.cmds.before_start", r"write \$HOME",
            experiment=("ulimit -n 1024", "cd ${HOME} # <-")),
    Mistake("an argument that this engine does not serve", "train.model.multi_latent_attention", "known, but not",
            task=("  num_layers: 4", "  num_layers: 4\n  multi_latent_attention: true # <-")),
    Mistake("a typo on the command line", "train.model.num_layerss", "'num_layers'",
            words=("train.model.num_layerss=8",)),
    Mistake("another nesting on the command line", "train.model.lr",
            "~train.model.optimizer.lr removes the first", words=("train.model.lr=1",)),
    Mistake("a reference with a letter missing", "experiment.exp_dir", r"did you mean \$\{experiment\.exp_name\}",
            experiment=("exp_dir: outputs/tiny", "exp_dir: outputs/${experiment.exp_nme} # <-")),
    Mistake("a cluster file that is not there", "cluster.file", "there is no file machines.yaml",
            experiment=("action: run", "cluster: machines.yaml # <-")),
    Mistake("removing what is not there", "train.model.seed", "no key 'train.model.seed'",
            words=("~train.model.seed",)),
]  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name.replace(" ", "-"))
def test_a_likely_mistake_is_answered_with_its_place_and_a_hint(mistake: Mistake, write, faults):
    write(_changed(EXPERIMENT, mistake.experiment), _changed(TASK, mistake.task))

    found = faults(*mistake.words)

    assert len(found) == 1, [str(fault) for fault in found]
    assert re.search(mistake.says, f"{found[0].what}\n{found[0].fix}"), str(found[0])
    place = next((f"conf/{path}:{line}" for path in ("exp.yaml", "train/tiny.yaml") if (line := _marked(path))), "")
    if mistake.words:
        place = "command line:"
    where = found[0].where
    assert re.fullmatch(
        rf"{re.escape(place)} ?({mistake.key.replace('.', '[.]')})" if place else f".*{mistake.key}", where
    )


def test_every_mistake_of_a_file_is_told_in_one_message(write, faults):
    write(EXPERIMENT.replace("nnodes", "nodes"), TASK.replace("num_layers", "num_layer").replace("64", "big"))

    places = {fault.where for fault in faults("train.model.lr=fast", "experiment.exp_dirr=x")}

    assert places == {
        "conf/exp.yaml:11 experiment.runner.nodes",
        "conf/train/tiny.yaml:6 train.model.num_layer",
        "conf/train/tiny.yaml:7 train.model.hidden_size",
        "command line: train.model.lr",
        "command line: experiment.exp_dirr",
    }


def test_misspelt_chips_are_told_beside_misspelt_keys(write, capsys):
    chips = "cluster: {nodes: [{chip: emu-ss}]}\nplan: {order: [emu-s, A80], keep: [{chip: emu-ll}]}\n"
    hetero = "hetero_device_types: [emu-m, BI15]\n  tensor_model_parallel_size"
    write(EXPERIMENT + chips, TASK.replace("num_layers", "num_layer").replace("tensor_model_parallel_size", hetero))

    assert main(["--config-path", "conf", "--config-name", "exp", "action=dryrun"]) == 2

    told = capsys.readouterr().err
    for what in ("key 'num_layer'", "chip 'emu-ss'", "chip 'A80'", "chip 'emu-ll'", "chip 'BI15'"):
        assert told.count(f"unknown {what}") == 1, told


def test_misspelt_chips_are_told_beside_a_model_that_cannot_be_read(write, capsys):
    write(EXPERIMENT + "cluster: {nodes: [{chip: emu-ss}]}\n", TASK)

    assert main(["--config-path", "conf", "--config-name", "exp", "action=dryrun"]) == 2

    told = capsys.readouterr().err
    assert told.count("unknown chip 'emu-ss'") == 1
    assert "'num_attention_heads' is missing" in told


def _changed(text: str, change: tuple[str, str]) -> str:
    assert change[0] in text
    return text.replace(*change, 1) if change[0] else text


def _marked(path: str) -> int | None:
    lines = (Path("conf") / path).read_text().splitlines()
    return next((i for i, line in enumerate(lines, 1) if line.endswith("# <-")), None)
