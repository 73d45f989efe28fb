//! The Debian package, installed on this machine: the only test that changes it, and it leaves nothing behind.

use crate::notify::Systemd;
use crate::support::{ARTICLE, Pipeline, eventually, psql};
use crate::{done, file, program, units};
use postrider::config::keys::KEYS;
use rustix::process::{Pid, Signal, kill_process};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;

const OTHERS: &str = "postriders-friend_1.0_all.deb";
const CONFIGURATION: &str = "/etc/postrider/postrider.toml";
const SYSTEM_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// The folder with the package of the binary that is tested, made once. Another version's package was there
/// before, and a file that is no package of Postrider's.
fn made() -> &'static Path {
    static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
        program("cargo-deb");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("deb");
        std::fs::create_dir_all(&folder).unwrap();
        for name in ["postrider_0.0.9-1_amd64.deb", OTHERS] {
            std::fs::write(folder.join(name), "").unwrap();
        }
        let mut script = Command::new(file("scripts/deb.sh"));
        done(script.arg(env!("CARGO_BIN_EXE_postrider")).arg(&folder));
        folder
    });
    &FOLDER
}

/// The names in the folder that begin so.
fn names(begin: &str) -> Vec<String> {
    let entries = std::fs::read_dir(made()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(begin)).collect()
}

fn package() -> PathBuf {
    made().join(&names("postrider_")[0])
}

#[test]
fn of_packages_in_its_folder_the_new_one_takes_the_place_of_the_others_of_postrider_alone() {
    let made = names("postrider_");
    assert!(made.len() == 1 && made[0].contains(env!("CARGO_PKG_VERSION")), "{made:?}");
    assert_eq!(names(OTHERS).len(), 1);
}

/// It is purged also when the test fails.
struct Installed {
    had_user: bool,
}

impl Installed {
    fn by_dpkg(package: &Path) -> Installed {
        assert!(
            rustix::process::geteuid().is_root(),
            "dpkg installs only as root; as another user: cargo test --locked -- --skip the_package_is_installed"
        );
        let known = Command::new("dpkg-query").args(["--status", "postrider"]).output().unwrap();
        assert!(!known.status.success(), "postrider is installed here; this test would remove it");
        let installed = Installed { had_user: has_user() };
        done(Command::new("dpkg").arg("--install").arg(package));
        installed
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        let _ = Command::new("dpkg").args(["--purge", "postrider"]).output();
        // The package leaves it, for the sake of files that belong to its group.
        if !self.had_user {
            let _ = Command::new("userdel").arg("postrider").output();
        }
    }
}

/// Everything of this name below the folders that packages write to.
fn left() -> Vec<String> {
    let find = ["/etc", "/usr", "/var/lib", "/lib/systemd", "-xdev", "-name", "*postrider*"];
    let found = done(Command::new("find").args(find));
    let checkout = env!("CARGO_MANIFEST_DIR");
    let mut left: Vec<_> =
        found.lines().filter(|path| !path.starts_with(checkout)).map(str::to_owned).collect();
    left.sort();
    left
}

fn has_user() -> bool {
    Command::new("getent").args(["passwd", "postrider"]).output().unwrap().status.success()
}

/// README.Debian's words for what this test does.
fn as_the_readme_says(command: &str) -> &str {
    let readme = std::fs::read_to_string(file("deploy/debian/README.Debian")).unwrap();
    assert!(readme.contains(command), "README.Debian does not say `{command}`");
    command
}

/// Puts the example's line for this key into force, with this value.
fn configure(key: &str, value: &str) {
    let text = std::fs::read_to_string(CONFIGURATION).unwrap();
    let begins = format!("# {key} = ");
    let line = text.lines().find(|line| line.starts_with(&begins)).unwrap();
    // Written in place, so that owner and mode stay.
    std::fs::write(CONFIGURATION, text.replacen(line, &format!("{key} = {value:?}"), 1)).unwrap();
}

/// As typed at the root of a machine where no variable names a key.
fn shell(command: &str) -> Command {
    let mut sh = Command::new("sh");
    sh.args(["-c", command]).env_clear().env("PATH", SYSTEM_PATH).current_dir("/");
    sh
}

