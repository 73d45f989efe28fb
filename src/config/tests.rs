use super::*;
use crate::error::Code;
use std::fs;
use std::path::PathBuf;

const SERVERS: [(&str, &str); 3] =
    [("DATABASE_URL", "postgres://app:pw@db/shop"), ("NATS_URL", "nats://n:4222"), ("USER", "me")];

fn load(flags: Flags, variables: &[(&str, &str)]) -> Loaded {
    Loaded::from(&flags, &Environment::of(SERVERS.iter().chain(variables).copied()))
}

fn with_env(variables: &[(&str, &str)]) -> Result<Config, Vec<Failure>> {
    load(Flags::default(), variables).config
}

/// Loads `text` as the configuration file, whose path is `postrider.toml` in the messages.
fn with_file(text: &str) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("postrider.toml");
    fs::write(&path, text).unwrap();
    load(Flags::file(&path), &[]).config.map_err(|problems| {
        let lines: Vec<_> = problems.iter().map(Failure::to_string).collect();
        lines.join("\n").replace(&path.display().to_string(), "postrider.toml")
    })
}

fn codes(problems: &[Failure]) -> Vec<Code> {
    problems.iter().map(|problem| problem.code).collect()
}

fn key(name: &str) -> &'static keys::Key {
    keys::find(name).unwrap()
}

fn origin(loaded: &Loaded, name: &str) -> String {
    loaded.values.iter().find(|value| value.key.name == name).unwrap().origin.to_string()
}

#[test]
fn two_variables_suffice_and_the_rest_are_the_contract_s_defaults() {
    let config = with_env(&[]).unwrap();
    assert_eq!(config.postgres.database.resolve().unwrap().to_string(), "app@db:5432/shop");
    assert_eq!(
        [config.postgres.slot, config.postgres.publication, config.postgres.schema],
        ["postrider", "postrider", "postrider"]
    );
    assert_eq!(config.postgres.release_after, Duration::from_secs(5));
    assert_eq!(config.postgres.wal_sender_timeout, Duration::from_secs(30));
    assert_eq!(config.outbox.table.to_string(), "public.outbox");
    assert_eq!(config.outbox.preset, PresetChoice::Auto);
    assert_eq!((config.outbox.columns, config.outbox.subject), (ColumnNames::default(), None));
    assert_eq!(config.nats.access.url.current().expose(), "nats://n:4222");
    assert_eq!((config.nats.stream.as_str(), config.nats.replicas, config.nats.msg_id), ("OUTBOX", 1, false));
    assert_eq!((config.nats.max_age, config.nats.max_bytes), (None, None));
    assert_eq!(config.nats.sync_interval, SyncInterval::Every(Duration::from_secs(120)));
    assert_eq!((config.delivery.window_messages, config.delivery.window_bytes), (2048, 8 << 20));
    assert_eq!(
        (config.delivery.hold_back, config.delivery.on_poison),
        (HoldBack::Auto, OnPoison::DeadLetter)
    );
    assert_eq!(config.http.listen, Some("127.0.0.1:9464".parse().unwrap()));
    assert!(config.http.token.is_none() && !config.http.allow_anonymous && config.http.standby_ready);
    assert_eq!(config.start_timeout, None);
    assert_eq!(config.log, Log { level: LogLevel::Info, format: LogFormat::Auto });
}

#[test]
fn a_flag_goes_before_the_environment_before_the_file_before_the_default() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.toml");
    fs::write(&path, "[nats]\nstream = \"FILE\"\nreplicas = 3\n[log]\nlevel = \"warn\"\n").unwrap();
    let flags = Flags::file(path).with(key("nats.stream"), "FLAG");
    let loaded = load(flags, &[("POSTRIDER_NATS_STREAM", "ENV"), ("POSTRIDER_NATS_REPLICAS", "5")]);
    let config = loaded.config.as_ref().unwrap();
    assert_eq!((config.nats.stream.as_str(), config.nats.replicas), ("FLAG", 5));
    assert_eq!((config.log.level, config.log.format), (LogLevel::Warn, LogFormat::Auto));
    assert_eq!(origin(&loaded, "nats.stream"), "--nats-stream");
    assert_eq!(origin(&loaded, "nats.replicas"), "POSTRIDER_NATS_REPLICAS");
    assert!(origin(&loaded, "log.level").ends_with("p.toml:5"));
    assert_eq!(origin(&loaded, "log.format"), "default");
}

