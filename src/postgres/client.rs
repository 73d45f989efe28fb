//! Ordinary SQL: tokio-postgres over the same target, socket and TLS as the replication connection.

use super::error::Error;
use super::socket;
use super::target::{Host, SessionAttrs, Target};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, Config, NoTls};

/// A login is done by then, or the server is as good as away.
const LOGIN_MAX: Duration = Duration::from_secs(30);

/// A connection for SQL. Its server ending it (`pg_ctl stop -m fast` begins with these) is seen at
/// once through [`closed`](Sql::closed), also while nothing is asked.
pub struct Sql {
    /// To ask with.
    pub client: Client,
    closed: watch::Receiver<Option<String>>,
}

impl Sql {
    /// Connects to `host`.
    ///
    /// # Errors
    /// As [`Connection::connect`](super::connection::Connection::connect).
    pub async fn connect(target: &Target, host: &Host) -> Result<Sql, Error> {
        timeout(LOGIN_MAX, Sql::login(target, host)).await.map_err(|_| Error::Timeout("the login"))?
    }

    async fn login(target: &Target, host: &Host) -> Result<Sql, Error> {
        let io = socket::open(target, host).await?;
        // TLS is negotiated below tokio-postgres, so that both connections have one code for it.
        let io = socket::secure(io, target, host).await?;
        let mut config = Config::new();
        config
            .user(&target.user)
            .dbname(&target.database)
            .application_name(&target.application_name)
            .ssl_mode(SslMode::Disable);
        if let Some(password) = &target.password {
            config.password(password.expose());
        }
        if let Some(options) = &target.options {
            config.options(options);
        }
        let (client, connection) = config.connect_raw(io, NoTls).await?;
        let (ended, closed) = watch::channel(None);
        tokio::spawn(async move {
            let why = match connection.await {
                Ok(()) => "the server closed the connection".to_owned(),
                Err(error) => Error::from(error).to_string(),
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
        Ok(Sql { client, closed })
    }

    /// Connects to the first host that `target` accepts, and says which.
    ///
    /// # Errors
    /// The last host's.
    pub async fn connect_any(target: &Target) -> Result<(Sql, Host), Error> {
        Sql::connect_from(target, 0).await
    }

    /// The same, beginning with the host of this number, counted round and round.
    ///
    /// # Errors
    /// The last host's.
    pub async fn connect_from(target: &Target, first: usize) -> Result<(Sql, Host), Error> {
        let mut last = Error::Closed;
        let first = first % target.hosts.len().max(1);
        for host in target.hosts.iter().cycle().skip(first).take(target.hosts.len()) {
            match Sql::connect_if_writable(target, host).await {
                Ok(sql) => return Ok((sql, host.clone())),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn connect_if_writable(target: &Target, host: &Host) -> Result<Sql, Error> {
        let sql = Sql::connect(target, host).await?;
        if target.session_attrs == SessionAttrs::ReadWrite {
            let row = sql.client.query_one("SELECT pg_is_in_recovery()", &[]).await?;
            if row.get::<_, bool>(0) {
                return Err(Error::ReadOnly(host.to_string()));
            }
        }
        Ok(sql)
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
