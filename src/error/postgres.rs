//! What an error of Postgres means for the relay: sorted by SQLSTATE, once.

use super::{Code, Failure};
use crate::postgres::error::{CertificateProblem, Error, ServerError, TlsError};
use crate::postgres::hba;
use crate::postgres::login::LoginError;
use crate::state::checkpoint::RowError;
use postgres_protocol::escape::escape_identifier;

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let message = error.to_string();
        let (code, remedy) = match &error {
            Error::Connect { .. } => (
                Code::PostgresUnreachable,
                "start Postgres, or correct postgres.url / DATABASE_URL; the relay goes on trying".to_owned(),
            ),
            Error::NoHost(_) => (
                Code::PostgresUnreachable,
                "start one of them, or mend what each has against us; the relay goes on trying".to_owned(),
            ),
            Error::ReadOnly(_) => (
                Code::PostgresUnreachable,
                "name the primary in postgres.url, or all hosts of the cluster; where the role or the database has \
                 default_transaction_read_only = on, reset it; the relay goes on trying"
                    .to_owned(),
            ),
            Error::Io(_) | Error::Closed | Error::Timeout(_) | Error::Protocol(_) => {
                (Code::PostgresSession, "see Postgres's log; the relay goes on trying".to_owned())
            }
            Error::Server(told) => return refused(told, error.passes()),
            Error::Decode(_) => (Code::Unexpected, "report it, with the Postgres version".to_owned()),
            Error::Login(error) => (Code::PostgresAuth, login(error).to_owned()),
            Error::Tls(error) => (Code::PostgresTls, tls(error)),
        };
        Failure::new(code, message, remedy)
    }
}

fn login(error: &LoginError) -> &'static str {
    match error {
        LoginError::NoPassword => {
            "give the password in postgres.url, PGPASSWORD or ~/.pgpass (chmod 600), for this user, database, \
             host and port"
        }
        LoginError::Cleartext => {
            "encrypt the connection with sslmode=verify-full, or let pg_hba.conf use scram-sha-256; \
             require_auth=password in postgres.url sends the password in clear all the same"
        }
        LoginError::NotPermitted(_) => {
            "change the method of the line in pg_hba.conf that matches, or require_auth (PGREQUIREAUTH)"
        }
        LoginError::Unbound(_) => {
            "use TLS (sslmode=verify-full), scram-sha-256 in pg_hba.conf, and a server certificate signed by RSA \
             (PKCS #1) or ECDSA with SHA-2; or give up on it: channel_binding=prefer"
        }
        LoginError::Unsupported => {
            "let pg_hba.conf use scram-sha-256, cert or trust for this user: GSSAPI, SSPI, LDAP through GSSAPI and \
             OAuth are not spoken"
        }
        LoginError::Scram(_) => {
            "check the password; scram_iterations may be 100000 at most (SET it, then set the password again); else \
             something between us and the server is not the server"
        }
    }
}

