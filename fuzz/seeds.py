#!/usr/bin/env python3
"""Writes what fuzzing starts from into fuzz/corpus: recorded messages, answers and positions."""

import pathlib

here = pathlib.Path(__file__).resolve().parent
golden = here.parent / "tests" / "golden"

ACKS = [
    '{"stream":"OUTBOX","seq":17}',
    '{"stream":"OUTBOX", "seq":18}',
    '{"stream":"OUTBOX","domain":"hub","seq":19}',
    '{"stream":"S","seq":0,"duplicate":true}',
    '{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 7"},"stream":"S","seq":0}',
    '{"error":{"code":503,"description":"no leader"}}',
    "+OK",
]

POSITIONS = ["7345678901234567890/2/postrider/00000016B374D848/12", "0/1/s/0000000000000000/0"]


def write(target, items):
    folder = here / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    for number, item in enumerate(items):
        (folder / f"seed-{number:04}").write_bytes(item)


messages = {
    bytes.fromhex(line.split("\t")[0])
    for file in sorted(golden.glob("pgoutput-*.txt"))
    for line in file.read_text().splitlines()
    if not line.startswith("#")
}
write("pgoutput", sorted(messages))
write("puback", [ack.encode() for ack in ACKS])
write("position", [position.encode() for position in POSITIONS])
