# Sourced by the scripts beside it: finds the container engine and prepares it.
#   ENGINE   docker or podman, whichever works here; EDGEWISE_ENGINE overrides
#   CACHE    folder of base images and wheels, kept between builds

CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/edgewise

say() { printf '%s\n' "$*" >&2; }
die() {
  say "error: $*"
  exit 2
}

# Debian 12's podman picks crun, which fails on hybrid cgroups, and raises limits, which needs
# CAP_SYS_RESOURCE. With cgroups of version 1 it is configured otherwise, unless the user did that.
prepare_podman() {
  if [ -z "${CONTAINERS_CONF:-}" ] && [ ! -e /sys/fs/cgroup/cgroup.controllers ] &&
    command -v runc >/dev/null; then
    CONTAINERS_CONF=$DEPLOY/podman/containers.conf
    export CONTAINERS_CONF
  fi
}

find_engine() {
  case ${EDGEWISE_ENGINE:-} in
    '')
      # A docker without its daemon is not there.
      if command -v docker >/dev/null && docker info >/dev/null 2>&1; then
        ENGINE=docker
      elif command -v podman >/dev/null; then
        ENGINE=podman
      else
        die "neither docker (with its daemon) nor podman is here; as root on Debian or Ubuntu:" \
          "deploy/install-podman.sh"
      fi
      ;;
    docker | podman) ENGINE=$EDGEWISE_ENGINE ;;
    *) die "EDGEWISE_ENGINE: expected docker or podman, got '$EDGEWISE_ENGINE'" ;;
  esac
  [ "$ENGINE" = docker ] || prepare_podman
}
