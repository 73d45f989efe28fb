//! By value: what goes in, what comes out.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;

use super::*;

/// Resolves with these variables only, for the account `postgres`, and finds no socket.
fn with(url: &str, variables: &[(&str, &str)]) -> Result<Target, TargetError> {
    in_folders(url, variables, &[])
}

fn in_folders(url: &str, variables: &[(&str, &str)], folders: &[&Path]) -> Result<Target, TargetError> {
    let env = |name: &str| {
        variables.iter().find(|(variable, _)| *variable == name).map(|(_, value)| (*value).to_owned())
    };
    let account = Account { name: Some("postgres".to_owned()), home: None };
    resolve(Some(url), &Surroundings { env: &env, account, socket_directories: folders })
}

fn tcp(name: &str, port: u16) -> Host {
    Host { address: Address::Tcp(name.into()), port, name: None, password: None }
}

fn encryption(mode: SslMode) -> Encryption {
    Encryption {
        mode,
        roots: Roots::File(PathBuf::new()),
        revoked: None,
        identity: None,
        direct: false,
        server_name: true,
        versions: Versions { tls12: true, tls13: true },
    }
}

const LOGIN: Login = Login { channel_binding: ChannelBinding::Prefer, methods: None, cleartext: false };
const TCP: Tcp = Tcp {
    keepalives: true,
    keepalives_idle: None,
    keepalives_interval: None,
    keepalives_count: None,
    user_timeout: None,
};

fn target(url: &str) -> Target {
    with(url, &[]).unwrap()
}

fn error(url: &str) -> String {
    with(url, &[]).unwrap_err().to_string()
}

fn shown(url: &str) -> String {
    target(url).to_string()
}

fn password(target: &Target) -> Option<&str> {
    target.hosts.first()?.password.as_ref().map(Secret::expose)
}

/// A password file with these permissions, and the directory that holds it.
fn pgpass(text: &str, mode: u32) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(".pgpass");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (directory, path)
}

/// The password that such a file gives for this string.
fn from_pgpass(text: &str, url: &str) -> Option<String> {
    let (_directory, path) = pgpass(text, 0o600);
    password(&with(url, &[("PGPASSFILE", &path)]).unwrap()).map(str::to_owned)
}

#[test]
fn a_full_url_gives_every_part() {
    let expected = Target {
        hosts: vec![Host { password: Some(Secret::new("s3cret")), ..tcp("db.example", 5433) }],
        user: "app".into(),
        database: "shop".into(),
        encryption: encryption(SslMode::Require),
        login: LOGIN,
        tcp: TCP,
        options: Some("-c geqo=off".into()),
        application_name: "relay".into(),
        connect_timeout: Duration::from_secs(3),
        session_attrs: SessionAttrs::Any,
    };
    let url = "postgresql://app:s3cret@db.example:5433/shop?sslmode=require&options=-c%20geqo%3Doff\
               &application_name=relay&connect_timeout=3&target_session_attrs=any";
    assert_eq!(target(url), expected);
    let key_values = "host=db.example port = 5433 user=app password=s3cret dbname=shop sslmode=require \
                      options='-c geqo=off' application_name=relay connect_timeout=3 target_session_attrs=any";
    assert_eq!(target(key_values), expected);
}

#[test]
fn an_empty_string_gives_the_defaults_of_libpq_and_ours() {
    let expected = Target {
        hosts: vec![tcp("localhost", 5432)],
        user: "postgres".into(),
        database: "postgres".into(),
        encryption: encryption(SslMode::Prefer),
        login: LOGIN,
        tcp: TCP,
        options: None,
        application_name: "postrider".into(),
        connect_timeout: Duration::from_secs(10),
        session_attrs: SessionAttrs::ReadWrite,
    };
    assert_eq!(target(""), expected);
    assert_eq!(target("postgres://"), expected);
}

