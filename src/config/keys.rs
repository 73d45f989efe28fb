//! Every key, once. The file, the environment, the flags, `--help` and the README follow from this
//! table; what a value may be beyond its kind is said where it is parsed.

/// One line of the table.
#[derive(Debug, PartialEq, Eq)]
pub struct Key {
    /// `section.key`, or `key` at the top of the file.
    pub name: &'static str,
    /// What kind of value it takes.
    pub kind: Kind,
    /// The default as it would be written; none where there is none, or the preset decides.
    pub default: Option<&'static str>,
    /// Never shown, and also read from a file that `<NAME>_FILE` names.
    pub secret: bool,
    /// An environment variable that other tools share, asked after our own.
    pub shared_env: Option<&'static str>,
    /// What it does, in one line.
    pub doc: &'static str,
}

/// What kind of value a key takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A string; the word that stands for it in `--help`.
    Text(&'static str),
    /// A string like `250ms`.
    Duration,
    /// A string like `8MiB`, or an integer.
    Size,
    /// An integer.
    Integer,
    /// `true` or `false`.
    Boolean,
    /// One of these strings.
    Choice(&'static [&'static str]),
}

impl Key {
    /// The variable that sets it: `POSTRIDER_NATS_STREAM`.
    #[must_use]
    pub fn env(&self) -> String {
        format!("POSTRIDER_{}", self.name.replace('.', "_").to_uppercase())
    }

    /// The flag that sets it, without dashes: `nats-stream`.
    #[must_use]
    pub fn flag(&self) -> String {
        self.name.replace(['.', '_'], "-")
    }

    /// Our variable, then the shared one.
    pub(super) fn envs(&self) -> impl Iterator<Item = String> {
        std::iter::once(self.env()).chain(self.shared_env.map(str::to_owned))
    }
}

