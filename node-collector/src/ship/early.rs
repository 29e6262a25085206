//! Times of a clock that was not set are put right when a batch is sent: by then the clock is, and what it says now and what it
//! said then are compared by the time since the boot. A time before 2020 is such a time.

use sonde_common::time::now_ns;
use sonde_proto::limits::EARLIEST_NS;
use sonde_proto::v1::BatchBody;
use sonde_proto::{body, gap};

use super::spool::{Frame, Spool};
use crate::event::{Gap, Subject};
use crate::kernel::boot_ns;

const UNKNOWN: &str =
    "rows or events of before the machine was started: its clock was not set then, and nobody knows when they were";

fn is_early(ns: u64) -> bool {
    ns < EARLIEST_NS
}

/// The clock of now, minus the time since the boot.
fn offset_ns() -> i64 {
    now_ns() as i64 - boot_ns() as i64
}

/// To be called before something is stamped. Whether the clock is set.
pub(super) fn look(spool: &Spool) -> bool {
    if !is_early(now_ns()) {
        return true;
    }
    if let Err(error) = spool.clock_is_unset(offset_ns()) {
        tracing::warn!(%error, "the clock is not set, and what it says cannot be noted");
    }
    false
}

/// What becomes of a batch.
pub(super) enum Put {
    /// It is sent, as it is or put right.
    Sent(Frame),
    /// Nobody knows when its rows and events were.
    Lost(Frame, Gap),
}

/// While the clock is set.
pub(super) fn put_right(frame: Frame, spool: &Spool) -> Put {
    // A batch of pods alone has no time of its own, and may hold some.
    if !is_early(frame.contents.from_ns) {
        return Put::Sent(frame);
    }
    let Ok(mut body) = body::decode(&frame.payload) else {
        return Put::Sent(frame);
    };
    let (now, boot) = (now_ns(), offset_ns());
    let offset = spool.unset_offset_ns(frame.sequence);
    if offset.is_none() && frame.contents.count > 0 {
        let gap = Gap {
            probe: "",
            cause: gap::CLOCK_STEP,
            from_ns: boot as u64,
            to_ns: boot as u64,
            count: frame.contents.count.into(),
            subject: Subject::Node,
            detail: UNKNOWN.to_owned(),
        };
        return Put::Lost(frame, gap);
    }
    let shift = offset.map(|offset| boot - offset);
    let mut changed = false;
    times(&mut body, |ns, may_be_unknown| {
        if is_early(*ns) && !(may_be_unknown && *ns == 0) {
            changed = true;
            *ns = match shift {
                Some(shift) => ns.saturating_add_signed(shift).min(now),
                None if may_be_unknown => 0,
                None => boot as u64,
            };
        }
    });
    if !changed {
        return Put::Sent(frame);
    }
    let payload = body::encode(&body).into();
    Put::Sent(Frame { payload, ..frame })
}

/// All points in time of a batch; and whether 0 says of it that it is not known.
fn times(body: &mut BatchBody, mut change: impl FnMut(&mut u64, bool)) {
    for pod in &mut body.pods {
        change(&mut pod.valid_from_ns, true);
        if pod.valid_to_ns != 0 {
            change(&mut pod.valid_to_ns, false);
        }
    }
    body.rows.iter_mut().for_each(|rows| change(&mut rows.time_ns, false));
    body.events
        .iter_mut()
        .for_each(|event| change(&mut event.time_ns, false));
    for gap in &mut body.gaps {
        change(&mut gap.from_ns, false);
        change(&mut gap.to_ns, false);
    }
}
