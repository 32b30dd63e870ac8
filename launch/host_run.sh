#!/usr/bin/env bash
# Run one command on this host: it survives the end of the connection, and restarts if the machine, not its user, ends it.
#   host_run.sh start RESTARTS COMMAND...    host_run.sh status | code | logs [--follow] | stop
# After code 0 (success), 1 (failure) or 2 (wrong command line) a restart would not help. Any other code (130: interrupted
# and saved; 134, 137, 143: killed; ...) comes from the machine or from another host.
set -uo pipefail

folder=${JAXLM_RUN:-$HOME/jaxlm-run}
pause=${JAXLM_RESTART_SECONDS:-10}

die() {
    echo "host_run.sh on $(hostname): $1" >&2
    exit 1
}

# The id of the process that supervises the command, or nothing. The stored id may belong to another program by now.
supervisor() {
    local pid
    pid=$(cat "$folder/pid" 2>/dev/null) || return 1
    [[ $(ps -o args= -p "$pid" 2>/dev/null) == *"host_run.sh supervise"* ]] && echo "$pid"
}

start() {
    (($# > 1)) || die "start RESTARTS COMMAND..."
    mkdir -p "$folder" || die "cannot make $folder"
    local line
    line=$(printf '%q ' "${@:2}")
    if supervisor >/dev/null; then
        [[ $line == "$(cat "$folder/command")" ]] || die "another command is running ('stop' ends it): $(cat "$folder/command")"
        echo "already running: $line"
        return
    fi
    rm -f "$folder/pid" "$folder/code"
    printf '%s' "$line" >"$folder/command"
    setsid nohup "$0" supervise "$@" </dev/null >>"$folder/log" 2>&1 &
    for _ in {1..100}; do
        if [[ -s $folder/pid ]]; then
            echo "started on $(hostname): $line"
            return
        fi
        sleep 0.1
    done
    die "the command did not start: $(tail -n 1 "$folder/log")"
}

# `stop`, a machine that shuts down and Ctrl-C signal the whole process group, including the command: it gets no second
# signal here, which would end it before it has saved.
supervise() {
    local restarts=$1 tries=0 code stopping=false
    shift
    trap 'stopping=true' TERM INT
    echo $$ >"$folder/pid"
    while true; do
        echo "== $(date -u +%FT%TZ) $(hostname): $(printf '%q ' "$@")"
        "$@"
        code=$?
        echo "== $(date -u +%FT%TZ) $(hostname): ended with code $code"
        if [[ $code == [012] ]] || "$stopping" || ((tries >= restarts)); then break; fi
        tries=$((tries + 1))
        echo "== start $tries of $restarts follows in $pause s"
        sleep "$pause"
        if "$stopping"; then break; fi
    done
    echo "$code" >"$folder/code"
}

stop() {
    local pid
    pid=$(supervisor) || { echo "nothing is running on $(hostname)"; return; }
    kill -TERM -- "-$pid"
    for _ in {1..300}; do
        if ! supervisor >/dev/null; then
            echo "ended on $(hostname) with code $(cat "$folder/code")"
            return
        fi
        sleep 1
    done
    die "the command is still saving after 5 minutes: give 'stop' again, or kill -9 -- -$pid"
}

status() {
    if supervisor >/dev/null; then
        echo "$(hostname): running: $(cat "$folder/command")"
    elif [[ -f $folder/code ]]; then
        echo "$(hostname): ended with code $(cat "$folder/code"): $(cat "$folder/command")"
    elif [[ -f $folder/command ]]; then
        echo "$(hostname): ended with the machine: $(cat "$folder/command")"
    else
        echo "$(hostname): nothing was started"
    fi
}

# For programs: `running`, or how it ended. 75: with the machine.
code() {
    if supervisor >/dev/null; then
        echo running
    else
        cat "$folder/code" 2>/dev/null || echo 75
    fi
}

logs() {
    [[ -f $folder/log ]] || die "nothing was started"
    if [[ ${1:-} == --follow ]]; then exec tail -n 200 -F "$folder/log"; fi
    exec tail -n 200 "$folder/log"
}

verb=${1:-}
shift
case $verb in
    start | supervise | stop | status | code | logs) "$verb" "$@" ;;
    *) die "start RESTARTS COMMAND..., status, code, logs [--follow] or stop" ;;
esac
