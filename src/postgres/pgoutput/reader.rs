//! The one place that takes bytes off a message.

use super::DecodeError;
use crate::postgres::lsn::Lsn;
use crate::postgres::text::Text;
use crate::postgres::timestamp::Timestamp;
use bytes::{Buf, Bytes, TryGetError};

/// The unread rest of a message. Whoever reads names what is read: the name goes into the error.
pub(super) struct Reader(Bytes);

impl Reader {
    pub(super) fn new(body: Bytes) -> Reader {
        Reader(body)
    }

    pub(super) fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        self.0.try_get_u8().map_err(truncated(what))
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        self.0.try_get_u32().map_err(truncated(what))
    }

    pub(super) fn i32(&mut self, what: &'static str) -> Result<i32, DecodeError> {
        self.0.try_get_i32().map_err(truncated(what))
    }

    pub(super) fn lsn(&mut self, what: &'static str) -> Result<Lsn, DecodeError> {
        self.0.try_get_u64().map(Lsn).map_err(truncated(what))
    }

    pub(super) fn timestamp(&mut self, what: &'static str) -> Result<Timestamp, DecodeError> {
        self.0.try_get_i64().map(Timestamp).map_err(truncated(what))
    }

    /// A 16-bit number of items of at least `item_min` bytes each. It is safe to reserve for: a
    /// number of items that the rest of the message cannot hold is an error.
    pub(super) fn count_u16(&mut self, item_min: usize, what: &'static str) -> Result<usize, DecodeError> {
        let count = self.0.try_get_u16().map_err(truncated(what))?;
        self.believe(usize::from(count), item_min, what)
    }

    /// [`count_u16`](Self::count_u16) for a 32-bit number.
    pub(super) fn count_u32(&mut self, item_min: usize, what: &'static str) -> Result<usize, DecodeError> {
        let count = self.u32(what)?;
        self.believe(usize::try_from(count).unwrap_or(usize::MAX), item_min, what)
    }

    fn believe(&self, count: usize, item_min: usize, what: &'static str) -> Result<usize, DecodeError> {
        match count.checked_mul(item_min) {
            Some(bytes) if bytes <= self.0.len() => Ok(count),
            _ => Err(DecodeError::Truncated(what)),
        }
    }

    /// A 32-bit length and as many bytes.
    pub(super) fn sized(&mut self, what: &'static str) -> Result<Bytes, DecodeError> {
        let len = self.count_u32(1, what)?;
        Ok(self.0.split_to(len))
    }

    /// UTF-8 that ends with a zero byte.
    pub(super) fn cstr(&mut self, what: &'static str) -> Result<Text, DecodeError> {
        let len = self.0.iter().position(|byte| *byte == 0).ok_or(DecodeError::Truncated(what))?;
        let text = self.0.split_to(len);
        self.u8(what)?;
        Text::new(text).map_err(|_| DecodeError::NotUtf8(what))
    }

    /// Nothing may be left of a message that was read to its end.
    pub(super) fn finish(self, message: &'static str) -> Result<(), DecodeError> {
        match self.0.len() {
            0 => Ok(()),
            bytes => Err(DecodeError::Trailing { message, bytes }),
        }
    }
}

fn truncated(what: &'static str) -> impl FnOnce(TryGetError) -> DecodeError {
    move |_| DecodeError::Truncated(what)
}