#[test]
fn our_variable_goes_before_the_shared_one() {
    let config =
        with_env(&[("POSTRIDER_NATS_URL", "ours"), ("POSTRIDER_POSTGRES_URL", "host=ours")]).unwrap();
    assert_eq!(config.nats.access.url.current().expose(), "ours");
    assert_eq!(config.postgres.database.resolve().unwrap().hosts[0].to_string(), "ours:5432");
}

#[test]
fn an_empty_variable_counts_as_unset() {
    let config = with_env(&[("POSTRIDER_NATS_STREAM", ""), ("POSTRIDER_NO_SUCH", "")]).unwrap();
    assert_eq!(config.nats.stream, "OUTBOX");
}

#[test]
fn postrider_config_names_the_file_like_the_flag() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.toml");
    fs::write(&path, "start_timeout = \"30s\"").unwrap();
    let config = with_env(&[("POSTRIDER_CONFIG", path.to_str().unwrap())]).unwrap();
    assert_eq!(config.start_timeout, Some(Duration::from_secs(30)));
}

#[test]
fn a_file_that_is_named_must_exist() {
    let problems = with_env(&[("POSTRIDER_CONFIG", "/no/such/file.toml")]).unwrap_err();
    assert_eq!(codes(&problems), [Code::ConfigFile]);
    assert!(problems[0].message.contains("/no/such/file.toml"), "{}", problems[0]);
}

#[test]
fn a_secret_is_read_from_the_file_that_its_variable_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    fs::write(&path, "s3cret\n").unwrap();
    let config = with_env(&[("POSTRIDER_HTTP_TOKEN_FILE", path.to_str().unwrap())]).unwrap();
    assert_eq!(config.http.token.unwrap().expose(), "s3cret");

    fs::write(&path, "postgres://app:other@file/shop\n").unwrap();
    let env = [("DATABASE_URL_FILE", path.to_str().unwrap()), ("NATS_URL", "n"), ("PGUSER", "me")];
    let loaded = Loaded::from(&Flags::default(), &Environment::of(env));
    assert!(origin(&loaded, "postgres.url").starts_with("DATABASE_URL_FILE ("));
    assert_eq!(
        loaded.config.unwrap().postgres.database.resolve().unwrap().hosts[0]
            .password
            .as_ref()
            .unwrap()
            .expose(),
        "other"
    );
}

#[test]
fn a_secret_given_both_plain_and_by_file_is_an_error() {
    let problems =
        with_env(&[("POSTRIDER_HTTP_TOKEN", "a"), ("POSTRIDER_HTTP_TOKEN_FILE", "/b")]).unwrap_err();
    assert_eq!(codes(&problems), [Code::InvalidValue]);
    assert_eq!(problems[0].message, "POSTRIDER_HTTP_TOKEN and POSTRIDER_HTTP_TOKEN_FILE are both set");
}

#[test]
fn only_secrets_have_a_file_form() {
    let problems = with_env(&[("POSTRIDER_NATS_STREAM_FILE", "/x")]).unwrap_err();
    assert_eq!(codes(&problems), [Code::UnknownKey]);
}

#[test]
fn an_unknown_variable_is_an_error_that_names_the_nearest() {
    let problems = with_env(&[("POSTRIDER_NATS_STREEM", "x")]).unwrap_err();
    assert_eq!(codes(&problems), [Code::UnknownKey]);
    assert!(problems[0].remedy.contains("did you mean `POSTRIDER_NATS_STREAM`?"), "{}", problems[0]);
}

