"""Serves what ``make demo`` trained, and asks it something: convert, start, wait, ask while it streams, stop.

demo_serve.py [--keep]    --keep: leave it serving
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RUN_DIR = ROOT / "outputs/llama-serve"
PROMPT = "Return the"
ASK = """
import sys, openai
client = openai.OpenAI(base_url=sys.argv[1], api_key="none")
model = client.models.list().data[0].id
print(f"{model} goes on from {sys.argv[2]!r}:", flush=True)
for part in client.completions.create(model=model, prompt=sys.argv[2], max_tokens=48, temperature=0.7, stream=True):
    print(part.choices[0].text, end="", flush=True)
print()
"""
"""Run by the Python of .venv-serve, which has the OpenAI client; it knows nothing of flagvega."""


def main() -> int:
    """Do it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="leave it serving")
    keep = parser.parse_args().keep
    if not list((ROOT / "outputs/llama-demo/checkpoints").glob("iter_*")):
        print("nothing is trained yet: make demo", file=sys.stderr)
        return 2
    run("demo", "action=convert")
    run("serve_demo", "action=run", "detach=true")
    try:
        url = wait()
        python = ROOT / ".venv-serve" / "bin" / "python"
        subprocess.run([python, "-c", ASK, url, PROMPT], check=True)
    except BaseException:
        keep = False
        raise
    finally:
        if not keep:
            flagvega("action=stop", f"run_dir={RUN_DIR}")
    return 0


def run(name: str, *words: str) -> None:
    """One of the example's experiments."""
    flagvega("--config-path", "examples/llama/conf", "--config-name", name, *words)


def flagvega(*words: str) -> None:
    """A command, as a user types it; SystemExit with its code where it fails, for it has said why."""
    print(f"$ python run.py {' '.join(words)}", flush=True)
    if code := subprocess.run([sys.executable, "run.py", *words], cwd=ROOT, check=False).returncode:
        raise SystemExit(code)


def wait() -> str:
    """The endpoint, once it serves; SystemExit when it ended before."""
    print("waiting until it serves (a minute or two) ", end="", flush=True)
    while True:
        state: dict[str, Any] = json.loads((RUN_DIR / "run.json").read_text())
        if state["state"] in ("done", "stopped", "failed"):
            raise SystemExit(f"\nit ended: {state['reason']}")
        for note in state["notes"]:
            if note.startswith("serving: "):
                print(flush=True)
                return str(note.split(" at ")[1].split()[0])
        print(".", end="", flush=True)
        time.sleep(2)


if __name__ == "__main__":
    sys.exit(main())