#[test]
fn places_are_read_as_libpq_reads_them() {
    for (url, expected) in [
        ("postgres://u@h/d", "u@h:5432/d"),
        ("postgres://u@h", "u@h:5432/u"),
        ("postgres://u@/d", "u@localhost:5432/d"),
        ("postgres://h/d", "postgres@h:5432/d"),
        ("postgres:///d", "postgres@localhost:5432/d"),
        ("postgres://u@h1:1,h2:2/d", "u@h1:1,h2:2/d"),
        ("postgres://u@h1,h2:2/d", "u@h1:5432,h2:2/d"),
        ("postgres://u@h1:1,h2/d", "u@h1:1,h2:5432/d"),
        ("postgres://u@h1,h2/d?port=7", "u@h1:7,h2:7/d"),
        ("postgres://u@h1,,h3/d", "u@h1:5432,localhost:5432,h3:5432/d"),
        ("postgres://u@[::1]/d", "u@[::1]:5432/d"),
        ("postgres://u@[::1]:7,[fe80::1%25eth0]/d", "u@[::1]:7,[fe80::1%eth0]:5432/d"),
        ("postgres://u@%2Fvar%2Frun/d", "u@/var/run:5432/d"),
        ("postgres://u@%2Frun%2Fx:7/d", "u@/run/x:7/d"),
        ("postgres://u@/d?host=/run/x&port=7", "u@/run/x:7/d"),
        ("postgres:///?host=h&user=u&dbname=d", "u@h:5432/d"),
        ("postgres://u@h/d?dbname=e", "u@h:5432/e"),
        ("postgres://u@h?sslmode=disable", "u@h:5432/u"),
        ("postgres://a%40b@h/c%2Fd", "a@b@h:5432/c/d"),
        ("postgres://u@name/d?hostaddr=10.0.0.1", "u@10.0.0.1:5432/d"),
        ("host=a,b port=1,2 user=u", "u@a:1,b:2/u"),
        ("host=a,b port=1 user=u", "u@a:1,b:1/u"),
        ("hostaddr=::1 user=u", "u@[::1]:5432/u"),
        ("host=/tmp user=u dbname=d", "u@/tmp:5432/d"),
        ("user=a user=b host=h", "b@h:5432/b"),
        (r"user='it\'s \\ me' host=h", r"it's \ me@h:5432/it's \ me"),
        (r"user=a\ b host=h", "a b@h:5432/a b"),
        ("  user = u\n host\t=\th  ", "u@h:5432/u"),
        ("host='' user=u", "u@localhost:5432/u"),
    ] {
        assert_eq!(shown(url), expected, "{url}");
    }
}

#[test]
fn a_password_is_decoded() {
    for (url, expected) in [
        ("postgres://u:p%40s%2Fs%3A%25@h/d", "p@s/s:%"),
        ("postgres://u:a:b@h/d", "a:b"),
        ("postgres://u:a?b@h/d", "a?b"),
        ("postgres://u:p+%C3%A9@h/d", "p+é"),
        ("postgres://u@h/d?password=a%26b", "a&b"),
        (r"host=h password='a b\'c'", "a b'c"),
        ("host=h password=a=b", "a=b"),
    ] {
        assert_eq!(password(&target(url)), Some(expected), "{url}");
    }
    assert_eq!(password(&target("postgres://u:@h/d")), None);
}

#[test]
fn each_supported_word_is_read() {
    for mode in [
        SslMode::Disable,
        SslMode::Allow,
        SslMode::Prefer,
        SslMode::Require,
        SslMode::VerifyCa,
        SslMode::VerifyFull,
    ] {
        let url = format!("postgres://h/d?sslmode={}", mode.name());
        assert_eq!(target(&url).encryption.mode, mode);
    }
    assert_eq!(target("postgres://h/d?ssl=true").encryption.mode, SslMode::Require);
    for (word, expected) in [
        ("any", SessionAttrs::Any),
        ("read-write", SessionAttrs::ReadWrite),
        ("primary", SessionAttrs::Primary),
    ] {
        assert_eq!(target(&format!("target_session_attrs={word}")).session_attrs, expected);
    }
    for (word, expected) in [
        ("disable", ChannelBinding::Disable),
        ("prefer", ChannelBinding::Prefer),
        ("require", ChannelBinding::Require),
    ] {
        assert_eq!(target(&format!("channel_binding={word}")).login.channel_binding, expected);
    }
}