#[test]
fn the_variables_of_a_kubernetes_service_called_postrider_are_passed_over() {
    with_env(&[
        ("POSTRIDER_SERVICE_HOST", "10.0.0.1"),
        ("POSTRIDER_SERVICE_PORT", "9464"),
        ("POSTRIDER_SERVICE_PORT_HTTP", "9464"),
        ("POSTRIDER_PORT", "tcp://10.0.0.1:9464"),
        ("POSTRIDER_PORT_9464_TCP", "tcp://10.0.0.1:9464"),
        ("POSTRIDER_PORT_9464_TCP_PROTO", "tcp"),
        ("POSTRIDER_PORT_9464_TCP_PORT", "9464"),
        ("POSTRIDER_PORT_9464_TCP_ADDR", "10.0.0.1"),
    ])
    .unwrap();
    assert!(with_env(&[("POSTRIDER_PORT", "9464")]).is_err());
}

#[test]
fn a_wal_sender_timeout_that_postgres_would_not_take_is_refused() {
    let variable = "POSTRIDER_POSTGRES_WAL_SENDER_TIMEOUT";
    let longest = with_env(&[(variable, "2147483647ms")]).unwrap().postgres.wal_sender_timeout;
    assert_eq!(longest.as_millis(), 2_147_483_647);
    for (text, bound) in [("2147483648ms", "at most 24days 20h 31m 23s 647ms"), ("999ms", "at least 1s")] {
        let problems = with_env(&[(variable, text)]).unwrap_err();
        assert_eq!(codes(&problems), [Code::InvalidValue]);
        assert!(problems[0].message.contains(bound), "{}", problems[0]);
    }
}

#[test]
fn the_file_sets_every_kind_of_key() {
    let config = with_file(
        r#"
        start_timeout = "1m"
        [postgres]
        release_after = "250ms"
        wal_sender_timeout = "4s"
        [outbox]
        table = '"Shop"."Out.box"'
        preset = "columns"
        subject = "orders.{kind}"
        type = "kind"
        [nats]
        max_bytes = "1GiB"
        max_age = "7d"
        sync_interval = "always"
        msg_id = true
        replicas = 3
        [delivery]
        window_bytes = 65536
        hold_back = "0s"
        [http]
        listen = "off"
        standby_ready = false
        "#,
    )
    .unwrap();
    assert_eq!(config.postgres.status_apart(), Duration::from_secs(1));
    assert_eq!(config.outbox.table.to_string(), "\"Shop\".\"Out.box\"");
    assert_eq!(config.outbox.preset, PresetChoice::Columns);
    assert_eq!(config.outbox.columns.event_type.as_deref(), Some("kind"));
    assert_eq!(config.outbox.subject.as_deref(), Some("orders.{kind}"));
    assert_eq!(config.nats.max_bytes, Some(1 << 30));
    assert_eq!(config.nats.max_age, Some(Duration::from_secs(7 * 24 * 3600)));
    assert_eq!((config.nats.msg_id, config.nats.replicas), (true, 3));
    assert_eq!(config.delivery.window_bytes, 65536);
    assert_eq!(config.delivery.hold_back, HoldBack::Fixed(Duration::ZERO));
    assert_eq!((config.http.listen, config.http.standby_ready), (None, false));
}

