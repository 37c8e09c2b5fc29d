"""Write backends/megatron/flagscale.csv and docs/arguments.md: what becomes of FlagScale's keys and of all arguments.

Source: ``tests/data/flagscale_keys.csv``, every key of the example files of FlagScale v0.6.0.
"""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from backends.megatron.arguments import keys  # noqa: E402
from flagvega.config.keys import Key  # noqa: E402

TABLE = ROOT / "backends/megatron/flagscale.csv"
PAGE = ROOT / "docs/arguments.md"

MAPPED = {
    "use_te": "true means transformer_impl: transformer_engine",
    "use_flash_attn": "plain torch attention stands in, with a warning, where the chip's software lacks it",
    "transformer_impl": "plain torch layers stand in, with a warning, where the chip's software lacks it",
    "use_rotary_position_embeddings": "true means position_embedding_type: rope",
    "no_position_embedding": "accepted beside rotary embeddings, as in Megatron-LM",
    "multiple_of": "gives ffn_hidden_size where that is left out",
    "hidden_dim_multiplier": "gives ffn_hidden_size together with multiple_of",
    "ckpt_format": "checkpoints are written as torch_dist; another value gives a warning",
    "enable_hetero": "the meshes become those of the plan",
    "hetero_process_meshes": "the meshes of the plan: five numbers [tp, cp, ep, dp, pp] each",
    "hetero_device_types": "chips of the meshes: a name or alias of a chip",
    "hetero_pipeline_layer_split": "layers of the plan's stages; 0 is allowed",
    "recompute_granularity_per_stage_micro_batch": "recompute of the plan's stages",
    "recompute_method_per_stage_micro_batch": "recompute of the plan's stages: 0 is uniform, 1 is block",
    "recompute_num_layers_per_stage_micro_batch": "recompute of the plan's stages",
    "use_mcore_models": "true holds always",
}
REFUSED = {"dataloader_type": "external is for multimodal models; single is honoured"}
ACCEPTED_FALSE = "; false is accepted"

_HEAD = """# Engine arguments

Arguments of the Megatron engine have the names, types and defaults of Megatron-LM's command line, with `_` or `-`,
and stand anywhere under `train.system`, `train.model` or `train.data`. This page is written by
`tools/make_flagscale.py`; a test keeps it current. [configuration.md](configuration.md) lists every argument.

## Where we differ from Megatron-LM on purpose

A file without `calculate_per_token_loss` gets Megatron's mean loss. Our examples set it to true: then every layout
trains the same, whatever the loss masks are. The padded vocabulary is rounded up to `make_vocab_size_divisible_by`
alone and never depends on tensor parallelism. Checkpoints are written as torch_dist. What else differs:

| argument | here | why |
| --- | --- | --- |
"""
_MESHES = """
## Meshes

One mesh takes Megatron-LM's keys (`tensor_model_parallel_size`, `pipeline_model_parallel_size` and so on); what they
leave of the devices is data parallel. Several meshes take FlagScale's:

```yaml
system:
  hetero:
    enable_hetero: true
    hetero_process_meshes: [2, 1, 1, 1, 1,   1, 1, 1, 2, 2]   # tp, cp, ep, dp, pp of each mesh, in pipeline order
    hetero_device_types: [emu-l, emu-s]
    hetero_pipeline_layer_split: [4, 2, 2]                     # layers per stage
    hetero_sequence_parallel: [true, false]                    # ours; without it, sequence_parallel where tp > 1
```

Every stage runs the same micro-batches: that of a rank of a later mesh follows from `micro_batch_size` (of a rank of
the first mesh), the first mesh's dp and its own. Layers may also be split with `pipeline_model_parallel_layout`,
Megatron-LM's language: `Et|(tt|)*2tL` is the embedding and one layer, twice two layers, one layer and the head.

## FlagScale's task keys

Every key of the task files of FlagScale v0.6.0. *Honoured* keys mean what they meant, *mapped* ones are turned into
what does the same here, *ignored* ones change nothing and give a warning, *refused* ones end the run with what to
write instead.

| key | what becomes of it | note |
| --- | --- | --- |
"""


def classify(path: str) -> tuple[str, str]:
    """(class, note) of a FlagScale key path."""
    name = path.rpartition(".")[2].replace("-", "_")
    key = keys()[name]
    if name in REFUSED:
        return "refused", REFUSED[name]
    if name in MAPPED:
        return "mapped", MAPPED[name]
    if key.target == "unsupported":
        return "refused", key.note + (ACCEPTED_FALSE if key.type == "bool" and not key.default else "")
    return ("ignored", key.note) if key.target == "ignored" else ("honoured", "")


def flagscale_paths() -> list[str]:
    """The key paths of the source, in its order."""
    with (ROOT / "tests/data/flagscale_keys.csv").open(newline="") as file:
        return [line["key"] for line in csv.DictReader(file) if line["key"].startswith("train.")]


def make_table() -> str:
    """The table as CSV text."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("key", "class", "note"))
    writer.writerows((path, *classify(path)) for path in flagscale_paths())
    return out.getvalue()


def make_page() -> str:
    """The page as Markdown."""
    rules = yaml.safe_load((ROOT / "tools/argument_rules.yaml").read_text())["override"]
    differing = [
        f"| `{name}` | {_here(keys()[name])} | {change['why']} |" for name, change in rules.items() if "why" in change
    ]
    rows = [f"| `{path}` | {kind} | {note} |" for path in flagscale_paths() for kind, note in [classify(path)]]
    return _HEAD + "\n".join(differing) + "\n" + _MESHES + "\n".join(rows) + "\n"


def _here(key: Key) -> str:
    if key.choices:
        return f"one of {', '.join(map(str, key.choices))}"
    return f"default {str(key.default).lower() if isinstance(key.default, bool) else key.default}"


if __name__ == "__main__":
    TABLE.write_text(make_table())
    PAGE.write_text(make_page())
