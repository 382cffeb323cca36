#!/usr/bin/env bash
# Rehearses a full recipe on this machine, the day before the pod: its preset `rehearsal`, as two processes.
#   launch/rehearse.sh configs/align_l2.py --workdir=gs://BUCKET/rehearsal [--init_from=RUN] [--config.KEY=VALUE ...]
#   launch/rehearse.sh configs/clip.py:vitl14 --workdir=gs://BUCKET/rehearsal
#
# It writes data and a vocabulary, trains, kills one process with SIGKILL, resumes to the end, trains once more
# without a disturbance, compares both bit by bit, evaluates, starts a run from the result, converts it and loads it.
# Everything lies below the workdir, on a disk or in a bucket; the runs are in killed, whole and continued, and
# killed/report/index.html is the report. --init_from is for recipes that start from weights.
#
# On a CPU each process has two devices. PYTHON is the interpreter. See docs/launch.md. Needs bash 5.1.
# Exit code 0: all of it went well; otherwise the last line names the step that did not.
set -euo pipefail

usage() {
    echo "usage: launch/rehearse.sh FILE[:MODEL] --workdir=DIR [--init_from=RUN] [--config.KEY=VALUE ...]" >&2
    exit 2
}

[[ $# -ge 2 && $1 =~ ^[^-:][^:]*(:[^:,=]+)?$ && $2 == --workdir=?* ]] || usage
case $1 in
    *:*) config=$1,rehearsal ;;
    *) config=$1:rehearsal ;;
esac
workdir=${2#--workdir=}
shift 2
changes=()
for argument in "$@"; do
    case $argument in
        --init_from=?*) changes+=("--config.init_from.path=${argument#--init_from=}") ;;
        --config.*=*) changes+=("$argument") ;;
        *) usage ;;
    esac
done

root=$(dirname "${BASH_SOURCE[0]}")/..
python=${PYTHON:-python3}
export PYTHON=$python PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} JAX_NUM_CPU_DEVICES=${JAX_NUM_CPU_DEVICES:-2}
# XLA's threads on a CPU, of which a waiting collective blocks one. With as many as a machine of two cores has, both
# processes can wait for ever: one thread of each in an all-reduce and the other in an all-gather.
export NPROC=${NPROC:-16}
# Programs this small are sooner compiled without most optimisations, and all of them only once.
export JAX_DISABLE_MOST_OPTIMIZATIONS=${JAX_DISABLE_MOST_OPTIMIZATIONS:-1}
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$workdir/compiled}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0.5}

scratch=$(mktemp -d)
step=starting
leave() {
    local code=$?
    jobs -p | xargs -r kill 2>/dev/null || true
    ((code == 0)) || { tail -n 30 "$scratch/log" 2>/dev/null && echo "=== rehearsal FAILED: $step"; } >&2
    rm -rf "$scratch"
}
trap leave EXIT

begin() {
    step=$1
    echo "=== ${SECONDS}s: $step"
    : >"$scratch/log"
}

run() { # run NAME [--FLAG ...]: the job, as two processes, in $workdir/NAME
    local name=$1
    shift
    "$root/launch/local.sh" 2 "--config=$config" "--workdir=$workdir/$name" "${data[@]}" "${changes[@]}" "$@" \
        >"$scratch/log" 2>&1
}

begin "writing data and a vocabulary"
"$python" "$root/launch/rehearsal_data.py" "--config=$config" "--output=$workdir/data" >"$scratch/flags" 2>"$scratch/log"
mapfile -t data <"$scratch/flags"

begin "training until a process is killed"
run killed --heartbeat_seconds=20 &
job=$!
until grep -Eq 'step +[5-9]/' "$scratch/log"; do
    kill -0 "$job" 2>/dev/null || { wait "$job" || true; exit 1; }
    sleep 0.2
done
pkill -KILL -f -- "--workdir=$workdir/killed .*--distributed=localhost:[0-9]*,2,1" || exit 1
code=0
wait "$job" || code=$?
((code != 0)) || { echo "the job ended well although a process was killed" >>"$scratch/log"; exit 1; }

begin "resuming"
run killed
grep -q "Report: " "$scratch/log"

begin "training without a disturbance"
run whole

begin "comparing both"
"$python" "$root/launch/rehearsal_check.py" "$workdir/killed" "$workdir/whole" >"$scratch/log" 2>&1
cat "$scratch/log"

begin "evaluating"
"$python" -m big_ssl.evaluate "--checkpoint=$workdir/killed" --eval=knn --eval.label=category \
    --eval.train.kind=emoji "--eval.train.styles=('fxemoji',)" --eval.test.kind=emoji "--eval.test.styles=('noto',)" \
    "--output=$workdir/knn.json" >"$scratch/log" 2>&1
grep k20_top1 "$scratch/log"

begin "starting a run from it"
# The run's checkpoint holds everything, so nothing is copied or left out, as a distillation does at its start.
changes+=("--config.init_from.path=$workdir/killed" "--config.init_from.remap=()" "--config.init_from.exclude=()")
run continued

begin "converting and loading it"
"$python" -m big_ssl.convert --from=big_ssl "--input=$workdir/killed" "--output=$workdir/converted" >"$scratch/log" 2>&1
"$python" "$root/launch/rehearsal_check.py" "$workdir/converted" >>"$scratch/log" 2>&1
cat "$scratch/log"

step=
echo "=== ${SECONDS}s: rehearsed; the report is $workdir/killed/report/index.html"
