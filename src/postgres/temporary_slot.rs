//! A slot that lives as long as its replication connection, with the snapshot at which it begins.

use super::connection::Connection;
use super::error::Error;
use super::lsn::Lsn;
use postgres_protocol::escape::escape_identifier;
use std::time::Duration;

/// Creating a slot waits for each transaction that is writing. A lock's limit, unlike ours, has the
/// server give up the slot as well.
const LOCK_MAX: Duration = Duration::from_secs(20);

/// Where a slot begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beginning {
    /// Transactions that committed before it are not sent.
    pub consistent_point: Lsn,
    /// Exactly those are visible in this snapshot, until the connection's next command.
    pub snapshot: String,
}

impl Connection {
    /// Creates a temporary slot for pgoutput. Nobody else can read it.
    ///
    /// # Errors
    /// [`Error::Server`] with 55P03, or [`Error::Timeout`], behind a transaction that goes on writing;
    /// 53400 when there is no room for another slot.
    pub async fn create_temporary_slot(&mut self, slot: &str) -> Result<Beginning, Error> {
        let odd = || Error::Protocol("CREATE_REPLICATION_SLOT answers oddly".to_owned());
        self.query(&format!("SET lock_timeout = '{}s'", LOCK_MAX.as_secs())).await?;
        // The keyword, which 14 wants, is understood by all later versions.
        let rows = self
            .query(&format!(
                "CREATE_REPLICATION_SLOT {} TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT",
                escape_identifier(slot)
            ))
            .await?;
        let row = rows.first().ok_or_else(odd)?;
        let text = |column: usize| row.get(column).cloned().flatten().ok_or_else(odd);
        Ok(Beginning { consistent_point: text(1)?.parse().map_err(|_| odd())?, snapshot: text(2)? })
    }
}