#[test]
fn files_for_tls_are_named_or_lie_at_home() {
    let home = [("HOME", "/home/ann")];
    let at_home = with("host=h", &home).unwrap().encryption;
    assert_eq!(at_home.roots, Roots::File("/home/ann/.postgresql/root.crt".into()));
    let identity = at_home.identity.unwrap();
    assert_eq!(identity.certificate, Path::new("/home/ann/.postgresql/postgresql.crt"));
    assert_eq!(identity.key, Path::new("/home/ann/.postgresql/postgresql.key"));

    let named = with("host=h sslrootcert=/r sslcert=/c sslkey=/k", &home).unwrap().encryption;
    assert_eq!(named.roots, Roots::File("/r".into()));
    assert_eq!(named.identity, Some(Identity { certificate: "/c".into(), key: "/k".into() }));
    assert_eq!(with("host=h sslcertmode=disable", &home).unwrap().encryption.identity, None);
}

#[test]
fn an_old_variable_still_asks_for_tls() {
    let mode = |variables: &[(&str, &str)]| with("host=h", variables).unwrap().encryption.mode;
    assert_eq!(mode(&[("PGREQUIRESSL", "1")]), SslMode::Require);
    assert_eq!(mode(&[("PGREQUIRESSL", "0")]), SslMode::Prefer);
    assert_eq!(mode(&[("PGREQUIRESSL", "1"), ("PGSSLMODE", "disable")]), SslMode::Disable);
}

#[test]
fn the_systems_roots_ask_for_the_strongest_mode() {
    let system = target("host=h sslrootcert=system").encryption;
    assert_eq!((system.mode, system.roots), (SslMode::VerifyFull, Roots::System));
    let message = error("host=h sslrootcert=system sslmode=verify-ca");
    assert!(message.starts_with("sslmode is too weak with sslrootcert=system"), "{message}");
}

#[test]
fn direct_negotiation_asks_for_a_mode_that_encrypts() {
    assert!(target("host=h sslnegotiation=direct sslmode=require").encryption.direct);
    let message = error("host=h sslnegotiation=direct");
    assert_eq!(
        message,
        "sslmode is too weak with sslnegotiation=direct (use require, verify-ca or verify-full)"
    );
}

#[test]
fn versions_of_tls_are_bounded_on_both_sides() {
    let versions = |url: &str| target(url).encryption.versions;
    assert_eq!(versions("ssl_min_protocol_version=TLSv1"), Versions { tls12: true, tls13: true });
    assert_eq!(versions("ssl_min_protocol_version=TLSv1.3"), Versions { tls12: false, tls13: true });
    assert_eq!(versions("ssl_max_protocol_version=TLSv1.2"), Versions { tls12: true, tls13: false });
    for url in [
        "ssl_max_protocol_version=TLSv1.1",
        "ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2",
    ] {
        assert!(error(url).contains("leaves no version"), "{url}");
    }
}

#[test]
fn require_auth_is_a_list_of_methods_or_of_those_left_out() {
    let login = |methods: &str| target(&format!("host=h require_auth={methods}")).login;
    assert_eq!(login("scram-sha-256,none").methods, Some(vec![Method::ScramSha256, Method::None]));
    let without = login("!password,!md5");
    assert!(!without.permits(Method::Password) && !without.permits(Method::Md5));
    assert!(without.permits(Method::ScramSha256) && !without.cleartext);
    assert!(login("password").cleartext);
    assert!(error("require_auth=md5,!password").contains("mixes methods"));
    assert!(error("require_auth=magic").starts_with("require_auth must be a list of: password, md5"));
}

