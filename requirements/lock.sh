#!/usr/bin/env bash
# Rewrites requirements/pyX.Y.txt: the releases pip resolves today for big_ssl with the extras `eval`, `dev`, `gcs`
# and `s3`, once for each Python named (default: 3.11, 3.12 and 3.13, as far as they are installed).
#
#     requirements/lock.sh [PYTHON ...]
#
# pip resolves in a throw-away environment and installs nothing; only names and versions are written.
# One file per Python, because jax 0.11 dropped Python 3.11 and the versions differ from there on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

lock() {  # lock PYTHON: writes the lock of that interpreter's minor version
    local python=$1 version scratch
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    scratch=$(mktemp -d)
    # shellcheck disable=SC2064  # expand now: the trap must remove this call's folder
    trap "rm -rf '$scratch'" EXIT
    "$python" -m venv "$scratch/venv"
    "$scratch/venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check \
        --dry-run --ignore-installed --report "$scratch/report.json" '.[eval,dev,gcs,s3]'
    "$scratch/venv/bin/python" - "$scratch/report.json" "$version" >"$scratch/lock.txt" <<'PYTHON'
import json, sys

report, version = sys.argv[1:]
items = [item["metadata"] for item in json.load(open(report))["install"]]
# A local version label (1.0+cpu) names one index's build of a release, so the pin leaves it out.
pins = {item["name"].lower().replace("_", "-"): item["version"].split("+")[0] for item in items}
del pins["big-ssl"]
print(f"# Python {version}, Linux x86_64: big_ssl with the extras eval, dev, gcs and s3, every dependency pinned.")
print("# Made by requirements/lock.sh from setup.py with pip's own resolver; run it again to update.")
print("\n".join(f"{name}=={pins[name]}" for name in sorted(pins)))
PYTHON
    if grep -E '^(torch|tensorflow)==' "$scratch/lock.txt"; then
        echo "lock.sh: the package above must not be a dependency" >&2
        exit 1
    fi
    mv "$scratch/lock.txt" "requirements/py$version.txt"
    rm -rf "$scratch"
    echo "requirements/py$version.txt: $(grep -c == "requirements/py$version.txt") packages"
}

[ $# -gt 0 ] || set -- python3.11 python3.12 python3.13
for python; do
    # An interpreter can be on PATH and still not run (a version manager's shim): ask it.
    if "$python" -c 'import ensurepip' 2>/dev/null; then
        lock "$python"
    else
        echo "lock.sh: $python does not run here, its lock is left as it is" >&2
    fi
done
