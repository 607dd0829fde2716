#!/usr/bin/env bash
# Write the configuration files of compose.yaml and kubernetes/ anew, from deploy/scenario.yaml.
#   deploy/configs.sh [FOLDER]      into FOLDER in place of deploy/, to compare
# The identities that they name are made by deploy/keys.sh.
# A test fails when the files in deploy/ are not what this writes. After a change of the scenario run
# this, and give a new server a service (compose.yaml) and a file (kubernetes/base) like the others'.
set -euo pipefail
DEPLOY=$(cd "$(dirname "$0")" && pwd)
into=${1:-$DEPLOY}
edgewise=${EDGEWISE:-$DEPLOY/../.venv/bin/edgewise}
make() {
  rm -rf "${into:?}/$1"
  "$edgewise" configs "$DEPLOY/scenario.yaml" "$into/$1" --hosts "$2" "$3" \
    --identity '../edgewise-keys/{}' --no-issue >/dev/null
}
# In compose a service's name is its host name; in Kubernetes it is its Service's.
make compose/plain '{}' --no-emulate
make compose/emulated '{}' --emulate
make kubernetes/base/config 'edgewise-{}' --no-emulate
make kubernetes/overlays/emulated/config 'edgewise-{}' --emulate
