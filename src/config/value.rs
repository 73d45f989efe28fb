//! From a value's text to its type. Pure; an error says what is accepted and repeats no value.

use async_nats::ServerAddr;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// A parsed value, or what is accepted instead.
pub(super) type Parsed<T> = Result<T, String>;

/// Longer than this is a slip of the pen, and would overflow nanoseconds elsewhere.
const DURATION_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// What Postgres keeps of an identifier.
const IDENTIFIER_BYTES_MAX: usize = 63;
/// What a stream's name may have.
const STREAM_BYTES_MAX: usize = 255;

pub(super) fn duration(text: &str) -> Parsed<Duration> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("a duration needs a unit: `{text}s` or `{text}ms`"));
    }
    if text.contains('M') {
        // humantime's `M` is a month, which nobody means by `5M`.
        return Err("minutes are written `m`, months `months`".into());
    }
    let duration = humantime::parse_duration(text)
        .map_err(|_| "expected a duration like `250ms`, `5s`, `2m`, `1h30m` or `7d`".to_owned())?;
    if duration > DURATION_MAX {
        return Err("the duration is longer than 100 years".into());
    }
    Ok(duration)
}

pub(super) fn duration_at_least(min: Duration) -> impl Fn(&str) -> Parsed<Duration> {
    move |text| match duration(text)? {
        duration if duration >= min => Ok(duration),
        _ => Err(format!("the duration must be at least {}", humantime::format_duration(min))),
    }
}

pub(super) fn duration_between(min: Duration, max: Duration) -> impl Fn(&str) -> Parsed<Duration> {
    let at_least = duration_at_least(min);
    move |text| match at_least(text)? {
        duration if duration <= max => Ok(duration),
        _ => Err(format!("the duration must be at most {}", humantime::format_duration(max))),
    }
}

/// `none`, or what `parse` takes.
pub(super) fn optional<T>(parse: impl Fn(&str) -> Parsed<T>) -> impl Fn(&str) -> Parsed<Option<T>> {
    move |text| {
        if text == "none" {
            Ok(None)
        } else {
            parse(text).map(Some).map_err(|error| format!("{error}, or `none`"))
        }
    }
}

/// `off`, or what `parse` takes.
pub(super) fn or_off<T, E: fmt::Display>(
    parse: impl Fn(&str) -> Result<T, E>,
) -> impl Fn(&str) -> Parsed<Option<T>> {
    move |text| {
        if text == "off" {
            return Ok(None);
        }
        parse(text).map(Some).map_err(|error| format!("{error}, or `off`"))
    }
}

pub(super) fn size(text: &str) -> Parsed<u64> {
    // The limit is JetStream's: its sizes are signed.
    match text.parse::<bytesize::ByteSize>() {
        Ok(size) if i64::try_from(size.as_u64()).is_ok() => Ok(size.as_u64()),
        _ => Err("expected a size like `8MiB`, `64KiB` or a number of bytes".into()),
    }
}

pub(super) fn size_at_least(min: u64) -> impl Fn(&str) -> Parsed<u64> {
    move |text| match size(text)? {
        size if size >= min => Ok(size),
        _ => Err(format!("the size must be at least {min} bytes")),
    }
}

pub(super) fn integer(min: usize, max: usize) -> impl Fn(&str) -> Parsed<usize> {
    move |text| match text.parse() {
        Ok(number) if (min..=max).contains(&number) => Ok(number),
        _ => Err(format!("expected a whole number from {min} to {max}")),
    }
}

pub(super) fn boolean(text: &str) -> Parsed<bool> {
    text.parse().map_err(|_| "expected `true` or `false`".into())
}

pub(super) fn choice<T: Copy>(choices: &'static [(&'static str, T)]) -> impl Fn(&str) -> Parsed<T> {
    move |text| {
        let found = choices.iter().find(|(choice, _)| *choice == text);
        found.map(|(_, choice)| *choice).ok_or_else(|| {
            let names: Vec<_> = choices.iter().map(|(name, _)| format!("`{name}`")).collect();
            let nearest = super::keys::nearest(text, choices.iter().map(|(name, _)| *name));
            let hint = nearest.map_or(String::new(), |name| format!("; did you mean `{name}`?"));
            format!("expected {}{hint}", names.join(" or "))
        })
    }
}

