"""Writes the pages about configuration from what the code knows, so that they cannot fall behind it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flagvega.config.blocks import BLOCKS, LATER, Experiment
from flagvega.config.fields import Entry, Shape, entries
from flagvega.config.flagscale import rows
from flagvega.config.inference import InferenceBlock
from flagvega.config.keys import Key
from flagvega.config.serving import ServeEntry
from flagvega.config.values import EXPECTED

_HEAD = """\
<!-- Written by tools/make_configuration_docs.py: change the code, then run it. -->
# Configuration

An experiment is two YAML files. The *experiment YAML* says who runs where; the *task YAML*, which its `defaults`
list puts under `train`, says what is trained. `action=init` writes a commented pair to start from.

```yaml
# conf/my_run.yaml                      # conf/train/my_model.yaml
defaults:                               # system:
  - train: my_model                     #   tensor_model_parallel_size: 2
  - _self_                              # model:
experiment:                             #   num_layers: 12
  exp_name: my-run                      #   ...
```

- `key=value` on the command line changes or adds a key, `~key` removes one, `train=other` takes another task file.
- `${experiment.exp_name}` refers to another key, `${oc.env:NAME}` (or FlagScale's `${env:NAME}`) to an environment
  variable, `${oc.env:NAME,default}` with a default.
- A key that another one refers to is a variable of your own: it may have any name at the root or under `experiment`.
- Everything is checked before anything starts, and all mistakes come in one message, each with its file and line.
- A file makes no objects: tags (`!!python/...`), `_target_` and the like are refused, and of hydra's settings only
  `hydra.run.dir` is read.
- `exp_dir/config.yaml` keeps references unresolved and replaces values whose keys look like secrets.
- `action=schema` prints all of this as a JSON schema.
"""

_SERVING = """\
## Services: `serve`

A list, in FlagScale's form, where `experiment.task.type` is `serve`; a file of the folder `serve/` may hold it.
Arguments under `engine_args` are those of the engine's own server: [serve.md](serve.md). Where the type is
`inference`, a batch of prompts stands in its place.
"""

_ARGUMENTS = """\
## Engine arguments: `train.system`, `train.model`, `train.data`

Arguments of the engine `{engine}`. Below these three, nesting is free (`train.model.optimizer.lr` is `lr`), `-` and
`_` are the same, `null` means not given, and a key given twice must have one value. An argument left out has the
default of this table.
"""


def render_configuration(engine: str, keys: Mapping[str, Key]) -> str:
    """``docs/configuration.md``."""
    parts = [_HEAD, *_block("experiment", Experiment)]
    parts.append("## Our own blocks\n\nThey stand at the root of the experiment YAML, each of them optional.\n")
    for name, block in BLOCKS.items():
        parts += _block(name, block)
    parts.append(_SERVING)
    parts += _block("serve[]", ServeEntry)
    parts += _block("inference", InferenceBlock)
    parts.append("".join(f"- `{name}` is kept for later: {why}.\n" for name, why in LATER.items()))
    working = [key for key in keys.values() if key.target not in ("unsupported", "ignored")]
    others = [key for key in keys.values() if key.target in ("unsupported", "ignored")]
    parts.append(_ARGUMENTS.format(engine=engine))
    parts.append(_table(("key", "holds", "default", "note"), map(_key_row, working)))
    parts.append(f"### Known and not supported\n\n{len(others)} more arguments are answered as such, not as typos:\n")
    parts.append(_table(("key", "answer"), ([f"`{key.name}`", key.note] for key in others)))
    return "\n".join(parts)


def render_flagscale() -> str:
    """The table of ``docs/flagscale.md``: what becomes of FlagScale's experiment-level keys."""
    return _table(("key", "what becomes of it", "note"), ([f"`{row.key}`", row.treatment, row.note] for row in rows()))


def _block(path: str, block: type) -> list[str]:
    """A section for a block, and one for each block inside it."""
    doc = (block.__doc__ or "").split(":", 1)[-1].strip()
    parts = [f"### `{path}`\n\n{doc[:1].upper()}{doc[1:]}\n".replace("``", "`")]
    inner = [each for each in entries(block) if each.shape.block]
    own = [each for each in entries(block) if each.shape.kind != "block"]
    parts.append(_table(("key", "holds", "default", "meaning"), map(_entry_row, own)))
    for each in inner:
        if each.shape.block:
            parts += _block(f"{path}.{each.name}" + ("[]" if each.shape.kind == "list" else ""), each.shape.block)
    return parts


def _entry_row(each: Entry) -> Sequence[str]:
    default = "*required*" if each.required else _default(each.default)
    return f"`{each.name}`", _holds(each.shape), default, each.doc


def _holds(shape: Shape) -> str:
    if shape.choices:
        return ", ".join(f"`{choice}`" for choice in shape.choices)
    if shape.block:
        return "a list of mappings"
    words = EXPECTED[shape.holds]
    if shape.minimum is not None:
        words += f", at least {shape.minimum}"
    plural = words.replace("an integer", "integers").replace("a number", "numbers")
    return {"list": f"a list of {plural}", "mapping": "names with values"}.get(shape.kind, words)


def _key_row(key: Key) -> Sequence[str]:
    holds = ", ".join(f"`{choice}`" for choice in key.choices) or EXPECTED[key.type]
    return f"`{key.name}`", holds, _default(key.default), key.note


def _default(value: Any) -> str:
    return "" if value in (None, "", ()) else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)
