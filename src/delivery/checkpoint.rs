//! The values of the checkpoint row: what a session must know of those before it.

use super::position::Identity;
use crate::postgres::lsn::Lsn;
use crate::postgres::timestamp::Timestamp;

/// One row of `<schema>.pipeline`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The slot: the row's key.
    pub slot: String,
    /// The stream that it is published to.
    pub stream: String,
    /// The stream's creation time: a stream created anew under the same name differs in it.
    pub stream_created: Timestamp,
    /// The cluster.
    pub system_id: u64,
    /// The timeline of the server that the last session streamed from.
    pub timeline: u32,
    /// What identifies publication, membership and table.
    pub objects: Objects,
    /// `ready` when the relay may stream.
    pub phase: String,
    /// Who may write the row.
    pub session: i64,
    /// The stream sequence up to which everything is settled.
    pub seq: u64,
    /// The last stored event of the settled prefix; none when no event was ever stored.
    pub last: Option<Identity>,
    /// Messages up to this one are judged; foreign ones and phantoms among them are passed over.
    pub passed_seq: u64,
    /// Highest boundary before which every event is stored.
    pub settled_lsn: Lsn,
    /// The sequence that the confirmed LSN relies on.
    pub confirmed_seq: u64,
}

/// Row oids in the catalogues. Anything of it dropped and made again has another oid, and rows
/// written in between are not in the slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Objects {
    /// `pg_publication.oid`.
    pub publication: u32,
    /// `pg_publication_rel.oid`; 0 when the publication has the table by schema or as one of all.
    pub membership: u32,
    /// `pg_class.oid` of the outbox.
    pub table: u32,
}
