//! The walsender's end of the wire: what a server writes, byte by byte.

use crate::postgres::lsn::Lsn;

/// The outbox's oid in the model.
pub(super) const OUTBOX: u32 = 16_384;

/// Its columns: name and type oid.
pub(super) const COLUMNS: [(&str, u32); 5] =
    [("id", 23), ("event_type", 1043), ("payload", 3802), ("created_at", 1114), ("processed", 16)];

fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    [&[tag], &length[..], body].concat()
}

fn cstr(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

fn xlog_data(message: &[u8]) -> Vec<u8> {
    frame(b'd', &[&b"w"[..], &[0; 24], message].concat())
}

/// Columns of one row, and that the server is ready again.
pub(super) fn answer(row: &[&str]) -> Vec<u8> {
    let mut body = u16::try_from(row.len()).unwrap().to_be_bytes().to_vec();
    for text in row {
        body.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
        body.extend(text.as_bytes());
    }
    [frame(b'D', &body), frame(b'C', b"SELECT 1\0"), frame(b'Z', b"I")].concat()
}

pub(super) fn error(code: &str, message: &str) -> Vec<u8> {
    let fields = [b"SERROR\0C", code.as_bytes(), b"\0M", message.as_bytes(), b"\0\0"].concat();
    [frame(b'E', &fields), frame(b'Z', b"I")].concat()
}

pub(super) fn copy_both() -> Vec<u8> {
    frame(b'W', &[0, 0, 0])
}

pub(super) fn keepalive(wal_end: Lsn, reply: bool) -> Vec<u8> {
    frame(b'd', &[&b"k"[..], &wal_end.0.to_be_bytes(), &[0; 8], &[u8::from(reply)]].concat())
}

pub(super) fn begin(commit_lsn: Lsn, commit_time: i64) -> Vec<u8> {
    let message = [&b"B"[..], &commit_lsn.0.to_be_bytes(), &commit_time.to_be_bytes(), &[0, 0, 0, 9]];
    xlog_data(&message.concat())
}

pub(super) fn commit(commit_lsn: Lsn, end_lsn: Lsn, commit_time: i64) -> Vec<u8> {
    let lsns = [commit_lsn.0.to_be_bytes(), end_lsn.0.to_be_bytes()].concat();
    xlog_data(&[&b"C\0"[..], &lsns, &commit_time.to_be_bytes()].concat())
}

pub(super) fn relation() -> Vec<u8> {
    let mut message = [&b"R"[..], &OUTBOX.to_be_bytes(), b"public\0outbox\0d"].concat();
    message.extend(u16::try_from(COLUMNS.len()).unwrap().to_be_bytes());
    for (name, oid) in COLUMNS {
        message.push(0);
        message.extend(cstr(name));
        message.extend(oid.to_be_bytes());
        message.extend((-1i32).to_be_bytes());
    }
    xlog_data(&message)
}

pub(super) fn insert(id: u64, event_type: &str) -> Vec<u8> {
    let cells = [&id.to_string(), event_type, "{}", "2026-11-24 00:00:00", "f"];
    let mut message = [&b"I"[..], &OUTBOX.to_be_bytes(), b"N"].concat();
    message.extend(u16::try_from(cells.len()).unwrap().to_be_bytes());
    for cell in cells {
        message.push(b't');
        message.extend(u32::try_from(cell.len()).unwrap().to_be_bytes());
        message.extend(cell.as_bytes());
    }
    xlog_data(&message)
}
