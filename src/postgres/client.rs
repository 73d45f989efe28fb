//! Ordinary SQL: tokio-postgres over a connection that has logged in as the replication connection does.

use super::connection::Connection;
use super::error::{Error, ServerError, awaits_standby};
use super::login::{self, Replay, Session};
use super::target::{Host, SessionAttrs, Target};
use std::future::poll_fn;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::{AsyncMessage, Client, Config, NoTls};

/// A login is done by then, or the server is as good as away.
const LOGIN_MAX: Duration = Duration::from_secs(30);

/// Values then print as pgoutput prints them on a replication connection.
pub const AS_PGOUTPUT: &str = "SET DateStyle = ISO; SET TimeZone = UTC; SET IntervalStyle = postgres; \
    SET extra_float_digits = 3; SET bytea_output = hex";

/// A connection for SQL. Its server ending it (`pg_ctl stop -m fast` begins with these) is seen at
/// once through [`closed`](Sql::closed), also while nothing is asked.
pub struct Sql {
    /// To ask with.
    pub client: Client,
    /// The server that it goes to, where a replication connection must go too.
    pub host: Host,
    /// As whom, and how.
    pub target: Target,
    closed: watch::Receiver<Option<String>>,
    skipped: watch::Receiver<Option<ServerError>>,
}

impl Sql {
    /// Connects to `host`.
    ///
    /// # Errors
    /// As [`Connection::connect`].
    pub async fn connect(target: &Target, host: &Host) -> Result<Sql, Error> {
        let session = login::log_in(target, host, &[]).await?;
        let preparing = Sql::prepare(target, host, session);
        timeout(LOGIN_MAX, preparing).await.map_err(|_| Error::Timeout("the login"))?
    }

    async fn prepare(target: &Target, host: &Host, session: Session) -> Result<Sql, Error> {
        let mut config = Config::new();
        config.user(&target.user).ssl_mode(SslMode::Disable);
        let (client, connection) = config.connect_raw(Replay::from(session), NoTls).await?;
        let (ended, closed) = watch::channel(None);
        let (skips, skipped) = watch::channel(None);
        tokio::spawn(async move {
            let mut connection = connection;
            let why = loop {
                match poll_fn(|cx| connection.poll_message(cx)).await {
                    Some(Ok(AsyncMessage::Notice(notice))) if is_skip(&notice) => {
                        let _ = skips.send(Some(ServerError::from(&notice)));
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => break Error::from(error).to_string(),
                    None => break "the server closed the connection".to_owned(),
                }
            };
            let _ = ended.send(Some(why));
        });
        // A role's own time limits are for people, not for a service that waits between two questions;
        // and what a commit promises must not depend on the role.
        client
            .batch_execute(
                "SET statement_timeout = '30s'; SET client_min_messages = warning; \
                 SET search_path = pg_catalog; SET synchronous_commit = on; \
                 SELECT set_config(name, '0', false) FROM pg_settings WHERE name IN \
                 ('lock_timeout', 'idle_in_transaction_session_timeout', 'idle_session_timeout', \
                  'transaction_timeout')",
            )
            .await?;
        Ok(Sql { client, host: host.clone(), target: target.clone(), closed, skipped })
    }

    /// Connects to the first host that `target` accepts.
    ///
    /// # Errors
    /// The host's; of several, [`Error::NoHost`] unless a person must mend each of them.
    pub async fn connect_any(target: &Target) -> Result<Sql, Error> {
        Sql::connect_from(target, 0).await
    }

    /// The same, beginning with the host of this number, counted round and round.
    ///
    /// # Errors
    /// As [`connect_any`](Sql::connect_any).
    pub async fn connect_from(target: &Target, first: usize) -> Result<Sql, Error> {
        let mut errors = Vec::new();
        let first = first % target.hosts.len().max(1);
        for host in target.hosts.iter().cycle().skip(first).take(target.hosts.len()) {
            match Sql::connect_if_writable(target, host).await {
                Ok(sql) => return Ok(sql),
                Err(error) => errors.push((host, error)),
            }
        }
        // One that is only away may be the right one: what the others have against us may not matter.
        if errors.len() > 1 && errors.iter().any(|(_, error)| error.passes()) {
            let told = errors.iter().map(|(host, error)| format!("{host}: {error}"));
            return Err(Error::NoHost(told.collect::<Vec<_>>().join("; ")));
        }
        // A target has a host.
        Err(errors.into_iter().next().map_or(Error::Closed, |(_, error)| error))
    }

    /// A replication connection to the same server, with what `target` says today: this connection may
    /// have waited for long.
    ///
    /// # Errors
    /// As [`Connection::connect`].
    pub async fn walsender(&self, target: &Target) -> Result<Connection, Error> {
        let same = |host: &&Host| host.address == self.host.address && host.port == self.host.port;
        Connection::connect(target, target.hosts.iter().find(same).unwrap_or(&self.host)).await
    }

    async fn connect_if_writable(target: &Target, host: &Host) -> Result<Sql, Error> {
        let sql = Sql::connect(target, host).await?;
        let unfit = match target.session_attrs {
            SessionAttrs::Any => return Ok(sql),
            SessionAttrs::Primary => "SELECT pg_is_in_recovery()",
            SessionAttrs::ReadWrite => {
                "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::bool"
            }
        };
        let asking = sql.client.query_one(unfit, &[]);
        let answer =
            timeout(LOGIN_MAX, asking).await.map_err(|_| Error::Timeout("whether it takes writes"))?;
        match answer?.get::<_, bool>(0) {
            true => Err(Error::ReadOnly(host.to_string())),
            false => Ok(sql),
        }
    }

    /// Changes when Postgres 18 passes over rows whose publication did not exist, with a notice alone.
    pub(super) fn skipped(&self) -> watch::Receiver<Option<ServerError>> {
        let mut skipped = self.skipped.clone();
        skipped.mark_unchanged();
        skipped
    }

    /// Waits until the connection has ended, and says why.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn closed(&self) -> String {
        let mut closed = self.closed.clone();
        match closed.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => "the connection's task ended".to_owned(),
        }
    }
}

/// "skipped loading publication", and not the wait for a standby, which has the same SQLSTATE.
fn is_skip(notice: &DbError) -> bool {
    *notice.code() == SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE && !awaits_standby(notice.message())
}
