#!/bin/sh
# Makes .venv ready: creates it when missing, installs when requirements or pyproject.toml changed,
# and otherwise says nothing and takes no time. With --check it only tells, by its exit code.
set -eu
cd "$(dirname "$0")/.."
venv=.venv
stamp=$venv/.installed
quiet=-qq

state() { cat requirements/*.txt pyproject.toml tools/venv.sh | sha256sum; }

if [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$(state)" ]; then
    exit 0
fi
[ "${1:-}" != --check ] || exit 1

find_python() {
    for name in python3.11 python3; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "flagvega needs Python 3.11 or newer, but neither python3.11 nor python3 is one." >&2
    echo "Install it (Debian, Ubuntu: apt install python3.11 python3.11-venv), then try again." >&2
    exit 1
}

say() { echo "[setup] $*"; }

pip() { "$venv/bin/python" -m pip --disable-pip-version-check $quiet "$@"; }

# Where there is no GPU the CPU build will do: the one that pip's own configuration offers, else
# PyTorch's CPU index as an extra index (its +cpu version sorts above the CUDA build of PyPI).
install_torch() {
    version=$(sed -n 's/^torch==//p' requirements/torch.txt)
    if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then
        pip install -r requirements/torch.txt
    elif ! pip install "torch==$version+cpu" -c requirements/torch.txt 2>/dev/null; then
        pip install --extra-index-url https://download.pytorch.org/whl/cpu -r requirements/torch.txt
    fi
}

if [ ! -x "$venv/bin/pip" ]; then
    python=$(find_python)
    say "creating $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
fi
say "1/3 the control side's packages"
pip install -r requirements/base.txt
say "2/3 torch (the large one: a few minutes on a slow line)"
if [ -t 1 ]; then quiet=; fi  # a progress bar, where somebody looks
install_torch
quiet=-qq
say "3/3 megatron-core, tests, lint, and flagvega itself"
pip install -r requirements/dev.txt
pip install --no-deps --no-build-isolation --editable .
state >"$stamp"
say "done: $venv is ready"
