//! One catalogue of what can go wrong, and the one form in which it reaches a person.
//!
//! Modules have typed errors of their own; where one leaves the relay or a command it becomes a
//! [`Failure`]: a stable [`Code`], what happened, and the remedy. `postrider explain CODE` and the
//! README's table are drawn from the same [`catalogue`](Code::all). How the relay goes on after an
//! error is decided by [`Code::disposition`] alone.

mod catalogue;
mod postgres;

pub use catalogue::Code;
use std::fmt;

/// What the process's exit status says (design: exit codes are part of the contract).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Exit {
    /// Done, or drained after a signal.
    Done = 0,
    /// A fault that no one foresaw.
    Unexpected = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// Postgres says no.
    Postgres = 3,
    /// NATS says no.
    Nats = 4,
    /// The slot or the history does not fit.
    History = 5,
    /// doctor or verify found problems.
    Findings = 6,
    /// Halted at an event that cannot be published.
    Poison = 7,
}

/// How the relay goes on after an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// It passes by itself: back off and try again.
    Retry,
    /// This one event cannot be published.
    Poison,
    /// A person must act. Exits before the first STREAM state; after it the relay stays, is not
    /// ready and probes slowly.
    Operator,
    /// Going on could lose or double events: always exits.
    Halt,
}

/// An error as a person meets it.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Its place in the catalogue.
    pub code: Code,
    /// What happened, in the present tense, without a full stop.
    pub message: String,
    /// What to do: a command, SQL or a setting to paste.
    pub remedy: String,
    /// Statements that mend it, for a superuser in psql.
    pub sql: Vec<String>,
    /// Commands that mend it, for a shell.
    pub commands: Vec<String>,
}

impl Failure {
    /// A failure of `code`.
    pub fn new(code: Code, message: impl Into<String>, remedy: impl Into<String>) -> Failure {
        Failure {
            code,
            message: message.into(),
            remedy: remedy.into(),
            sql: Vec::new(),
            commands: Vec::new(),
        }
    }

    /// The same failure, mended by this statement.
    #[must_use]
    pub fn sql(mut self, statement: impl Into<String>) -> Failure {
        self.sql.push(statement.into());
        self
    }

    /// The same failure, mended by this statement where that holds.
    #[must_use]
    pub fn sql_where(self, holds: bool, statement: impl Into<String>) -> Failure {
        if holds { self.sql(statement) } else { self }
    }

    /// The same failure, mended by a setting that a reload brings in, where SQL can set it. Two statements:
    /// ALTER SYSTEM runs in no transaction, as two in one string are.
    #[must_use]
    pub fn setting(self, holds: bool, name: &str, value: &str) -> Failure {
        self.sql_where(holds, format!("ALTER SYSTEM SET {name} = '{value}';"))
            .sql_where(holds, "SELECT pg_reload_conf();")
    }

    /// The same failure, mended by this command.
    #[must_use]
    pub fn command(mut self, command: impl Into<String>) -> Failure {
        self.commands.push(command.into());
        self
    }

    /// Remedy, statements and commands in one line.
    #[must_use]
    pub fn whole_remedy(&self) -> String {
        self.remedies().collect::<Vec<_>>().join("; ")
    }

    fn remedies(&self) -> impl Iterator<Item = &str> {
        let parts = std::iter::once(&self.remedy).chain(&self.sql).chain(&self.commands);
        parts.map(String::as_str).filter(|part| !part.is_empty())
    }

    /// The same failure, with what was being done in front.
    #[must_use]
    pub fn context(mut self, doing: &str) -> Failure {
        self.message = format!("{doing}: {}", self.message);
        self
    }

    /// The exit status that it leads to.
    #[must_use]
    pub fn exit(&self) -> Exit {
        self.code.exit()
    }
}

/// The README's table of codes.
#[must_use]
pub fn markdown() -> String {
    let mut table = "| code | what | exit |\n| --- | --- | --- |\n".to_owned();
    for code in Code::all() {
        table.push_str(&format!("| `{code}` | {} | {} |\n", code.title(), code.exit() as u8));
    }
    table
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)?;
        for (number, line) in self.remedies().flat_map(str::lines).enumerate() {
            let label = if number == 0 { "  remedy: " } else { "          " };
            write!(f, "\n{label}{line}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}
