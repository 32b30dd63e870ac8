# shellcheck shell=bash
# Part of tpu_setup.sh: control a TPU slice with gcloud. A slice and the request for it have the same name.
# Reads the options of tpu_setup.sh; uses run, thrice, say and die.

# gcloud compute tpus ARGUMENTS, in the zone and project that were given.
tpus() {
    run gcloud compute tpus "$@" ${place[@]+"${place[@]}"}
}

# state_of GROUP FIELD: the state of the slice or of the request, empty if there is none. gcloud may warn and answer.
state_of() {
    local try answer errors message
    errors=$(mktemp)
    for try in 1 2 3; do
        if answer=$(tpus "$1" describe "$name" "--format=value($2)" 2>"$errors"); then
            rm "$errors"
            echo "$answer"
            return
        fi
        if grep -q NOT_FOUND "$errors"; then
            rm "$errors"
            return
        fi
        ((try == 3)) || sleep "$pause"
    done
    message=$(tail -n 1 "$errors")
    rm "$errors"
    die "gcloud does not describe $name (3 tries): $message"
}
slice_state() { state_of tpu-vm state; }
queue_state() { state_of queued-resources state.state; }

# States from which a slice does not recover.
is_gone() {
    [[ -z $1 || $1 =~ ^(PREEMPTED|TERMINATED|STOPPED|STOPPING|DELETING|HIDDEN|HIDING)$ ]]
}

runtime_of_type() {
    case $type in
        '') die "expected --type v4-8, v5litepod-16, v5p-8, v6e-8, ..." 2 ;;
        v[234]-*) echo tpu-ubuntu2204-base ;;
        v5litepod-*) echo v2-alpha-tpuv5-lite ;;
        v5p-*) echo v2-alpha-tpuv5 ;;
        v6e-*) echo v2-alpha-tpuv6e ;;
        v5e-*) die "gcloud names it v5litepod: --type v5litepod-${type#v5e-}" 2 ;;
        *) die "the image of the type '$type' is unknown: give --runtime, or fix --type" 2 ;;
    esac
}

# The flags that both ways of creating a slice share, into $flags.
creation_flags() {
    [[ -n $runtime ]] || runtime=$(runtime_of_type)
    [[ -n $type ]] || runtime_of_type
    flags=("--accelerator-type=$type")
    if "$spot"; then flags+=(--spot); fi
    if "$internal_ips"; then flags+=(--internal-ips); fi
    if [[ -n $network ]]; then flags+=("--network=$network"); fi
    if [[ -n $subnetwork ]]; then flags+=("--subnetwork=$subnetwork"); fi
    flags+=(${more[@]+"${more[@]}"})
}

slice_create() {
    local flags state
    creation_flags
    state=$(slice_state)
    case $state in
        READY) say "$name exists already" ;;
        '')
            tpus tpu-vm create "$name" "--version=$runtime" "${flags[@]}" ||
                die "$name was not created: see gcloud's message above (without capacity, use './tpu_setup.sh queue')"
            ;;
        *) die "$name exists in state $state: delete it first (./tpu_setup.sh delete $name)" ;;
    esac
}

slice_queue() {
    local flags state
    creation_flags
    if [[ -n $valid_until ]]; then flags+=("--valid-until-duration=$valid_until"); fi
    state=$(queue_state)
    # A request stays ACTIVE for a while after its slice was preempted.
    if [[ $state == ACTIVE ]]; then
        state=$(slice_state)
        if ! is_gone "$state"; then
            say "$name exists already"
            return
        fi
        state="ACTIVE, its slice ${state:-gone}"
    fi
    case $state in
        FAILED | SUSPENDED | SUSPENDING | ACTIVE,*)
            "$replace" || die "the request $name is $state: --replace deletes it and creates a new one"
            delete_request
            state=
            ;;
    esac
    if [[ -z $state ]]; then
        tpus queued-resources create "$name" "--node-id=$name" "--runtime-version=$runtime" "${flags[@]}" ||
            die "the request $name was not accepted: see gcloud's message above"
    fi
    await_slice
}

await_slice() {
    local state before=
    while true; do
        state=$(queue_state)
        if "$dry_run"; then return; fi
        [[ $state == "$before" ]] || say "$name: ${state:-not in the queue yet}"
        before=$state
        case $state in
            ACTIVE) return ;;
            FAILED | SUSPENDED | SUSPENDING)
                die "the request $name ended without a slice: $state (see gcloud compute tpus queued-resources describe $name)"
                ;;
        esac
        sleep "$pause"
        exec 3>/dev/null # show a repeated query once
    done
}

# shellcheck disable=SC2016  # the host answers
slice_status() {
    local slice queue
    slice=$(slice_state)
    queue=$(queue_state)
    echo "slice $name: ${slice:-absent}"
    echo "request $name: ${queue:-absent}"
    if [[ $slice == READY ]] || "$dry_run"; then
        on_hosts all 'if [ -d jaxlm ]; then jaxlm/launch/host_run.sh status; else echo "$(hostname): not installed"; fi'
    fi
}

