//! Answers to BLOCK_STATUS.

use std::ops::ControlFlow;

use super::buffer::Buffer;
use super::handshake::Chosen;
use super::meta::Context;
use super::wire::{self, Request, status_flag};
use crate::device::{DeviceError, Outcome};

/// The most runs that an answer tells of one context. The client asks again for the rest.
const MAX_RUNS: usize = 4096;

/// Adds the whole reply, a chunk for each context; it is complete if this succeeds. With `one`, each has a single run.
pub(super) fn answer(export: &Chosen, request: Request, one: bool, replies: &mut Buffer) -> Outcome {
    let range = request.offset..request.offset + u64::from(request.length);
    let most = if one { 1 } else { MAX_RUNS };
    let mut whole = Outcome::now(if export.contexts.is_empty() { Err(DeviceError::Invalid) } else { Ok(()) });
    for (number, (id, context)) in export.contexts.iter().enumerate() {
        let mut runs: Vec<(u32, u32)> = Vec::new();
        let flag = match context {
            Context::Allocation => status_flag::HOLE | status_flag::ZERO,
            Context::Changes(_) => status_flag::DIRTY,
        };
        let mut visit = |run: std::ops::Range<u64>, is_set| {
            // Inside a request, whose length is a u32.
            runs.push(((run.end - run.start) as u32, if is_set { flag } else { 0 }));
            if runs.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let outcome = match context {
            Context::Allocation => export.device.holes(range.clone(), &mut visit),
            Context::Changes(changes) => changes.within(range.clone(), &mut visit),
        };
        // A cut that is armed after another one was is armed after that one's release.
        whole.hold = outcome.hold.or(whole.hold);
        whole.result = whole.result.and(outcome.result);
        if whole.result.is_err() {
            break;
        }
        let last = number + 1 == export.contexts.len();
        replies.push(&wire::status_chunk_head(request.cookie, *id, runs.len(), last));
        for (length, flags) in runs {
            replies.push(&length.to_be_bytes());
            replies.push(&flags.to_be_bytes());
        }
    }
    whole
}
