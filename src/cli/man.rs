//! `postrider man`, for packages and for whoever builds from source.

use super::{Ended, command_line};
use crate::error::{Code, Failure};
use clap_mangen::Man;
use std::io;
use std::path::{Path, PathBuf};

/// Write the manual pages, one a command.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  postrider man /usr/local/share/man/man1")]
pub(super) struct Args {
    /// The folder, which must exist.
    folder: PathBuf,
}

pub(super) fn run(args: &Args) -> Ended {
    let mut all = command_line().disable_help_subcommand(true);
    all.build();
    write(&all, &args.folder).map_err(|error| {
        let message = format!("write manual pages into {}: {error}", args.folder.display());
        vec![Failure::new(Code::InvalidValue, message, "give a folder that exists and can be written")]
    })
}

fn write(command: &clap::Command, folder: &Path) -> io::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        write(below, folder)?;
    }
    // Where there is no date at all, roff takes the source for it. A date would make each build another one.
    let page = Man::new(command.clone()).date(" ").source(concat!("postrider ", env!("CARGO_PKG_VERSION")));
    page.manual("Postrider").generate_to(folder).map(drop)
}
