#!/usr/bin/env bash
# A fleet of containers on this machine: a balancer, and a server for each model.
#
#   deploy/fleet.sh up      start it, or change a running one to these options; builds a missing image
#   deploy/fleet.sh status  containers, their use of CPU and memory, servers connected to the balancer
#   deploy/fleet.sh send    let a client in a container send photos for twenty seconds; shows outcomes
#   deploy/fleet.sh logs [SERVER|balancer|relay] [-f]
#   deploy/fleet.sh shape SERVER RATE|off     limit what leaves a container, e.g. 8mbit (tc; as root)
#   deploy/fleet.sh down    drain and remove everything
#
# Options of up:
#   --models A,B,…       a container for each (default: lite0-128,lite0-224,lite2)
#   --servers N          instead N containers, each with all the models
#   --scenario FILE      instead the servers of a scenario file
#   --cpus A,B,…         CPUs of the servers in turn (default: 0.5,0.75,1, as edge servers are unequal)
#   --memory A,B,…       memory of the servers in turn (default: 512m)
#   --emulate            put the scenario's network between them, by a relay in a container
#   --no-emulate         the network as it is (default)
#   --policy P           the policy that decides (default: the scenario's)
#   --port N             the balancer's; the others follow (default: 8100); on 127.0.0.1 only
#   --image NAME         (default: localhost/edgewise:latest)
#   --trust-anyone-who-connects   without identities: whoever reaches a port may do everything
# Of every command:
#   --name NAME          the fleet (default: fleet)
#
# Uses docker or podman, whichever is installed (EDGEWISE_ENGINE chooses).
set -euo pipefail
DEPLOY=$(cd "$(dirname "$0")" && pwd)
. "$DEPLOY/engine.sh"

usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; }

# Names end up in container names, host names and YAML, so no other characters are accepted.
check_list() {
  [[ $2 =~ ^$3(,$3)*$ ]] || die "$1: expected $4, got '$2'"
}

command=${1:-}
[ $# -eq 0 ] || shift
MODELS=lite0-128,lite0-224,lite2
models=$MODELS servers='' scenario='' cpus=0.5,0.75,1 memory=512m
emulate=--no-emulate trust='' policy='' port=8100 image=localhost/edgewise:latest name=fleet
words=()
while [ $# -gt 0 ]; do
  case $1 in
    --emulate | --no-emulate) emulate=$1 ;;
    --trust-anyone-who-connects) trust=$1 ;;
    --models | --servers | --scenario | --cpus | --memory | --policy | --port | --image | --name)
      [ $# -gt 1 ] || die "$1: expected a value"
      printf -v "${1#--}" %s "$2"
      shift
      ;;
    -f | --follow) words+=(--follow) ;;
    -h | --help)
      usage
      exit
      ;;
    -*) die "unknown option $1; deploy/fleet.sh --help" ;;
    *) words+=("$1") ;;
  esac
  shift
done
word='[a-z0-9][a-z0-9.-]*'
check_list --name "$name" '[a-z0-9][a-z0-9-]*' 'a name of a-z, 0-9 and -'
PREFIX=edgewise-$name
NETWORK=$PREFIX
STATE=${XDG_STATE_HOME:-$HOME/.local/state}/edgewise/$name
KEYS=$STATE/edgewise-keys
OF_THIS=(--filter "label=edgewise.fleet=$name")

containers() { "$ENGINE" ps --all "${OF_THIS[@]}" --format '{{.Names}}'; }

# podman warns about a missing systemd on every start; its output is shown only on failure.
quietly() {
  local said
  if ! said=$("$@" 2>&1); then
    say "$said"
    return 1
  fi
}

# Whether a process in a container answers; with a path, at another one than the image's check.
answers() { "$ENGINE" exec "$1" edgewise-health "${@:2}" >/dev/null 2>&1; }

