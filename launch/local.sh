#!/usr/bin/env bash
# Runs the main job as N processes on this machine, as a pod would run it on N hosts:
#   launch/local.sh 2 --config=configs/align_l2.py:tiny --workdir=runs/tiny
# On a CPU, give each process devices of its own: JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=2.
#
# Every line of a log begins with the index of its process. SIGTERM and Ctrl-C are passed on, so that
# the job saves and stops. Where one process fails, the others are told to stop, and killed ten
# seconds later; the exit code is that of the first to fail.
# PORT is where process 0 listens (a free one is chosen), PYTHON the interpreter. Needs bash 5.1.
# --dry-run prints the commands and does nothing else.
set -euo pipefail

usage() {
    echo "usage: launch/local.sh [--dry-run] N --config=FILE[:PRESET] --workdir=DIR [--config.KEY=VALUE ...]" >&2
    exit 2
}

dry_run=false
if [[ ${1:-} == --dry-run ]]; then
    dry_run=true
    shift
fi
[[ $# -ge 3 && $1 =~ ^[1-9][0-9]*$ ]] || usage
processes=$1
shift
[[ $1 != -- ]] || shift
[[ " $* " == *" --config="* && " $* " == *" --workdir="* ]] || usage

python=${PYTHON:-python3}
free_port='import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])'
port=${PORT:-$($python -c "$free_port")}

pids=()
start() {  # start INDEX COMMAND...: in the background, with its output prefixed
    local index=$1
    shift
    "$@" > >(sed -u "s/^/[$index] /") 2> >(sed -u "s/^/[$index] /" >&2) &
    pids+=($!)
}

forward() {  # forward SIGNAL: to every process that still runs
    local pid
    for pid in "${pids[@]}"; do
        kill -"$1" "$pid" 2>/dev/null || true
    done
}

for ((i = 0; i < processes; i++)); do
    command=("$python" -u -m big_ssl.main "$@" "--distributed=localhost:$port,$processes,$i")
    if $dry_run; then
        echo "${command[*]@Q}"
    else
        start "$i" "${command[@]}"
    fi
done
! $dry_run || exit 0

# Ctrl-C reaches the processes too, which ask one another to stop; SIGTERM to this script does not.
trap 'forward TERM' TERM
trap ':' INT

failed=0
for ((left = processes; left > 0; )); do
    code=0
    wait -n -p ended "${pids[@]}" || code=$?
    [[ -n ${ended:-} ]] || continue  # a signal arrived, and no process ended
    left=$((left - 1))
    for i in "${!pids[@]}"; do
        [[ ${pids[i]} != "$ended" ]] || unset "pids[i]"
    done
    if ((code != 0 && failed == 0)); then
        failed=$code
        echo "launch/local.sh: a process ended with exit code $code; ending the others" >&2
        forward TERM
        # Without this script's output: who reads that would wait for the sleep to end as well.
        (sleep 10 && forward KILL) >/dev/null 2>&1 &
        killer=$!
    fi
done
[[ -z ${killer:-} ]] || kill "$killer" 2>/dev/null || true
wait || true  # for the last lines to be printed
exit "$failed"