#[test]
fn keepalives_and_timeouts_of_tcp_are_in_the_units_of_libpq() {
    let url = "keepalives=0 keepalives_idle=5 keepalives_interval=6 keepalives_count=7 tcp_user_timeout=1500";
    let expected = Tcp {
        keepalives: false,
        keepalives_idle: Some(Duration::from_secs(5)),
        keepalives_interval: Some(Duration::from_secs(6)),
        keepalives_count: Some(7),
        user_timeout: Some(Duration::from_millis(1500)),
    };
    assert_eq!(target(url).tcp, expected);
    assert_eq!(target("keepalives_idle=0 tcp_user_timeout=0 keepalives_count=-1").tcp, TCP);
    assert_eq!(error("keepalives_idle=5s"), "keepalives_idle must be a whole number");
}

#[test]
fn hosts_can_be_tried_in_any_order() {
    let hosts = |url: &str| {
        let mut hosts: Vec<_> = target(url).hosts.iter().map(ToString::to_string).collect();
        hosts.sort();
        hosts
    };
    assert_eq!(hosts("host=a,b load_balance_hosts=random"), hosts("host=a,b"));
}

#[test]
fn a_connect_timeout_of_zero_or_less_is_the_default() {
    for (seconds, expected) in [("2", 2), ("0", 10), ("-1", 10), (" 7 ", 7)] {
        let timeout = target(&format!("connect_timeout='{seconds}'")).connect_timeout;
        assert_eq!(timeout, Duration::from_secs(expected), "{seconds}");
    }
    assert_eq!(error("connect_timeout=10s"), "connect_timeout must be a whole number");
}

#[test]
fn what_makes_no_difference_is_accepted() {
    for parameter in [
        "keepalives=1",
        "fallback_application_name=postrider",
        "load_balance_hosts=disable",
        "sslsni=1",
        "gssencmode=disable",
        "gssencmode=prefer",
        "sslcompression=0",
        "client_encoding=UTF8",
        "client_encoding=auto",
        "channel_binding=prefer",
        "sslnegotiation=postgres",
        "sslrootcert=",
    ] {
        let url = format!("postgres://u@h/d?{parameter}");
        assert_eq!(target(&url), target("postgres://u@h/d"), "{parameter}");
    }
}

#[test]
fn what_would_be_weaker_than_asked_for_is_refused() {
    for parameter in [
        "sslcrl=r.pem",
        "sslpassword=x",
        "sslcertmode=require",
        "gssencmode=require",
        "target_session_attrs=standby",
        "target_session_attrs=prefer-standby",
        "min_protocol_version=3.2",
        "requirepeer=postgres",
        "replication=database",
    ] {
        let message = error(&format!("postgres://u@h/d?{parameter}"));
        assert!(message.contains("is not supported by this version"), "{parameter}: {message}");
        let name = parameter.split_once('=').unwrap().0;
        assert!(message.starts_with(name), "{parameter}: {message}");
    }
}

#[test]
fn a_variable_is_refused_like_its_parameter() {
    for (variable, value) in [
        ("PGSSLCRL", "/r.pem"),
        ("PGSSLCERTMODE", "require"),
        ("PGREQUIREPEER", "postgres"),
        ("PGGSSENCMODE", "require"),
        ("PGTARGETSESSIONATTRS", "standby"),
    ] {
        let message = with("postgres://u@h/d", &[(variable, value)]).unwrap_err().to_string();
        assert!(message.starts_with(variable), "{message}");
        assert!(message.contains("is not supported by this version"), "{message}");
    }
}

#[test]
fn a_refusal_says_what_is_possible() {
    assert_eq!(
        error("postgres://u@h/d?target_session_attrs=standby"),
        "target_session_attrs=standby is not supported by this version of postrider: the relay writes its row: \
         use read-write, primary or any"
    );
}