/// The `ExecStart=` of a unit that is installed, to the letter, as its user and without what the unit takes away.
fn start(unit: &str, systemd: &Systemd) -> Child {
    let installed = std::fs::read_to_string(Path::new("/usr/lib/systemd/system").join(unit)).unwrap();
    assert_eq!(installed, std::fs::read_to_string(file("deploy/systemd").join(unit)).unwrap());
    let (user, group) = (units::setting(unit, "User"), units::setting(unit, "Group"));
    let mut setpriv = Command::new(program("setpriv"));
    setpriv.args(["--reuid", &user, "--regid", &group, "--init-groups", "--no-new-privs"]);
    setpriv.args(["--bounding-set=-all", "--inh-caps=-all", "--pdeathsig", "KILL", "--"]);
    setpriv.args(units::setting(unit, "ExecStart").split_whitespace());
    setpriv.env_clear().env("PATH", SYSTEM_PATH).envs(systemd.variables());
    setpriv.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    setpriv.spawn().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_package_is_installed_configured_started_by_its_unit_and_leaves_nothing_when_it_is_purged() {
    let package = package();
    let depends = done(Command::new("dpkg-deb").arg("--field").arg(&package).arg("Depends"));
    assert!(depends.contains("libc6"), "{depends}");
    let installed = Installed::by_dpkg(&package);

    let mode = std::fs::metadata(CONFIGURATION).unwrap();
    let group: u32 = done(Command::new("id").args(["--group", "postrider"])).trim().parse().unwrap();
    assert_eq!((mode.mode() & 0o777, mode.uid(), mode.gid()), (0o640, 0, group));
    assert!(!Path::new("/etc/systemd/system/multi-user.target.wants/postrider.service").exists());

    let pipeline = Pipeline::start().await;
    pipeline.execute(ARTICLE).await;
    let (administrator, http) =
        (pipeline.postgres.url("postgres"), TcpListener::bind("127.0.0.1:0").unwrap());
    configure("url", &administrator.replacen("postgres@", "postrider@", 1));
    configure("url", &pipeline.nats.url());
    configure("listen", &http.local_addr().unwrap().to_string());
    drop(http);

    let sql = done(&mut shell(as_the_readme_says("runuser -u postrider -- postrider init --print-sql")));
    let printed = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&printed, sql).unwrap();
    let stop = ["-v", "ON_ERROR_STOP=1", "-d", &administrator, "-f"];
    done(psql().args(stop).arg(printed.path()));
    done(&mut shell(as_the_readme_says("runuser -u postrider -- postrider init\n")));

    let mut systemd = Systemd::with_abstract_name();
    let mut relay = start("postrider.service", &systemd);
    systemd.hears("READY=1").await;
    systemd.hears("STATUS=leader stream: streaming").await;
    pipeline.execute("INSERT INTO outbox (event_type, payload) VALUES ('order_placed', '{}')").await;
    pipeline.stored(1).await;
    systemd.hears("WATCHDOG=1").await;
    let as_user = |arguments: &str| shell(&format!("runuser -u postrider -- postrider {arguments}"));
    done(&mut as_user("status --check"));
    // Of a server that was not set up for an outbox it finds warnings, and no more.
    as_the_readme_says("runuser -u postrider -- postrider doctor");
    let doctor = as_user("doctor --json").output().unwrap();
    let findings: serde_json::Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let errors =
        findings["findings"].as_array().unwrap().iter().filter(|finding| finding["level"] == "error");
    assert_eq!(errors.collect::<Vec<_>>(), Vec::<&serde_json::Value>::new());

    kill_process(Pid::from_child(&relay), Signal::TERM).unwrap();
    let ended = eventually("the relay ends", async || relay.try_wait().unwrap()).await;
    assert_eq!(ended.code(), Some(0));
    assert!(systemd.rest().contains(&"STOPPING=1".to_owned()));

    done(Command::new("dpkg").args(["--remove", "postrider"]));
    assert_eq!(
        left(),
        [
            "/etc/postrider",
            CONFIGURATION,
            "/var/lib/dpkg/info/postrider.list",
            "/var/lib/dpkg/info/postrider.postrm"
        ]
    );
    done(Command::new("dpkg").args(["--purge", "postrider"]));
    assert_eq!(left(), Vec::<String>::new());
    assert!(has_user(), "its group's files would be the next user's");
    drop(installed);
}

#[test]
fn each_line_of_the_example_of_a_configuration_can_be_put_into_force() {
    let text = std::fs::read_to_string(file("deploy/postrider.toml")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("postrider.toml");
    let is_line = |line: &str| {
        KEYS.iter().any(|key| {
            let name = key.name.rsplit('.').next().unwrap();
            line.starts_with(&format!("# {name} = "))
        })
    };
    let lines = text.lines().map(|line| if is_line(line) { &line[2..] } else { line });
    std::fs::write(&path, lines.collect::<Vec<_>>().join("\n")).unwrap();
    let mut config = Command::new(env!("CARGO_BIN_EXE_postrider"));
    let shown = done(config.args(["config", "--config"]).arg(&path).env_clear());
    assert_eq!(shown.matches("postrider.toml:").count(), text.lines().filter(|line| is_line(line)).count());
}
