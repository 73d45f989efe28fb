//! What may be sent, skipped and confirmed. Does no I/O and knows no clock: the time is handed in.
//!
//! | file | what it decides |
//! | --- | --- |
//! | [`position`] | what identifies an event for ever: the `Postrider-Position` header |
//! | [`history`] | which positions lie in a server's own past |
//! | [`checkpoint`] | the values of the row that a session begins with and writes |
//! | [`opening`] | from row, slot and stream: where a session goes on, or why it must not |
//! | [`rewind`] | where it goes on when the stream has lost its end |
//! | [`resume`] | which events from the slot are new, and the proof that the others are stored |
//! | [`window`] | what waits and what is in flight, chained by sequence; what is settled |
//! | [`confirm`] | when the row is written and which LSN is safe to confirm |
//!
//! Invariants: a boundary is settled only when every event before it is stored; it is confirmed
//! only when it is settled, covered by a committed row, and has aged for the hold-back.

pub mod checkpoint;
pub mod confirm;
pub mod history;
pub mod opening;
pub mod position;
pub mod resume;
pub mod rewind;
pub mod window;
