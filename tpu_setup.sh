#!/usr/bin/env bash
# Prepare a Cloud TPU VM for jaxlm: see usage below, or `./tpu_setup.sh --help`.
set -euo pipefail

venv=$HOME/jaxlm-venv
python=
dry_run=false

usage() {
    cat <<'HELP'
tpu_setup.sh: install jaxlm, with JAX for TPU, into a virtual environment on a Cloud TPU VM.

Run it in a clone of jaxlm, on all hosts of the slice at once (its last step, a look at the TPU, waits for every host):
  ./tpu_setup.sh [--venv DIR] [--python PYTHON] [--dry-run]

  --venv DIR       where the environment goes (default: ~/jaxlm-venv)
  --python PYTHON  the Python to make it with (default: the newest >= 3.11 on the PATH)
  --dry-run        print the commands, run none of them
  --help           this text

It can be run again: what is already there stays, what changed in pyproject.toml is installed. At the end it prints what
JAX sees. It stops with a non-zero code and one line that says why if a step fails.
HELP
}

die() {
    echo "tpu_setup.sh: $1" >&2
    exit "${2:-1}"
}

# Print a command, and run it unless this is a dry run.
run() {
    printf '+'
    printf ' %q' "$@"
    printf '\n'
    "$dry_run" || "$@"
}

is_suitable() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

while (($#)); do
    case $1 in
        --venv | --python)
            (($# > 1)) || die "$1 needs a value; see --help" 2
            if [[ $1 == --venv ]]; then venv=$2; else python=$2; fi
            shift 2
            ;;
        --dry-run)
            dry_run=true
            shift
            ;;
        --help | -h)
            usage
            exit 0
            ;;
        *) die "unknown argument '$1'; see --help" 2 ;;
    esac
done

cd "$(dirname "${BASH_SOURCE[0]}")"
[[ -f pyproject.toml ]] || die "no pyproject.toml in $PWD: run the script of a jaxlm clone"

if [[ -z $python ]]; then
    for candidate in python3.13 python3.12 python3.11 python3; do
        if is_suitable "$candidate"; then
            python=$candidate
            break
        fi
    done
    [[ -n $python ]] || die "no Python >= 3.11 found; on Ubuntu 22.04: sudo apt install python3.11-venv"
else
    is_suitable "$python" || die "$python does not run or is older than 3.11"
fi

if ! compgen -G '/dev/accel*' >/dev/null && ! compgen -G '/dev/vfio/[0-9]*' >/dev/null; then
    echo "tpu_setup.sh: no TPU device on this machine; going on, but JAX will not find one" >&2
fi

# pip is the last thing that `venv` installs: an environment without it was left half made.
if [[ ! -x $venv/bin/pip ]]; then
    run "$python" -m venv --clear "$venv" ||
        die "$python could not make $venv; on Debian or Ubuntu: sudo apt install ${python##*/}-venv"
fi
run "$venv/bin/python" -m pip install --quiet --editable '.[tpu]' || die "the installation failed: see above"
run "$venv/bin/jaxlm" doctor || die "jaxlm is installed, but something is missing: see the table above"
