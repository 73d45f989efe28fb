//! What of a connection string says about TCP.

use super::TargetError;
use super::parameters::{Settings, Value};
use std::time::Duration;

/// How the kernel notices that a peer is gone. `None`: as the operating system is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tcp {
    /// `keepalives`: whether a silent connection is probed at all.
    pub keepalives: bool,
    /// `keepalives_idle`: after how long without a byte.
    pub keepalives_idle: Option<Duration>,
    /// `keepalives_interval`: how long until the next probe.
    pub keepalives_interval: Option<Duration>,
    /// `keepalives_count`: how many may be lost.
    pub keepalives_count: Option<u32>,
    /// `tcp_user_timeout`: how long what was sent may stay unacknowledged.
    pub user_timeout: Option<Duration>,
}

/// Reads it; `tcp_user_timeout` is in milliseconds, the others in seconds.
pub(super) fn resolve(settings: &Settings) -> Result<Tcp, TargetError> {
    let seconds = |name: &str| Ok(settings.get(name).map(Value::seconds).transpose()?.flatten());
    let positive = |name: &str| {
        let number = settings.get(name).map(Value::number).transpose()?;
        Ok(number.and_then(|number| u32::try_from(number).ok()).filter(|number| *number > 0))
    };
    Ok(Tcp {
        keepalives: settings.get("keepalives").map(Value::number).transpose()? != Some(0),
        keepalives_idle: seconds("keepalives_idle")?,
        keepalives_interval: seconds("keepalives_interval")?,
        keepalives_count: positive("keepalives_count")?,
        user_timeout: positive("tcp_user_timeout")?
            .map(|milliseconds| Duration::from_millis(milliseconds.into())),
    })
}
