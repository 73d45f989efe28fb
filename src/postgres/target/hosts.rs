//! Puts hosts, addresses and ports together: lists that go together must be equally long, and only
//! a single port may stand for all.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::parameters::{Settings, Value};
use super::{Address, Host, TargetError};

const PORT: u16 = 5432;

/// The hosts, without their passwords.
pub(super) fn resolve(settings: &Settings, socket_directories: &[&Path]) -> Result<Vec<Host>, TargetError> {
    let (host, hostaddr) = (settings.get("host"), settings.get("hostaddr"));
    let names = host.map_or_else(Vec::new, Value::list);
    let addresses = hostaddr.map_or_else(Vec::new, Value::list);
    if let (Some(host), Some(hostaddr)) = (host, hostaddr) {
        same_count(hostaddr.part, addresses.len(), host.part, names.len())?;
    }
    let count = names.len().max(addresses.len()).max(1);
    let ports = ports(settings.get("port"), count, host.or(hostaddr))?;

    let mut hosts = Vec::with_capacity(count);
    for (index, port) in ports.into_iter().enumerate() {
        let name = names.get(index).copied().unwrap_or_default();
        let address = addresses.get(index).copied().unwrap_or_default();
        let (address, name) = if !address.is_empty() {
            let name = (!name.is_empty()).then(|| name.to_owned());
            (numeric(address, hostaddr.map_or("hostaddr", |value| value.part))?, name)
        } else if name.is_empty() {
            (default_address(port, socket_directories), None)
        } else {
            (named(name, host.map_or("host", |value| value.part))?, None)
        };
        hosts.push(Host { address, port, name, password: None });
    }
    Ok(hosts)
}

fn same_count(
    left: &'static str,
    left_count: usize,
    right: &'static str,
    right_count: usize,
) -> Result<(), TargetError> {
    if left_count == right_count {
        return Ok(());
    }
    Err(TargetError::Count { left, left_count, right, right_count })
}

/// One port a host; an empty entry is the default.
fn ports(value: Option<&Value>, count: usize, hosts: Option<&Value>) -> Result<Vec<u16>, TargetError> {
    let Some(value) = value else {
        return Ok(vec![PORT; count]);
    };
    let entries = value.list();
    let ports = entries.iter().map(|entry| match entry.trim() {
        "" => Ok(PORT),
        entry => entry.parse().ok().filter(|port| *port != 0).ok_or_else(|| TargetError::Invalid {
            part: value.part,
            problem: "is not a number from 1 to 65535 (in a URL: an IPv6 address belongs in \
                      brackets, and / : @ in a password are written %2F %3A %40)"
                .to_owned(),
        }),
    });
    let ports = ports.collect::<Result<Vec<u16>, _>>()?;
    if let [port] = ports.as_slice() {
        return Ok(vec![*port; count]);
    }
    same_count(value.part, ports.len(), hosts.map_or("host", |hosts| hosts.part), count)?;
    Ok(ports)
}

fn numeric(address: &str, part: &'static str) -> Result<Address, TargetError> {
    // An IPv6 address may name its interface: fe80::1%eth0.
    let ip = address.split_once('%').map_or(address, |(ip, _)| ip);
    match ip.parse::<IpAddr>() {
        Ok(_) => Ok(Address::Tcp(address.to_owned())),
        Err(_) => Err(TargetError::Invalid { part, problem: "must be an IP address".to_owned() }),
    }
}

fn named(name: &str, part: &'static str) -> Result<Address, TargetError> {
    if name.starts_with('@') {
        return Err(TargetError::Unsupported {
            part: format!("{part} with an abstract socket (@...)"),
            remedy: "use a host name or the directory of a socket",
        });
    }
    Ok(match name.starts_with('/') {
        true => Address::Unix(PathBuf::from(name)),
        false => Address::Tcp(name.to_owned()),
    })
}

fn default_address(port: u16, socket_directories: &[&Path]) -> Address {
    socket_directories
        .iter()
        .find(|directory| directory.join(format!(".s.PGSQL.{port}")).exists())
        .map_or_else(
            || Address::Tcp("localhost".to_owned()),
            |directory| Address::Unix(directory.to_path_buf()),
        )
}
