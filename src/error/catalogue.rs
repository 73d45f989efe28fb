//! Every code, once. A code is never reused and never changes its meaning.
//!
//! | range | of |
//! | --- | --- |
//! | PR00xx | the process |
//! | PR01xx | command line and configuration |
//! | PR02xx | Postgres |
//! | PR03xx | NATS |
//! | PR04xx | slot, checkpoint, history |
//! | PR05xx | events |
//! | PR06xx | what doctor finds besides |

use super::{Disposition, Exit};
use std::fmt;
use std::str::FromStr;

macro_rules! catalogue {
    ($($name:ident = $code:literal, $exit:ident, $disposition:ident, $title:literal, $explain:literal;)*) => {
        /// A stable error code.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code {
            $(#[doc = $title] $name,)*
        }

        impl Code {
            /// The whole catalogue, in order.
            #[must_use]
            pub const fn all() -> &'static [Code] {
                &[$(Code::$name,)*]
            }

            /// As printed: `PR0123`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Code::$name => $code,)* }
            }

            /// A few words for a table.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Code::$name => $title,)* }
            }

            /// What `postrider explain` prints below the title.
            #[must_use]
            pub const fn explain(self) -> &'static str {
                match self { $(Code::$name => $explain,)* }
            }

            /// The exit status of a process that ends with it.
            #[must_use]
            pub const fn exit(self) -> Exit {
                match self { $(Code::$name => Exit::$exit,)* }
            }

            /// How the relay goes on after it.
            #[must_use]
            pub const fn disposition(self) -> Disposition {
                match self { $(Code::$name => Disposition::$disposition,)* }
            }
        }
    };
}

