//! The `postrider` binary: hands over to [`postrider::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    postrider::cli::main()
}
