#!/usr/bin/env bash
# Write deploy/image/locks anew: each package of the image with its version and the hashes of its
# files, from pyproject.toml. What is there stays unless it no longer fits; --upgrade takes the newest.
#   deploy/lock.sh [--upgrade]
# Needs uv (pip install uv; or UV=…) and a package index. Then build the image and test it.
set -euo pipefail
DEPLOY=$(cd "$(dirname "$0")" && pwd)
locks=$DEPLOY/image/locks
python=${PYTHON:-python3}
lock() {
  local which=$1
  shift
  "$python" "$DEPLOY/image/requirements.py" "$which" "$DEPLOY/../pyproject.toml" |
    "${UV:-uv}" pip compile - --quiet --python-platform linux --python-version 3.11 \
      --generate-hashes --no-annotate --output-file "$locks/$which.txt" \
      --custom-compile-command "deploy/lock.sh" "$@"
}
lock live "$@"
lock onnx --constraints "$locks/live.txt" "$@"
lock build --constraints "$locks/live.txt" "$@"
lock files --no-deps "$@"
