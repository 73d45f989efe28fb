//! Which columns mean what: presets, overrides, and `auto`.
//!
//! A preset names the columns that are read, a default subject, and columns that only tell it from
//! the others. `auto` looks for all of them, since a wrong guess publishes wrong events; a preset
//! chosen by hand needs only what is read.

use super::ColumnInfo;
use super::schema::Schemas;
use super::table::Table;
use super::template::Template;
use crate::error::{Code, Failure};
use std::fmt;
use std::sync::Arc;

/// How an outbox table is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// The plain table of most articles: id, event_type, payload, created_at, processed.
    Article,
    /// Debezium's outbox event router: id, aggregatetype, aggregateid, type, payload.
    Debezium,
    /// event_id, event_type, partition_key, payload, headers, available_at, created_at.
    OpenOutbox,
    /// Only id, payload, and what the configuration names.
    Columns,
}

/// What `outbox.preset` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PresetChoice {
    /// The one preset whose columns the table has.
    #[default]
    Auto,
    /// [`Preset::Article`].
    Article,
    /// [`Preset::Debezium`].
    Debezium,
    /// [`Preset::OpenOutbox`].
    OpenOutbox,
    /// [`Preset::Columns`].
    Columns,
}

/// Names of columns by what they mean; None where there is none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the names are those of the keys outbox.*, which config documents")]
pub struct ColumnNames {
    pub id: Option<String>,
    pub event_type: Option<String>,
    pub key: Option<String>,
    pub payload: Option<String>,
    pub headers: Option<String>,
    pub schema_version: Option<String>,
    pub content_type: Option<String>,
    pub traceparent: Option<String>,
    pub tracestate: Option<String>,
    pub created_at: Option<String>,
}

/// The configuration of the mapping.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// `outbox.preset`.
    pub preset: PresetChoice,
    /// Column names that replace the preset's.
    pub columns: ColumnNames,
    /// `outbox.subject`.
    pub subject: Option<String>,
    /// `nats.msg_id`.
    pub msg_id: bool,
    /// `outbox.cloudevents`.
    pub cloudevents: bool,
}

/// Checked settings, before the table is known.
#[derive(Debug, Clone)]
pub struct Mapping {
    choice: PresetChoice,
    overrides: ColumnNames,
    subject: Option<Template>,
    msg_id: bool,
    cloudevents: bool,
    schemas: Option<Arc<Schemas>>,
}

/// Settings with the preset chosen. Lives as long as the process.
#[derive(Debug, Clone)]
pub struct Resolved {
    pub(super) preset: Preset,
    pub(super) columns: ColumnNames,
    pub(super) subject: Template,
    pub(super) msg_id: bool,
    pub(super) cloudevents: bool,
    pub(super) schemas: Option<Arc<Schemas>>,
}

impl Mapping {
    /// Checks what can be checked without the table.
    ///
    /// # Errors
    /// A template that is wrong, or missing with the preset `columns`.
    pub fn new(settings: &Settings) -> Result<Mapping, Failure> {
        if settings.preset == PresetChoice::Columns && settings.subject.is_none() {
            return Err(Failure::new(
                Code::MissingValue,
                "outbox.preset is `columns`, but outbox.subject is not set",
                "set outbox.subject, for example \"outbox.{topic}\" with a column `topic`",
            ));
        }
        Ok(Mapping {
            choice: settings.preset,
            overrides: settings.columns.clone(),
            subject: settings.subject.as_deref().map(Template::parse).transpose()?,
            msg_id: settings.msg_id,
            cloudevents: settings.cloudevents,
            schemas: None,
        })
    }

    /// The same, with payloads held against schemas.
    #[must_use]
    pub fn validated(mut self, schemas: Arc<Schemas>) -> Mapping {
        self.schemas = Some(schemas);
        self
    }

