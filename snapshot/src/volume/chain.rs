//! Layers on top of each other: what a block reads as, and how a request's bytes get into one of them.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::BLOCK;
use super::layer::Layer;
use super::map::State;

/// A volume's layers, the base first.
pub(super) type Chain = Arc<[Arc<Layer>]>;

/// Reads the view that some layers, the base first, give together.
pub(super) fn read(layers: &[Arc<Layer>], offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    let end = offset + buffer.len() as u64;
    let (mut at, mut rest) = (offset, buffer);
    while at < end {
        let (source, run_end) = source_run(layers, at / BLOCK, end.div_ceil(BLOCK));
        let next = end.min(run_end * BLOCK);
        let (now, later) = rest.split_at_mut((next - at) as usize);
        match source {
            Source::Layer(layer) => layers[layer].read(at, now)?,
            Source::Zero => now.fill(0),
            Source::Unknown => {
                return Err(io::Error::other("the page of a map that says what these blocks hold is lost"));
            }
        }
        (at, rest) = (next, later);
    }
    Ok(())
}

/// What a block is read from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Layer(usize),
    Zero,
    Unknown,
}

/// What `block` is read from, and where the run of blocks that are read from there ends.
fn source_run(layers: &[Arc<Layer>], block: u64, limit: u64) -> (Source, u64) {
    let source = source(layers, block);
    let end = (block + 1..limit).find(|&next| self::source(layers, next) != source).unwrap_or(limit);
    (source, end)
}

fn source(layers: &[Arc<Layer>], block: u64) -> Source {
    for (i, layer) in layers.iter().enumerate().rev() {
        match layer.state(block) {
            State::Absent => {}
            State::Data => return Source::Layer(i),
            State::Zero => return Source::Zero,
            State::Unknown => return Source::Unknown,
        }
    }
    Source::Zero
}

/// Whether some blocks are zero without reading them: trimmed, or a hole of the base.
pub(super) fn is_known_zero(layers: &[Arc<Layer>], blocks: Range<u64>) -> bool {
    let mut from_base = false;
    for block in blocks.clone() {
        match source(layers, block) {
            Source::Zero => {}
            Source::Layer(0) => from_base = true,
            Source::Layer(_) | Source::Unknown => return false,
        }
    }
    !from_base || layers[0].is_hole(&(blocks.start * BLOCK..blocks.end * BLOCK))
}

/// What goes into a range.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content<'a> {
    Data(&'a [u8]),
    Zeros {
        punch: bool,
    },
    /// Whole blocks of them, if the file system need not write them.
    FastZeros {
        punch: bool,
    },
}

/// The blocks that a byte range touches.
pub(super) fn blocks_of(range: &Range<u64>) -> Range<u64> {
    range.start / BLOCK..range.end.div_ceil(BLOCK)
}

/// Puts `content` into the top one of `layers`. The caller holds the range's lock: exclusively, if the range has a block
/// of which it covers only a part.
pub(super) fn put(layers: &[Arc<Layer>], range: &Range<u64>, content: Content<'_>) -> io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let block = at / BLOCK;
        let last_whole = range.end / BLOCK;
        if at.is_multiple_of(BLOCK) && block < last_whole {
            put_whole(layers, block..last_whole, range.start, content)?;
            at = last_whole * BLOCK;
        } else {
            let end = range.end.min((block + 1) * BLOCK);
            put_part(layers, at..end, range.start, content)?;
            at = end;
        }
    }
    Ok(())
}

fn put_whole(layers: &[Arc<Layer>], blocks: Range<u64>, start: u64, content: Content<'_>) -> io::Result<()> {
    let Some(top) = layers.last() else { return Ok(()) };
    match content {
        Content::Data(data) => {
            let offset = blocks.start * BLOCK;
            top.write(offset, &data[(offset - start) as usize..(blocks.end * BLOCK - start) as usize])
        }
        Content::Zeros { punch } => top.zero(blocks, punch),
        Content::FastZeros { punch } => top.zero_fast(blocks, punch),
    }
}

/// Part of one block: a block that the layer does not have yet is copied up, because a layer has whole blocks.
fn put_part(layers: &[Arc<Layer>], part: Range<u64>, start: u64, content: Content<'_>) -> io::Result<()> {
    let Some(top) = layers.last() else { return Ok(()) };
    let bytes = match content {
        Content::Data(data) => &data[(part.start - start) as usize..(part.end - start) as usize],
        Content::Zeros { .. } | Content::FastZeros { .. } => {
            &[0; BLOCK as usize][..(part.end - part.start) as usize]
        }
    };
    let block = part.start / BLOCK;
    if top.state(block) == State::Data {
        return top.write(part.start, bytes);
    }
    let mut whole = [0; BLOCK as usize];
    read(layers, block * BLOCK, &mut whole)?;
    let within = (part.start % BLOCK) as usize;
    whole[within..within + bytes.len()].copy_from_slice(bytes);
    top.write(block * BLOCK, &whole)
}