pub(super) fn not_empty(text: &str) -> Parsed<String> {
    if text.is_empty() { Err("it is empty".into()) } else { Ok(text.to_owned()) }
}

/// Text of one line.
pub(super) fn text(text: &str) -> Parsed<String> {
    if text.chars().any(char::is_control) {
        return Err("expected text of one line, without control characters".into());
    }
    not_empty(text)
}

/// A file or a folder, or `off`.
pub(super) fn path(path: &str) -> Parsed<Option<PathBuf>> {
    if path == "off" { Ok(None) } else { text(path).map(|path| Some(path.into())) }
}

pub(super) fn slot(text: &str) -> Parsed<String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if text.is_empty() || text.len() > IDENTIFIER_BYTES_MAX || !text.bytes().all(plain) {
        return Err("a slot's name is 1 to 63 lower-case letters, digits and underscores".into());
    }
    Ok(text.to_owned())
}

/// A name as the catalogue holds it, without quotes.
pub(super) fn identifier(text: &str) -> Parsed<String> {
    if text.is_empty() || text.len() > IDENTIFIER_BYTES_MAX || text.contains('\0') {
        return Err("a name in Postgres has 1 to 63 bytes".into());
    }
    Ok(text.to_owned())
}

pub(super) fn publication(text: &str) -> Parsed<String> {
    // The replication grammar does not take the E'' literal that a backslash needs.
    if text.contains('\\') {
        return Err("a publication's name cannot hold a backslash here".into());
    }
    identifier(text)
}

pub(super) fn stream(text: &str) -> Parsed<String> {
    let forbidden = |c: char| c.is_whitespace() || c.is_control() || ".*>/\\".contains(c);
    if text.is_empty() || text.len() > STREAM_BYTES_MAX || text.contains(forbidden) {
        return Err("a stream's name has 1 to 255 bytes, without spaces, `.`, `*`, `>`, `/` and `\\`".into());
    }
    Ok(text.to_owned())
}

/// Tokens of a subject, without a dot at the end.
pub(super) fn subject_prefix(text: &str) -> Parsed<String> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let forbidden = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '*' | '>');
    if text.split('.').any(|token| token.is_empty() || token.contains(forbidden)) {
        return Err("expected tokens separated by dots, without spaces and wildcards".into());
    }
    Ok(text.to_owned())
}

pub(super) fn domain(text: &str) -> Parsed<String> {
    if text.contains('.') { Err("a domain is one token, without dots".into()) } else { subject_prefix(text) }
}

/// `off`, or an address with its port.
pub(super) fn listen(text: &str) -> Parsed<Option<SocketAddr>> {
    if text == "off" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        "expected an IP address with a port, like `127.0.0.1:9464` or `[::1]:9464`, or `off`".into()
    })
}

pub(super) fn token(text: &str) -> Parsed<String> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("a token is printable ASCII without spaces".into());
    }
    Ok(text.to_owned())
}

pub(super) fn servers(text: &str) -> Parsed<Vec<String>> {
    text.split(',').map(|server| self::server(server.trim())).collect()
}

fn server(text: &str) -> Parsed<String> {
    let expected = "expected servers like `nats://host:4222`, separated by commas";
    if !matches!(text.split_once("://"), None | Some(("nats" | "tls", _))) {
        return Err(format!("{expected}; the scheme is `nats` or `tls`"));
    }
    let address: ServerAddr =
        text.parse().map_err(|_| format!("{expected}; `/` `@` `:` of a password are written %2F %40 %3A"))?;
    let url = address.clone().into_inner();
    if address.host().is_empty() || text.contains(char::is_whitespace) || !matches!(url.path(), "" | "/") {
        return Err(format!("{expected}; `/` `@` `:` of a password are written %2F %40 %3A"));
    }
    Ok(text.to_owned())
}

/// A NATS server's URL without its password or token.
#[must_use]
pub fn masked_server(server: &str) -> String {
    let (scheme, rest) = server.split_once("://").map_or(("", server), |(scheme, rest)| (scheme, rest));
    let separator = if scheme.is_empty() { "" } else { "://" };
    match rest.rsplit_once('@') {
        None => server.to_owned(),
        // A user alone is a token.
        Some((credentials, host)) => match credentials.split_once(':') {
            Some((user, _)) => format!("{scheme}{separator}{user}:***@{host}"),
            None => format!("{scheme}{separator}***@{host}"),
        },
    }
}

