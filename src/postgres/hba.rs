//! Lines of `pg_hba.conf` (Postgres manual, "The pg_hba.conf File").

use std::net::IpAddr;

/// Words that mean something where they stand unquoted.
const KEYWORDS: [&str; 5] = ["all", "replication", "sameuser", "samerole", "samegroup"];

/// A database or a user, quoted unless it is plain and no keyword.
#[must_use]
pub fn name(name: &str) -> String {
    let plain = !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && !KEYWORDS.contains(&name);
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// The line that would have let us in, from what the server says of the one that it lacks:
/// `no pg_hba.conf entry for host "::1", user "u", database "d", SSL encryption`.
#[must_use]
pub fn missing_line(message: &str) -> Option<String> {
    let (_, told) = message.split_once("pg_hba.conf")?;
    let quoted = |of: &str| {
        let (_, rest) = told.split_once(&format!("{of} \""))?;
        Some(rest.split_once('"')?.0)
    };
    let (host, user, database) = (quoted("host")?, quoted("user")?, quoted("database")?);
    let (kind, address) = if host == "[local]" {
        ("local", String::new())
    } else {
        let address: IpAddr = host.parse().ok()?;
        let bits = if address.is_ipv6() { 128 } else { 32 };
        (if told.contains("SSL encryption") { "hostssl" } else { "host" }, format!(" {address}/{bits}"))
    };
    Some(format!("{kind} {} {}{address} scram-sha-256", name(database), name(user)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_that_pg_hba_conf_lacks_is_written() {
        for (told, line) in [
            (
                "no pg_hba.conf entry for host \"10.1.2.3\", user \"relay\", database \"shop\", no encryption",
                "host shop relay 10.1.2.3/32 scram-sha-256",
            ),
            (
                "pg_hba.conf rejects connection for host \"::1\", user \"re-lay\", database \"all\", SSL encryption",
                "hostssl \"all\" \"re-lay\" ::1/128 scram-sha-256",
            ),
            (
                "no pg_hba.conf entry for host \"[local]\", user \"u\", database \"d\", no encryption",
                "local d u scram-sha-256",
            ),
        ] {
            assert_eq!(missing_line(told).as_deref(), Some(line));
        }
        let forged =
            "no pg_hba.conf entry for host \"x'; evil; '\", user \"u\", database \"d\", no encryption";
        assert_eq!(missing_line(forged), None);
        assert_eq!(missing_line("role \"x\" does not exist"), None);
    }
}
