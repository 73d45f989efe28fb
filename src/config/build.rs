//! Gives every value its type, and checks what several keys must satisfy together.

use super::access::{self, Access};
use super::context;
use super::database::Database;
use super::load::{Environment, Origin, Value};
use super::sensitive::Sensitive;
use super::value::{self, Parsed};
use super::{
    Config, Delivery, Encrypt, HoldBack, Http, Log, LogFormat, LogLevel, Nats, OnPoison, Outbox, Oversize,
    Postgres, SyncInterval, Validate,
};
use crate::error::{Code, Failure};
use crate::outbox::{ColumnNames, PresetChoice, Template};
use crate::postgres::target::Secret;
use std::time::Duration;

const REPLICAS_MAX: usize = 5;
/// A message in the window costs some hundred bytes even when its event is empty.
const WINDOW_MESSAGES_MAX: usize = 65_536;
const WINDOW_BYTES_MIN: u64 = 1024;
const RELEASE_AFTER_MIN: Duration = Duration::from_millis(100);
/// A relay that waits for its turn on a busy machine is not taken for dead.
const WAL_SENDER_TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// Postgres counts it in milliseconds, in a signed 32-bit integer.
const WAL_SENDER_TIMEOUT_MAX: Duration = Duration::from_millis(i32::MAX as u64);
/// What nats-server accepts.
const MAX_AGE_MIN: Duration = Duration::from_millis(100);
const SYNC_INTERVAL_MIN: Duration = Duration::from_millis(1);

/// Any of these says which Postgres is meant without `postgres.url`.
const POSTGRES_VARIABLES: [&str; 4] = ["PGHOST", "PGHOSTADDR", "PGDATABASE", "PGSERVICE"];

/// The typed configuration; none when a value is missing or wrong.
pub(super) fn config(values: &mut [Value], env: &Environment, problems: &mut Vec<Failure>) -> Option<Config> {
    context::fill(values, env, problems);
    let database = database(values, env, problems);
    let mut read = Reader { values, problems };

    let postgres = postgres(&mut read, database);
    let outbox = outbox(&mut read);
    let nats = nats(&mut read);
    let delivery = delivery(&mut read);
    let care = super::care::care(&mut read, outbox.as_ref().map(|outbox| &outbox.table));
    let encrypt = encrypt(&mut read);
    let schemas = read.required("validate.schemas", value::path);
    let http = http(&mut read);
    let start_timeout = read.required("start_timeout", value::optional(value::duration));
    let log = log(&mut read);
    Some(Config {
        postgres: postgres?,
        outbox: outbox?,
        nats: nats?,
        delivery: delivery?,
        care: care?,
        encrypt: encrypt?,
        validate: Validate { schemas: schemas? },
        http: http?,
        start_timeout: start_timeout?,
        log: log?,
    })
}

pub(super) struct Reader<'a> {
    values: &'a [Value],
    pub(super) problems: &'a mut Vec<Failure>,
}

impl Reader<'_> {
    fn value(&self, name: &str) -> Option<&Value> {
        let value = self.values.iter().find(|value| value.key.name == name);
        debug_assert!(value.is_some(), "{name} is not in the table of keys");
        value
    }

    /// A value that has a default or is checked elsewhere for being there: none only when it is wrong
    /// or missing.
    pub(super) fn required<T>(&mut self, name: &str, parse: impl Fn(&str) -> Parsed<T>) -> Option<T> {
        self.optional(name, parse)?
    }

    /// `None` when the value is wrong, `Some(None)` when nobody set it.
    pub(super) fn optional<T>(&mut self, name: &str, parse: impl Fn(&str) -> Parsed<T>) -> Option<Option<T>> {
        let value = self.value(name)?;
        let Some(text) = &value.text else { return Some(None) };
        match parse(text) {
            Ok(parsed) => Some(Some(parsed)),
            Err(expected) => {
                let shown =
                    if value.key.secret { String::new() } else { format!(" = `{}`", text.escape_debug()) };
                let message = format!("{name}{shown} ({}) cannot be used: {expected}", value.origin);
                let remedy = remedy(value);
                self.problems.push(Failure::new(Code::InvalidValue, message, remedy));
                None
            }
        }
    }

    fn missing(&mut self, message: &str, remedy: &str) {
        self.problems.push(Failure::new(Code::MissingValue, message, remedy));
    }
}

fn remedy(value: &Value) -> String {
    match &value.origin {
        Origin::Flag(flag) => format!("change --{flag}"),
        Origin::Variable(name) => format!("change the environment variable {name}"),
        Origin::SecretFile(_, path) => format!("change the file {}", path.display()),
        Origin::File(path, line) => format!("change line {line} of {}", path.display()),
        Origin::Context(path) => format!("change the context {}", path.display()),
        Origin::Default => format!("set {}", value.key.name),
    }
}

