#!/usr/bin/env bash
# Trains on a Cloud TPU slice of any number of hosts, through queued resources.
#
#   export NAME=align ZONE=us-east5-a ACCELERATOR_TYPE=v6e-16 RUNTIME_VERSION=v2-alpha-tpuv6e SPOT=1
#   launch/tpu_vm.sh up --config=configs/align_l2.py --workdir=gs://BUCKET/align [--config.KEY=VALUE ...]
#
# up        all of what follows, and again after each preemption, until training has finished; then delete
# create    ask for the slice and wait until it is there
# install   copy the last commit to every host and install it, with the versions of the lock
# run ...   start the main job on every host; it goes on when this terminal closes
# follow    show the log of host 0 until the job ends, with its exit code
# stop      ask the job to save and stop; `run` with the same workdir resumes
# delete    give the slice back
# --dry-run before the command prints what would be run, and does nothing else.
#
# NAME, ZONE, ACCELERATOR_TYPE and RUNTIME_VERSION must be set, SPOT=1 asks for preemptible capacity; the
# project is gcloud's own. RUNTIME_VERSION belongs to the kind of TPU: see "TPU software versions" in
# Google's documentation. The workdir must be on gs://, for all hosts to share it.
#
# Checked: every gcloud command and flag here exists in gcloud 528. Not checked, for want of a TPU: that
# it runs; that the hosts' images have Python's pip, for uv, and reach PyPI and GitHub, from where uv takes
# Python 3.12; that ssh gives the exit code of the remote command back.
set -euo pipefail

usage() {
    echo "usage: launch/tpu_vm.sh [--dry-run] up|create|install|run|follow|stop|delete [--config=FILE --workdir=gs://DIR ...]" >&2
    exit 2
}

dry_run=false
if [[ ${1:-} == --dry-run ]]; then
    dry_run=true
    shift
fi
action=${1:-}
case $action in
    up | run)
        shift
        [[ " $* " == *" --config="* && " $* " == *" --workdir="* ]] || usage
        ;;
    create | install | follow | stop | delete)
        [[ $# -eq 1 ]] || usage
        shift
        ;;
    *) usage ;;
esac
for variable in NAME ZONE ACCELERATOR_TYPE RUNTIME_VERSION; do
    if [[ -z ${!variable:-} ]]; then
        echo "launch/tpu_vm.sh: set $variable (see the top of the script)" >&2
        exit 2
    fi
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly STOPPED=75  # what the job exits with where it was asked to stop and saved
tpus=(gcloud compute tpus)

execute() {  # execute COMMAND...: runs it, or prints it
    if $dry_run; then
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}

on_hosts() {  # on_hosts WORKER COMMAND: WORKER is an index or "all"
    execute "${tpus[@]}" tpu-vm ssh "$NAME" --zone="$ZONE" --worker="$1" --command="$2"
}

state() {
    "${tpus[@]}" queued-resources describe "$NAME" --zone="$ZONE" --format='value(state.state)' 2>/dev/null || echo NONE
}

create() {
    execute "${tpus[@]}" queued-resources create "$NAME" --node-id="$NAME" --zone="$ZONE" \
        --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME_VERSION" ${SPOT:+--spot}
    ! $dry_run || return 0
    local now
    until now=$(state) && [[ $now == ACTIVE ]]; do
        if [[ $now == FAILED || $now == SUSPEND* ]]; then
            echo "launch/tpu_vm.sh: the request for $NAME is $now" >&2
            return 1
        fi
        echo "waiting for $NAME: $now"
        sleep 30
    done
}

install() {
    local archive="${TMPDIR:-/tmp}/big_ssl_$NAME.tar.gz"
    execute git archive --format=tar.gz --output="$archive" HEAD
    execute "${tpus[@]}" tpu-vm scp "$archive" "$NAME:big_ssl.tar.gz" --zone="$ZONE" --worker=all
    execute rm "$archive"
    on_hosts all "set -e; mkdir -p big_ssl; tar -xzf big_ssl.tar.gz -C big_ssl; cd big_ssl
        python3 -m pip install --quiet --user uv; uv=~/.local/bin/uv
        \$uv venv --quiet --python 3.12 .venv
        \$uv pip install --quiet --python .venv --requirement requirements/py3.12.txt
        \$uv pip install --quiet --python .venv --constraint requirements/py3.12.txt --editable '.[tpu]'"
}

run() {
    local job
    job="$(printf '%q ' .venv/bin/python -u -m big_ssl.main --distributed=auto --stopped_exit_code=$STOPPED "$@")"
    job+='& echo $! >job.pid; wait $!; echo $? >job.code'
    on_hosts all "cd big_ssl; rm -f job.code job.pid; nohup bash -c $(printf '%q' "$job") >>job.log 2>&1 </dev/null &"
}

follow() {
    on_hosts 0 "cd big_ssl; until [ -s job.pid ]; do sleep 1; done
        tail -n +1 -F --pid=\$(cat job.pid) job.log; sleep 2; exit \$(cat job.code)"
}

stop() {
    on_hosts 0 "kill -TERM \$(cat big_ssl/job.pid)"  # one is enough: all stop at the same step
}

delete() {
    execute "${tpus[@]}" queued-resources delete "$NAME" --zone="$ZONE" --force --quiet
}

up() {
    local code
    while true; do
        create
        install
        run "$@"
        code=0
        follow || code=$?
        # A slice that was taken away is no longer ACTIVE, whatever the connection to it ended with; but the
        # job is told before the state is. One that is ACTIVE still was stopped by its user.
        ((code != STOPPED)) || sleep 120
        if $dry_run || [[ $(state) == ACTIVE ]]; then
            break
        fi
        echo "launch/tpu_vm.sh: $NAME was preempted; asking for another" >&2
        delete
    done
    if ((code == 0)); then
        delete
    fi
    return $code
}

"$action" "$@"
