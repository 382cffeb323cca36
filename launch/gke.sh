#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster that xpk has set up (https://github.com/AI-Hypercomputer/xpk):
#
#   docker build --target tpu --tag IMAGE --file launch/Dockerfile . && docker push IMAGE
#   export CLUSTER=my-cluster WORKLOAD=align IMAGE=us-docker.pkg.dev/PROJECT/REPOSITORY/big_ssl TPU_TYPE=v6e-16
#   launch/gke.sh --config=configs/align_l2.py --workdir=gs://BUCKET/align [--config.KEY=VALUE ...]
#
# CLUSTER, WORKLOAD (its name, yours to choose), IMAGE and TPU_TYPE must be set; ZONE and PROJECT default to
# gcloud's, MAX_RESTARTS to 100, PRIORITY to medium. The workdir must be on gs://, for all hosts to share it.
# --dry-run prints the command and does nothing else. Follow the log with the link xpk prints; end the job
# with `xpk workload delete --cluster=$CLUSTER --workload=$WORKLOAD`.
#
# A pod that is taken away has --termination-grace-period-seconds to save. The job then exits with 75,
# and JobSet starts all of its pods anew, which resume; so does a crash, MAX_RESTARTS times at most.
#
# Checked: the flags exist in xpk's source as of 2026. Not checked, for want of a cluster: that it runs.
# One slice only: the mesh of several would need one axis over the data-centre network.
set -euo pipefail

usage() {
    echo "usage: launch/gke.sh [--dry-run] --config=FILE[:PRESET] --workdir=gs://DIR [--config.KEY=VALUE ...]" >&2
    exit 2
}

dry_run=false
if [[ ${1:-} == --dry-run ]]; then
    dry_run=true
    shift
fi
[[ " $* " == *" --config="* && " $* " == *" --workdir="* ]] || usage
for variable in CLUSTER WORKLOAD IMAGE TPU_TYPE; do
    if [[ -z ${!variable:-} ]]; then
        echo "launch/gke.sh: set $variable (see the top of the script)" >&2
        exit 2
    fi
done

# `exec`, so that the pod's SIGTERM reaches Python.
job="exec $(printf '%q ' python -u -m big_ssl.main --distributed=auto --stopped_exit_code=75 "$@")"
command=(
    xpk workload create --cluster="$CLUSTER" --workload="$WORKLOAD" --docker-image="$IMAGE"
    --tpu-type="$TPU_TYPE" --num-slices=1 --priority="${PRIORITY:-medium}"
    --max-restarts="${MAX_RESTARTS:-100}" --restart-on-user-code-failure --termination-grace-period-seconds=300
    ${ZONE:+--zone="$ZONE"} ${PROJECT:+--project="$PROJECT"} --command="${job% }"
)
if $dry_run; then
    printf '%q ' "${command[@]}"
    echo
else
    "${command[@]}"
fi
