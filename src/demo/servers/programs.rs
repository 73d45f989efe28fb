//! Finds the programs: `PG_BIN` or `NATS_SERVER`, then PATH, then the system's folders, then what
//! `scripts/servers.sh` put into `.servers/` of the checkout.

use crate::error::{Code, Failure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The oldest Postgres that the relay supports.
const POSTGRES_MAJOR_MIN: u32 = 14;

/// The programs of one Postgres installation.
#[derive(Debug, Clone)]
pub struct PostgresPrograms {
    /// The folder with `initdb` and `postgres`; beside it lie `lib` and `share`.
    pub bin: PathBuf,
    /// `15`
    pub major: u32,
    /// `15.13`
    pub version: String,
}

impl PostgresPrograms {
    /// The first installation that serves: of this major version, or any that is supported.
    ///
    /// # Errors
    /// `PR0002` with the command that installs it.
    pub fn find(major: Option<u32>) -> Result<PostgresPrograms, Failure> {
        postgres_folders()
            .iter()
            .filter_map(|bin| PostgresPrograms::at(bin))
            .find(|found| match major {
                Some(major) => found.major == major,
                None => found.major >= POSTGRES_MAJOR_MIN,
            })
            .ok_or_else(|| match major {
                Some(major) => {
                    missing(&format!("no Postgres {major} is installed"), "scripts/servers.sh all")
                }
                None => missing("no Postgres 14 or later is installed", "scripts/servers.sh"),
            })
    }

    /// The installation in this folder, if it is a whole one.
    fn at(bin: &Path) -> Option<PostgresPrograms> {
        let postgres = bin.join("postgres");
        // A link on PATH leads to the installation; a folder that is a link belongs to one.
        let bin = match postgres.symlink_metadata().ok()?.is_symlink() {
            true => postgres.canonicalize().ok()?.parent()?.to_owned(),
            false => bin.to_owned(),
        };
        if !bin.join("initdb").is_file() {
            return None;
        }
        // postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)
        let printed = version_of(&bin.join("postgres"))?;
        let version = printed.strip_prefix("postgres (PostgreSQL) ")?.split_whitespace().next()?.to_owned();
        let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
        Some(PostgresPrograms { bin, major: digits.parse().ok()?, version })
    }

    /// `<bin>/initdb`
    #[must_use]
    pub fn initdb(&self) -> PathBuf {
        self.bin.join("initdb")
    }

    /// `<bin>/postgres`
    #[must_use]
    pub fn postgres(&self) -> PathBuf {
        self.bin.join("postgres")
    }
}

/// A nats-server: one whose version begins with `version` (`2.10`), or the first that is found.
///
/// # Errors
/// `PR0002` with the command that installs it.
pub fn nats_program(version: Option<&str>) -> Result<PathBuf, Failure> {
    let given = std::env::var_os("NATS_SERVER").map(PathBuf::from);
    let on_path = path_folders().into_iter().map(|folder| folder.join("nats-server"));
    let ours = newest_first(servers_folders().iter().flat_map(|servers| entries(&servers.join("nats"))))
        .into_iter()
        .map(|folder| folder.join("nats-server"));
    given
        .into_iter()
        .chain(on_path)
        .chain(ours)
        .filter(|program| program.is_file())
        .find(|program| match (version_of(program), version) {
            // nats-server: v2.15.1
            (Some(printed), Some(version)) => printed
                .strip_prefix("nats-server: v")
                .is_some_and(|found| found == version || found.starts_with(&format!("{version}."))),
            (printed, None) => printed.is_some(),
            (None, Some(_)) => false,
        })
        .ok_or_else(|| match version {
            Some(version) => {
                missing(&format!("no nats-server {version} is installed"), "scripts/servers.sh all")
            }
            None => missing("no nats-server is installed", "scripts/servers.sh"),
        })
}

/// Any other program, such as `psql` or `pg_recvlogical`: on PATH or beside a Postgres.
///
/// # Errors
/// `PR0002` with the command that installs it.
pub fn program(name: &str) -> Result<PathBuf, Failure> {
    path_folders()
        .into_iter()
        .chain(postgres_folders())
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
        .ok_or_else(|| missing(&format!("`{name}` is not installed"), "scripts/servers.sh all"))
}

fn missing(what: &str, command: &str) -> Failure {
    Failure::new(
        Code::ServersMissing,
        what,
        format!("run `{command}` in the checkout (`make demo` and `make test` do), or put it on PATH"),
    )
}

fn version_of(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn postgres_folders() -> Vec<PathBuf> {
    let given = std::env::var_os("PG_BIN").map(PathBuf::from);
    let debian = entries(Path::new("/usr/lib/postgresql"));
    let ours = servers_folders().into_iter().flat_map(|servers| entries(&servers.join("postgres")));
    let homes = newest_first(debian).into_iter().chain(newest_first(ours));
    given.into_iter().chain(path_folders()).chain(homes.map(|home| home.join("bin"))).collect()
}

fn path_folders() -> Vec<PathBuf> {
    std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default()
}

/// `.servers` of the checkout that we are in, and of the one that this program was built in.
fn servers_folders() -> Vec<PathBuf> {
    let here = std::env::current_dir().ok();
    let program = std::env::current_exe().ok();
    let nearest = |from: Option<PathBuf>| {
        from?.ancestors().map(|folder| folder.join(".servers")).find(|servers| servers.is_dir())
    };
    let mut found: Vec<PathBuf> = [nearest(here), nearest(program)].into_iter().flatten().collect();
    found.dedup();
    found
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Folders that are named by a version.
fn newest_first(folders: impl IntoIterator<Item = PathBuf>) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = folders.into_iter().collect();
    let version = |folder: &PathBuf| -> Vec<u32> {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        name.split('.').map(|part| part.parse().unwrap_or(0)).collect()
    };
    folders.sort_by_key(|folder| std::cmp::Reverse(version(folder)));
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_numbers() {
        let folders = ["2.9.10", "2.15.1", "2.10.26"].map(PathBuf::from);
        assert_eq!(newest_first(folders), ["2.15.1", "2.10.26", "2.9.10"].map(PathBuf::from));
    }

    #[test]
    fn a_missing_version_names_the_command_that_installs_it() {
        let failure = PostgresPrograms::find(Some(99)).unwrap_err();
        assert_eq!(failure.code, Code::ServersMissing);
        assert!(failure.remedy.contains("scripts/servers.sh all"), "{failure}");
        assert!(nats_program(Some("99")).unwrap_err().remedy.contains("scripts/servers.sh all"));
    }
}
