#!/usr/bin/env bash
# Installs what tests/operations.rs runs: Prometheus with promtool, and Chromium without a display.
#
#   scripts/operations.sh
#
# They are Debian's packages, and installing them needs root. Whatever is there already is left alone.
set -euo pipefail

say() { echo "operations: $*" >&2; }
die() {
    say "$1"
    shift
    for line in "$@"; do echo "  remedy: $line" >&2; done
    exit 1
}

missing=()
command -v prometheus >/dev/null && command -v promtool >/dev/null || missing+=(prometheus)
command -v chromium >/dev/null || missing+=(chromium fonts-dejavu-core)
[ ${#missing[@]} -gt 0 ] || exit 0

command -v apt-get >/dev/null ||
    die "prometheus, promtool and chromium are needed, and this is no Debian" "install them, and put them on PATH"
sudo=
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || die "installing needs root" "apt-get install ${missing[*]}"
    sudo=sudo
fi
say "installing ${missing[*]}"
$sudo apt-get update -qq || say "the lists of packages are old"
# A lock of another run is waited for. The package starts a Prometheus where there is an init system.
DEBIAN_FRONTEND=noninteractive $sudo apt-get -o DPkg::Lock::Timeout=600 install --yes -qq \
    --no-install-recommends "${missing[@]}" >&2 ||
    die "they could not be installed (see above)" "check apt's sources, then run this again"
