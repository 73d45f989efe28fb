//! Every code, once. A code is never reused and never changes its meaning.
//!
//! | range | of |
//! | --- | --- |
//! | PR00xx | the process |
//! | PR01xx | command line and configuration |
//! | PR02xx | Postgres |
//! | PR03xx | NATS |
//! | PR04xx | slot, checkpoint, history |
//! | PR05xx | events |

use super::{Disposition, Exit};
use std::fmt;
use std::str::FromStr;

macro_rules! catalogue {
    ($($name:ident = $code:literal, $exit:ident, $disposition:ident, $title:literal, $explain:literal;)*) => {
        /// A stable error code.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code {
            $(#[doc = $title] $name,)*
        }

        impl Code {
            /// The whole catalogue, in order.
            #[must_use]
            pub const fn all() -> &'static [Code] {
                &[$(Code::$name,)*]
            }

            /// As printed: `PR0123`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Code::$name => $code,)* }
            }

            /// A few words for a table.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Code::$name => $title,)* }
            }

            /// What `postrider explain` prints below the title.
            #[must_use]
            pub const fn explain(self) -> &'static str {
                match self { $(Code::$name => $explain,)* }
            }

            /// The exit status of a process that ends with it.
            #[must_use]
            pub const fn exit(self) -> Exit {
                match self { $(Code::$name => Exit::$exit,)* }
            }

            /// How the relay goes on after it.
            #[must_use]
            pub const fn disposition(self) -> Disposition {
                match self { $(Code::$name => Disposition::$disposition,)* }
            }
        }
    };
}

catalogue! {
    Unexpected = "PR0001", Unexpected, Halt, "a fault that no one foresaw",
        "A bug or a broken environment. Nothing is lost: what was not confirmed is sent again at the next start. Please report it with the log.";

    PostgresUnreachable = "PR0201", Postgres, Retry, "Postgres cannot be reached",
        "No host of postgres.url accepts a connection, or it closed before it was ready. The relay waits and tries again; with start_timeout it gives up after that time.";
    PostgresSession = "PR0202", Postgres, Retry, "the connection to Postgres ended",
        "The server restarted, ended the session, or the network broke. The relay starts a new session from the checkpoint row and the slot.";

    NatsUnreachable = "PR0301", Nats, Retry, "NATS cannot be reached",
        "No server of nats.url accepts a connection. The relay lets go of Postgres meanwhile, waits and tries again; with start_timeout it gives up after that time.";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// No such code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no code `{0}`")]
pub struct UnknownCode(String);

impl FromStr for Code {
    type Err = UnknownCode;

    fn from_str(text: &str) -> Result<Code, UnknownCode> {
        Code::all()
            .iter()
            .copied()
            .find(|code| code.as_str().eq_ignore_ascii_case(text))
            .ok_or_else(|| UnknownCode(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_ordered_and_explained() {
        let codes: Vec<_> = Code::all().iter().map(|code| code.as_str()).collect();
        assert!(codes.windows(2).all(|pair| pair[0] < pair[1]), "{codes:?}");
        for code in Code::all() {
            assert!(code.as_str().len() == 6 && code.as_str().starts_with("PR"), "{code}");
            assert!(code.explain().len() > 40, "{code} is not explained");
            assert_eq!(code.as_str().parse(), Ok(*code));
        }
    }
}
