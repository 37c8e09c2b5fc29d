"""``python -P -m flagvega.serve --config FILE``: the gateway, until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from flagvega.errors import Fault, FlagvegaError, PreflightError
from flagvega.serve.gateway.settings import Settings, read_settings


def main(argv: Sequence[str] | None = None) -> int:
    """Serve as the JSON file says; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m flagvega.serve", description="The gateway in front of instances.")
    parser.add_argument("--config", type=Path, required=True, help="JSON; docs/serve.md tells its keys")
    try:
        settings = read_settings(parser.parse_args(argv).config)
        _serve(settings)
    except FlagvegaError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.exit_code)
    return 0


def _serve(settings: Settings) -> None:
    try:
        from flagvega.serve.gateway.server import serve
    except ModuleNotFoundError as error:
        fix = "pip install -r requirements/gateway.txt"
        raise PreflightError(Fault(f"'{error.name}', which the gateway needs, is not installed", fix=fix)) from error
    asyncio.run(serve(settings))


if __name__ == "__main__":
    sys.exit(main())
