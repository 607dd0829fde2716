#!/usr/bin/env bash
# Issue the identities of the fleet in deploy/scenario.yaml, or renew them.
#   deploy/keys.sh compose       into deploy/compose/edgewise-keys, where compose.yaml mounts them from
#   deploy/keys.sh kubernetes [NAMESPACE]   as Secrets (kubectl); NAMESPACE defaults to edgewise
# The authority stays here, in ca.key: keep it from the fleet. Processes that run take renewed
# identities up by themselves; in Kubernetes a Secret takes a minute to arrive.
set -euo pipefail
DEPLOY=$(cd "$(dirname "$0")" && pwd)
. "$DEPLOY/engine.sh"
edgewise=${EDGEWISE:-$DEPLOY/../.venv/bin/edgewise}
keys=$DEPLOY/${1:-}/edgewise-keys
case ${1:-} in
  compose)
    # In compose a service's name is its host name; in Kubernetes it is its Service's.
    "$edgewise" pki fleet "$keys" "$DEPLOY/scenario.yaml" --hosts '{}'
    if [ "$(id -u)" = 0 ]; then
      chown -R 10001:10001 "$keys"/*/ # the image's user
    else
      say "the keys are yours: export EDGEWISE_USER=$(id -u):$(id -g) before you start the fleet"
    fi
    ;;
  kubernetes)
    namespace=${2:-edgewise}
    "$edgewise" pki fleet "$keys" "$DEPLOY/scenario.yaml" --hosts 'edgewise-{}'
    for folder in "$keys"/*/; do
      name=edgewise-keys-$(basename "$folder")
      kubectl --namespace "$namespace" create secret generic "$name" --dry-run=client --output yaml \
        --from-file="$folder/tls.crt" --from-file="$folder/tls.key" --from-file="$folder/ca.crt" |
        kubectl --namespace "$namespace" apply --filename -
    done
    ;;
  -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" ;;
  *) die "expected compose or kubernetes, got '${1:-}'; deploy/keys.sh --help" ;;
esac
