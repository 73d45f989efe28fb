#!/usr/bin/env bash
# Makes the Debian package and prints its path.
#
#   scripts/deb.sh                 target/debian/postrider_VERSION_ARCH.deb, of a release build
#   scripts/deb.sh BINARY FOLDER   FOLDER/postrider_VERSION_ARCH.deb, of a binary that was built before
#
# Older packages of Postrider in the folder go, so that postrider_*.deb is the one that was made.
#
# Needs cargo-deb: cargo install --locked cargo-deb. Manual pages and completions are the program's own.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/debian.sh

# Without it cargo-deb makes a package that depends on nothing, and says so in a warning.
have dpkg-shlibdeps || die "dpkg-shlibdeps is needed" "apt-get install dpkg-dev"

case $# in
0)
    cargo build --release --locked >&2
    set -- target/release/postrider target/debian
    fast=
    ;;
2) fast=--fast ;; # to compress a debug build well takes half a minute
*)
    echo "usage: scripts/deb.sh [BINARY FOLDER]" >&2
    exit 2
    ;;
esac

made=target/packaging
rm -rf $made
mkdir -p $made/man $made/completions
strip -o $made/postrider "$1"
"$1" man $made/man
"$1" completions bash >$made/completions/postrider
"$1" completions zsh >$made/completions/_postrider
"$1" completions fish >$made/completions/postrider.fish

rm -f "$2"/postrider_*.deb
cargo deb --locked --no-build --no-dbgsym --no-strip $fast --output "$2"