/// Where Postgres is: from the URL, and from the variables and files that fill what it leaves out.
fn database(values: &mut [Value], env: &Environment, problems: &mut Vec<Failure>) -> Option<Database> {
    let value = values.iter_mut().find(|value| value.key.name == "postgres.url")?;
    if value.text.as_ref().is_none_or(|text| text.trim().is_empty()) {
        let Some(variable) = POSTGRES_VARIABLES.into_iter().find(|name| env.get(name).is_some()) else {
            let message = "postgres.url is not set: nothing says where the outbox is";
            let remedy = "export DATABASE_URL=postgres://user:password@host:5432/database";
            problems.push(Failure::new(Code::MissingValue, message, remedy));
            return None;
        };
        value.origin = Origin::Variable(variable.to_owned());
    }
    let database = Database::new(value, env);
    match database.resolve() {
        Ok(_) => Some(database),
        Err(failure) => {
            problems.push(failure);
            None
        }
    }
}

fn postgres(read: &mut Reader<'_>, database: Option<Database>) -> Option<Postgres> {
    let slot = read.required("postgres.slot", value::slot);
    let publication = read.required("postgres.publication", value::publication);
    let schema = read.required("postgres.schema", value::identifier);
    let release_after = read.required("postgres.release_after", value::duration_at_least(RELEASE_AFTER_MIN));
    let wal_sender_timeout = read.required(
        "postgres.wal_sender_timeout",
        value::duration_between(WAL_SENDER_TIMEOUT_MIN, WAL_SENDER_TIMEOUT_MAX),
    );
    Some(Postgres {
        database: database?,
        slot: slot?,
        publication: publication?,
        schema: schema?,
        release_after: release_after?,
        wal_sender_timeout: wal_sender_timeout?,
    })
}

fn outbox(read: &mut Reader<'_>) -> Option<Outbox> {
    let table = read.required("outbox.table", str::parse);
    let preset = read.required(
        "outbox.preset",
        value::choice(&[
            ("auto", PresetChoice::Auto),
            ("article", PresetChoice::Article),
            ("debezium", PresetChoice::Debezium),
            ("open-outbox", PresetChoice::OpenOutbox),
            ("columns", PresetChoice::Columns),
        ]),
    );
    let columns = columns(read);
    let subject = read.optional("outbox.subject", value::not_empty);
    if let (Some(PresetChoice::Columns), Some(None)) = (preset, &subject) {
        read.missing(
            "outbox.preset = `columns` has no default subject, and outbox.subject is not set",
            "set outbox.subject, like \"outbox.{event_type}\", over columns of your table",
        );
    }
    if let Some(Some(text)) = &subject
        && let Err(failure) = Template::parse(text)
    {
        read.problems.push(failure);
    }
    let cloudevents = read.required("outbox.cloudevents", value::boolean);
    Some(Outbox {
        table: table?,
        preset: preset?,
        columns: columns?,
        subject: subject?,
        cloudevents: cloudevents?,
    })
}

fn columns(read: &mut Reader<'_>) -> Option<ColumnNames> {
    let mut column = |name| read.optional(name, value::identifier);
    let id = column("outbox.id");
    let event_type = column("outbox.type");
    let key = column("outbox.key");
    let payload = column("outbox.payload");
    let headers = column("outbox.headers");
    let schema_version = column("outbox.schema_version");
    let content_type = column("outbox.content_type");
    let traceparent = column("outbox.traceparent");
    let tracestate = column("outbox.tracestate");
    let created_at = column("outbox.created_at");
    Some(ColumnNames {
        id: id?,
        event_type: event_type?,
        key: key?,
        payload: payload?,
        headers: headers?,
        schema_version: schema_version?,
        content_type: content_type?,
        traceparent: traceparent?,
        tracestate: tracestate?,
        created_at: created_at?,
    })
}

fn access(read: &mut Reader<'_>) -> Option<Access> {
    let servers = read.optional("nats.url", value::servers);
    if let Some(None) = servers {
        read.missing(
            "nats.url is not set: nothing says where JetStream is",
            "export NATS_URL=nats://localhost:4222",
        );
    }
    let url = read.value("nats.url").and_then(Sensitive::of);
    let ca = read.optional("nats.ca", value::text);
    // The others are put together below; here only whether each can be used.
    let others: Option<Vec<_>> = access::IDENTITIES
        .concat()
        .into_iter()
        .chain(["nats.cert", "nats.key"])
        .map(|name| read.optional(name, value::text))
        .collect();
    let tls_first = read.required("nats.tls_first", value::boolean);
    let inbox_prefix = read.required("nats.inbox_prefix", value::subject_prefix);
    let domain = read.optional("nats.domain", value::domain);
    let prefix = read.optional("nats.js_prefix", value::subject_prefix);
    let identity = access::identity(read.values, read.problems);
    let certificate = access::certificate(read.values, read.problems);
    let jetstream = access::jetstream(domain?, prefix?, read.problems);
    others?;
    servers??;
    Some(Access {
        url: url?,
        identity: identity?,
        ca: ca?.map(Into::into),
        certificate: certificate?,
        tls_first: tls_first?,
        inbox_prefix: inbox_prefix?,
        jetstream: jetstream?,
    })
}

