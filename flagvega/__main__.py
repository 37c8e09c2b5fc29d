"""``python -m flagvega``: the command line."""

from __future__ import annotations

import sys
from pathlib import Path

# Python has put the working directory first, where a folder may bear the name of one of our packages.
if not sys.flags.safe_path:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from flagvega.cli import main

if __name__ == "__main__":
    sys.exit(main())
