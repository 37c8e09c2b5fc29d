"""Writes docs/configuration.md, and the table in docs/flagscale.md, from the code: run it after changing a key.

python tools/make_configuration_docs.py [--check]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from flagvega.config.docs import render_configuration, render_flagscale  # noqa: E402
from flagvega.engine import engines  # noqa: E402

BEGIN, END = "<!-- begin of the table of experiment keys -->\n", "<!-- end of the table of experiment keys -->\n"


def render() -> dict[Path, str]:
    """Page -> its text as it should be."""
    configuration, flagscale = ROOT / "docs/configuration.md", ROOT / "docs/flagscale.md"
    head, _, rest = flagscale.read_text(encoding="utf-8").partition(BEGIN)
    tail = rest.partition(END)[2]
    return {
        configuration: render_configuration("megatron", engines.get("megatron").keys()),
        flagscale: f"{head}{BEGIN}\n{render_flagscale()}\n{END}{tail}",
    }


def main() -> int:
    """Write the pages, or only say whether they are current (exit code 1 when not)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    stale = {path: text for path, text in render().items() if not path.exists() or path.read_text("utf-8") != text}
    for path, text in stale.items():
        print(f"{'stale' if check else 'written'}: {path.relative_to(ROOT)}")
        if not check:
            path.write_text(text, encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