fn nats(read: &mut Reader<'_>) -> Option<Nats> {
    let access = access(read);
    let stream = read.required("nats.stream", value::stream);
    let replicas = read.required("nats.replicas", value::integer(1, REPLICAS_MAX));
    let max_age = read.required("nats.max_age", value::optional(value::duration_at_least(MAX_AGE_MIN)));
    let max_bytes = read.required("nats.max_bytes", value::optional(value::size_at_least(1)));
    let sync_interval = read.required("nats.sync_interval", |text| match text {
        "always" => Ok(SyncInterval::Always),
        text => value::duration_at_least(SYNC_INTERVAL_MIN)(text)
            .map(SyncInterval::Every)
            .map_err(|error| format!("{error}, or `always`")),
    });
    let msg_id = read.required("nats.msg_id", value::boolean);
    Some(Nats {
        access: access?,
        stream: stream?,
        replicas: replicas?,
        max_age: max_age?,
        max_bytes: max_bytes?,
        sync_interval: sync_interval?,
        msg_id: msg_id?,
    })
}

fn delivery(read: &mut Reader<'_>) -> Option<Delivery> {
    let window_messages = read.required("delivery.window_messages", value::integer(1, WINDOW_MESSAGES_MAX));
    let window_bytes = read.required("delivery.window_bytes", |text| {
        let bytes = value::size_at_least(WINDOW_BYTES_MIN)(text)?;
        usize::try_from(bytes).map_err(|_| "the size is larger than this machine's memory can be".into())
    });
    let hold_back = read.required("delivery.hold_back", |text| match text {
        "auto" => Ok(HoldBack::Auto),
        text => value::duration(text).map(HoldBack::Fixed).map_err(|error| format!("{error}, or `auto`")),
    });
    let on_poison = read.required(
        "delivery.on_poison",
        value::choice(&[("dead_letter", OnPoison::DeadLetter), ("halt", OnPoison::Halt)]),
    );
    let oversize = read.required(
        "delivery.oversize",
        value::choice(&[
            ("dead_letter", Oversize::DeadLetter),
            ("object_store", Oversize::ObjectStore),
            ("halt", Oversize::Halt),
        ]),
    );
    let dead_letters_max = read.required("delivery.dead_letters_max", value::integer(0, usize::MAX));
    let dead_letter_retention = read.required("delivery.dead_letter_retention", value::duration);
    let wait_visible = read.required("delivery.wait_visible", value::boolean);
    Some(Delivery {
        window_messages: window_messages?,
        window_bytes: window_bytes?,
        hold_back: hold_back?,
        on_poison: on_poison?,
        oversize: oversize?,
        dead_letters_max: dead_letters_max?,
        dead_letter_retention: dead_letter_retention?,
        wait_visible: wait_visible?,
    })
}

fn encrypt(read: &mut Reader<'_>) -> Option<Encrypt> {
    let key_file = read.required("encrypt.key_file", value::path);
    Some(Encrypt { key_file: key_file? })
}

fn http(read: &mut Reader<'_>) -> Option<Http> {
    let listen = read.required("http.listen", value::listen);
    let token = read.optional("http.token", value::token);
    let allow_anonymous = read.required("http.allow_anonymous", value::boolean);
    let standby_ready = read.required("http.standby_ready", value::boolean);
    if let (Some(Some(address)), Some(None), Some(false)) = (listen, &token, allow_anonymous)
        && !address.ip().to_canonical().is_loopback()
    {
        read.problems.push(Failure::new(
            Code::OpenHttp,
            format!("http.listen = `{address}` is open to other machines, without a token"),
            "set http.token, or http.allow_anonymous = true, or listen on 127.0.0.1",
        ));
    }
    Some(Http {
        listen: listen?,
        token: token?.map(Secret::new),
        allow_anonymous: allow_anonymous?,
        standby_ready: standby_ready?,
    })
}

fn log(read: &mut Reader<'_>) -> Option<Log> {
    let level = read.required(
        "log.level",
        value::choice(&[
            ("error", LogLevel::Error),
            ("warn", LogLevel::Warn),
            ("info", LogLevel::Info),
            ("debug", LogLevel::Debug),
            ("trace", LogLevel::Trace),
        ]),
    );
    let format = read.required(
        "log.format",
        value::choice(&[("auto", LogFormat::Auto), ("human", LogFormat::Human), ("json", LogFormat::Json)]),
    );
    Some(Log { level: level?, format: format? })
}
