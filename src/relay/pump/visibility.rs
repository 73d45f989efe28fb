//! `delivery.wait_visible`: an event goes out once its transaction is visible to others, so that a consumer
//! that reads the database finds what the event tells of.
//!
//! One snapshot says it of all that waits; while it is asked for, the next events gather.

use super::*;
use crate::postgres::snapshot::Snapshot;

/// Between two snapshots of which the first did not show what was waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// What is known of it, and the question that is under way.
#[derive(Default)]
pub(super) struct Visibility {
    snapshot: Option<Snapshot>,
    pub(super) asking: Option<LocalBoxFuture<'static, Result<Snapshot, Failure>>>,
    /// The last snapshot did not show what was waited for.
    in_vain: bool,
}

impl<S: Sides> Pump<'_, S> {
    /// Whether the first event that waits may go out; asks where that is not known.
    pub(super) fn is_visible(&mut self) -> bool {
        let Some(xid) = self.window.waiting().map(|item| item.taken.xid) else { return true };
        let Visibility { snapshot, asking, in_vain } = &mut self.visibility;
        if snapshot.as_ref().is_some_and(|snapshot| snapshot.shows(xid)) {
            *in_vain = false;
            return true;
        }
        if asking.is_none() {
            let (base, pause) = (self.session.base.clone(), std::mem::replace(in_vain, true));
            *asking = Some(Box::pin(async move {
                if pause {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                base.snapshot().await
            }));
        }
        false
    }

    pub(super) fn saw(&mut self, snapshot: Snapshot) {
        self.visibility.asking = None;
        self.visibility.snapshot = Some(snapshot);
    }
}
