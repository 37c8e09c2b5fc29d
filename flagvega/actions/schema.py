"""``action=schema``: the JSON schema of every key, for editors and checks."""

from __future__ import annotations

import json

from flagvega.actions.call import Answer, Call
from flagvega.config.command import Command
from flagvega.config.schema import build_schema
from flagvega.config.spec import Task
from flagvega.engine import engines


def act(call: Call) -> Answer:
    """The schema for the engine of the configuration, or for the usual one where none is given."""
    engine = call.engine if _has_config(call.command) and not call.serves else engines.get(Task.backend)
    schema = build_schema(engine.keys())
    return Answer(schema, (json.dumps(schema, indent=2, ensure_ascii=False),))


def _has_config(command: Command) -> bool:
    return command.config_path is not None
