#!/usr/bin/env bash
# Install podman and the tools to make a base image without a registry, on Debian or Ubuntu. Needs
# root; does nothing if everything is installed.
set -euo pipefail
packages=(podman buildah runc netavark aardvark-dns conmon mmdebstrap catatonit iptables)
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed' ||
    missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0
echo "installing ${missing[*]} …" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