#[test]
fn an_error_names_the_part_that_is_wrong() {
    for (url, expected) in [
        ("postgres://u@h:x/d", "port is not a number from 1 to 65535"),
        ("postgres://u@h:0/d", "port is not a number from 1 to 65535"),
        ("postgres://u@h:65536/d", "port is not a number from 1 to 65535"),
        ("postgres://u@::1/d", "port is not a number from 1 to 65535"),
        ("postgres://u@[::1/d", "host has a [ without its ]"),
        ("postgres://u@[]/d", "host has no address between [ and ]"),
        ("postgres://u@[::1]x/d", "host has text after its ]"),
        ("postgres://u%zz@h/d", "user has a % without two hexadecimal digits"),
        ("postgres://u:%f@h/d", "password has a % without two hexadecimal digits"),
        ("postgres://u@h/%ff", "dbname is not UTF-8"),
        ("postgres://u%00@h/d", "user contains a zero byte"),
        ("postgres://u@h/d?sslmode=on", "sslmode must be one of: disable, allow, prefer, require"),
        ("postgres://u@h/d?sslmode=", "sslmode must be one of: disable, allow, prefer, require"),
        ("postgres://u@h/d?client_encoding=LATIN1", "client_encoding must be one of: UTF8"),
        ("postgres://u@h/d?sslmode", "connection string: a parameter after ? has no ="),
        ("postgres://u@h1:1,h2:2/d?port=1,2,3", "port has 3 entries but host has 2"),
        ("host=a port=1,2", "port has 2 entries but host has 1"),
        ("host=a,b hostaddr=::1", "hostaddr has 1 entries but host has 2"),
        ("hostaddr=example.org", "hostaddr must be an IP address"),
        ("host=@abstract", "host with an abstract socket (@...) is not supported"),
        ("mysql://u@h/d", "connection string: a URL must begin with postgres://"),
        ("shop", "connection string: expected a postgres:// URL or key=value pairs"),
        ("user='u", "connection string: a quoted value has no ' at its end"),
    ] {
        let message = error(url);
        assert!(message.starts_with(expected), "{url}: {message}");
    }
}

#[test]
fn an_unknown_parameter_suggests_the_nearest() {
    for (name, suggestion) in [
        ("ssl_mode", "sslmode"),
        ("sslmod", "sslmode"),
        ("aplication_name", "application_name"),
        ("database", "dbname"),
        ("username", "user"),
        ("Host", "host"),
    ] {
        let expected = format!("unknown connection parameter `{name}`; did you mean `{suggestion}`?");
        assert_eq!(error(&format!("postgres://u@h/d?{name}=x")), expected);
        assert_eq!(error(&format!("{name}=x")), expected);
    }
    assert_eq!(error("frobnicate=x"), "unknown connection parameter `frobnicate`");
}

#[test]
fn an_unescaped_password_is_never_shown() {
    for url in [
        "postgres://u:hunter/2@h/d",
        "postgres://u:1/hunter@h/d",
        "postgres://u:x@hunter@h/d",
        "postgres://u:x@hunter/2@h/d",
        "postgres://u:x/?hunter=2@h/d",
        "postgres://u:hunter%@h/d",
        "postgres://h:5432?password=x@hunter",
        "postgres://h?password=hunter@x",
        "postgres://h/d?password=x&hunter=2",
        "postgres://h/d?hunter!=2",
        "host=h password=x hunter=2",
        "host=h password=x hunter 2",
        "host=h password='hunter",
        "hunter",
        "hunter://u@h",
        "host=h port=hunter",
    ] {
        let error = with(url, &[]).unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(!text.contains("hunter"), "{url}: {text}");
    }
}

#[test]
fn a_target_does_not_show_its_password() {
    let target = target("postgres://u:hunter2@h:5432/d");
    assert!(!format!("{target} {target:?} {target:#?}").contains("hunter2"));
    assert_eq!(format!("{} {:?}", Secret::new("x"), Secret::new("x")), "*** ***");
}

