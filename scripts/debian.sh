# Read by the scripts beside it: how they speak, and how they get Debian's packages.
# shellcheck shell=bash

say() { echo "$(basename "$0" .sh): $*" >&2; }

# die WHAT REMEDY...
die() {
    say "$1"
    shift
    for line in "$@"; do echo "  remedy: $line" >&2; done
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# install PACKAGE...: nothing where none is named. A lock of another run is waited for.
install() {
    [ $# -gt 0 ] || return 0
    have apt-get || die "$* are needed, and this is no Debian" "install them, and put them on PATH"
    local sudo=
    if [ "$(id -u)" != 0 ]; then
        have sudo || die "installing needs root" "apt-get install $*"
        sudo=sudo
    fi
    say "installing $*"
    $sudo apt-get update -qq </dev/null >&2 || say "the lists of packages are old"
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install --yes -qq \
        --no-install-recommends "$@" </dev/null >&2 ||
        die "they could not be installed (see above)" "check apt's sources, then run this again"
}
