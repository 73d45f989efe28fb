//! The two shapes of a connection string, read as libpq's `conninfo_uri_parse` and
//! `conninfo_parse` read them. Does not know what a parameter means.

use std::iter::Peekable;
use std::str::Chars;

use super::TargetError;
use super::parameters::Settings;

const STRAY_AT: TargetError = TargetError::Syntax(
    "an @ after user:password@ must be written %40; in a password, write @ as %40 and / as %2F",
);

/// Reads a URL, or else a key=value string.
pub(super) fn settings(text: &str) -> Result<Settings, TargetError> {
    let mut settings = Settings::default();
    if let Some(rest) = text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://")) {
        url(rest, &mut settings)?;
    } else if is_other_scheme(text) {
        return Err(TargetError::Syntax("a URL must begin with postgres:// or postgresql://"));
    } else {
        key_values(text, &mut settings)?;
    }
    Ok(settings)
}

fn is_other_scheme(text: &str) -> bool {
    text.trim_start().split_once("://").is_some_and(|(scheme, _)| {
        scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
    })
}

fn url(text: &str, settings: &mut Settings) -> Result<(), TargetError> {
    let rest = match text.split_once('@') {
        Some((userinfo, rest)) if !userinfo.contains('/') => {
            user_and_password(userinfo, settings)?;
            rest
        }
        _ => text,
    };
    // Whatever part of an unescaped password was cut off above is still followed by its @.
    if rest.contains('@') {
        return Err(STRAY_AT);
    }
    let (rest, query) = match rest.split_once('?') {
        Some((rest, query)) => (rest, Some(query)),
        None => (rest, None),
    };
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    hosts(authority, settings)?;
    set_decoded(settings, "dbname", database)?;

    for pair in query.into_iter().flat_map(|query| query.split('&')).filter(|pair| !pair.is_empty()) {
        let (name, value) =
            pair.split_once('=').ok_or(TargetError::Syntax("a parameter after ? has no = and value"))?;
        let (name, value) = (decode("parameter", name)?, decode("parameter", value)?);
        match (name.as_str(), value.as_str()) {
            // libpq takes JDBC's spelling in URLs.
            ("ssl", "true") => settings.set("sslmode", "require".to_owned())?,
            _ => settings.set(&name, value)?,
        }
    }
    Ok(())
}

fn user_and_password(userinfo: &str, settings: &mut Settings) -> Result<(), TargetError> {
    let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
    let port_and_query = password
        .split_once('?')
        .is_some_and(|(port, query)| port.parse::<u16>().is_ok() && query.contains('='));
    // host?password=a@b is not a user.
    if user.contains('?') || port_and_query {
        return Err(STRAY_AT);
    }
    set_decoded(settings, "user", user)?;
    set_decoded(settings, "password", password)
}

fn hosts(authority: &str, settings: &mut Settings) -> Result<(), TargetError> {
    let mut names = Vec::new();
    let mut ports = Vec::new();
    for entry in authority.split(',') {
        let (name, port) = match entry.strip_prefix('[') {
            Some(entry) => bracketed(entry)?,
            None => entry.split_once(':').unwrap_or((entry, "")),
        };
        names.push(name);
        ports.push(port);
    }
    set_decoded(settings, "host", &names.join(","))?;
    if ports.iter().any(|port| !port.is_empty()) {
        set_decoded(settings, "port", &ports.join(","))?;
    }
    Ok(())
}

fn bracketed(entry: &str) -> Result<(&str, &str), TargetError> {
    let invalid = |problem: &str| TargetError::Invalid { part: "host", problem: problem.to_owned() };
    let (address, after) = entry.split_once(']').ok_or_else(|| invalid("has a [ without its ]"))?;
    if address.is_empty() {
        return Err(invalid("has no address between [ and ]"));
    }
    if after.is_empty() {
        return Ok((address, ""));
    }
    let port = after.strip_prefix(':').ok_or_else(|| invalid("has text after its ]"))?;
    Ok((address, port))
}

/// Parts of a URL that are empty are left out.
fn set_decoded(settings: &mut Settings, name: &'static str, text: &str) -> Result<(), TargetError> {
    match decode(name, text)? {
        text if text.is_empty() => Ok(()),
        text => settings.set(name, text),
    }
}

fn decode(part: &'static str, text: &str) -> Result<String, TargetError> {
    let invalid = |problem: &str| TargetError::Invalid { part, problem: problem.to_owned() };
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return Err(invalid("has a % without two hexadecimal digits: write % as %25"));
        };
        decoded.push(high * 16 + low);
    }
    String::from_utf8(decoded).map_err(|_| invalid("is not UTF-8 once its % are decoded"))
}

fn key_values(text: &str, settings: &mut Settings) -> Result<(), TargetError> {
    let mut chars = text.chars().peekable();
    loop {
        skip_space(&mut chars);
        if chars.peek().is_none() {
            return Ok(());
        }
        let mut name = String::new();
        while let Some(char) = chars.next_if(|char| *char != '=' && !is_space(*char)) {
            name.push(char);
        }
        skip_space(&mut chars);
        if chars.next() != Some('=') {
            return Err(TargetError::Syntax(
                "expected a postgres:// URL or key=value pairs, but a word has no = after it; \
                 quote a value that has blanks as '...'",
            ));
        }
        skip_space(&mut chars);
        let value = value(&mut chars)?;
        settings.set(&name, value)?;
    }
}

fn value(chars: &mut Peekable<Chars<'_>>) -> Result<String, TargetError> {
    let mut value = String::new();
    let quoted = chars.next_if_eq(&'\'').is_some();
    while let Some(char) = chars.next() {
        match char {
            '\'' if quoted => return Ok(value),
            char if !quoted && is_space(char) => return Ok(value),
            '\\' => value.extend(chars.next()),
            char => value.push(char),
        }
    }
    match quoted {
        true => Err(TargetError::Syntax("a quoted value has no ' at its end")),
        false => Ok(value),
    }
}

fn skip_space(chars: &mut Peekable<Chars<'_>>) {
    while chars.next_if(|char| is_space(*char)).is_some() {}
}

/// C's `isspace`, which is what libpq asks.
fn is_space(char: char) -> bool {
    matches!(char, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}