/// A table's name with its schema, as the catalogue holds them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TableName {
    /// The schema.
    pub schema: String,
    /// The table.
    pub name: String,
}

/// As SQL, quoted where it must be.
impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", quoted(&self.schema), quoted(&self.name))
    }
}

impl std::str::FromStr for TableName {
    type Err = String;

    /// Reads `table`, `schema.table` and their quoted forms as Postgres does.
    fn from_str(text: &str) -> Parsed<TableName> {
        let mut rest = text;
        let first = part(&mut rest)?;
        let Some(after_dot) = rest.strip_prefix('.') else {
            return match rest {
                "" => Ok(TableName { schema: "public".into(), name: first }),
                _ => Err(TABLE_EXPECTED.into()),
            };
        };
        rest = after_dot;
        let name = part(&mut rest)?;
        if rest.is_empty() { Ok(TableName { schema: first, name }) } else { Err(TABLE_EXPECTED.into()) }
    }
}

const TABLE_EXPECTED: &str = "expected `schema.table` or `table`; a name with capitals, dots or signs is quoted: `\"Shop\".\"Out.box\"`";

/// Takes one name off the front of `rest`.
fn part(rest: &mut &str) -> Parsed<String> {
    let name = if let Some(mut quoted) = rest.strip_prefix('"') {
        let mut name = String::new();
        loop {
            let (before, after) = quoted.split_once('"').ok_or("a double quote is not closed")?;
            name.push_str(before);
            let Some(escaped) = after.strip_prefix('"') else {
                *rest = after;
                break name;
            };
            name.push('"');
            quoted = escaped;
        }
    } else {
        let (bare, after) = rest.split_at(rest.find('.').unwrap_or(rest.len()));
        if !is_bare(&bare.to_ascii_lowercase()) {
            return Err(TABLE_EXPECTED.into());
        }
        *rest = after;
        // Only ASCII: what Postgres does with other letters depends on the database.
        bare.to_ascii_lowercase()
    };
    identifier(&name)
}

fn is_bare(name: &str) -> bool {
    let letter = |c: char| c.is_ascii_lowercase() || c == '_' || !c.is_ascii();
    name.starts_with(letter) && name.chars().all(|c| letter(c) || c.is_ascii_digit() || c == '$')
}

