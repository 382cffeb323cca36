#!/usr/bin/env bash
# Runs the main job on N simulated CPU devices of this machine, to see it sharded without an accelerator:
#   launch/simulated.sh 8 --config=configs/align_l2.py:tiny --workdir=runs/tiny
set -euo pipefail

if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: launch/simulated.sh N --config=FILE[:PRESET] --workdir=DIR [--config.KEY=VALUE ...]" >&2
    exit 2
fi
devices=$1
shift
export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=$devices
exec "${PYTHON:-python3}" -m big_ssl.main "$@"
