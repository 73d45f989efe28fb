//! `postrider demo`: see [`crate::demo`].

use super::Ended;
use crate::demo::{DemoArgs, run as perform};
use crate::error::{Code, Failure};

/// Shop and consumer on threads of their own, so that the latency shown is the relay's.
const THREADS: usize = 2;

pub(super) fn run(args: DemoArgs) -> Ended {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build();
    let runtime = runtime.map_err(|error| {
        vec![Failure::new(Code::Unexpected, format!("no runtime: {error}"), "see the limits of the process")]
    })?;
    runtime.block_on(perform(args)).map_err(|failure| vec![failure])
}