#[test]
fn the_environment_fills_what_the_string_leaves_out() {
    let variables = [
        ("PGHOST", "envhost"),
        ("PGPORT", "7"),
        ("PGUSER", "envuser"),
        ("PGPASSWORD", "envpassword"),
        ("PGDATABASE", "envdb"),
        ("PGSSLMODE", "disable"),
        ("PGOPTIONS", "-c geqo=off"),
        ("PGAPPNAME", "envapp"),
        ("PGCONNECT_TIMEOUT", "4"),
        ("PGTARGETSESSIONATTRS", "any"),
    ];
    let filled = with("", &variables).unwrap();
    assert_eq!(filled.to_string(), "envuser@envhost:7/envdb");
    assert_eq!(password(&filled), Some("envpassword"));
    assert_eq!(filled.encryption.mode, SslMode::Disable);
    assert_eq!(filled.options.as_deref(), Some("-c geqo=off"));
    assert_eq!(filled.application_name, "envapp");
    assert_eq!(filled.connect_timeout, Duration::from_secs(4));
    assert_eq!(filled.session_attrs, SessionAttrs::Any);

    let given = with("postgres://u:p@h:8/d?sslmode=require", &variables).unwrap();
    assert_eq!(given.to_string(), "u@h:8/d");
    assert_eq!(password(&given), Some("p"));
    assert_eq!(given.encryption.mode, SslMode::Require);
}

#[test]
fn an_empty_variable_counts_as_unset() {
    let variables = [("PGHOST", ""), ("PGSSLMODE", ""), ("PGSSLROOTCERT", ""), ("USER", "")];
    assert_eq!(with("", &variables).unwrap(), target(""));
}

#[test]
fn an_error_in_a_variable_names_the_variable() {
    let message = with("postgres://h/d", &[("PGPORT", "x")]).unwrap_err().to_string();
    assert!(message.starts_with("PGPORT is not a number"), "{message}");
    let message = with("postgres://h/d", &[("PGPORT", "1,2")]).unwrap_err().to_string();
    assert_eq!(message, "PGPORT has 2 entries but host has 1");
}

#[test]
fn a_variable_for_the_address_or_the_host_is_added_to_the_other() {
    let variables = [("PGHOSTADDR", "10.0.0.9"), ("PGHOST", "elsewhere")];
    let host = |url: &str| with(url, &variables).unwrap().hosts.remove(0);
    for (url, name) in [("postgres://u@h/d", "h"), ("user=u", "elsewhere")] {
        assert_eq!((host(url).to_string().as_str(), host(url).name()), ("10.0.0.9:5432", name), "{url}");
    }
    assert_eq!(host("hostaddr=::1 user=u").to_string(), "[::1]:5432");
    assert_eq!(host("host=a hostaddr=::1 user=u").to_string(), "[::1]:5432");
}

#[test]
fn the_user_defaults_to_the_account_and_the_database_to_the_user() {
    let variables = [("USER", "ann"), ("LOGNAME", "bob")];
    assert_eq!(with("host=h", &variables).unwrap().to_string(), "postgres@h:5432/postgres");
    let env = |name: &str| (name == "LOGNAME").then(|| "bob".to_owned());
    let unknown = Surroundings { env: &env, account: Account::default(), socket_directories: &[] };
    assert_eq!(resolve(Some("host=h"), &unknown).unwrap().to_string(), "bob@h:5432/bob");
}

#[test]
fn a_service_goes_behind_the_string_and_before_the_environment() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("services");
    std::fs::write(
        &file,
        "# all of ours\n[other]\nhost=no\n\n [shop]\nhost=db\nport=7\nuser=app\npassword=a b=c\n[next]\nport=9\n",
    )
    .unwrap();
    let file = file.to_str().unwrap();
    let variables = [("PGSERVICEFILE", file), ("PGSERVICE", "shop"), ("PGPORT", "8"), ("PGDATABASE", "d")];
    let target = with("user=me", &variables).unwrap();
    assert_eq!((target.to_string().as_str(), password(&target)), ("me@db:7/d", Some("a b=c")));
    let named = format!("service=shop servicefile={file}");
    assert_eq!(with(&named, &[]).unwrap().to_string(), "app@db:7/app");

    let message = with("service=nix", &variables).unwrap_err().to_string();
    assert!(message.starts_with("service `nix` is defined neither in"), "{message}");
    let message = with("service=shop servicefile=/nowhere", &[]).unwrap_err().to_string();
    assert_eq!(message, "service file /nowhere does not exist");
}

