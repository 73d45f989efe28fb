//! Where servers live, and as whom Postgres runs.

use super::broken;
use crate::error::Failure;
use std::fs::{self, Permissions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

/// Systems clean their temporary folders file by file after ten days; we let go before that.
const CACHE_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Below the range of outgoing connections (32768 and up on Linux, 49152 elsewhere).
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Another user than the one who runs this process.
#[derive(Debug, Clone, Copy)]
pub(in crate::demo) struct Account {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// As whom Postgres runs: as we do, but for root.
pub(super) fn postgres_account() -> Result<Option<Account>, Failure> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let accounts = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let account = accounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        match fields[..] {
            ["nobody", _, uid, gid, ..] => Some(Account { uid: uid.parse().ok()?, gid: gid.parse().ok()? }),
            _ => None,
        }
    });
    account.map(Some).ok_or_else(|| {
        let mut failure =
            broken("Postgres refuses to run as root, and there is no user `nobody` to run it as");
        failure.remedy = "run this as another user than root".into();
        failure
    })
}

/// A folder for one server; it goes when the value is dropped.
pub(in crate::demo) fn new_folder() -> Result<TempDir, Failure> {
    let folder = tempfile::Builder::new().prefix("postrider-").tempdir_in(base());
    let folder =
        folder.map_err(|error| broken(format!("create a folder in {}: {error}", base().display())))?;
    // Others may pass through to the part that is theirs, and see nothing.
    set_mode(folder.path(), 0o711)?;
    Ok(folder)
}

/// Gives a file or folder to the account that Postgres runs as.
pub(super) fn give(path: &Path, account: Option<Account>) -> Result<(), Failure> {
    let Some(Account { uid, gid }) = account else { return Ok(()) };
    chown(path, Some(uid), Some(gid)).map_err(|error| broken(format!("chown {}: {error}", path.display())))
}

/// A folder that outlives us and is ours alone; none where somebody else has taken the name.
pub(super) fn cache() -> Option<PathBuf> {
    let me = rustix::process::geteuid().as_raw();
    let folder = base().join(format!("postrider-cache-{me}"));
    let _ = fs::create_dir(&folder);
    let meta = fs::symlink_metadata(&folder).ok()?;
    if !meta.is_dir() || meta.uid() != me {
        return None;
    }
    set_mode(&folder, 0o711).ok()?;
    for entry in fs::read_dir(&folder).ok()?.flatten() {
        let made = entry.metadata().and_then(|meta| meta.modified());
        if made.is_ok_and(|made| SystemTime::now().duration_since(made).is_ok_and(|age| age > CACHE_AGE_MAX))
        {
            let _ = fs::remove_file(entry.path()).or_else(|_| fs::remove_dir_all(entry.path()));
        }
    }
    Some(folder)
}

/// Names what is derived from this version of a program.
pub(super) fn key_of(program: &Path, account: Option<Account>) -> String {
    let meta = fs::metadata(program);
    let mut hasher = DefaultHasher::new();
    (program, meta.as_ref().map(MetadataExt::mtime).ok(), meta.map(|meta| meta.len()).ok()).hash(&mut hasher);
    account.map(|account| (account.uid, account.gid)).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// `bin`, or a copy of its installation where the account can reach it: root's checkout may lie
/// in a folder that nobody else can enter.
pub(super) fn reachable_bin(
    bin: &Path,
    account: Option<Account>,
    folder: &TempDir,
) -> Result<PathBuf, Failure> {
    if account.is_none() || is_open(bin) {
        return Ok(bin.to_owned());
    }
    let home = bin.parent().unwrap_or(bin);
    let copy = match cache() {
        Some(cache) => cache.join(format!("programs-{}", key_of(bin, account))),
        None => folder.path().join("programs"),
    };
    if !copy.is_dir() {
        let parent = copy.parent().unwrap_or(&copy);
        let new = tempfile::Builder::new().prefix("new-").tempdir_in(parent);
        let new = new.map_err(|error| broken(format!("create a folder in {}: {error}", parent.display())))?;
        run(Command::new("cp").arg("-R").arg(home).arg(new.path().join("home")))?;
        run(Command::new("chmod").args(["-R", "a+rX"]).arg(new.path().join("home")))?;
        // Another process may have been quicker; then its copy serves as well.
        if let Err(error) = fs::rename(new.path().join("home"), &copy)
            && !copy.is_dir()
        {
            return Err(broken(format!("rename to {}: {error}", copy.display())));
        }
    }
    Ok(copy.join("bin"))
}

/// Runs a small program to its end.
pub(super) fn run(command: &mut Command) -> Result<(), Failure> {
    let output = command.stdin(Stdio::null()).output();
    let name = command.get_program().to_string_lossy().into_owned();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(broken(format!(
            "`{name}` failed ({}):\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ))),
        Err(error) => Err(broken(format!("run `{name}`: {error}"))),
    }
}

/// A port that was free a moment ago.
pub(in crate::demo) fn free_port() -> Result<u16, Failure> {
    (0..100)
        .map(|_| fastrand::u16(PORTS))
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .ok_or_else(|| broken("no free port on 127.0.0.1 between 20000 and 32000"))
}

/// The system's temporary folder, but for a root whose TMPDIR is private.
fn base() -> PathBuf {
    let folder = std::env::temp_dir();
    if rustix::process::geteuid().is_root() && !is_open(&folder) { PathBuf::from("/tmp") } else { folder }
}

/// Whether everyone may enter the folder.
fn is_open(folder: &Path) -> bool {
    folder.ancestors().all(|part| fs::metadata(part).is_ok_and(|meta| meta.mode() & 0o001 != 0))
}

pub(super) fn set_mode(path: &Path, mode: u32) -> Result<(), Failure> {
    fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(|error| broken(format!("chmod {}: {error}", path.display())))
}
