#!/usr/bin/env bash
# Set up Cloud TPUs and run commands on them: see usage below, or `./tpu_setup.sh --help`.
set -euo pipefail

usage() {
    cat <<'HELP'
tpu_setup.sh: create a TPU slice, install jaxlm on all of its hosts, and run commands there.

On a TPU VM, in a clone of jaxlm: install jaxlm with JAX for TPU into a virtual environment. Install on all hosts at
once: the last step, a check of the TPU, waits for all of them.
  ./tpu_setup.sh [install] [--venv DIR] [--python PYTHON] [--bucket BUCKET]

On your own machine, in a clone of jaxlm, with gcloud:
  ./tpu_setup.sh create NAME --type TYPE    create a slice now
  ./tpu_setup.sh queue NAME --type TYPE     request a slice, and wait until it is granted
  ./tpu_setup.sh status NAME                show the slice, the request for it, and the command on each host
  ./tpu_setup.sh copy NAME                  copy this clone (files that git tracks or would) to ~/jaxlm on every host
  ./tpu_setup.sh setup NAME                 copy, then install on every host
  ./tpu_setup.sh run NAME -- COMMAND...     start a command on every host; it survives the connection, and restarts
                                            if the machine ends it
  ./tpu_setup.sh logs NAME [--follow]       show the output of the command on one host
  ./tpu_setup.sh wait NAME                  wait for the command; its exit code, or 75 if the slice was lost
  ./tpu_setup.sh stop NAME                  end the command (a training run saves first)
  ./tpu_setup.sh delete NAME                delete the slice and the request for it, after asking

  --type TYPE        v4-8, v5litepod-16, v5p-8, v6e-8, ...
  --zone ZONE, --project PROJECT           (default: those of `gcloud config`)
  --runtime VERSION  software version of the machines (default: depends on --type)
  --spot             use a spot slice: cheaper, but it may be preempted
  --network NET, --subnetwork NET          (default: those of gcloud)
  --internal-ips     hosts without external addresses, reached inside the network
  --gcloud FLAG      another flag of gcloud's create (may be repeated)
  --valid-until D    queue: give up if no slice is granted within D (6h, 2d)
  --replace          queue: delete a failed or preempted request of that name first
  --bucket BUCKET    setup: mount a Cloud Storage bucket at ~/bucket (a run on several hosts needs one folder for all)
  --venv DIR         folder of the environment (default: ~/jaxlm-venv)
  --python PYTHON    Python of the environment (default: the newest >= 3.11; on Ubuntu it is installed if missing)
  --max-restarts N   run: restart at most N times (default: 50)
  --worker W         logs: the host (default: 0)
  --follow           logs: follow until Ctrl-C
  --yes              delete: do not ask
  --pause SECONDS    between tries of a command that failed, and between queries of the queue (default: 20)
  --dry-run          print the commands without running them
  --help             print this text

Every command can be repeated: it keeps what exists. An error ends with one line and a non-zero exit code.
HELP
}

die() {
    echo "tpu_setup.sh: $1" >&2
    exit "${2:-1}"
}

say() {
    echo "tpu_setup.sh: $1" >&2
}

# The words quoted for any shell. Versions of bash differ on quotes in ${word//x/y}, hence sed; $(...) drops line breaks
# at the end of its text, hence the x.
# shellcheck disable=SC2001
quoted() {
    local word text line=
    for word in "$@"; do
        if [[ ! $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
            text=$(LC_ALL=C sed "s/'/'\\\\''/g" <<<"${word}x")
            word="'${text%x}'"
        fi
        line+=" $word"
    done
    printf '%s' "${line# }"
}

# Print a command, and run it unless this is a dry run.
run() {
    echo "+ $(quoted "$@")" >&3
    "$dry_run" || "$@"
}

# thrice CODES COMMAND...: try up to three times while the exit code matches the pattern CODES.
thrice() {
    local codes=$1 try code
    shift
    for try in 1 2 3; do
        code=0
        "$@" || code=$?
        # shellcheck disable=SC2053  # a pattern
        if ((code == 0 || try == 3)) || [[ $code != $codes ]]; then break; fi
        say "try $try of 3 failed with code $code; the next in $pause s"
        sleep "$pause"
    done
    return "$code"
}

exec 3>&1 # run prints commands here, also inside $(...)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[[ -f $here/pyproject.toml && -f $here/launch/tpu_host.sh ]] || die "$here is not a clone of jaxlm: run the script of a clone"
# shellcheck source=launch/tpu_host.sh
source "$here/launch/tpu_host.sh"
# shellcheck source=launch/tpu_slice.sh
source "$here/launch/tpu_slice.sh"

verb=install name='' type='' runtime='' network='' subnetwork='' valid_until=''
bucket='' venv='' python='' restarts=50 worker=0 pause=20
dry_run=false spot=false replace=false internal_ips=false follow=false yes=false
place=() more=() command=()

if (($#)) && [[ $1 != -* ]]; then
    verb=$1
    shift
    if [[ $verb != install ]] && (($#)) && [[ $1 != -* ]]; then
        name=$1
        shift
    fi
fi
while (($#)); do
    case $1 in
        --type | --zone | --project | --runtime | --network | --subnetwork | --gcloud | --valid-until | --bucket | --venv | \
            --python | --max-restarts | --worker | --pause)
            (($# > 1)) || die "$1 needs a value; see --help" 2
            [[ -n $2 ]] || die "$1 was given an empty value; see --help" 2
            case $1 in
                --type) type=$2 ;;
                --zone | --project) place+=("$1=$2") ;;
                --runtime) runtime=$2 ;;
                --network) network=$2 ;;
                --subnetwork) subnetwork=$2 ;;
                --gcloud) more+=("$2") ;;
                --valid-until) valid_until=$2 ;;
                --bucket) bucket=${2#gs://} ;;
                --venv) venv=$2 ;;
                --python) python=$2 ;;
                --max-restarts) restarts=$2 ;;
                --worker) worker=$2 ;;
                --pause) pause=$2 ;;
            esac
            shift 2
            continue
            ;;
        --dry-run) dry_run=true ;;
        --spot) spot=true ;;
        --replace) replace=true ;;
        --internal-ips) internal_ips=true ;;
        --follow) follow=true ;;
        --yes) yes=true ;;
        --help | -h)
            usage
            exit 0
            ;;
        --)
            shift
            command=("$@")
            break
            ;;
        *) die "unknown argument '$1'; see --help" 2 ;;
    esac
    shift
done
for number in "$restarts" "$pause"; do
    [[ $number =~ ^[0-9]+$ ]] || die "--max-restarts and --pause take whole numbers, found '$number'" 2
done

case $verb in
    install) install_here ;;
    create | queue | status | copy | setup | run | logs | wait | stop | delete)
        [[ -n $name ]] || die "'$verb' needs the name of a slice: ./tpu_setup.sh $verb NAME; see --help" 2
        # gcloud reads a leading dash as an option, and names have no other characters.
        [[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || die "'$name' is not a valid name: use lower-case letters, digits and dashes" 2
        "$dry_run" || [[ -n $(command -v gcloud) ]] || die "gcloud is not installed: https://cloud.google.com/sdk/docs/install"
        "slice_$verb"
        ;;
    *) die "no command '$verb': create, queue, status, copy, setup, run, logs, wait, stop, delete or install; see --help" 2 ;;
esac