#[test]
fn all_problems_of_the_file_are_reported_at_once_with_their_lines() {
    let problems = with_file(
        "slot = \"x\"\n[nats]\nstrem = \"X\"\nreplicas = \"3\"\n[postgress]\nurl = \"x\"\n[delivery]\nhold_back = 5\nwindow_messages = 0\n[log]\nlevel = \"inof\"\n[http]\nlisten = 9464\n",
    )
    .unwrap_err();
    for expected in [
        "PR0101: postrider.toml:1: `slot` is not a key\n  remedy: did you mean `postgres.slot`?",
        "PR0101: postrider.toml:3: `nats.strem` is not a key\n  remedy: did you mean `nats.stream`?",
        "PR0102: postrider.toml:4: `nats.replicas` is a string\n  remedy: expected an integer: replicas = 1",
        "PR0101: postrider.toml:5: `postgress` is not a key\n  remedy: did you mean `[postgres]`?",
        "PR0102: postrider.toml:8: `delivery.hold_back` is an integer\n  remedy: expected a string with a unit",
        "PR0102: delivery.window_messages = `0` (postrider.toml:9) cannot be used: expected a whole number from 1 to 65536",
        "PR0102: log.level = `inof` (postrider.toml:11) cannot be used: expected `error` or `warn` or `info` or `debug` or `trace`; did you mean `info`?",
        "PR0102: postrider.toml:13: `http.listen` is an integer\n  remedy: expected a string: listen = \"127.0.0.1:9464\"",
    ] {
        assert!(problems.contains(expected), "{expected}\n--- not in ---\n{problems}");
    }
    assert_eq!(problems.matches("PR0").count(), 8, "{problems}");
}

#[test]
fn a_file_that_is_not_toml_is_one_problem_with_its_line() {
    let problems = with_file("[http]\ntoken = \"s3cret\nlisten = \"off\"\n").unwrap_err();
    assert!(problems.starts_with("PR0104: postrider.toml:2 is not TOML"), "{problems}");
    assert!(!problems.contains("s3cret"), "{problems}");
}

#[test]
fn what_is_missing_is_named_with_the_variable_that_sets_it() {
    let problems = Loaded::from(&Flags::default(), &Environment::of([("USER", "me")])).config.unwrap_err();
    assert_eq!(codes(&problems), [Code::MissingValue, Code::MissingValue]);
    assert!(problems[0].remedy.contains("DATABASE_URL") && problems[1].remedy.contains("NATS_URL"));
}

#[test]
fn an_empty_url_says_nothing_without_libpq_s_variables() {
    let problems = with_file("[postgres]\nurl = \"\"\n");
    assert!(problems.is_ok(), "DATABASE_URL goes before the file");
    let env = Environment::of([("NATS_URL", "n"), ("PGUSER", "me")]);
    let loaded = Loaded::from(&Flags::default().with(key("postgres.url"), ""), &env);
    assert_eq!(codes(&loaded.config.unwrap_err()), [Code::MissingValue]);
}

#[test]
fn libpq_s_variables_replace_the_url() {
    let env = [("PGHOST", "pg"), ("PGDATABASE", "shop"), ("NATS_URL", "n"), ("PGUSER", "me")];
    let loaded = Loaded::from(&Flags::default(), &Environment::of(env));
    assert_eq!(origin(&loaded, "postgres.url"), "PGHOST");
    assert_eq!(loaded.config.unwrap().postgres.database.resolve().unwrap().to_string(), "me@pg:5432/shop");
}

#[test]
fn the_preset_columns_needs_a_subject() {
    let problems = with_env(&[("POSTRIDER_OUTBOX_PRESET", "columns")]).unwrap_err();
    assert_eq!(codes(&problems), [Code::MissingValue]);
}

#[test]
fn a_wrong_template_is_among_the_problems() {
    let problems =
        with_env(&[("POSTRIDER_OUTBOX_SUBJECT", "a..{b}"), ("POSTRIDER_NATS_REPLICAS", "9")]).unwrap_err();
    assert_eq!(codes(&problems), [Code::BadTemplate, Code::InvalidValue]);
}