#[test]
fn a_service_lies_at_home_or_in_the_systems_folder() {
    let (home, system) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(home.path().join(".pg_service.conf"), "[mine]\nhost=home\n").unwrap();
    std::fs::write(system.path().join("pg_service.conf"), "[mine]\nhost=no\n[ours]\nhost=system\n").unwrap();
    let folders =
        [("HOME", home.path().to_str().unwrap()), ("PGSYSCONFDIR", system.path().to_str().unwrap())];
    for (service, expected) in [("mine", "home:5432"), ("ours", "system:5432")] {
        let target = with(&format!("service={service}"), &folders).unwrap();
        assert_eq!(target.hosts.first().unwrap().to_string(), expected);
    }
}

#[test]
fn a_service_that_is_not_well_formed_is_refused_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("services");
    for (text, problem) in [
        ("[s]\nhost", "line 2: is not `parameter=value`"),
        ("[s]\n\nhots=h", "line 3: libpq has no such parameter"),
        ("[s]\nservice=t", "line 2: a service cannot name another"),
    ] {
        std::fs::write(&file, text).unwrap();
        let url = format!("service=s servicefile={}", file.display());
        assert!(error(&url).ends_with(problem), "{}", error(&url));
    }
}

#[test]
fn the_default_host_is_the_first_directory_with_the_socket_of_the_port() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(second.path().join(".s.PGSQL.7"), "").unwrap();
    let directories = [first.path(), second.path()];
    let address = |url| in_folders(url, &[], &directories).unwrap().hosts.remove(0).address;
    assert_eq!(address("port=7"), Address::Unix(second.path().into()));
    assert_eq!(address("port=8"), Address::Tcp("localhost".into()));
    std::fs::write(first.path().join(".s.PGSQL.7"), "").unwrap();
    assert_eq!(address("port=7"), Address::Unix(first.path().into()));
}

#[test]
fn a_password_file_is_matched_line_by_line() {
    let url = "postgres://u@h:7/d";
    for (text, expected) in [
        ("h:7:d:u:secret\n", Some("secret")),
        ("h:7:d:u:secret\r\n", Some("secret")),
        ("*:*:*:*:any", Some("any")),
        ("h:7:d:u:first\n*:*:*:*:second", Some("first")),
        ("h:8:d:u:no\nh:7:e:u:no\nh:7:d:v:no\ni:7:d:u:no\nh:7:d:u:yes", Some("yes")),
        ("#h:7:d:u:comment\n", None),
        ("h:7:d:u\nnonsense\n\n", None),
        ("h:7:d:u:", None),
        (r"h:7:d:u:a\:b\\c:d", Some(r"a:b\c:d")),
        (r"\*:7:d:u:literal star", None),
        ("h*:7:d:u:no globs", None),
    ] {
        assert_eq!(from_pgpass(text, url).as_deref(), expected, "{text:?}");
    }
}

#[test]
fn a_password_file_can_escape_colons_and_backslashes() {
    assert_eq!(from_pgpass(r"\:\:1:5432:a\\b:u:ok", r"host=::1 user=u dbname=a\\b").as_deref(), Some("ok"));
}

#[test]
fn a_default_socket_is_localhost_to_a_password_file() {
    let (directory, path) = pgpass("localhost:5432:u:u:local\n/run/x:5432:u:u:socket", 0o600);
    let variables = [("PGPASSFILE", path.as_str())];
    let default = [directory.path()];
    let url = format!("host={} user=u", directory.path().display());
    assert_eq!(password(&in_folders(&url, &variables, &default).unwrap()), Some("local"));
    let other = in_folders("host=/run/x user=u", &variables, &default).unwrap();
    assert_eq!(password(&other), Some("socket"));
}

