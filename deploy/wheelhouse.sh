#!/usr/bin/env bash
# Gather every wheel that the image needs into deploy/wheelhouse, for a build without a network.
#   deploy/wheelhouse.sh [--fresh|--clear]
# Uses this machine's pip, and so its index, mirror and certificates. Wheels are kept in
# ~/.cache/edgewise/wheelhouse, by the locks in deploy/image/locks, which have the hash of each; --fresh gathers them again,
# --clear empties the folder, so that the next build asks the index. Needs Python 3.11+.
set -euo pipefail
DEPLOY=$(cd "$(dirname "$0")" && pwd)
. "$DEPLOY/engine.sh"
into=$DEPLOY/wheelhouse
find "$into" -maxdepth 1 -name '*.whl' -delete
[ "${1:-}" != --clear ] || exit 0

# The image's Python, whatever this machine's is.
VERSION=3.11
arch=$(uname -m)
python=${PYTHON:-python3}
locks=$DEPLOY/image/locks
stamp=$({ cat "$locks"/*.txt && echo "$VERSION" "$arch"; } | sha256sum | cut -c1-16)
kept=$CACHE/wheelhouse/$stamp
if [ "${1:-}" = --fresh ] || [ ! -e "$kept/complete" ]; then
  say "gathering wheels for Python $VERSION on $arch into $kept"
  rm -rf "$kept"
  mkdir -p "$kept"
  # Those that are only read are for any Python; one of them is a source distribution.
  "$python" -m pip wheel --quiet --no-deps --require-hashes --wheel-dir "$kept" \
    --requirement "$locks/files.txt"
  platforms=()
  for tag in manylinux_2_28 manylinux_2_27 manylinux_2_26 manylinux_2_24 manylinux_2_17 manylinux2014; do
    platforms+=(--platform "${tag}_$arch")
  done
  for which in live onnx build; do
    "$python" -m pip download --quiet --dest "$kept" --only-binary=:all: --require-hashes \
      --implementation cp --python-version "$VERSION" "${platforms[@]}" \
      --requirement "$locks/$which.txt"
  done
  touch "$kept/complete"
fi
# Hard links where that goes: the same bytes, so that a build finds its layers again.
cp -l "$kept"/*.whl "$into" 2>/dev/null || cp "$kept"/*.whl "$into"