    /// Chooses the preset by the table's columns, once in a process.
    ///
    /// # Errors
    /// With `auto`, when not exactly one preset fits.
    pub fn resolve(&self, table: &[ColumnInfo<'_>]) -> Result<Resolved, Failure> {
        let preset = match self.choice {
            PresetChoice::Auto => self.detect(table)?,
            PresetChoice::Article => Preset::Article,
            PresetChoice::Debezium => Preset::Debezium,
            PresetChoice::OpenOutbox => Preset::OpenOutbox,
            PresetChoice::Columns => Preset::Columns,
        };
        let columns = self.columns(preset);
        if self.schemas.is_some() && columns.event_type.is_none() {
            return Err(Failure::new(
                Code::MissingValue,
                "validate.schemas is set, but no column holds the event type by which a schema is found",
                "set outbox.type, or validate.schemas = \"off\"",
            ));
        }
        let subject = self.subject.clone().unwrap_or_else(|| preset.subject(&columns));
        Ok(Resolved {
            preset,
            columns,
            subject,
            msg_id: self.msg_id,
            cloudevents: self.cloudevents,
            schemas: self.schemas.clone(),
        })
    }

    fn detect(&self, table: &[ColumnInfo<'_>]) -> Result<Preset, Failure> {
        let missing = Preset::DETECTABLE.map(|preset| (preset, self.missing(preset, table)));
        let fitting: Vec<_> =
            missing.iter().filter(|(_, missing)| missing.is_empty()).map(|(preset, _)| *preset).collect();
        match fitting.as_slice() {
            [preset] => Ok(*preset),
            [] => Err(none_fits(table, &missing)),
            several => Err(several_fit(several)),
        }
    }

    /// The columns of a preset that the table has not, those that only tell it apart included.
    fn missing(&self, preset: Preset, table: &[ColumnInfo<'_>]) -> Vec<String> {
        let columns = self.columns(preset);
        let named = columns.entries().into_iter().filter_map(|(_, name)| name);
        let mut missing: Vec<String> = Vec::new();
        for name in named.chain(preset.tell_tales().iter().copied()) {
            if !table.iter().any(|column| column.name == name) && !missing.iter().any(|known| known == name) {
                missing.push(name.to_owned());
            }
        }
        missing
    }

    fn columns(&self, preset: Preset) -> ColumnNames {
        let overrides = self.overrides.clone();
        let columns = preset.columns();
        ColumnNames {
            id: overrides.id.or(columns.id),
            event_type: overrides.event_type.or(columns.event_type),
            key: overrides.key.or(columns.key),
            payload: overrides.payload.or(columns.payload),
            headers: overrides.headers.or(columns.headers),
            schema_version: overrides.schema_version.or(columns.schema_version),
            content_type: overrides.content_type.or(columns.content_type),
            traceparent: overrides.traceparent.or(columns.traceparent),
            tracestate: overrides.tracestate.or(columns.tracestate),
            created_at: overrides.created_at.or(columns.created_at),
        }
    }
}

impl Resolved {
    /// The column of event ids.
    #[must_use]
    pub fn id_column(&self) -> &str {
        self.columns.id.as_deref().unwrap_or_default()
    }

    /// The column that says when a row was created, whether the table has it or not.
    #[must_use]
    pub fn created_at_column(&self) -> Option<&str> {
        self.columns.created_at.as_deref()
    }

    /// All columns that are read.
    #[must_use]
    pub fn column_names(&self) -> Vec<String> {
        let named = self.columns.entries().into_iter().filter_map(|(_, name)| name.map(str::to_owned));
        let mut names: Vec<String> = named.chain(self.subject.columns().map(str::to_owned)).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The preset that was chosen.
    #[must_use]
    pub fn preset(&self) -> Preset {
        self.preset
    }

    /// The template of the subject.
    #[must_use]
    pub fn subject(&self) -> &Template {
        &self.subject
    }

    /// Finds the columns that are read: at the start by the catalogue, then at each Relation.
    ///
    /// # Errors
    /// `PR0212` with the names of those that are missing.
    pub fn bind(&self, columns: &[ColumnInfo<'_>]) -> Result<Table, Failure> {
        Table::bind(self, columns)
    }
}

impl Preset {
    const DETECTABLE: [Preset; 3] = [Preset::Article, Preset::Debezium, Preset::OpenOutbox];

    /// As `outbox.preset` names it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Preset::Article => "article",
            Preset::Debezium => "debezium",
            Preset::OpenOutbox => "open-outbox",
            Preset::Columns => "columns",
        }
    }

    fn columns(self) -> ColumnNames {
        let name = |name: &str| Some(name.to_owned());
        match self {
            Preset::Article => ColumnNames {
                id: name("id"),
                event_type: name("event_type"),
                payload: name("payload"),
                created_at: name("created_at"),
                ..ColumnNames::default()
            },
            Preset::Debezium => ColumnNames {
                id: name("id"),
                event_type: name("type"),
                key: name("aggregateid"),
                payload: name("payload"),
                ..ColumnNames::default()
            },
            Preset::OpenOutbox => ColumnNames {
                id: name("event_id"),
                event_type: name("event_type"),
                key: name("partition_key"),
                payload: name("payload"),
                headers: name("headers"),
                created_at: name("created_at"),
                ..ColumnNames::default()
            },
            Preset::Columns => {
                ColumnNames { id: name("id"), payload: name("payload"), ..ColumnNames::default() }
            }
        }
    }

    /// Columns that no event needs, by which `auto` knows the preset.
    fn tell_tales(self) -> &'static [&'static str] {
        match self {
            Preset::Article => &["processed"],
            Preset::Debezium => &["aggregatetype"],
            Preset::OpenOutbox => &["available_at"],
            Preset::Columns => &[],
        }
    }

    /// The default subject, over the columns as the configuration names them.
    fn subject(self, columns: &ColumnNames) -> Template {
        match self {
            Preset::Debezium => Template::with_column("outbox.event.", "aggregatetype"),
            Preset::Article | Preset::OpenOutbox | Preset::Columns => {
                let event_type = columns.event_type.as_deref().unwrap_or("event_type");
                Template::with_column("outbox.", event_type)
            }
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl ColumnNames {
    /// (key of the configuration, column name).
    pub(super) fn entries(&self) -> [(&'static str, Option<&str>); 10] {
        [
            ("outbox.id", self.id.as_deref()),
            ("outbox.type", self.event_type.as_deref()),
            ("outbox.key", self.key.as_deref()),
            ("outbox.payload", self.payload.as_deref()),
            ("outbox.headers", self.headers.as_deref()),
            ("outbox.schema_version", self.schema_version.as_deref()),
            ("outbox.content_type", self.content_type.as_deref()),
            ("outbox.traceparent", self.traceparent.as_deref()),
            ("outbox.tracestate", self.tracestate.as_deref()),
            ("outbox.created_at", self.created_at.as_deref()),
        ]
    }
}

fn none_fits(table: &[ColumnInfo<'_>], missing: &[(Preset, Vec<String>)]) -> Failure {
    let lacks: Vec<_> = missing
        .iter()
        .map(|(preset, missing)| format!("for `{preset}` it lacks {}", missing.join(", ")))
        .collect();
    let nearest = missing.iter().min_by_key(|(_, missing)| missing.len());
    let nearest = nearest.map_or(Preset::Article, |(preset, _)| *preset);
    Failure::new(
        Code::PresetUnclear,
        format!("the outbox table (columns {}) fits no preset: {}", names(table), lacks.join("; ")),
        format!(
            "set outbox.preset = \"{nearest}\" and name the columns that differ \
             (outbox.id, outbox.type, outbox.payload), \
             or set outbox.preset = \"columns\" and outbox.subject"
        ),
    )
}

fn several_fit(presets: &[Preset]) -> Failure {
    let quoted = |before: &str, joint: &str| {
        let all: Vec<_> = presets.iter().map(|preset| format!("{before}\"{preset}\"")).collect();
        all.join(joint)
    };
    Failure::new(
        Code::PresetUnclear,
        format!("the outbox table has all columns of several presets: {}", quoted("", ", ")),
        format!("say which: {}", quoted("outbox.preset = ", " or ")),
    )
}

/// Column names for a message.
pub(super) fn names(table: &[ColumnInfo<'_>]) -> String {
    let names: Vec<_> = table.iter().map(|column| column.name).collect();
    names.join(", ")
}
