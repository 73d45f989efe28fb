//! What administrators of both sides run or paste: what `init` makes, and the least that `run` needs.

use super::{NewTable, create_publication, create_schema, create_slot};
use crate::care;
use crate::config::{Config, Identity, Oversize};
use crate::error::Failure;
use crate::nats::object_store;
use crate::outbox::Template;
use crate::postgres::hba;
use crate::state::{checkpoint, dead_letter, older};
use postgres_protocol::escape::{escape_identifier, escape_literal};

/// All default templates begin so.
const DEFAULT_SUBJECTS: &str = "outbox.>";

/// The SQL half of `init`. The checkpoint row needs the stream's creation time and sequence: `init` writes it.
pub(super) fn sql(create_table: Option<NewTable>, config: &Config) -> Result<String, Failure> {
    let target = config.postgres.database.resolve()?;
    let schema = escape_identifier(&config.postgres.schema);
    let (role, role_text) = (escape_identifier(&target.user), escape_literal(&target.user));
    let mut statements = vec!["-- as the owner of the outbox table, with CREATE on the database".to_owned()];
    if let Some(table) = create_table {
        statements.push(format!("{};", table.sql(config)));
    }
    statements.extend([
        format!("{};", create_schema(config)),
        format!("{};", checkpoint::create_table(&config.postgres.schema)),
        format!("{};", dead_letter::create_table(&config.postgres.schema)),
        format!("{};", older::create_table(&config.postgres.schema)),
        format!("{};", create_publication(config)),
        format!(
            "-- the relay's role (as a superuser; RDS and Aurora: GRANT rds_replication TO {role} in place of\n\
             -- REPLICATION). To publish it needs no privilege on the outbox table. Then its password: \\password {role}\n\
             DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {role_text}) THEN CREATE ROLE {role} LOGIN; \
             END IF; END $$;"
        ),
        format!("ALTER ROLE {role} REPLICATION;"),
        format!("GRANT USAGE ON SCHEMA {schema} TO {role};"),
        format!(
            "GRANT {} ON {} TO {role};",
            checkpoint::PRIVILEGES.join(", "),
            checkpoint::table(&config.postgres.schema)
        ),
        format!(
            "GRANT {} ON {} TO {role};",
            dead_letter::PRIVILEGES.join(", "),
            dead_letter::table(&config.postgres.schema)
        ),
        format!(
            "GRANT {} ON {} TO {role};",
            older::PRIVILEGES.join(", "),
            older::table(&config.postgres.schema)
        ),
    ]);
    statements.extend(care::grants(config, &role));
    statements.extend([
        "-- after the publication; waits for every transaction that is writing. On 17 and later add\n\
         -- failover => true, so that a standby keeps it"
            .to_owned(),
        format!("{};", create_slot(&config.postgres.slot, false)),
        format!(
            "-- pg_hba.conf, above any line that matches sooner; `replication` would not match:\n\
             --   hostssl  {}  {}  <address of the relay>/32  scram-sha-256",
            hba::name(&target.database),
            hba::name(&target.user)
        ),
        "-- then `postrider init` as the relay's role: it makes the stream and the checkpoint row".to_owned(),
    ]);
    Ok(statements.join("\n\n") + "\n")
}

/// The user of `nats-server.conf`, with what `run` needs and no more.
pub(super) fn nats(config: &Config, shared: Option<&str>) -> Result<String, Failure> {
    let subjects = match &config.outbox.subject {
        Some(template) => Template::parse(template)?.stream_subject().unwrap_or_else(|| ">".to_owned()),
        None => DEFAULT_SUBJECTS.to_owned(),
    };
    let access = &config.nats.access;
    let api = access.jetstream.api();
    let stream = &config.nats.stream;
    let of_stream =
        |stream: &str| vec![format!("{api}.STREAM.INFO.{stream}"), format!("{api}.STREAM.MSG.GET.{stream}")];
    let mut publish = vec![subjects];
    publish.extend(of_stream(stream));
    let mut init = vec![format!("{api}.STREAM.CREATE.{stream}")];
    if config.delivery.oversize == Oversize::ObjectStore {
        let bucket = object_store::bucket(stream);
        publish.extend(of_stream(&format!("OBJ_{bucket}")));
        publish.push(format!("{api}.DIRECT.GET.OBJ_{bucket}.>"));
        publish.push(format!("$O.{bucket}.>"));
        init.push(format!("{api}.STREAM.CREATE.OBJ_{bucket}"));
    }
    if let Some(shared) = shared {
        init.extend(["INFO", "UPDATE"].map(|what| format!("{api}.STREAM.{what}.{shared}")));
    }
    let lines = |subjects: &[String], indent: &str| {
        subjects.iter().map(|subject| format!("{indent}\"{subject}\"\n")).collect::<String>()
    };
    let who = match &access.identity {
        Identity::User { user, .. } => format!("user: {user:?}, password: \"…\""),
        Identity::Nkey(_) | Identity::Seed { jwt: None, .. } => "nkey: \"U…\"".to_owned(),
        _ => "user: relay, password: \"…\"".to_owned(),
    };
    Ok(format!(
        "# nats-server.conf, among the users of authorization or of an account with JetStream. With JWTs:\n\
         # nsc edit user --allow-pub '<each of publish>' --allow-sub '<each of subscribe>'\n\
         {{\n  {who}\n  permissions: {{\n    publish: {{ allow: [\n{}    ] }}\n    subscribe: {{ allow: [\n{}    ] }}\n  }}\n}}\n\
         # for `postrider init` also these to publish to, if the stream is not there yet\n{}",
        lines(&publish, "      "),
        lines(&[format!("{}.>", access.inbox_prefix)], "      "),
        lines(&init, "#     ")
    ))
}