#[test]
fn a_password_file_knows_a_host_by_name_even_with_its_address_given() {
    let text = "10.0.0.1:*:*:*:address\nname:*:*:*:name";
    assert_eq!(from_pgpass(text, "host=name hostaddr=10.0.0.1").as_deref(), Some("name"));
    assert_eq!(from_pgpass(text, "hostaddr=10.0.0.1").as_deref(), Some("address"));
}

#[test]
fn a_given_password_is_preferred_to_the_password_file() {
    assert_eq!(from_pgpass("*:*:*:*:file", "postgres://u:given@h/d").as_deref(), Some("given"));
    assert_eq!(from_pgpass("*:*:*:*:file", "host=h password=''").as_deref(), Some("file"));
}

#[test]
fn a_password_file_that_others_may_read_is_ignored() {
    for (mode, expected) in [(0o600, Some("p")), (0o400, Some("p")), (0o640, None), (0o604, None)] {
        let (_directory, path) = pgpass("*:*:*:*:p", mode);
        let target = with("host=h", &[("PGPASSFILE", &path)]).unwrap();
        assert_eq!(password(&target), expected, "{mode:o}");
    }
}

#[test]
fn the_password_file_is_looked_for_at_home() {
    let (directory, _) = pgpass("*:*:*:*:p", 0o600);
    let home = directory.path().to_str().unwrap();
    assert_eq!(password(&with("host=h", &[("HOME", home)]).unwrap()), Some("p"));
    assert_eq!(password(&with("host=h", &[("HOME", home), ("PGPASSFILE", "/nowhere")]).unwrap()), None);
}

#[test]
fn each_host_has_its_own_password_of_the_file() {
    let (_directory, path) = pgpass("a:*:*:*:p\nb:*:*:*:q", 0o600);
    let target = with("host=a,b,c passfile=/dev/null", &[("PGPASSFILE", &path)]).unwrap();
    assert!(target.hosts.iter().all(|host| host.password.is_none()), "passfile goes before PGPASSFILE");
    let target = with(&format!("host=a,b,c passfile={path}"), &[]).unwrap();
    let passwords: Vec<_> =
        target.hosts.iter().map(|host| host.password.as_ref().map(Secret::expose)).collect();
    assert_eq!(passwords, [Some("p"), Some("q"), None]);
}

#[test]
fn a_host_gives_its_name_for_tls() {
    let name = |url| target(url).hosts.first().unwrap().name().to_owned();
    assert_eq!(name("postgres://[::1]/d"), "::1");
    assert_eq!(name("host=/run/x"), "localhost");
}

proptest! {
    #[test]
    fn parse_never_panics(text in any::<String>(), value in any::<String>()) {
        let env = |name: &str| (name.starts_with("PG") && name != "PGPASSFILE").then(|| value.clone());
        for url in [text.clone(), format!("postgres://{text}"), format!("postgres://u:p@h/d?{text}")] {
            let _ = Target::parse(Some(&url), &|_| None);
            let _ = Target::parse(Some(&url), &env);
        }
    }

    #[test]
    fn parse_never_panics_on_what_looks_like_a_string(text in r"[a-z0-9:/@?&=%,\[\]'\\ *.-]{0,60}") {
        for url in [format!("postgres://{text}"), format!("host={text}"), text.clone()] {
            let _ = Target::parse(Some(&url), &|_| None);
        }
        let _ = from_pgpass(&text, "host=h");
    }

    #[test]
    fn an_encoded_password_comes_back_and_is_not_shown(text in "[^\0]{1,20}") {
        let encoded: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let target = target(&format!("postgres://u:{encoded}@h/d"));
        prop_assert_eq!(password(&target), Some(text.as_str()));
        prop_assert_eq!(target.to_string(), "u@h:5432/d");
    }
}