const fn key(name: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Key {
    Key { name, kind, default: Some(default), secret: false, shared_env: None, doc }
}

const fn unset(name: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { name, kind, default: None, secret: false, shared_env: None, doc }
}

const fn secret(name: &'static str, kind: Kind, shared_env: Option<&'static str>, doc: &'static str) -> Key {
    Key { name, kind, default: None, secret: true, shared_env, doc }
}

const fn shared(name: &'static str, kind: Kind, env: &'static str, doc: &'static str) -> Key {
    Key { name, kind, default: None, secret: false, shared_env: Some(env), doc }
}

const FILE: Kind = Kind::Text("FILE");
const COLUMN: Kind = Kind::Text("COLUMN");
const NAME: Kind = Kind::Text("NAME");

/// The table.
pub const KEYS: &[Key] = &[
    secret(
        "postgres.url",
        Kind::Text("URL"),
        Some("DATABASE_URL"),
        "libpq URL or key=value string; what it leaves out comes from PG* variables and ~/.pgpass",
    ),
    key(
        "postgres.slot",
        NAME,
        "postrider",
        "The replication slot: lower-case letters, digits and underscores",
    ),
    key("postgres.publication", NAME, "postrider", "The publication that carries the outbox"),
    key("postgres.schema", NAME, "postrider", "The schema that holds the checkpoint table"),
    key(
        "postgres.release_after",
        Kind::Duration,
        "5s",
        "Let go of the replication connection when NATS has acknowledged nothing for so long",
    ),
    key(
        "postgres.wal_sender_timeout",
        Kind::Duration,
        "30s",
        "Postgres frees the slot when the relay has been silent for so long: a freeze, or a machine that is gone",
    ),
    key(
        "outbox.table",
        NAME,
        "public.outbox",
        "The outbox table; names with capitals or dots are quoted: \"Shop\".\"Out.box\"",
    ),
    key(
        "outbox.preset",
        Kind::Choice(&["auto", "article", "debezium", "open-outbox", "columns"]),
        "auto",
        "Which columns mean what; auto tells it from the table, columns needs outbox.subject",
    ),
    unset("outbox.id", COLUMN, "Column of the event id; default: by preset"),
    unset("outbox.type", COLUMN, "Column of the event type; default: by preset"),
    unset("outbox.key", COLUMN, "Column of the ordering key; default: by preset"),
    unset("outbox.payload", COLUMN, "Column of the payload; default: by preset"),
    unset("outbox.headers", COLUMN, "Column of a JSON object of headers; default: by preset"),
    unset("outbox.schema_version", COLUMN, "Column of the payload's schema version; default: by preset"),
    unset("outbox.content_type", COLUMN, "Column of the payload's media type; default: by preset"),
    unset("outbox.traceparent", COLUMN, "Column of the W3C traceparent; default: by preset"),
    unset("outbox.tracestate", COLUMN, "Column of the W3C tracestate; default: by preset"),
    unset("outbox.created_at", COLUMN, "Column of the event's creation time; default: by preset"),
    unset(
        "outbox.subject",
        Kind::Text("TEMPLATE"),
        "NATS subject, with {column}, {column:tokens} or {column:bucket(16)}; default: by preset, outbox.{event_type} or outbox.event.{aggregatetype}",
    ),
    key(
        "outbox.cloudevents",
        Kind::Boolean,
        "false",
        "Also send CloudEvents 1.0 attributes as headers: ce-id, ce-type, ce-source, ce-time, …",
    ),
    secret(
        "nats.url",
        Kind::Text("URLS"),
        Some("NATS_URL"),
        "NATS servers, separated by commas: nats://host:4222 or tls://user:password@host",
    ),
    shared(
        "nats.creds",
        FILE,
        "NATS_CREDS",
        "Credentials file (a JWT and its seed), read again at each connection",
    ),
    shared("nats.nkey", FILE, "NATS_NKEY", "File with the seed of an nkey, read again at each connection"),
    secret("nats.jwt", Kind::Text("JWT"), None, "User JWT, with nats.seed"),
    secret("nats.seed", Kind::Text("SEED"), None, "Seed of an nkey, alone or with nats.jwt"),
    shared("nats.user", NAME, "NATS_USER", "User, when nats.url names none"),
    secret("nats.password", Kind::Text("PASSWORD"), Some("NATS_PASSWORD"), "Password of nats.user"),
    secret("nats.token", Kind::Text("TOKEN"), Some("NATS_TOKEN"), "Token, when nats.url names none"),
    shared(
        "nats.ca",
        FILE,
        "NATS_CA",
        "Certificates of the authorities that sign the servers'; default: the system's",
    ),
    shared(
        "nats.cert",
        FILE,
        "NATS_CERT",
        "Client certificate, with nats.key; both read again at each connection",
    ),
    shared("nats.key", FILE, "NATS_KEY", "Private key of nats.cert"),
    key(
        "nats.tls_first",
        Kind::Boolean,
        "false",
        "TLS before the server says anything (its handshake_first)",
    ),
    shared("nats.context", NAME, "NATS_CONTEXT", "Context of the NATS CLI, for what nothing else says"),
    unset("nats.domain", NAME, "JetStream domain, for a leaf node"),
    unset(
        "nats.js_prefix",
        Kind::Text("PREFIX"),
        "Prefix of JetStream's API as it is imported from another account",
    ),
    key("nats.inbox_prefix", Kind::Text("PREFIX"), "_INBOX", "The subjects of answers begin with this"),
    key("nats.stream", NAME, "OUTBOX", "The JetStream stream; it belongs to this relay alone"),
    key("nats.replicas", Kind::Integer, "1", "Replicas of a stream that init creates, 1 to 5"),
    key("nats.max_age", Kind::Duration, "none", "Age limit of a stream that init creates"),
    key("nats.max_bytes", Kind::Size, "none", "Size limit of a stream that init creates"),
    key(
        "nats.sync_interval",
        Kind::Duration,
        "2m",
        "The servers' jetstream sync_interval (2m is their own default), or always",
    ),
    key(
        "nats.msg_id",
        Kind::Boolean,
        "false",
        "Also send the event id as Nats-Msg-Id; nothing here depends on it",
    ),
    key("delivery.window_messages", Kind::Integer, "2048", "Events in flight at most, 1 to 65536"),
    key(
        "delivery.window_bytes",
        Kind::Size,
        "8MiB",
        "Bytes in flight at most; one larger event passes alone",
    ),
    key(
        "delivery.hold_back",
        Kind::Duration,
        "auto",
        "How long a stored event's LSN stays unconfirmed; auto: 0s with sync_interval always, else 2 x sync_interval + 10s",
    ),
    key(
        "delivery.on_poison",
        Kind::Choice(&["dead_letter", "halt"]),
        "dead_letter",
        "At an event that cannot be published: put it into the dead-letter table and go on, or halt with exit status 7",
    ),
    key(
        "delivery.oversize",
        Kind::Choice(&["dead_letter", "object_store", "halt"]),
        "dead_letter",
        "At an event that is too large for NATS; object_store: its payload goes there, the message refers to it",
    ),
    key(
        "delivery.dead_letters_max",
        Kind::Integer,
        "100",
        "More dead letters in a row, without one event published between: halt with exit status 7",
    ),
    key(
        "delivery.dead_letter_retention",
        Kind::Duration,
        "30d",
        "How long dead letters are kept after they were resolved; open ones are kept for ever",
    ),
    key(
        "delivery.wait_visible",
        Kind::Boolean,
        "false",
        "Publish an event only once others can see its transaction; without it the event may be a moment early",
    ),
    key(
        "care.mark",
        Kind::Boolean,
        "false",
        "Mark rows whose events are stored and confirmed: processed = true, or the time in processed_at",
    ),
    unset(
        "care.mark_column",
        COLUMN,
        "The boolean or time that marks a row as processed, here and for backfill, recover, verify; default: processed, else processed_at",
    ),
    key(
        "care.delete_after",
        Kind::Duration,
        "off",
        "Delete rows of this age, once their events are stored and confirmed; 0s: as soon as they are",
    ),
    key("care.archive_table", NAME, "off", "Move deleted rows into this table, in the same transaction"),
    key(
        "care.drop_partitions_after",
        Kind::Duration,
        "off",
        "Drop partitions whose time is so long past, once all of their events are stored and confirmed",
    ),
    key("care.batch", Kind::Integer, "1000", "Rows that one transaction marks or deletes, 1 to 100000"),
    key(
        "care.pace",
        Kind::Duration,
        "100ms",
        "Rest after each of these transactions; shorter and shorter while there is more to do",
    ),
    key(
        "encrypt.key_file",
        FILE,
        "off",
        "Encrypt payloads with the first key of this file: lines of a key id and the base64 of 32 bytes",
    ),
    key(
        "validate.schemas",
        Kind::Text("FOLDER"),
        "off",
        "JSON Schemas of payloads, <event_type>.json and <event_type>.v<version>.json; what breaks its own is a dead letter",
    ),
    key(
        "http.listen",
        Kind::Text("ADDRESS"),
        "127.0.0.1:9464",
        "Where the page, /status, /metrics, /healthz and /readyz are served; port 0 picks a free one, off serves nothing",
    ),
    secret(
        "http.token",
        Kind::Text("TOKEN"),
        None,
        "Bearer token that all but /healthz and the page at / (empty without it) then demand",
    ),
    key("http.allow_anonymous", Kind::Boolean, "false", "Allow http.listen beyond loopback without a token"),
    key(
        "http.standby_ready",
        Kind::Boolean,
        "true",
        "Whether /readyz answers 200 while another relay holds the slot; false: only the one that streams is ready",
    ),
    key(
        "start_timeout",
        Kind::Duration,
        "none",
        "How long to wait at the start for servers that are not up yet",
    ),
    key(
        "log.level",
        Kind::Choice(&["error", "warn", "info", "debug", "trace"]),
        "info",
        "The least severe events that are logged",
    ),
    key(
        "log.format",
        Kind::Choice(&["auto", "human", "json"]),
        "auto",
        "auto: human on a terminal, JSON otherwise",
    ),
];

/// The key of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// The sections of the file.
pub(super) fn sections() -> impl Iterator<Item = &'static str> {
    let mut sections: Vec<_> =
        KEYS.iter().filter_map(|key| key.name.split_once('.')).map(|(section, _)| section).collect();
    sections.dedup();
    sections.into_iter()
}

