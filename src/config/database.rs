//! Where the database is and who we are there: looked up anew at each connection, so that a password
//! can be rotated in its file while the relay runs.

use super::load::{Environment, Origin, Value};
use super::sensitive::Sensitive;
use crate::error::{Code, Failure};
use crate::postgres::target::{Secret, Target};

/// A connection string, with the variables and files that complete it.
#[derive(Debug, Clone)]
pub struct Database {
    url: Option<Sensitive>,
    origin: Origin,
    env: Environment,
}

impl Database {
    pub(super) fn new(value: &Value, env: &Environment) -> Database {
        Database { url: Sensitive::of(value), origin: value.origin.clone(), env: env.clone() }
    }

    /// Reads whatever lies in files: the string itself, when `…_FILE` names one, the service file and the
    /// password file.
    ///
    /// # Errors
    /// PR0102: what it says cannot be used.
    pub fn resolve(&self) -> Result<Target, Failure> {
        let url = self.url.as_ref().map(Sensitive::current);
        let env = |name: &str| self.env.get(name).map(str::to_owned);
        Target::parse(url.as_ref().map(Secret::expose), &env).map_err(|error| {
            let message = format!("postgres.url ({}) cannot be used: {error}", self.origin);
            let remedy = "a complete one: postgres://user:password@host:5432/database?sslmode=verify-full";
            Failure::new(Code::InvalidValue, message, remedy)
        })
    }

    /// The same while the relay runs: what could be used at its start may be half written now, and will be
    /// whole again.
    ///
    /// # Errors
    /// PR0201
    pub fn resolve_again(&self) -> Result<Target, Failure> {
        self.resolve().map_err(|failure| Failure { code: Code::PostgresUnreachable, ..failure })
    }
}
