//! The command line: one file a command, exit statuses decided here.

mod completions;
mod config;
mod decrypt;
mod demo;
mod dlq;
mod doctor;
mod explain;
mod init;
mod logging;
mod man;
mod prune;
mod recover;
mod remove;
mod run;
mod shadow;
mod status;
mod tail;
mod verify;

use crate::config::{Config, Environment};
use crate::error::{Code, Exit, Failure};
use clap::{CommandFactory, Parser, Subcommand};
use serde::Serialize;
use std::future::Future;
use std::io::{IsTerminal, Write, stdin, stdout};
use std::process::ExitCode;
use tokio::runtime::Builder;

/// Publishes every committed row of an outbox table to NATS JetStream, once and in commit order.
#[derive(Debug, Parser)]
#[command(name = "postrider", version, about, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make what `run` needs: schema, publication, slot, stream, checkpoint row.
    Init(init::Args),
    /// Relay events until stopped.
    Run(run::Args),
    /// Show where the relay is.
    Status(status::Args),
    /// Look at the whole chain and say what is wrong, and what mends it.
    Doctor(doctor::Args),
    /// Compare table and stream: each row stored once, in order, and nothing else there.
    Verify(verify::Args),
    /// Mark, delete, archive and drop outbox rows whose events are stored.
    Prune(prune::Args),
    /// Publish the rows that the stream lacks, and let the relay go on.
    Recover(recover::Args),
    /// Look at dead letters, send them again, put them away.
    Dlq(dlq::Args),
    /// Show events as they are stored.
    Tail(tail::Args),
    /// Print the plain payload of an encrypted message.
    Decrypt(decrypt::Args),
    /// Drop slot, checkpoint row and publication when the relay is gone for good.
    Remove(remove::Args),
    /// See a whole pipeline work, on servers of its own.
    Demo(crate::demo::DemoArgs),
    /// Show every key, its value and where that came from.
    Config(config::Args),
    /// Say what an error code means.
    Explain(explain::Args),
    #[command(hide = true)]
    Completions(completions::Args),
    #[command(hide = true)]
    Man(man::Args),
}

/// The process: parses the command line, runs the command, prints what went wrong.
#[must_use]
pub fn main() -> ExitCode {
    // Both Postgres and NATS speak TLS through it; without it the first handshake would fail.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        eprintln!("another TLS provider is installed already");
    }
    let ended = match Cli::parse().command {
        Command::Init(args) => init::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Prune(args) => prune::run(&args),
        Command::Recover(args) => recover::run(&args),
        Command::Dlq(args) => dlq::run(&args),
        Command::Tail(args) => tail::run(&args),
        Command::Decrypt(args) => decrypt::run(&args, &Environment::of_process(), &mut stdout()),
        Command::Remove(args) => remove::run(&args),
        Command::Demo(args) => demo::run(args),
        Command::Config(args) => config::run(&args, &Environment::of_process(), &mut stdout()),
        Command::Explain(args) => explain::run(&args, &mut stdout()),
        Command::Completions(args) => completions::run(&args, &mut stdout()),
        Command::Man(args) => man::run(&args),
    };
    match ended {
        Ok(()) => ExitCode::from(Exit::Done as u8),
        Err(failures) => {
            for failure in &failures {
                eprintln!("{failure}");
            }
            let exit = failures.first().map_or(Exit::Unexpected, Failure::exit);
            ExitCode::from(exit as u8)
        }
    }
}

/// The command line as a whole, for completions and manual pages.
fn command_line() -> clap::Command {
    Cli::command()
}

/// What a command ends with: all that is wrong with its input, or the one failure that ended it.
type Ended = Result<(), Vec<Failure>>;

/// Runs a command's future on the calling thread.
fn block_on<F: Future<Output = Result<(), Failure>>>(future: F) -> Ended {
    drive(&mut Builder::new_current_thread(), future)
}

fn drive<F: Future<Output = Result<(), Failure>>>(runtime: &mut Builder, future: F) -> Ended {
    let runtime = runtime.enable_all().build();
    let runtime = runtime.map_err(|error| {
        vec![Failure::new(Code::Unexpected, format!("no runtime: {error}"), "see the limits of the process")]
    })?;
    runtime.block_on(future).map_err(|failure| vec![failure])
}

fn load(flags: &crate::config::Flags) -> Result<Config, Vec<Failure>> {
    Config::load(flags)
}

/// Prints a report as one JSON object, or as a person reads it.
fn print<R: Serialize>(report: &R, json: bool, human: impl FnOnce(&R) -> String) -> Ended {
    let text = if json {
        serde_json::to_string(report)
            .map_err(|error| vec![Failure::new(Code::Unexpected, error.to_string(), "report it")])?
            + "\n"
    } else {
        human(report)
    };
    // A reader that has seen enough is no error.
    let _ = stdout().write_all(text.as_bytes());
    Ok(())
}

/// What an event holds must not steer the terminal.
fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() {
            true => shown.extend(character.escape_default()),
            false => shown.push(character),
        }
    }
    shown
}

/// Asks whoever sits at the terminal; `unasked` is the command that does not ask.
fn confirmed(question: &str, unasked: &str) -> Result<bool, Failure> {
    let input = stdin();
    if !input.is_terminal() {
        return Err(Failure::new(
            Code::MissingValue,
            "nobody is here to be asked, and this cannot be undone",
            unasked,
        ));
    }
    print!("{question} [y/N] ");
    let _ = stdout().flush();
    let mut answer = String::new();
    let read = input.read_line(&mut answer);
    Ok(read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes"))
}