/// The README's table.
#[must_use]
pub fn markdown() -> String {
    let mut table = String::from("| key | default | |\n| --- | --- | --- |\n");
    for key in KEYS {
        let default = key.default.map_or("–".to_owned(), |default| format!("`{default}`"));
        let shared = key.shared_env.map_or(String::new(), |name| format!("; also `{name}`"));
        let doc = key.doc.replace('|', "\\|");
        table.push_str(&format!("| `{}` | {default} | {doc}{shared} |\n", key.name));
    }
    table
}

/// The name that `text` was probably meant to be.
pub(crate) fn nearest<S: AsRef<str>>(text: &str, names: impl IntoIterator<Item = S>) -> Option<S> {
    let distance =
        |name: &S| strsim::damerau_levenshtein(&text.to_lowercase(), &name.as_ref().to_lowercase());
    names
        .into_iter()
        .map(|name| (distance(&name), name))
        .filter(|(distance, name)| *distance <= name.as_ref().len().div_ceil(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_variables_and_flags_are_unique() {
        let unique = |name: fn(&Key) -> String| KEYS.iter().map(name).collect::<BTreeSet<_>>().len();
        assert_eq!(unique(|key| key.name.to_owned()), KEYS.len());
        assert_eq!(unique(Key::env), KEYS.len());
        assert_eq!(unique(Key::flag), KEYS.len());
    }

    #[test]
    fn the_variable_and_the_flag_follow_from_the_name() {
        let key = find("delivery.window_bytes").unwrap();
        assert_eq!(key.env(), "POSTRIDER_DELIVERY_WINDOW_BYTES");
        assert_eq!(key.flag(), "delivery-window-bytes");
        assert_eq!(find("start_timeout").unwrap().env(), "POSTRIDER_START_TIMEOUT");
    }

    #[test]
    fn the_readme_s_table_has_a_line_for_each_key() {
        let table = markdown();
        assert_eq!(table.lines().count(), KEYS.len() + 2);
        assert!(table.contains("| `nats.stream` | `OUTBOX` | The JetStream stream"), "{table}");
    }

    #[test]
    fn the_nearest_name_is_found_and_a_far_one_is_not() {
        let names = || KEYS.iter().map(|key| key.name);
        assert_eq!(nearest("nats.strem", names()), Some("nats.stream"));
        assert_eq!(nearest("Postgres.URL", names()), Some("postgres.url"));
        assert_eq!(nearest("kafka.brokers", names()), None);
    }
}
