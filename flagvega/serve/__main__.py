"""``python -P -m flagvega.serve --config FILE``: the gateway, until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from flagvega.errors import FlagvegaError
from flagvega.serve.gateway.settings import read_settings


def main(argv: Sequence[str] | None = None) -> int:
    """Serve as the JSON file says; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m flagvega.serve", description="The gateway in front of instances.")
    parser.add_argument("--config", type=Path, required=True, help="JSON; docs/serve.md tells its keys")
    try:
        settings = read_settings(parser.parse_args(argv).config)
        from flagvega.serve.gateway.server import serve  # aiohttp is an extra: bad settings are told without it

        asyncio.run(serve(settings))
    except FlagvegaError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