/// `name` as it is written in SQL.
fn quoted(name: &str) -> String {
    if name.is_ascii() && is_bare(name) && RESERVED.binary_search(&name).is_err() {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

/// The key words that cannot name a table unquoted, of Postgres 14 to 18, sorted.
const RESERVED: &[&str] = &[
    "all",
    "analyse",
    "analyze",
    "and",
    "any",
    "array",
    "as",
    "asc",
    "asymmetric",
    "authorization",
    "binary",
    "both",
    "case",
    "cast",
    "check",
    "collate",
    "collation",
    "column",
    "concurrently",
    "constraint",
    "create",
    "cross",
    "current_catalog",
    "current_date",
    "current_role",
    "current_schema",
    "current_time",
    "current_timestamp",
    "current_user",
    "default",
    "deferrable",
    "desc",
    "distinct",
    "do",
    "else",
    "end",
    "except",
    "false",
    "fetch",
    "for",
    "foreign",
    "freeze",
    "from",
    "full",
    "grant",
    "group",
    "having",
    "ilike",
    "in",
    "initially",
    "inner",
    "intersect",
    "into",
    "is",
    "isnull",
    "join",
    "lateral",
    "leading",
    "left",
    "like",
    "limit",
    "localtime",
    "localtimestamp",
    "natural",
    "not",
    "notnull",
    "null",
    "offset",
    "on",
    "only",
    "or",
    "order",
    "outer",
    "overlaps",
    "placing",
    "primary",
    "references",
    "returning",
    "right",
    "select",
    "session_user",
    "similar",
    "some",
    "symmetric",
    "system_user",
    "table",
    "tablesample",
    "then",
    "to",
    "trailing",
    "true",
    "union",
    "unique",
    "user",
    "using",
    "variadic",
    "verbose",
    "when",
    "where",
    "window",
    "with",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_without_a_unit_is_an_error_that_names_the_form() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(7 * 24 * 3600)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert_eq!(duration("5"), Err("a duration needs a unit: `5s` or `5ms`".into()));
        for bad in ["", "s", "-5s", "5 parsecs", "1000y", "5M"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_size_takes_units_or_bytes() {
        assert_eq!(size("8MiB"), Ok(8 << 20));
        assert_eq!(size("8 MB"), Ok(8_000_000));
        assert_eq!(size("1024"), Ok(1024));
        for bad in ["", "-1", "MiB", "8 apples", "99999999999999GiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert!(size_at_least(1024)("1023").is_err() && size_at_least(1024)("1KiB").is_ok());
    }

    #[test]
    fn a_slot_s_name_is_what_postgres_allows() {
        assert!(slot("postrider_2").is_ok() && slot(&"a".repeat(63)).is_ok());
        for bad in ["", "Postrider", "a-b", "a b", "ä", &"a".repeat(64)] {
            assert!(slot(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_publication_s_name_has_no_backslash() {
        assert!(publication("My pub's \"name\"").is_ok());
        assert!(publication(r"a\b").is_err() && publication(&"é".repeat(32)).is_err());
    }

    #[test]
    fn a_stream_s_name_has_no_dots_spaces_wildcards_or_slashes() {
        assert!(stream("ORDERS_2-x").is_ok());
        for bad in ["", "a.b", "a b", "a*", ">", "a/b", "a\\b", "a\tb", &"a".repeat(256)] {
            assert!(stream(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn http_listens_on_an_address_with_a_port_or_not_at_all() {
        assert_eq!(listen("off"), Ok(None));
        assert_eq!(listen("[::1]:0"), Ok(Some("[::1]:0".parse().unwrap())));
        for bad in ["9464", ":9464", "localhost:9464", "127.0.0.1", ""] {
            assert!(listen(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nats_servers_are_separated_by_commas_and_the_scheme_is_optional() {
        assert_eq!(
            servers("nats://a:4222, b,tls://u:p%2F@[::1]:4443"),
            Ok(vec!["nats://a:4222".into(), "b".into(), "tls://u:p%2F@[::1]:4443".into()])
        );
        for bad in ["", "a,,b", "http://a", "ws://a", "nats://", "a:x", "a:99999", "nats://u:p/q@a", "a b"] {
            assert!(servers(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_masked_server_shows_neither_password_nor_token() {
        for (server, shown) in [
            ("nats://a:4222", "nats://a:4222"),
            ("a", "a"),
            ("nats://me:secret@a:4222", "nats://me:***@a:4222"),
            ("tls://s3cret@a", "tls://***@a"),
            ("me:se@cret@a", "me:***@a"),
        ] {
            assert_eq!(masked_server(server), shown);
        }
    }

    #[test]
    fn a_table_s_name_is_read_as_postgres_reads_it() {
        for (text, schema, name) in [
            ("outbox", "public", "outbox"),
            ("Shop.OutBox", "shop", "outbox"),
            ("\"Shop\".\"Out.box\"", "Shop", "Out.box"),
            ("shop.\"a\"\"b\"", "shop", "a\"b"),
            ("_x$1", "public", "_x$1"),
            ("café", "public", "café"),
            ("\"\\\"", "public", "\\"),
        ] {
            let table: TableName = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((table.schema.as_str(), table.name.as_str()), (schema, name), "{text}");
        }
        for bad in [
            "",
            ".",
            "a.",
            ".a",
            "a.b.c",
            "a-b",
            "1a",
            "a b",
            "\"a",
            "\"\"",
            "\"a\"b",
            "a\"b\"",
            &"a".repeat(64),
        ] {
            assert!(bad.parse::<TableName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_table_s_name_is_quoted_where_sql_needs_it() {
        for (text, sql) in [
            ("outbox", "public.outbox"),
            ("\"Shop\".\"Out.box\"", "\"Shop\".\"Out.box\""),
            ("shop.order", "shop.\"order\""),
            ("\"a\"\"b\"", "public.\"a\"\"b\""),
        ] {
            let table: TableName = text.parse().unwrap();
            assert_eq!(table.to_string(), sql);
            assert_eq!(sql.parse(), Ok(table));
        }
    }

    #[test]
    fn the_reserved_words_are_sorted() {
        assert!(RESERVED.is_sorted());
    }
}
