#!/usr/bin/env bash
# Installs and builds what the tests of examples/ run: clients into .examples/ and examples/node/node_modules.
#
#   scripts/examples.sh
#
# What is missing of Go, Java's compiler, node with npm, python3 with venv, and of Debian's packages of their
# clients comes by apt-get, which needs root. What is there already, from the same files, is left alone.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/debian.sh

examples=$PWD/.examples
packages=/usr/share/gocode/src/github.com
driver=/usr/share/java/postgresql.jar

mkdir -p "$examples"
if have flock; then
    exec 9>"$examples/.lock"
    flock 9
fi

missing=()
python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3 python3-venv)
have node || missing+=(nodejs)
have npm || missing+=(npm)
have go || missing+=(golang-go)
[ -d $packages/nats-io/nats.go ] || missing+=(golang-github-nats-io-go-nats-dev)
[ -d $packages/lib/pq ] || missing+=(golang-github-lib-pq-dev)
{ have javac && have java; } || missing+=(default-jdk-headless)
[ -f $driver ] || missing+=(libpostgresql-jdbc-java)
install "${missing[@]}"

# done_for NAME FILES...: whether NAME was made from these very files.
done_for() {
    local mark=$examples/.$1.done
    shift
    [ -f "$mark" ] && [ "$(cat "$mark")" = "$(cat "$@" | cksum)" ]
}
mark_done() {
    local mark=$examples/.$1.done
    shift
    cat "$@" | cksum >"$mark"
}

if ! { done_for python examples/python/requirements.txt && "$examples/python/bin/python" --version >/dev/null 2>&1; }; then
    say "installing examples/python/requirements.txt into .examples/python"
    rm -rf "$examples/python"
    python3 -m venv "$examples/python"
    "$examples/python/bin/pip" install --quiet --disable-pip-version-check --no-input \
        -r examples/python/requirements.txt </dev/null >&2
    mark_done python examples/python/requirements.txt
fi

if ! { done_for node examples/node/package-lock.json && [ -d examples/node/node_modules/pg ]; }; then
    say "installing examples/node/package-lock.json"
    (cd examples/node && npm ci --no-audit --no-fund --loglevel=error </dev/null >&2)
    mark_done node examples/node/package-lock.json
fi

if ! { done_for go examples/go/*/*.go && [ -x "$examples/go/consume" ]; }; then
    say "building examples/go"
    mkdir -p "$examples/go"
    # Debian's packages of Go are sources in a GOPATH, and know nothing of modules.
    GO111MODULE=off GOFLAGS='' GOPATH=/usr/share/gocode GOCACHE=$examples/go/cache \
        go build -o "$examples/go/" ./examples/go/place_orders ./examples/go/consume
    mark_done go examples/go/*/*.go
fi

# All but Consume.java, whose client of NATS is in no registry that Debian has.
checked=(examples/java/{PlaceOrders,Inbox,Envelope}.java tests/examples/Deliver.java)
if ! { done_for java "${checked[@]}" && [ -f "$examples/java/Deliver.class" ]; }; then
    say "compiling examples/java"
    rm -rf "$examples/java"
    mkdir -p "$examples/java"
    javac -Xlint:all -Werror -d "$examples/java" -cp $driver "${checked[@]}"
    mark_done java "${checked[@]}"
fi
