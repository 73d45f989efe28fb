//! What an error of Postgres means for the relay: sorted by SQLSTATE, once.

use super::{Code, Failure};
use crate::postgres::error::{Error, ServerError};
use crate::state::checkpoint::RowError;

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let message = error.to_string();
        let (code, remedy) = match &error {
            Error::Connect { .. } | Error::ReadOnly(_) => (
                Code::PostgresUnreachable,
                "start Postgres, or correct postgres.url / DATABASE_URL; the relay goes on trying".to_owned(),
            ),
            Error::Io(_) | Error::Closed | Error::Timeout(_) | Error::Protocol(_) => {
                (Code::PostgresSession, "see Postgres's log; the relay goes on trying".to_owned())
            }
            Error::Server(error) => return server(error),
            Error::Decode(_) => (Code::Unexpected, "report it, with the Postgres version".to_owned()),
            Error::Login(_) => (
                Code::PostgresAuth,
                "give the password in postgres.url, PGPASSWORD or ~/.pgpass, or let pg_hba.conf use scram-sha-256"
                    .to_owned(),
            ),
            Error::Tls(_) => (
                Code::PostgresTls,
                "switch TLS on at the server (ssl = on), or use sslmode=prefer or disable in postgres.url".to_owned(),
            ),
        };
        Failure::new(code, message, remedy)
    }
}

impl From<RowError> for Failure {
    fn from(error: RowError) -> Failure {
        match error {
            RowError::Postgres(error) => error.into(),
            RowError::Unreadable(error) => Failure::new(
                Code::CheckpointUnfit,
                error.to_string(),
                "restore the row, or give up on it: postrider init --adopt",
            ),
        }
    }
}

/// SQLSTATE: Postgres manual, appendix A. An open set; what is not named is the operator's.
fn server(error: &ServerError) -> Failure {
    let state = error.code.code();
    let (code, remedy) = match state {
        "28P01" | "28000" => (
            Code::PostgresAuth,
            "correct user and password in postgres.url; in pg_hba.conf a line must name the database itself: \
             host <database> <user> <address> scram-sha-256",
        ),
        "3D000" => (Code::PostgresDatabase, "correct the database in postgres.url, or CREATE DATABASE it"),
        "42P01" | "3F000" => (Code::SchemaMissing, "postrider init"),
        "42501" => (
            Code::PostgresRefuses,
            "grant the role what sql/privileges.sql lists, or let the table's owner run postrider init",
        ),
        "55006" => (Code::SlotBusy, "none is needed: this relay takes over when the slot is free"),
        // 55P03 lock not available; 57 operator intervention; 53 resources; 08 connection; 40 rollback.
        _ if state == "55P03" || ["08", "40", "53", "57"].iter().any(|class| state.starts_with(class)) => {
            (Code::PostgresSession, "none is needed: the relay tries again")
        }
        _ => (Code::PostgresRefuses, "see Postgres's log for the statement"),
    };
    Failure::new(code, error.to_string(), remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Disposition;
    use tokio_postgres::error::SqlState;

    fn of(state: &str) -> Code {
        failure(state).code
    }

    fn failure(state: &str) -> Failure {
        let error = ServerError {
            severity: "ERROR".into(),
            code: SqlState::from_code(state),
            message: "no".into(),
            detail: None,
            hint: None,
            context: None,
        };
        Failure::from(Error::Server(Box::new(error)))
    }

    #[test]
    fn each_state_that_a_person_can_mend_has_its_code_and_remedy() {
        for (states, code, remedy) in [
            (&["28P01", "28000"][..], Code::PostgresAuth, "password"),
            (&["3D000"], Code::PostgresDatabase, "CREATE DATABASE"),
            (&["42P01", "3F000"], Code::SchemaMissing, "postrider init"),
            (&["42501"], Code::PostgresRefuses, "privileges.sql"),
            (&["55006"], Code::SlotBusy, "takes over"),
            (&["55P03", "08006", "40001", "53300", "57P01"], Code::PostgresSession, "tries again"),
            (&["XX000", "55000"], Code::PostgresRefuses, "log"),
        ] {
            for state in states {
                let failure = failure(state);
                assert_eq!(failure.code, code, "{state}");
                assert!(failure.remedy.contains(remedy), "{state}: {}", failure.remedy);
            }
        }
    }

    #[test]
    fn a_server_that_restarts_is_waited_for() {
        for state in ["57P01", "57P02", "57P03", "53300", "08006", "40001"] {
            assert_eq!(of(state).disposition(), Disposition::Retry, "{state}");
        }
    }

    #[test]
    fn a_refusal_is_the_operators() {
        for state in ["28P01", "28000", "3D000", "42501", "42P01", "XX000", "22021"] {
            assert_eq!(of(state).disposition(), Disposition::Operator, "{state}");
        }
    }
}