fn tls(error: &TlsError) -> String {
    let certificate = |problem: &CertificateProblem| {
        match problem {
        CertificateProblem::UnknownIssuer => {
            "name the certificate authority's file: sslrootcert=/path/root.crt in postgres.url (the service offers it \
             for download), or sslrootcert=system where a public authority signed it"
                .to_owned()
        }
        CertificateProblem::WrongName { names, .. } => format!(
            "connect by a name that the certificate is for ({}), with hostaddr=<address> where that name does not \
             resolve; or have a certificate issued for this one",
            names.join(", ")
        ),
        CertificateProblem::Expired => {
            "renew the server's certificate (ssl_cert_file), then SELECT pg_reload_conf()".to_owned()
        }
        CertificateProblem::NotYetValid => "set this machine's clock, or the server's certificate".to_owned(),
        CertificateProblem::Unusable(_) => {
            "have the server's certificate issued again: version 3, with the host among its subjectAltName".to_owned()
        }
    }
    };
    match error {
        TlsError::NotOffered(_) => {
            "switch TLS on at the server (ssl = on, ssl_cert_file, ssl_key_file), or use sslmode=prefer or disable in \
             postgres.url"
                .to_owned()
        }
        TlsError::NoRoots { .. } => {
            "put the certificate authority's file there, name it by sslrootcert=/path/root.crt in postgres.url, or use \
             sslrootcert=system where a public authority signed the server's certificate"
                .to_owned()
        }
        TlsError::File { .. } => {
            "mend the file that sslrootcert, sslcert or sslkey of postgres.url names (or ~/.postgresql)".to_owned()
        }
        TlsError::Certificate(problem) => certificate(problem),
        TlsError::ClientCertificate(_) => {
            "give a certificate that the server's ssl_ca_file has signed and that is in its time: sslcert=… and \
             sslkey=… in postgres.url"
                .to_owned()
        }
        TlsError::Handshake(_) => {
            "see Postgres's log; ssl_min_protocol_version and ssl_max_protocol_version of both sides must leave TLS 1.2 \
             or 1.3"
                .to_owned()
        }
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Failure {
        Error::from(error).into()
    }
}

impl From<RowError> for Failure {
    fn from(error: RowError) -> Failure {
        match error {
            RowError::Postgres(error) => error.into(),
            RowError::Unreadable(error) => Failure::new(
                Code::CheckpointUnfit,
                error.to_string(),
                "restore the row, or delete it: then postrider recover --adopt",
            ),
        }
    }
}

/// One SQLSTATE for many reasons, which only the text tells apart. A server that speaks another language
/// gets the remedy for all of them.
fn not_let_in(error: &ServerError) -> Failure {
    let message = error.message.as_str();
    let failure = |remedy: &str| Failure::new(Code::PostgresAuth, error.to_string(), remedy);
    if message.contains("client certificate") || message.contains("certificate authentication failed") {
        failure(
            "show a client certificate that the server's ssl_ca_file has signed and whose common name is the user: \
             sslcert=/path/client.crt and sslkey=/path/client.key in postgres.url",
        )
    } else if let Some(line) = hba::missing_line(message) {
        let failure = failure(&format!(
            "put this line above the others of pg_hba.conf (where only hostssl lines fit, use sslmode=require instead): \
             {line}"
        ));
        // Whoever answers wrote the names: what could mean something to a shell becomes no command.
        if line.bytes().all(|byte| byte.is_ascii_alphanumeric() || b" _-./:".contains(&byte)) {
            failure.command(format!(
                "sed -i '1i {line}' \"$(psql -XAtc 'SHOW hba_file')\" && psql -XAtc 'SELECT pg_reload_conf()'"
            ))
        } else {
            failure
        }
    } else if message.contains("does not exist") {
        failure("correct the user in postgres.url, or make it: CREATE ROLE … LOGIN REPLICATION PASSWORD …")
    } else if message.contains("not permitted to log in") {
        let role = message.split('"').nth(1).unwrap_or_default();
        failure("let it").sql(format!("ALTER ROLE {} LOGIN;", escape_identifier(role)))
    } else {
        failure(
            "correct the user in postgres.url; in pg_hba.conf a line must name the database itself (`replication` does \
             not match logical replication): hostssl <database> <user> <address> scram-sha-256",
        )
    }
}

/// SQLSTATE: Postgres manual, appendix A. An open set; what is not named is the operator's.
fn refused(error: &ServerError, passes: bool) -> Failure {
    let state = error.code.code();
    let (code, remedy) = match state {
        "28P01" => (
            Code::PostgresAuth,
            "correct the password: in postgres.url, PGPASSWORD or ~/.pgpass, or at the server: ALTER ROLE … PASSWORD …",
        ),
        "28000" => return not_let_in(error),
        "3D000" => (Code::PostgresDatabase, "correct the database in postgres.url, or CREATE DATABASE it"),
        "42P01" | "3F000" => (Code::SchemaMissing, "postrider init"),
        "42501" => (
            Code::PostgresRefuses,
            "grant the role what sql/privileges.sql lists, or let the table's owner run postrider init",
        ),
        "53300" => (
            Code::PostgresSession,
            "raise max_connections, max_wal_senders or the role's CONNECTION LIMIT; the relay tries again",
        ),
        "53400" => (
            Code::PostgresRefuses,
            "raise max_replication_slots, which takes a restart, or drop a slot that nobody reads: SELECT slot_name, \
             active FROM pg_replication_slots",
        ),
        "55006" => (Code::SlotBusy, "none is needed: this relay takes over when the slot is free"),
        "08P01" => (
            Code::PostgresSession,
            "if a pooler answers (PgBouncer), point postgres.url at Postgres itself; else none is needed: the relay \
             tries again",
        ),
        "25006" => (
            Code::PostgresSession,
            "this server takes no writes now: name all hosts of the cluster in postgres.url; the relay tries again",
        ),
        _ if passes => (Code::PostgresSession, "none is needed: the relay tries again"),
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
            (&["28P01"][..], Code::PostgresAuth, "password"),
            (&["28000"], Code::PostgresAuth, "pg_hba.conf"),
            (&["3D000"], Code::PostgresDatabase, "CREATE DATABASE"),
            (&["42P01", "3F000"], Code::SchemaMissing, "postrider init"),
            (&["42501"], Code::PostgresRefuses, "privileges.sql"),
            (&["53400"], Code::PostgresRefuses, "max_replication_slots"),
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
