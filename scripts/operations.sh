#!/usr/bin/env bash
# Installs what tests/operations.rs runs: Prometheus with promtool, and Chromium without a display.
#
#   scripts/operations.sh
#
# They are Debian's packages, and installing them needs root. Whatever is there already is left alone.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/debian.sh

missing=()
{ have prometheus && have promtool; } || missing+=(prometheus)
have chromium || missing+=(chromium fonts-dejavu-core)
# Debian's package starts a Prometheus where there is an init system.
install "${missing[@]}"
