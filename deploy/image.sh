#!/usr/bin/env bash
# Build the image of every role, with docker or podman, whichever is installed.
#   deploy/image.sh [--wheelhouse|--online] [--tag NAME] [--models "NAME …"|all|none]
#
# --wheelhouse  (default) wheels by this machine's pip, then a build without a network: works behind
#               mirrors and private certificates, and layers are reused
# --online      pip asks the index during the build
# The base image is pulled; where there is no registry, deploy/base-image.sh makes one (as root).
set -euo pipefail
DEPLOY=$(cd "$(dirname "$0")" && pwd)
. "$DEPLOY/engine.sh"
how=wheelhouse tag=localhost/edgewise:latest models=all
while [ $# -gt 0 ]; do
  case $1 in
    --wheelhouse) how=wheelhouse ;;
    --online) how=online ;;
    --tag | --models)
      [ $# -gt 1 ] || die "$1: expected a value"
      if [ "$1" = --tag ]; then tag=$2; else models=$2; fi
      shift
      ;;
    -h | --help)
      sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"
      exit
      ;;
    *) die "unknown option $1; deploy/image.sh --help" ;;
  esac
  shift
done
find_engine

base=docker.io/library/python:3.11-slim
if ! "$ENGINE" image inspect "$base" >/dev/null 2>&1; then
  say "pulling $base"
  # Half a minute is for asking: a registry that is cut off may never answer.
  if ! timeout "${EDGEWISE_PULL_TIMEOUT:-120}" "$ENGINE" pull --quiet "$base" >/dev/null 2>&1; then
    say "it cannot be pulled"
    EDGEWISE_ENGINE=$ENGINE "$DEPLOY/base-image.sh"
  fi
fi

options=(--file "$DEPLOY/Dockerfile" --build-arg "BASE=$base" --build-arg "MODELS=$models" --tag "$tag")
if [ "$ENGINE" = podman ]; then
  # The OCI format has no HEALTHCHECK.
  options+=(--format docker --pull=never --layers)
fi
if [ "$how" = wheelhouse ]; then
  "$DEPLOY/wheelhouse.sh"
  options+=(--network none)
else
  "$DEPLOY/wheelhouse.sh" --clear
  certificates=/etc/ssl/certs/ca-certificates.crt
  # The machine's certificates, in case the index is behind a private one; docker build has no mounts.
  [ "$ENGINE" = docker ] || options+=(--network host --volume "$certificates:$certificates:ro")
fi
say "building $tag"
"$ENGINE" build "${options[@]}" "$DEPLOY/.."
"$ENGINE" image inspect --format '{{.Size}}' "$tag" |
  awk -v tag="$tag" '{ printf "%s: %.0f MB\n", tag, $1 / 1e6 }'
