#!/usr/bin/env bash
# Installs what tests/packaging runs: systemd-analyze, strace, dpkg-shlibdeps, man, mandoc, cargo-deb, and
# Kubernetes' schemas into .packaging/.
#
#   scripts/packaging.sh
#
# The first five are Debian's packages, and installing them needs root; cargo-deb takes a minute to build.
# Whatever is there already is left alone.
set -euo pipefail
cd "$(dirname "$0")/.."

KUBERNETES_VALIDATE=1.37.0
. scripts/debian.sh

missing=()
have systemd-analyze || missing+=(systemd)
have strace || missing+=(strace)
have dpkg-shlibdeps || missing+=(dpkg-dev)
have man || missing+=(man-db)
have mandoc || missing+=(mandoc)
python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3 python3-venv)
install "${missing[@]}"

if ! have cargo-deb; then
    say "building cargo-deb"
    cargo install --quiet --locked cargo-deb >&2 ||
        die "cargo-deb could not be built (see above)" "cargo install --locked cargo-deb"
fi

python=.packaging/python/bin
if [ "$($python/kubernetes-validate --version 2>/dev/null)" != $KUBERNETES_VALIDATE ]; then
    say "installing kubernetes-validate into .packaging/python"
    rm -rf .packaging/python
    python3 -m venv .packaging/python
    $python/pip install --quiet --disable-pip-version-check --no-input \
        kubernetes-validate==$KUBERNETES_VALIDATE </dev/null >&2
fi