#[test]
fn http_beyond_loopback_needs_a_token_or_consent() {
    let open = ("POSTRIDER_HTTP_LISTEN", "0.0.0.0:9464");
    assert_eq!(codes(&with_env(&[open]).unwrap_err()), [Code::OpenHttp]);
    assert!(with_env(&[open, ("POSTRIDER_HTTP_TOKEN", "t")]).is_ok());
    assert!(with_env(&[open, ("POSTRIDER_HTTP_ALLOW_ANONYMOUS", "true")]).is_ok());
    assert!(with_env(&[("POSTRIDER_HTTP_LISTEN", "[::1]:9464")]).is_ok());
}

#[test]
fn hold_back_follows_the_sync_interval_unless_it_is_given() {
    let hold_back = |variables: &[_]| {
        let config = with_env(variables).unwrap();
        config.delivery.hold_back(&config.nats)
    };
    let sync = "POSTRIDER_NATS_SYNC_INTERVAL";
    assert_eq!(hold_back(&[]), Duration::from_secs(250));
    assert_eq!(hold_back(&[(sync, "1s")]), Duration::from_secs(12));
    assert_eq!(hold_back(&[(sync, "always")]), Duration::ZERO);
    assert_eq!(hold_back(&[("POSTRIDER_DELIVERY_HOLD_BACK", "3s")]), Duration::from_secs(3));
}

#[test]
fn none_takes_back_a_limit_that_the_file_set() {
    let config =
        with_env(&[("POSTRIDER_NATS_MAX_AGE", "none"), ("POSTRIDER_START_TIMEOUT", "none")]).unwrap();
    assert_eq!((config.nats.max_age, config.start_timeout), (None, None));
}

#[test]
fn secrets_are_in_no_debug_and_in_no_problem() {
    let secret = "s3cret";
    let loaded = load(
        Flags::default().with(key("http.token"), secret),
        &[("POSTRIDER_NATS_URL", "me:s3cret@n"), ("POSTRIDER_POSTGRES_URL", "postgres://a:s3cret@db/x")],
    );
    let shown: Vec<_> = loaded.values.iter().filter_map(|value| loaded.shown(value)).collect();
    assert!(loaded.config.is_ok());
    assert!(!format!("{loaded:?} {shown:?}").contains(secret), "{loaded:?} {shown:?}");

    let loaded = load(
        Flags::default().with(key("http.token"), "s3cret with spaces"),
        &[("POSTRIDER_NATS_URL", "me:s3cret@"), ("POSTRIDER_POSTGRES_URL", "postgres://a:s3cret@db:x")],
    );
    let shown: Vec<_> = loaded.values.iter().filter_map(|value| loaded.shown(value)).collect();
    assert_eq!(loaded.config.as_ref().unwrap_err().len(), 3);
    assert!(!format!("{loaded:?} {shown:?}").contains(secret), "{loaded:?} {shown:?}");
}

#[test]
fn every_default_in_the_table_is_accepted() {
    for key in keys::KEYS {
        if let Some(default) = key.default {
            let loaded = load(Flags::default().with(key, default), &[]);
            assert!(loaded.config.is_ok(), "{}: {:?}", key.name, loaded.config);
        }
    }
}

#[test]
fn every_key_is_read() {
    // A value that nothing accepts: each key must complain about it.
    for key in keys::KEYS {
        let loaded = load(Flags::default().with(key, "\0"), &[]);
        let problems = loaded.config.err().unwrap_or_default();
        let named = problems.iter().any(|problem| problem.message.starts_with(key.name));
        let template = key.name == "outbox.subject" && codes(&problems) == [Code::BadTemplate];
        assert!(named || template, "{} is not read: {problems:?}", key.name);
    }
}

#[test]
fn the_first_default_file_that_exists_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("second.toml");
    fs::write(&path, "[nats]\nstream = \"X\"\n").unwrap();
    let files = [PathBuf::from("/no/such/file.toml"), path];
    let env = Environment::of(SERVERS).with_files(files);
    assert_eq!(Loaded::from(&Flags::default(), &env).config.unwrap().nats.stream, "X");
}