# on_hosts WHICH COMMAND: run on one host or on all at once; retry if ssh failed (255), not if COMMAND did.
on_hosts() {
    local inside=()
    if "$internal_ips"; then inside=(--internal-ip); fi
    thrice 255 tpus tpu-vm ssh "$name" "--worker=$1" "--command=$2" ${inside[@]+"${inside[@]}"} ||
        die "a command failed on $name (worker $1): see above"
}

# Pack the files that git tracks or would track. Deleted files are skipped, and macOS's own files are left out.
pack() {
    (cd "$here" && git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
        if [[ -e $file ]]; then printf '%s\0' "$file"; fi
    done | COPYFILE_DISABLE=1 tar --null -czf "$1" -T -)
}

# Remove the files of the last copy that this one lacks; the environment and runs stay.
# shellcheck disable=SC2016
unpack='set -e; mkdir -p jaxlm; if [ -f jaxlm.tar.gz ]; then tar --quoting-style=literal -tzf jaxlm.tar.gz | '
unpack+='(cd jaxlm; xargs -d "\n" rm -f --); fi; tar -xzf jaxlm-new.tar.gz -C jaxlm; cp jaxlm-new.tar.gz jaxlm.tar.gz'

slice_copy() {
    local folder=/tmp inside=()
    git -C "$here" rev-parse --is-inside-work-tree >/dev/null 2>&1 || die "$here is not a git clone: copy sends the files that git tracks"
    if "$internal_ips"; then inside=(--internal-ip); fi
    "$dry_run" || folder=$(mktemp -d)
    run pack "$folder/jaxlm.tar.gz" || die "$here could not be packed"
    thrice '*' tpus tpu-vm scp "$folder/jaxlm.tar.gz" "$name:jaxlm-new.tar.gz" --worker=all ${inside[@]+"${inside[@]}"} ||
        die "the code could not be copied to $name: see above"
    "$dry_run" || rm -r "$folder"
    on_hosts all "$unpack"
}

slice_setup() {
    local options=()
    if [[ -n $venv ]]; then options+=(--venv "$venv"); fi
    if [[ -n $python ]]; then options+=(--python "$python"); fi
    if [[ -n $bucket ]]; then options+=(--bucket "$bucket"); fi
    slice_copy
    on_hosts all "$(quoted jaxlm/tpu_setup.sh install ${options[@]+"${options[@]}"})"
}

# shellcheck disable=SC2016  # the host's $HOME and $PATH, not this machine's
slice_run() {
    ((${#command[@]})) || die "expected a command: ./tpu_setup.sh run $name -- jaxlm train ..." 2
    local bin='"$HOME"/jaxlm-venv/bin'
    if [[ -n $venv ]]; then bin=$(quoted "$venv/bin"); fi
    on_hosts all "cd jaxlm && PATH=$bin:\"\$PATH\" $(quoted launch/host_run.sh start "$restarts" "${command[@]}")"
}

slice_logs() {
    local how=
    if "$follow"; then how=' --follow'; fi
    tpus tpu-vm ssh "$name" "--worker=$worker" "--command=jaxlm/launch/host_run.sh logs$how"
}

slice_stop() {
    on_hosts all 'jaxlm/launch/host_run.sh stop'
}

# Wait until the command has ended. Code: that of the command, or 75 if the slice was preempted or a host rebooted.
slice_wait() {
    local state code
    while true; do
        state=$(slice_state) || state=unknown
        if "$dry_run"; then
            tpus tpu-vm ssh "$name" --worker=0 '--command=jaxlm/launch/host_run.sh code'
            return
        fi
        if is_gone "$state"; then
            say "the slice $name is ${state:-gone}"
            exit 75
        fi
        code=$(tpus tpu-vm ssh "$name" --worker=0 '--command=jaxlm/launch/host_run.sh code') || code=unknown
        if [[ $code =~ ^[0-9]+$ ]]; then
            say "the command ended with code $code"
            exit "$code"
        fi
        sleep "$pause"
        exec 3>/dev/null
    done
}

delete_request() {
    thrice '*' tpus queued-resources delete "$name" --force --quiet || die "the request $name was not deleted: see above"
}

slice_delete() {
    local answer slice queue
    if ! "$yes" && ! "$dry_run"; then
        [[ -t 0 ]] || die "nothing was deleted: use --yes without a terminal"
        read -r -p "Delete the slice $name with all that is on its disks? Type its name: " answer
        [[ $answer == "$name" ]] || die "nothing was deleted"
    fi
    queue=$(queue_state)
    slice=$(slice_state)
    if [[ -n $queue ]]; then # deletes the slice too
        delete_request
    elif [[ -n $slice ]] || "$dry_run"; then
        tpus tpu-vm delete "$name" --quiet || die "$name was not deleted: see above"
    else
        say "no slice and no request $name exists"
    fi
}
