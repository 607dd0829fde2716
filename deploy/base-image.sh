#!/usr/bin/env bash
# Make an image tagged python:3.11-slim from Debian's packages, where no registry can be reached.
# It is Debian 12 with its own Python 3.11, as the official image is; so the same Dockerfile builds.
#
# The tarball is kept in ~/.cache/edgewise/containers (250 MB, two minutes to make); --print only
# prints its path. Needs root: mmdebstrap unpacks a system.
set -euo pipefail
DEPLOY=$(cd "$(dirname "$0")" && pwd)
. "$DEPLOY/engine.sh"
NAME=docker.io/library/python:3.11-slim
tar=$CACHE/containers/debian-12-python-$(dpkg --print-architecture).tar
if [ "${1:-}" = --print ]; then
  echo "$tar"
  exit
fi
find_engine
if [ ! -s "$tar" ]; then
  command -v mmdebstrap >/dev/null || die "mmdebstrap is not installed; run deploy/install-podman.sh"
  say "making a base image from Debian's packages (about two minutes, then kept in $tar)"
  mkdir -p "$(dirname "$tar")"
  trap 'rm -f "$tar.part"' EXIT
  # Names a user would not see differ from the official image: python and pip are linked below.
  mmdebstrap --quiet --variant=minbase --format=tar \
    --include=ca-certificates,python3,python3-venv,python3-pip \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    bookworm "$tar.part"
  mv "$tar.part" "$tar"
fi
say "importing it as $NAME"
"$ENGINE" import "$tar" localhost/edgewise-debian-python:12 >/dev/null
options=()
[ "$ENGINE" = docker ] || options=(--format docker)
"$ENGINE" build "${options[@]}" --network none --tag "$NAME" - >/dev/null <<'DOCKERFILE'
FROM localhost/edgewise-debian-python:12
RUN rm -f /usr/lib/python3*/EXTERNALLY-MANAGED \
 && ln -sf python3 /usr/bin/python && ln -sf pip3 /usr/bin/pip
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
LABEL edgewise.stand-in="made by deploy/base-image.sh from Debian 12"
CMD ["python3"]
DOCKERFILE
