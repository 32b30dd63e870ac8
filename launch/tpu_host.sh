# shellcheck shell=bash
# Part of tpu_setup.sh: jaxlm on this host. Reads $here $venv $python $bucket; uses run, thrice, say and die.

# `venv` and `ensurepip` are packages of their own on Debian and Ubuntu.
is_suitable() {
    "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

newest_python() {
    local candidate
    for candidate in python3.13 python3.12 python3.11 python3; do
        if is_suitable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
}

# A machine that has just started may be installing updates: wait for the lock.
apt_get() {
    thrice '*' run sudo env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 --quiet "$@"
}

# The images of TPU VMs are Ubuntu 22.04, with Python 3.10.
install_python() {
    local cure="no Python >= 3.11 that can make environments was found; on Ubuntu: sudo apt install python3.12-venv"
    [[ -n $(command -v apt-get) && -n $(command -v sudo) ]] || die "$cure"
    apt_get update || die "$cure"
    if ! apt-cache show python3.12-venv >/dev/null 2>&1; then
        command -v add-apt-repository >/dev/null || die "$cure (from ppa:deadsnakes/ppa)"
        thrice '*' run sudo add-apt-repository --yes ppa:deadsnakes/ppa || die "$cure (from ppa:deadsnakes/ppa)"
    fi
    apt_get install --yes python3.12 python3.12-venv || die "$cure"
    python=python3.12
}

install_gcsfuse() {
    local keys=https://packages.cloud.google.com/apt/doc/apt-key.gpg keyring=/usr/share/keyrings/cloud.google.asc
    local release source
    release=$(lsb_release --codename --short) || return
    source="deb [signed-by=$keyring] https://packages.cloud.google.com/apt gcsfuse-$release main"
    thrice '*' run sudo curl --silent --show-error --fail --location --output "$keyring" "$keys" || return
    run sudo sh -c "echo '$source' >/etc/apt/sources.list.d/gcsfuse.list" || return
    apt_get update && apt_get install --yes gcsfuse
}

# Orbax renames a folder when its step is complete; a bucket without hierarchical namespace renames file by file.
mount_bucket() {
    local folder=$HOME/bucket
    if mountpoint --quiet "$folder" 2>/dev/null; then return; fi
    command -v gcsfuse >/dev/null || install_gcsfuse || die "gcsfuse could not be installed: see above"
    run mkdir -p "$folder"
    thrice '*' run gcsfuse --implicit-dirs --rename-dir-limit=100000 "$bucket" "$folder" ||
        die "the bucket $bucket could not be mounted: does it exist, and may this machine's service account write there?"
}

# Without them a TPU's start-up and transfers are much slower: JAX warns of it on v5e and later.
enable_huge_pages() {
    local file=${1:-/sys/kernel/mm/transparent_hugepage/enabled}
    if [[ ! -e $file || $(<"$file") == *"[always]"* ]]; then return; fi
    run sudo sh -c "echo always >$file" || say "transparent huge pages could not be enabled: transfers to the TPU are slower"
}

install_here() {
    cd "$here" || die "cannot enter $here"
    venv=${venv:-$HOME/jaxlm-venv}
    if [[ -n $python ]]; then
        is_suitable "$python" || die "$python does not run, is older than 3.11, or cannot make environments"
    else
        python=$(newest_python)
        [[ -n $python ]] || install_python
    fi
    if ! compgen -G '/dev/accel*' >/dev/null && ! compgen -G '/dev/vfio/[0-9]*' >/dev/null; then
        say "no TPU device on this machine: installing, but JAX will not find one"
    else
        enable_huge_pages
    fi
    if ! command -v make >/dev/null; then
        apt_get install --yes make || say "make could not be installed; only 'make test' needs it"
    fi
    # `venv` installs pip last: an environment without pip is incomplete.
    if [[ ! -x $venv/bin/pip ]]; then
        run "$python" -m venv --clear "$venv" || die "$python could not make $venv: see above"
    fi
    thrice '*' run "$venv/bin/python" -m pip install --quiet --constraint launch/constraints.txt --editable '.[tpu]' || die "the installation failed: see above"
    [[ -z $bucket ]] || mount_bucket
    run "$venv/bin/jaxlm" doctor || die "jaxlm is installed, but something is missing: see the table above"
}
