"""``python run.py --config-path DIR --config-name NAME [action=ACTION] [key=value ...]``."""

from __future__ import annotations

import sys

from flagvega.cli import main

if __name__ == "__main__":
    sys.exit(main())
