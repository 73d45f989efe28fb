//! The operating system's account, from which libpq takes the user and the home folder.

use std::path::PathBuf;

/// Who runs the process (`getpwuid` of the effective user).
#[derive(Debug, Clone, Default)]
pub(super) struct Account {
    pub(super) name: Option<String>,
    pub(super) home: Option<PathBuf>,
}

impl Account {
    /// The process's own, as `/etc/passwd` knows it; an account of a directory service is unknown.
    pub(super) fn of_process() -> Account {
        let uid = rustix::process::geteuid().as_raw();
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        Account::find(&passwd, uid).unwrap_or_default()
    }

    /// `name:password:uid:gid:comment:home:shell`
    fn find(passwd: &str, uid: u32) -> Option<Account> {
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let (_password, of) = (fields.next()?, fields.next()?);
            let (_group, _comment, home) = (fields.next()?, fields.next()?, fields.next()?);
            let found = of.parse() == Ok(uid);
            found.then(|| Account { name: Some(name.to_owned()), home: Some(home.into()) })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_found_by_its_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n+nis\nann:x:7:7:Ann,,:/home/ann:/bin/sh\n";
        let account = Account::find(passwd, 7);
        let found = account.map(|account| (account.name, account.home));
        assert_eq!(found, Some((Some("ann".to_owned()), Some("/home/ann".into()))));
        assert!(Account::find(passwd, 8).is_none());
    }
}
