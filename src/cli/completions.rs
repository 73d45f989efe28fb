//! `postrider completions`, for packages and for whoever builds from source.

use super::{Ended, command_line};
use std::io::Write;

/// Print what a shell completes by.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  postrider completions bash > ~/.local/share/bash-completion/completions/postrider
  postrider completions zsh > /usr/local/share/zsh/site-functions/_postrider")]
pub(super) struct Args {
    /// Which shell.
    shell: clap_complete::Shell,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Ended {
    clap_complete::generate(args.shell, &mut command_line(), "postrider", out);
    Ok(())
}
