#!/usr/bin/env bash
# Ten minutes on one GPU: `benchmarks/gpu.sh --out FOLDER [--only PARTS] [--wheels FOLDER] [--budget SECONDS]`.
# Options and parts: `python -m benchmarks.gpu --help`. PYTHON=... chooses the Python, which needs JAX with CUDA.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
export PYTHONUNBUFFERED=1 PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