wait_for() {
  local what=$1 left=240
  shift
  until "$@"; do
    left=$((left - 1))
    if [ $left -eq 0 ]; then
      say "error: $what is not ready after two minutes; its log ends:"
      "$ENGINE" logs --tail 15 "$PREFIX-${what##* }" >&2 || true
      exit 1
    fi
    if [ "$("$ENGINE" inspect --format '{{.State.Running}}' "$PREFIX-${what##* }")" != true ]; then
      say "error: $what has ended; its log ends:"
      "$ENGINE" logs --tail 15 "$PREFIX-${what##* }" >&2 || true
      exit 1
    fi
    sleep 0.5
  done
}

write_scenario() {
  if [ -n "$scenario" ]; then
    cp "$scenario" "$STATE/wanted.yaml"
    return
  fi
  local list=${models//,/, } each
  {
    echo "# Written by deploy/fleet.sh."
    echo "name: $name"
    echo "servers:"
    if [ -n "$servers" ]; then
      for ((each = 1; each <= servers; each++)); do echo "  edge$each: {services: [$list]}"; done
    else
      for each in ${models//,/ }; do echo "  $each: {services: [$each]}"; done
    fi
    # What --emulate plays, and what the balancer supposes of a link before it has measured it.
    echo "network: {access: {rate_mbps: 50, delay: 0.004}, link: {rate_mbps: 12, delay: 0.006}}"
    # What `edgewise client` sends.
    echo "workload:"
    echo "  duration: 20"
    echo "  arrivals: {kind: poisson, rate: 8}"
    echo "  ingress:"
    if [ -n "$servers" ]; then
      for ((each = 1; each <= servers; each++)); do echo "    edge$each: 1"; done
    else
      for each in ${models//,/ }; do echo "    $each: 1"; done
    fi
    echo "  demands:"
    echo "    - {share: 3, deadline: [0.5, 1.5], accuracy: 0.5}"
    if [ "$models" = "$MODELS" ]; then
      # Each by at least one of the three, the last by lite2 alone.
      echo "    - {share: 2, deadline: [0.5, 1.5], accuracy: 0.85}"
      echo "    - {share: 1, deadline: [0.8, 2.0], accuracy: 0.9}"
    fi
  } >"$STATE/wanted.yaml"
}

# A container sees its own keys alone, as a user who can read them: the image's, or this one.
keys_for() {
  KEY_OPTIONS=()
  [ -d "$KEYS/$1" ] || return 0
  KEY_OPTIONS+=(--volume "$KEYS/$1:/etc/edgewise-keys/$1:ro")
  [ "$(id -u)" = 0 ] || KEY_OPTIONS+=("${AS_USER[@]}")
}

# start NAME ROLE CONFIG PORTS [OPTION …]: unless it runs already, just so.
start() {
  local process=$1 role=$2 config=$3 ports=$4 each
  shift 4
  local options=(
    --network "$NETWORK" --read-only --tmpfs /tmp
    --cap-drop ALL --security-opt no-new-privileges
    --volume "$STATE/config:/etc/edgewise:ro" "$@"
  )
  keys_for "$(basename "$config" .yaml)"
  options+=("${KEY_OPTIONS[@]}")
  for each in ${ports//,/ }; do options+=(--publish "127.0.0.1:$each:$each"); done
  local run=("$image" "$role" "/etc/edgewise/$config")
  [ "$role" != balancer ] || [ -z "$policy" ] || run+=(--policy "$policy")
  local spec
  spec=$({
    printf '%s\n' "${options[@]}" "${run[@]}"
    "$ENGINE" image inspect --format '{{.Id}}' "$image"
    cat "$STATE/config/$config" "$STATE/config/scenario.yaml"
  } | sha256sum | cut -c1-16)
  local is
  is=$("$ENGINE" inspect --format '{{.State.Running}} {{index .Config.Labels "edgewise.spec"}}' \
    "$PREFIX-$process" 2>/dev/null || true)
  [ "$is" != "true $spec" ] || return 0
  say "starting $process"
  "$ENGINE" rm --force "$PREFIX-$process" >/dev/null 2>&1 || true
  # More than a node's 10 s for draining. Its own stop timeout is what `stop` keeps to.
  quietly "$ENGINE" run --detach --pull never --name "$PREFIX-$process" --hostname "$process" \
    --label "edgewise.fleet=$name" --label "edgewise.spec=$spec" --stop-timeout 15 \
    "${options[@]}" "${run[@]}"
}

up() {
  check_list --cpus "$cpus" '[0-9]+(\.[0-9]+)?' 'numbers separated by commas'
  check_list --memory "$memory" '[0-9]+[bkmg]?' 'sizes such as 512m separated by commas'
  [[ $port =~ ^[1-9][0-9]{0,4}$ ]] || die "--port: expected a port, got '$port'"
  check_list --models "$models" "$word" 'models separated by commas'
  [[ $servers =~ ^([1-9][0-9]?)?$ ]] || die "--servers: expected a number from 1 to 99, got '$servers'"
  [ -z "$scenario" ] || [ -f "$scenario" ] || die "--scenario: there is no file $scenario"
  if ! "$ENGINE" image inspect "$image" >/dev/null 2>&1; then
    say "there is no image $image yet"
    EDGEWISE_ENGINE=$ENGINE "$DEPLOY/image.sh" --tag "$image"
  fi
  mkdir -p "$STATE/config"
  write_scenario
  # By the image itself, so that this machine needs nothing but the engine. As the user: the files
  # are the user's. Each time the identities are renewed, and running containers take the new ones.
  rm -f "$STATE"/config/*.yaml
  if [ -n "$trust" ]; then
    rm -rf "$KEYS"
  elif [ -d "$KEYS" ] && [ "$(id -u)" = 0 ]; then
    chown -R 0:0 "$KEYS"
  fi
  if ! table=$("$ENGINE" run --rm --pull never --network none --read-only --tmpfs /tmp --cap-drop ALL \
    "${AS_USER[@]}" --volume "$STATE:/state" "$image" configs /state/wanted.yaml /state/config \
    --port "$port" --hosts "$PREFIX-{}" "$emulate" "${trust:---identity=../edgewise-keys/{\}}" 2>"$STATE/errors"); then
    sed '/systemd/d' "$STATE/errors" >&2
    [ -n "$(containers)" ] || rm -rf "$STATE"
    exit 2
  fi
  printf '%s\n' "$table" >"$STATE/processes"
  if [ -d "$KEYS" ] && [ "$(id -u)" = 0 ]; then
    chown -R 10001:10001 "$KEYS"/*/
  fi

  # What is no longer wanted.
  local process config ports each
  for each in $(containers); do
    grep -q "^${each#"$PREFIX"-}"$'\t' "$STATE/processes" || {
      say "removing ${each#"$PREFIX"-}"
      "$ENGINE" stop "$each" >/dev/null 2>&1 || true
      "$ENGINE" rm --force "$each" >/dev/null 2>&1
    }
  done
  "$ENGINE" network inspect "$NETWORK" >/dev/null 2>&1 ||
    "$ENGINE" network create --label "edgewise.fleet=$name" "$NETWORK" >/dev/null

  local -a cpu_of memory_of
  IFS=, read -ra cpu_of <<<"$cpus"
  IFS=, read -ra memory_of <<<"$memory"
  local number=0 limits=''
  while IFS=$'\t' read -r process config ports <&3; do
    case $process in
      balancer | relay) start "$process" "$process" "$config" "$ports" ;;
      *)
        local cpu=${cpu_of[number % ${#cpu_of[@]}]} size=${memory_of[number % ${#memory_of[@]}]}
        start "$process" node "$config" "$ports" --cpus "$cpu" --memory "$size"
        limits+="$process"$'\t'"$cpu"$'\t'"$size"$'\n'
        number=$((number + 1))
        ;;
    esac
  done 3<"$STATE/processes"
  printf %s "$limits" >"$STATE/limits"
  while IFS=$'\t' read -r process _ <&3; do
    wait_for "$process" answers "$PREFIX-$process"
  done 3<"$STATE/processes"
  local left=120
  until answers "$PREFIX-balancer" /readyz; do
    left=$((left - 1))
    [ $left -gt 0 ] || die "not every server has found the balancer; deploy/fleet.sh logs balancer"
    sleep 0.5
  done
  where
}

# A server's address for clients, from the client's configuration: a YAML mapping in either style.
ingress_of() { tr '{},' '\n' <"$STATE/config/client.yaml" | sed -n "/^ingress:/,\$s/^ *['\"]\{0,1\}$1['\"]\{0,1\}: *['\"]\{0,1\}\(http[^'\"]*\)['\"]\{0,1\} *\$/\1/p"; }

where() {
  local process ports cpu size
  local scheme=http
  [ ! -d "$KEYS" ] || scheme=https
  printf '%-12s %-24s %s\n' balancer "$scheme://127.0.0.1:$(port_of balancer)" \
    '/v1/state, /metrics'
  while IFS=$'\t' read -r process cpu size; do
    printf '%-12s %-24s %s\n' "$process" "$(ingress_of "$process")" "$cpu CPUs, $size"
  done <"$STATE/limits"
  if grep -q ^relay "$STATE/processes"; then
    printf '%-12s %-24s %s\n' relay "$scheme://127.0.0.1:$(port_of relay)" \
      '/links; the servers above are behind it'
  fi
  echo
  local this=''
  [ "$name" = fleet ] || this=" --name $name"
  echo "photos:   deploy/fleet.sh send$this, or from outside: edgewise client $STATE/config/client.yaml"
  [ $scheme = http ] || echo "keys:     $KEYS/{client,operator,monitor}, for curl and the like (docs/security.md)"
  echo "remove:   deploy/fleet.sh down$this"
}

port_of() { sed -n "s/^$1\t[^\t]*\t\([0-9]*\).*/\1/p" "$STATE/processes"; }

status() {
  if [ -z "$(containers)" ]; then
    echo "no fleet called $name runs"
    exit 1
  fi
  "$ENGINE" ps --all "${OF_THIS[@]}" --format 'table {{.Names}}\t{{.Status}}\t{{.Image}}'
  echo
  # shellcheck disable=SC2046
  "$ENGINE" stats --no-stream --format 'table {{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}' \
    $("$ENGINE" ps "${OF_THIS[@]}" --format '{{.Names}}')
  echo
  if answers "$PREFIX-balancer" /readyz; then
    echo "ready: the balancer sees every server"
  else
    echo "not ready: $("$ENGINE" exec "$PREFIX-balancer" edgewise-health /readyz 2>&1)"
    exit 1
  fi
}

send() {
  [ -d "$STATE/config" ] || die "no fleet called $name runs; deploy/fleet.sh up"
  # The image that the fleet was started from, whatever --image said then.
  image=$("$ENGINE" inspect --format '{{.Config.Image}}' "$PREFIX-balancer") || die "no fleet called $name runs"
  keys_for evaluator
  "$ENGINE" run --rm --pull never --network "$NETWORK" --label "edgewise.fleet=$name" \
    --name "$PREFIX-client" --read-only --tmpfs /tmp --cap-drop ALL "${KEY_OPTIONS[@]}" \
    --volume "$STATE/config:/etc/edgewise:ro" \
    "$image" client /etc/edgewise/client-inside.yaml 2>"$STATE/errors" || {
    cat "$STATE/errors" >&2
    exit 1
  }
}

logs() {
  local follow='' process=''
  for each in "${words[@]}"; do
    if [ "$each" = --follow ]; then follow=--follow; else process=$each; fi
  done
  if [ -n "$process" ]; then
    exec "$ENGINE" logs ${follow:+$follow} "$PREFIX-$process"
  fi
  for each in $(containers); do
    echo "== ${each#"$PREFIX"-}"
    "$ENGINE" logs --tail 40 "$each"
  done
}

shape() {
  [ ${#words[@]} -eq 2 ] || die "expected: deploy/fleet.sh shape SERVER RATE|off"
  local pid rate=${words[1]}
  pid=$("$ENGINE" inspect --format '{{.State.Pid}}' "$PREFIX-${words[0]}" 2>/dev/null) ||
    die "no container $PREFIX-${words[0]}"
  [ "$(id -u)" = 0 ] || die "tc in another network namespace needs root"
  local tc=(nsenter --target "$pid" --net tc)
  if [ "$rate" = off ]; then
    "${tc[@]}" qdisc del dev eth0 root 2>/dev/null || true
  else
    # A burst of eleven packets; 50 ms of queue, then packets are dropped and TCP slows down.
    "${tc[@]}" qdisc replace dev eth0 root tbf rate "$rate" burst 16kb latency 50ms
  fi
  "${tc[@]}" qdisc show dev eth0
}

down() {
  local all
  all=$(containers)
  if [ -n "$all" ]; then
    say "draining and removing $(wc -w <<<"$all") containers"
    # Servers first, so that they can say good-bye to the balancer.
    for each in $all; do
      case $each in
        "$PREFIX-balancer" | "$PREFIX-relay") ;;
        *) "$ENGINE" stop "$each" >/dev/null 2>&1 & ;;
      esac
    done
    wait
    # shellcheck disable=SC2086
    "$ENGINE" stop $all >/dev/null 2>&1 || true
    # shellcheck disable=SC2086
    "$ENGINE" rm --force --volumes $all >/dev/null 2>&1
  fi
  ! "$ENGINE" network inspect "$NETWORK" >/dev/null 2>&1 ||
    "$ENGINE" network rm "$NETWORK" >/dev/null
  rm -rf "$STATE"
}

AS_USER=(--user "$(id -u):$(id -g)")
case $command in
  up | status | send | logs | shape | down)
    find_engine
    # A rootless podman has to be told that this is the same user inside.
    [ "$ENGINE" != podman ] || [ "$(id -u)" = 0 ] || AS_USER+=(--userns keep-id)
    "$command"
    ;;
  '' | help | -h | --help) usage ;;
  *) die "unknown command '$command'; deploy/fleet.sh --help" ;;
esac
