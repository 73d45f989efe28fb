#!/usr/bin/env python3
"""Records what a real Postgres sends through pgoutput, protocol 1, and what each message says.

    tests/golden/record.py BIN_DIR > tests/golden/pgoutput-NN.txt

BIN_DIR holds initdb, pg_ctl and postgres; psql may be there or on PATH. A fresh server is started
in a temporary folder on a unix socket, runs scenario.sql, and is removed again. As root everything
runs as the user nobody, because Postgres refuses root.

Each line is the message in hex, a tab, and its text. The text is made by the decoder below, which
was written from the manual ("Logical Replication Message Formats") and shares nothing with the
Rust one: that both agree is what the test checks.
"""

import datetime
import os
import pathlib
import pwd
import struct
import subprocess
import sys
import tempfile

SCENARIO = pathlib.Path(__file__).with_name("scenario.sql")
# Slot, publication, further options of the plugin.
SLOTS = [
    ("outbox", "outbox", {"messages": "true"}),
    ("everything", "everything", {"messages": "true"}),
    ("binary", "outbox", {"binary": "true"}),
]
EPOCH = datetime.datetime(2000, 1, 1)


def quoted(data):
    """Printable ASCII as it is, any other byte as \\xHH."""
    plain = (chr(b) if 0x20 <= b < 0x7F and b not in b'"\\' else f"\\x{b:02x}" for b in data)
    return '"' + "".join(plain) + '"'


class Message:
    """Takes one message apart with struct; `text` is what it says."""

    def __init__(self, data):
        self.data, self.at = data, 0
        tag = self.take("c").decode("latin-1")
        self.text = getattr(self, "message_" + tag)()
        assert self.at == len(data), f"{len(data) - self.at} bytes left of {tag}"

    def take(self, fmt):
        (value,) = struct.unpack_from("!" + fmt, self.data, self.at)
        self.at += struct.calcsize("!" + fmt)
        return value

    def bytes(self, n):
        assert self.at + n <= len(self.data)
        self.at += n
        return self.data[self.at - n : self.at]

    def name(self):
        return quoted(self.raw_name())

    def raw_name(self):
        value = self.data[self.at : self.data.index(0, self.at)]
        self.at += len(value) + 1
        value.decode("utf-8")
        return value

    def namespace(self):
        return quoted(self.raw_name() or b"pg_catalog")

    def lsn(self):
        high, low = self.take("I"), self.take("I")
        return f"{high:X}/{low:X}"

    def time(self):
        moment = EPOCH + datetime.timedelta(microseconds=self.take("q"))
        return moment.isoformat(timespec="microseconds") + "Z"

    def tuple(self):
        return "[" + ", ".join(self.column() for _ in range(self.take("H"))) + "]"

    def column(self):
        kind = self.take("c").decode("latin-1")
        if kind == "n":
            return "null"
        if kind == "u":
            return "unchanged"
        return {"t": "text ", "b": "binary "}[kind] + quoted(self.bytes(self.take("i")))

    def old(self, kind):
        return {"K": "key", "O": "full"}[kind] + "=" + self.tuple()

    def message_B(self):
        return f"Begin final={self.lsn()} time={self.time()} xid={self.take('I')}"

    def message_C(self):
        return f"Commit flags={self.take('B')} commit={self.lsn()} end={self.lsn()} time={self.time()}"

    def message_O(self):
        return f"Origin commit={self.lsn()} name={self.name()}"

    def message_R(self):
        head = f"Relation oid={self.take('I')} name={self.namespace()}.{self.name()}"
        identity = {"d": "default", "n": "nothing", "f": "full", "i": "index"}[self.take("c").decode()]
        columns = ", ".join(self.relation_column() for _ in range(self.take("H")))
        return f"{head} identity={identity} columns=[{columns}]"

    def relation_column(self):
        return f"{self.take('B')} {self.name()} {self.take('I')} {self.take('i')}"

    def message_Y(self):
        return f"Type oid={self.take('I')} name={self.namespace()}.{self.name()}"

    def message_I(self):
        relation = self.take("I")
        assert self.take("c") == b"N"
        return f"Insert relation={relation} new={self.tuple()}"

    def message_U(self):
        text = f"Update relation={self.take('I')}"
        kind = self.take("c").decode()
        if kind != "N":
            text += f" {self.old(kind)}"
            kind = self.take("c").decode()
        assert kind == "N"
        return f"{text} new={self.tuple()}"

    def message_D(self):
        return f"Delete relation={self.take('I')} {self.old(self.take('c').decode())}"

    def message_T(self):
        count, options = self.take("I"), self.take("B")
        relations = ", ".join(str(self.take("I")) for _ in range(count))
        return f"Truncate options={options} relations=[{relations}]"

    def message_M(self):
        head = f"Message flags={self.take('B')} lsn={self.lsn()} prefix={self.name()}"
        return f"{head} content={quoted(self.bytes(self.take('I')))}"


class Server:
    """A Postgres of our own in `folder`, reached only through a socket there."""

    def __init__(self, bin_dir, folder):
        self.bin_dir, self.folder = bin_dir, folder
        self.identity = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            self.identity = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}

    def run(self, program, *args, stdin=None):
        done = subprocess.run(
            [program, *args],
            input=stdin,
            stdout=subprocess.PIPE,
            check=True,
            cwd=self.folder,
            **self.identity,
        )
        return done.stdout.decode()

    def run_own(self, program, *args):
        return self.run(self.bin_dir / program, *args)

    def __enter__(self):
        data = f"{self.folder}/data"
        self.run_own("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        options = f"-c listen_addresses='' -k {self.folder} -c wal_level=logical -c timezone=UTC"
        self.run_own("pg_ctl", "-D", data, "-w", "-l", f"{self.folder}/log", "-o", options, "start")
        return self

    def __exit__(self, *_):
        self.run_own("pg_ctl", "-D", f"{self.folder}/data", "-w", "-m", "immediate", "stop")

    def sql(self, *args, stdin=None):
        psql = self.bin_dir / "psql"
        psql = psql if psql.exists() else "psql"
        return self.run(psql, "-XqAt", "-h", self.folder, "-U", "postgres", *args, stdin=stdin)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        with Server(pathlib.Path(sys.argv[1]).resolve(), folder) as server:
            server.sql("-o", "/dev/null", stdin=SCENARIO.read_bytes())
            print("#", server.sql("-c", "SELECT version()").strip())
            print("# Recorded by record.py from scenario.sql: a message in hex, a tab, what it says.")
            for slot, publication, more in SLOTS:
                options = {"proto_version": "1", "publication_names": publication, **more}
                print("# slot", slot, *(f"{key}={value}" for key, value in options.items()))
                arguments = ", ".join(f"'{item}'" for pair in options.items() for item in pair)
                changes = f"pg_logical_slot_get_binary_changes('{slot}', NULL, NULL, {arguments})"
                for line in server.sql("-c", f"SELECT encode(data, 'hex') FROM {changes}").splitlines():
                    print(line, Message(bytes.fromhex(line)).text, sep="\t")


if __name__ == "__main__":
    main()
