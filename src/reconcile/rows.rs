//! Rows of the table, printed by their types' output functions as the slot prints them, in COPY's text
//! format (Postgres manual, COPY, "Text Format").

use crate::error::{Code, Failure};
use crate::postgres::client::Sql;
use crate::postgres::pgoutput::Tuple;
use crate::postgres::timestamp::Timestamp;
use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt;
use std::pin::Pin;
use tokio_postgres::CopyOutStream;

/// One row.
#[derive(Debug)]
pub(super) struct Row {
    /// When it was created; none where the table does not say.
    pub(super) created_at: Option<Timestamp>,
    pub(super) tuple: Tuple,
}

/// Reads the answer to `COPY (SELECT <microseconds since 1970, or null>, <columns> …) TO STDOUT`.
pub(super) struct Reader {
    copy: Pin<Box<CopyOutStream>>,
    buffer: BytesMut,
}

impl Reader {
    pub(super) async fn start(sql: &Sql, copy: &str) -> Result<Reader, Failure> {
        let copy = sql.client.copy_out(copy).await;
        let copy = copy.map_err(|error| Failure::from(error).context("read the rows of the outbox"))?;
        Ok(Reader { copy: Box::pin(copy), buffer: BytesMut::new() })
    }

    /// The next row.
    pub(super) async fn next(&mut self) -> Result<Option<Row>, Failure> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1).freeze();
                return row(&line.slice(..end)).map(Some);
            }
            match self.copy.try_next().await? {
                Some(data) => self.buffer.extend_from_slice(&data),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(odd("ends within a row")),
            }
        }
    }
}

fn row(line: &Bytes) -> Result<Row, Failure> {
    let mut fields = fields(line)?.into_iter();
    let created_at = match fields.next().ok_or_else(|| odd("sends no column"))? {
        None => None,
        Some(micros) => {
            let micros = std::str::from_utf8(&micros).ok().and_then(|micros| micros.parse().ok());
            micros.map(Timestamp::from_unix_micros)
        }
    };
    Ok(Row { created_at, tuple: Tuple::of_texts(fields) })
}

fn fields(line: &Bytes) -> Result<Vec<Option<Bytes>>, Failure> {
    line.split(|byte| *byte == b'\t').map(|field| field_of(line, field)).collect()
}

fn field_of(line: &Bytes, field: &[u8]) -> Result<Option<Bytes>, Failure> {
    if field == b"\\N" {
        return Ok(None);
    }
    if !field.contains(&b'\\') {
        return Ok(Some(line.slice_ref(field)));
    }
    let mut plain = BytesMut::with_capacity(field.len());
    let mut bytes = field.iter();
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b'\\' => match bytes.next() {
                Some(b'b') => 8,
                Some(b'f') => 12,
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(b't') => b'\t',
                Some(b'v') => 11,
                Some(b'\\') => b'\\',
                _ => return Err(odd("escapes what need not be")),
            },
            plain => *plain,
        };
        plain.extend_from_slice(&[byte]);
    }
    Ok(Some(plain.freeze()))
}

fn odd(what: &str) -> Failure {
    Failure::new(Code::Unexpected, format!("COPY {what}"), "report it")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::pgoutput::Column;

    fn texts(line: &'static [u8]) -> Vec<Option<Vec<u8>>> {
        let row = row(&Bytes::from_static(line)).unwrap();
        let text = |column: &Column| match column {
            Column::Text(text) => Some(text.to_vec()),
            _ => None,
        };
        row.tuple.iter().map(text).collect()
    }

    #[test]
    fn a_line_is_a_row_whose_escapes_and_nulls_are_read() {
        let line = b"\\N\t7\t\\N\ta\\tb\\nc\\\\d\\r\\b\\f\\v\t\t\\\\N";
        let expected = [Some("7"), None, Some("a\tb\nc\\d\r\u{8}\u{c}\u{b}"), Some(""), Some("\\N")];
        assert_eq!(texts(line), expected.map(|text| text.map(|text| text.as_bytes().to_vec())));
    }

    #[test]
    fn the_first_column_is_the_time_of_creation() {
        let at = |line| row(&Bytes::from_static(line)).unwrap().created_at;
        assert_eq!(at(b"946684800000001\tx"), Some(Timestamp(1)));
        assert_eq!(at(b"\\N\tx"), None);
    }

    #[test]
    fn an_escape_that_copy_does_not_write_is_an_error() {
        assert!(row(&Bytes::from_static(b"\\N\ta\\x41")).is_err());
        assert!(row(&Bytes::from_static(b"\\N\ta\\")).is_err());
    }
}