catalogue! {
    Unexpected = "PR0001", Unexpected, Halt, "a fault that no one foresaw",
        "A bug or a broken environment. Nothing is lost: what was not confirmed is sent again at the next start. Please report it with the log.";
    ServersMissing = "PR0002", Unexpected, Halt, "demo: the servers are not installed",
        "`postrider demo` starts a Postgres and a nats-server of its own and found no program to start. `make demo` installs what is missing into the checkout; programs on PATH and in /usr/lib/postgresql/*/bin are used.";
    DemoFailed = "PR0003", Unexpected, Halt, "demo: the proof does not hold",
        "Some committed event was not consumed exactly once, in order, or a rolled-back one was. That is a bug: please report it with the output of `postrider demo --json`.";
    Stalled = "PR0004", Unexpected, Retry, "nothing is under way though events wait",
        "The loop found events to publish and nothing that it waits for. That is a bug: the session is ended and the next begins anew, which loses and doubles nothing. Please report it with the log.";

    UnknownKey = "PR0101", Usage, Halt, "a configuration key that does not exist",
        "A key of the file or a POSTRIDER_* variable is not one that this version knows. The message names the nearest one. `postrider config` prints all keys with their values and where each came from.";
    InvalidValue = "PR0102", Usage, Halt, "a configuration value that cannot be used",
        "The value does not parse, or lies outside of what the key allows. The message says which key, where it was read, and what is accepted.";
    MissingValue = "PR0103", Usage, Halt, "a configuration value is missing",
        "postgres.url (or DATABASE_URL) and nats.url (or NATS_URL) must be given; so must outbox.subject with the preset `columns`.";
    ConfigFile = "PR0104", Usage, Halt, "the configuration file cannot be read",
        "The file given by --config does not exist, is not readable, or is not TOML. Without --config, ./postrider.toml and /etc/postrider/postrider.toml are tried, and having neither is fine.";
    BadTemplate = "PR0105", Usage, Halt, "the subject template is wrong",
        "A template is text and placeholders: {column}, {column:tokens}, {column:bucket(16)}. The text must be valid NATS subject tokens: no spaces, no wildcards, no empty token.";
    OpenHttp = "PR0106", Usage, Halt, "HTTP would be open to everyone",
        "http.listen names an address other than loopback, but neither http.token nor http.allow_anonymous is set.";
    SubjectsUnclear = "PR0107", Usage, Halt, "the stream's subjects cannot be derived",
        "`init` creates the stream with the literal beginning of outbox.subject, like `outbox.>`. A template that begins with a placeholder has none: create the stream yourself with the subjects that it shall bind.";
    LetterMissing = "PR0108", Usage, Halt, "there is no such dead letter",
        "The number is none of an open dead letter of this slot. `postrider dlq list --all` also shows those that were replayed, dropped, or found stored.";
    KeyFile = "PR0109", Usage, Halt, "the key file cannot be used",
        "encrypt.key_file cannot be read, or a line of it is not `<key id> <base64 of 32 bytes>`. Blank lines and lines that begin with # do not count; the first key is in use, the others open older events. The message names every line that is wrong, and nothing that stands there.";
    KeyMissing = "PR0110", Usage, Halt, "the key of a message is not there",
        "The message was encrypted with a key that the key file does not list. A key may be taken out of the file only once no message that was encrypted with it is kept anywhere.";
    NotOpened = "PR0111", Usage, Halt, "a message does not open",
        "The key, the event id or the body is not the one that it was encrypted with: the key file has another key under this id, or what was given is not what was published.";
    MessageMissing = "PR0112", Usage, Halt, "there is no such message",
        "The stream holds no message with this sequence: it was not published yet, has expired, or was purged. `nats stream info` says where the stream begins and ends.";
    VerifyUnbounded = "PR0113", Usage, Halt, "verify must know from when on",
        "Rows whose messages the stream no longer has (max_age, a purge, a work queue) cannot be told from rows that were never stored. --since leaves the older ones out, by the column of outbox.created_at.";
    SchemasUnusable = "PR0114", Usage, Halt, "the folder of schemas cannot be used",
        "validate.schemas names a folder that is not there or not readable, or a file in it is no JSON or no JSON Schema. The message names each. $ref reaches files of the folder only. Nothing is published until it is mended: every event would else become a dead letter.";
    CareConflict = "PR0115", Usage, Halt, "the keys of clean-up do not fit together",
        "care.archive_table needs care.delete_after, is not the outbox itself, and does not go with care.drop_partitions_after, which would drop the rows.";
    CareOff = "PR0116", Usage, Halt, "there is nothing to clean up",
        "`postrider prune` does what care.mark, care.delete_after and care.drop_partitions_after say, and none of them is set. Set them in the file, or as flags: `postrider prune --care-delete-after 7d`.";
    MarkUnclear = "PR0117", Usage, Halt, "it is unclear which rows are processed",
        "A row counts as processed when the column `processed`, or else `processed_at`, is set: a boolean that is true, a time that is not null; `run --shadow` also sees rows that are deleted. care.mark_column names another such column, for the shadow --mark-column does. A column of these names that holds something else may be the poller's mark all the same, and is not passed over: add a column that says it (ALTER TABLE outbox ADD COLUMN sent boolean), fill it (UPDATE outbox SET sent = true WHERE …), and name that. Where nobody marks rows, `init --backfill`, recover and verify need no such column with --processed, and the shadow takes one that is never set.";

    PostgresUnreachable = "PR0201", Postgres, Retry, "Postgres cannot be reached",
        "No host of postgres.url accepts a connection, or it closed before it was ready. The relay waits and tries again; with start_timeout it gives up after that time.";
    PostgresSession = "PR0202", Postgres, Retry, "the connection to Postgres ended",
        "The server restarted, ended the session, or the network broke. The relay starts a new session from the checkpoint row and the slot.";
    PostgresAuth = "PR0203", Postgres, Operator, "Postgres refuses the login",
        "The user, the password or pg_hba.conf does not fit. For a replication connection the pg_hba line must name the database itself: the keyword `replication` does not match logical replication.";
    PostgresDatabase = "PR0204", Postgres, Operator, "the database does not exist",
        "The database of postgres.url is not on that server.";
    PostgresVersion = "PR0205", Postgres, Operator, "this Postgres is too old",
        "Postgres 14 to 18 are supported. Version 13 can lose rows of a publication that was made while a transaction was open.";
    WalLevel = "PR0206", Postgres, Operator, "wal_level is not logical",
        "Logical decoding needs wal_level = logical, which takes a restart of the server. On RDS and Aurora set rds.logical_replication = 1, on Cloud SQL cloudsql.logical_decoding = on.";
    ReplicationRole = "PR0207", Postgres, Operator, "the role may not replicate",
        "The role needs the REPLICATION attribute (on RDS and Aurora membership in rds_replication).";
    PublicationMissing = "PR0208", Postgres, Operator, "the publication does not exist",
        "The slot decodes through a publication, which must exist before the slot does. `postrider init` makes both. If it was dropped while the slot lived, rows written since then may not be decodable.";
    PublicationUnfit = "PR0209", Postgres, Operator, "the publication does not carry the outbox",
        "It must publish inserts of the outbox table, with all columns that the preset reads, and with publish_via_partition_root for a partitioned table. Rows that were written before the table was added are not in the slot.";
    TableMissing = "PR0210", Postgres, Operator, "the outbox table does not exist",
        "outbox.table names no table of this database. Names are `schema.table`; names with capitals or dots are quoted: `\"Shop\".\"Outbox\"`.";
    TableUnfit = "PR0211", Postgres, Operator, "the outbox is not a table that can be replicated",
        "Only ordinary and partitioned tables whose rows are in the WAL can be published: not views, foreign, temporary or unlogged tables.";
    ColumnsMissing = "PR0212", Postgres, Operator, "the outbox table lacks columns",
        "The preset reads columns that the table does not have. Choose another outbox.preset, or name the columns: outbox.id, outbox.type, outbox.payload and so on.";
    PresetUnclear = "PR0213", Postgres, Operator, "the preset cannot be told from the table",
        "With outbox.preset = auto the table must have all columns of exactly one preset.";
    PostgresTls = "PR0214", Postgres, Operator, "TLS with Postgres fails",
        "sslmode asks for TLS and the server does not offer it, its certificate is not what sslmode asks for (signed by a root of sslrootcert; with verify-full also for the host), or it does not take our client certificate.";
    SchemaMissing = "PR0215", Postgres, Operator, "Postrider's own schema does not exist",
        "The table of checkpoints lives in the schema of postgres.schema. `postrider init` makes it; sql/init.sql shows what it makes.";
    PostgresRefuses = "PR0216", Postgres, Operator, "Postgres refuses a statement",
        "The server answers with an error that no one foresaw at that place; its SQLSTATE and text are in the message. Often a missing privilege: sql/privileges.sql lists all that are needed.";
    PostgresEncoding = "PR0217", Postgres, Operator, "the database has no encoding",
        "A SQL_ASCII database can hold bytes that are no text, and a row with such bytes would stop the decoding for ever.";

    WalsenderSilent = "PR0218", Postgres, Retry, "the walsender is silent",
        "Nothing came from the replication connection for long, though it was asked for a sign of life. It may be decoding a giant transaction of other tables: the relay waits twice as long the next time, up to an hour.";
    ReplayRefused = "PR0219", Postgres, Halt, "a dead letter cannot be replayed",
        "Replaying deletes the outbox row and inserts it again, in one transaction. It is refused where rows of other tables refer to it, where its id is null or not unique, and where the row was too large to be kept as jsonb. Nothing was changed.";
    CareColumns = "PR0220", Postgres, Operator, "clean-up lacks a column",
        "care.mark sets a boolean column to true or a timestamp column to the time; care.delete_after reads the age of a row from the column of outbox.created_at, else from a marked timestamp. The message says what is missing. Ages are not needed with care.delete_after = 0s.";
    CarePrivileges = "PR0221", Postgres, Operator, "the role may not clean up",
        "Marking takes SELECT and UPDATE of the marked column; deleting takes SELECT, DELETE and UPDATE of a column (rows that others hold are passed over, which locks them); archiving INSERT into the archive; dropping partitions the ownership of the table.";
    CareMoves = "PR0222", Postgres, Operator, "marking would publish rows again",
        "The marked column is part of the partition key: an UPDATE moves the row to another partition, which the slot sends as a second insert. Or the publication's row filter reads it, and a marked row would seem another pipeline's.";
    CareArchive = "PR0223", Postgres, Operator, "the archive does not fit the outbox",
        "care.archive_table must be a table with every column of the outbox, of the same types; further columns need a default or take nulls. CREATE TABLE … (LIKE outbox) makes one.";
    CareOlder = "PR0224", Postgres, Operator, "it is not known which rows are older than the slot",
        "Rows that were in the outbox before the slot was made were never sent through it, and clean-up leaves them alone. `postrider init` lists them in <schema>.older_row; it could not read the outbox, or was of an earlier version. The message shows the SQL that lists all rows of now, which then stay; run it while few rows are there, or list only the old ones.";
    CarePartitions = "PR0225", Postgres, Operator, "there are no partitions by time to drop",
        "care.drop_partitions_after needs an outbox that is partitioned by range of one date or timestamp column, and a publication without a row filter: the rows of others would go with the partition.";
    CareReferred = "PR0226", Postgres, Operator, "other tables refer to outbox rows",
        "A foreign key points at the outbox: deleting a row would be refused, or by ON DELETE CASCADE remove rows of that table.";
    CareSlot = "PR0227", Postgres, Retry, "nothing can be proved about the rows",
        "The slot is missing, of another cluster or moved by someone, or its checkpoint row is not `ready`: what is stored cannot be told from what is not, and no row is touched. `postrider status` and `postrider doctor` say what is wrong.";
    CareHeld = "PR0228", Postgres, Retry, "an open transaction keeps rows from being proved",
        "A row is proved once every transaction that was open beside its own has ended, in whatever database of the cluster: until then nothing tells that no older event is still to come. One has been open for long, or was prepared and forgotten. It retains WAL too.";
    ShadowUnsafe = "PR0230", Postgres, Operator, "shadow mode would disturb what runs",
        "`run --shadow` publishes updates and deletes of the outbox to itself. On a table without replica identity Postgres would refuse such statements to everyone, the poller included; and with synchronous_standby_names = '*' every commit would wait for the shadow. It changes nothing and ends.";
    ShadowRefused = "PR0231", Postgres, Operator, "shadow mode cannot begin",
        "`run --shadow` makes a publication of its own, for which the role must own the table and may create in the database, and a temporary slot, for which there must be room.";
    ShadowBusy = "PR0232", Postgres, Operator, "another shadow watches the table",
        "One `run --shadow` watches a table at a time. It holds an advisory lock for as long as it lives.";
    ShadowLeft = "PR0233", Postgres, Operator, "the shadow's publication is still there",
        "It could not be dropped. It changes nothing for the writers of a table with a primary key, and retains no WAL; the next `run --shadow` in that database drops it.";

    NatsUnreachable = "PR0301", Nats, Retry, "NATS cannot be reached",
        "No server of nats.url accepts a connection. The relay lets go of Postgres meanwhile, waits and tries again; with start_timeout it gives up after that time.";
    NatsAuth = "PR0302", Nats, Operator, "NATS refuses the login",
        "The server knows no user with these credentials: nats.creds, nats.nkey, nats.user and nats.password, nats.token, or what nats.url says. Files are read again at each connection, so they can be rotated while the relay runs.";
    NoJetStream = "PR0303", Nats, Operator, "NATS has no JetStream",
        "JetStream is not enabled on the server or for this account.";
    StreamMissing = "PR0304", Nats, Operator, "the stream does not exist",
        "`run` creates nothing. `postrider init` creates the stream together with the slot.";
    StreamUnfit = "PR0305", Nats, Operator, "the stream cannot take an outbox",
        "A stream that is a mirror, has sources, is sealed, does not acknowledge, persists asynchronously, or into which the server itself writes, cannot hold each event once and in order.";
    StreamUnbound = "PR0306", Nats, Operator, "the stream does not bind the subjects",
        "No subject that outbox.subject can produce is among the stream's subjects.";
    ForeignMessage = "PR0307", Nats, Halt, "someone else writes into the stream",
        "Behind the relay's last event stands a message that it did not write. One stream belongs to one pipeline: that is what makes order and once provable. Let another stream source this one and send the others there.";
    NatsVersion = "PR0308", Nats, Operator, "this nats-server is too old",
        "nats-server 2.9 and later are supported: older ones check the expected sequence differently.";
    PublishRefused = "PR0309", Nats, Operator, "JetStream refuses to store",
        "The stream or the account is full, or its storage fails. Nothing is lost: the relay keeps its place and tries again slowly.";
    PublishForbidden = "PR0310", Nats, Operator, "publishing is not permitted",
        "The NATS account may not publish to the event's subject: the server does not answer such a publish at all.";
    NatsSession = "PR0311", Nats, Retry, "the connection to NATS broke or JetStream is silent",
        "A publish was not answered in time, the connection was lost, or the stream has no leader. The relay reads the end of the stream and goes on behind it.";
    MessageIdUnsafe = "PR0312", Nats, Operator, "nats.msg_id is unsafe here",
        "Replicated streams of servers before 2.12 can acknowledge a message with Nats-Msg-Id that they did not store. Switch nats.msg_id off: the promise does not need it.";
    NatsTls = "PR0313", Nats, Operator, "TLS with NATS fails",
        "The server's certificate is not signed by an authority of nats.ca (or of the system), is not for the host of nats.url, or is out of its time; or the server does not take our client certificate (nats.cert, nats.key).";

    SlotMissing = "PR0401", History, Halt, "the slot does not exist",
        "Without its slot the relay cannot know which rows were written since. `postrider init` makes a new pipeline; `postrider recover` makes a new slot and publishes the rows that the stream lacks.";
    SlotUnfit = "PR0402", History, Halt, "the slot belongs to something else",
        "The slot uses another output plugin, lives in another database, is temporary, or decodes two-phase transactions. Choose another postgres.slot.";
    SlotLost = "PR0403", History, Halt, "the slot is lost",
        "Postgres removed WAL that the slot still needed (max_slot_wal_keep_size, idle_replication_slot_timeout). Events of the removed WAL are only in the outbox table.";
    SlotAhead = "PR0404", History, Halt, "the slot is ahead of the server's WAL",
        "confirmed_flush_lsn lies beyond the end of the WAL: Postgres would silently skip every row until then. It comes from a confirmation of another history, or from a restored server.";
    CheckpointMissing = "PR0405", History, Halt, "the checkpoint row does not exist",
        "The row of this slot is missing from <postgres.schema>.pipeline. It says how far the stream has been proved.";
    CheckpointUnfit = "PR0406", History, Halt, "the checkpoint row is another pipeline's",
        "The row names another stream than nats.stream, or another phase than `ready`.";
    OtherSystem = "PR0407", History, Halt, "this is another Postgres cluster",
        "The system identifier is not the one of the checkpoint row: the database was restored, dumped and loaded, or upgraded.";
    StreamRecreated = "PR0408", History, Halt, "the stream was created anew",
        "The stream's creation time is not the one of the checkpoint row: what was stored in the former stream is gone.";
    StreamWentBack = "PR0409", History, Halt, "the stream lost confirmed messages",
        "The stream ends before a message on which a confirmed LSN relies. The slot cannot send it again: it is only in the outbox table.";
    ConfirmedElsewhere = "PR0410", History, Halt, "someone else moved the slot",
        "confirmed_flush_lsn lies beyond what the checkpoint row says was settled: another client read this slot, or it was advanced by hand.";
    HistoryDiffers = "PR0411", History, Halt, "the slot does not send what the stream holds",
        "The event at a known position is not the one that was published from there, or it does not come: a disk snapshot put back, a slot made anew, another history under the same name.";
    PublicationChanged = "PR0412", History, Halt, "the publication or the table was made anew",
        "The table was taken out of the publication, or one of them was dropped and made again: rows written meanwhile are not in the slot.";
    SlotBusy = "PR0413", History, Retry, "another relay holds the slot",
        "A slot admits one reader: it is the leader lock. This relay stands by and takes over when the slot is free.";
    StalePrimary = "PR0414", History, Retry, "this server is a former primary",
        "The stream holds events of a newer timeline than the server's. The relay does not follow a former primary.";
    SessionTaken = "PR0415", History, Retry, "another session took the checkpoint row",
        "A relay that began later writes the row now. This session ends and stands by.";
    SlotBlocked = "PR0416", History, Halt, "the slot cannot be created yet",
        "Creating a slot waits for every transaction that was writing when it began. The message names them.";
    SlotInUse = "PR0417", History, Halt, "the slot is in use",
        "The command changes the slot or the checkpoint row and must not do so while a relay runs.";

    BadSubject = "PR0501", Poison, Poison, "an event whose subject is not valid",
        "A column of the template is empty or holds a space, a dot, a wildcard or a control character. {column:tokens} lets dots through. Mend outbox.subject or the writer, then `postrider dlq replay`.";
    SubjectUnbound = "PR0502", Poison, Poison, "an event whose subject the stream does not bind",
        "The stream's subjects do not match this event's subject, so JetStream would not store it. Add it (nats stream edit --subjects), then `postrider dlq replay`.";
    Oversize = "PR0503", Poison, Poison, "an event that is too large",
        "Payload and headers exceed the server's max_payload or the stream's max_msg_size. Raise the limit, or let such payloads go to the object store: delivery.oversize = \"object_store\".";
    HeaderTooLarge = "PR0504", Poison, Poison, "an event whose headers are too large",
        "JetStream takes at most 64 KiB of headers.";
    BadHeader = "PR0505", Poison, Poison, "an event with a header that cannot be sent",
        "The headers column must be a JSON object of strings, numbers, booleans and nulls; names and values must not hold control characters.";
    ReservedHeader = "PR0506", Poison, Poison, "an event with a reserved header",
        "Names that begin with Nats- or Postrider-, in any case, are not the application's to set.";
    NullId = "PR0507", Poison, Poison, "an event without an id",
        "The id column is null, and consumers tell events apart by their id. Give the column a NOT NULL constraint.";
    NullType = "PR0508", Poison, Poison, "an event without a type",
        "The event type column is null, and the subject is made from it. Give the column a NOT NULL constraint.";
    EventRefused = "PR0509", Poison, Poison, "an event that JetStream refuses",
        "The server refuses this one message for a reason of its own, which is in the message.";
    Unaccounted = "PR0510", Poison, Poison, "an event that neither the stream nor a letter has",
        "The slot sends an event that the stream does not hold although it holds later ones. Most likely its dead letter was lost with a former primary. It is not published late, behind events that it precedes.";
    DeadLettersMax = "PR0511", Poison, Poison, "too many dead letters in a row",
        "More than delivery.dead_letters_max events could not be published, without one in between that could: that is a fault of the configuration or of the writer, not of single events. Everything before is published or a letter. `postrider dlq list` shows the letters; mend the cause, start again, and `postrider dlq replay --all` sends them.";
    NotEncrypted = "PR0512", Poison, Poison, "an event that cannot be encrypted",
        "The cipher refuses the payload. It is not published in plain text instead.";
    SchemaBroken = "PR0513", Poison, Poison, "an event whose payload breaks its schema",
        "validate.schemas has a JSON Schema for the event's type, and the payload is not what it demands, or no JSON at all. The message names the place as a JSON Pointer. A NULL payload counts as null. Mend the schema and start again, or mend the writer; then `postrider dlq replay`.";

    ProblemsFound = "PR0600", Findings, Operator, "doctor found problems",
        "Each is told with its own code, and what mends it.";
    OutageFillsDisk = "PR0601", Findings, Operator, "an outage fills the disk",
        "max_slot_wal_keep_size is -1, the server's default: while no relay reads the slot, Postgres keeps all WAL. Bound it, so that a long outage costs the slot (which the outbox table can make good) and not the database.";
    OutageLosesSlot = "PR0602", Findings, Operator, "an outage soon loses the slot",
        "The slot retains nearly as much WAL as max_slot_wal_keep_size allows, or would after less than an hour at the present rate. A lost slot sends nothing any more: unpublished events are then in the outbox table only.";
    SlotTimesOut = "PR0603", Findings, Operator, "an idle slot is given up",
        "idle_replication_slot_timeout (Postgres 18) invalidates a slot that no one has read for so long: an outage that is longer loses it.";
    CommitsWait = "PR0604", Findings, Operator, "commits wait for the relay",
        "synchronous_standby_names matches the relay's application_name, so Postgres counts it as a synchronous standby: commits wait until JetStream has stored their events, and for ever while it is away.";
    NoRoom = "PR0605", Findings, Operator, "no room for another slot or walsender",
        "max_replication_slots or max_wal_senders is used up. Both take a restart to be raised.";
    RoleLimited = "PR0606", Findings, Operator, "too few connections are allowed",
        "A relay has two connections, one for SQL and one for replication, and a second relay that stands by has as many. Clean-up (care.*) takes one more; without it one is opened for a moment each minute, to measure the outbox.";
    WalHeldBack = "PR0607", Findings, Operator, "an old transaction holds WAL back",
        "A transaction that has written and is still open, or was prepared and forgotten, keeps the slot's restart_lsn where it began: WAL grows, and after a crash everything since is sent again (and skipped).";
    SlotAbandoned = "PR0608", Findings, Operator, "a slot that no one reads",
        "A replication slot is inactive and retains WAL, until the disk is full. If it is the relay's own: start a relay, or postrider remove.";
    SlotNotSynced = "PR0609", Findings, Operator, "a failover loses the slot",
        "From Postgres 17 on a slot with `failover` is kept by standbys with sync_replication_slots = on. This one is not such a slot, and there are standbys.";
    DecodingSpills = "PR0610", Findings, Operator, "decoding goes by way of the disk",
        "Transactions larger than logical_decoding_work_mem are written to disk before they are sent, which is slower.";
    PublishesMore = "PR0611", Findings, Operator, "the publication sends more, or less, than the outbox's inserts",
        "Updates and deletes of the outbox are decoded and dropped; a row filter leaves rows out.";
    ClockSkew = "PR0612", Findings, Operator, "clocks differ",
        "Delivery and order depend on no clock. Latencies, ages and the expiry of messages do.";
    StreamLoses = "PR0613", Findings, Operator, "the stream drops messages",
        "A stream that discards old messages, keeps few a subject, or keeps them only while someone is interested, loses events that consumers have not seen.";
    StreamNearlyFull = "PR0614", Findings, Operator, "the stream is nearly full",
        "A full stream refuses new messages: the relay waits, Postgres retains WAL, and nothing is lost.";
    PowerLoss = "PR0615", Findings, Operator, "a power failure of NATS can lose events",
        "nats-server acknowledges before it syncs to disk (sync_interval). The slot must stay unconfirmed for longer than that, so that it can send the lost ones again: delivery.hold_back = auto sees to it.";
    SyncRarely = "PR0616", Findings, Operator, "NATS syncs rarely",
        "With the default of two minutes the slot stays more than four minutes behind. sync_interval: 1s makes that 12 seconds and costs little.";
    OneCopy = "PR0617", Findings, Operator, "the stream has one copy",
        "In a cluster a stream with one copy is away while its server is, and gone with that server's disk.";
    CanaryLost = "PR0618", Findings, Operator, "the canary did not arrive",
        "doctor --canary committed a row and saw no message of it in the stream in time: no relay runs, or it stands still; postrider status says why.";
    ServerUnproved = "PR0619", Findings, Operator, "the server does not prove who it is",
        "With sslmode below verify-ca anyone between the relay and Postgres can read and change what they say.";
    LettersOpen = "PR0620", Findings, Operator, "dead letters are open",
        "Events that could not be published wait in <postgres.schema>.dead_letter for a person: `postrider dlq list` and `show` say why, `replay` sends them, `drop` puts them away.";
    EventsBeforeRows = "PR0621", Findings, Operator, "events come before their rows are visible",
        "A commit that waits for a synchronous standby is flushed, and so published, before anyone can see its rows: for as long as the standby is away. delivery.wait_visible holds events until then.";
    Differs = "PR0630", Findings, Operator, "table and stream differ",
        "`postrider verify` found rows whose event is not in the stream, events that are stored twice or out of order, or messages that this pipeline did not write. It names the first of each kind; --json lists them.";
    OutboxLarge = "PR0640", Findings, Operator, "the outbox is large",
        "Nothing removes its rows, or not fast enough. The relay is not slowed by it; backups, vacuum and every scan of the table are. care.delete_after or care.drop_partitions_after keep it small.";
    VacuumLags = "PR0641", Findings, Operator, "vacuum does not keep up with the outbox",
        "Marked and deleted rows leave dead versions, which vacuum removes. With the server's defaults it waits for a fifth of the table; an old transaction, a slot or a standby's query keeps it from removing any.";
    ShadowDiffers = "PR0645", Findings, Operator, "relay and poller differ",
        "`run --shadow` found events that the poller has not processed, rows that it has and the relay would not have published, or events that would be dead letters. It names the first of each; --json lists them.";
    Unhealthy = "PR0650", Findings, Operator, "no relay answers that its loop turns",
        "`postrider status --check` asks the relay's /healthz on http.listen, for supervisors. Nobody listens there (no relay, http.listen = \"off\", a port that was taken), nobody answers within two seconds, or the loop has not turned for 30 seconds, which only a restart mends.";
    RowsUncommitted = "PR0660", Findings, Retry, "rows wait for their transaction's commit",
        "A transaction has written to the outbox and is still open, or was prepared and waits for COMMIT PREPARED. Its rows are published when it commits, and only then.";
    SlotHeld = "PR0661", Findings, Operator, "someone who is no relay holds the slot",
        "A slot has one reader at a time. Its reader calls itself otherwise than this relay (application_name): pg_recvlogical, another program, or a relay that was given another name. What a stranger reads and confirms is gone for the relay, which finds that out and halts (PR0410).";
    NothingInserted = "PR0662", Findings, Retry, "nothing is inserted into the outbox",
        "The relay streams, and Postgres's statistics count no insert into the outbox since it began. Where rows are expected: the writers may use another database, schema or table, or roll back.";
    CommitsHang = "PR0663", Findings, Operator, "commits wait for a standby",
        "synchronous_standby_names has commits wait for a standby that does not answer. Whoever commits hangs, the relay's checkpoint row too; with delivery.wait_visible nothing is published meanwhile.";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// No such code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no code `{0}`")]
pub struct UnknownCode(String);

impl FromStr for Code {
    type Err = UnknownCode;

    fn from_str(text: &str) -> Result<Code, UnknownCode> {
        Code::all()
            .iter()
            .copied()
            .find(|code| code.as_str().eq_ignore_ascii_case(text))
            .ok_or_else(|| UnknownCode(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_ordered_and_explained() {
        let codes: Vec<_> = Code::all().iter().map(|code| code.as_str()).collect();
        assert!(codes.windows(2).all(|pair| pair[0] < pair[1]), "{codes:?}");
        for code in Code::all() {
            assert!(code.as_str().len() == 6 && code.as_str().starts_with("PR"), "{code}");
            assert!(code.explain().len() > 40, "{code} is not explained");
            assert_eq!(code.as_str().parse(), Ok(*code));
        }
    }
}
