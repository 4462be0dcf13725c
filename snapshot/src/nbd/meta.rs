//! Metadata contexts: what BLOCK_STATUS can be asked about, and the options by which a client finds and selects it.
//! Pure.
//!
//! - `base:allocation`: data, or a hole that reads as zeros,
//! - `qemu:dirty-bitmap:since-SNAPSHOT`: what may have changed since an older snapshot of the same volume.

use crate::device::{Changes, Device};

use super::wire::{self, MAX_STRING};

/// The most queries that one option may have.
const MAX_QUERIES: u32 = 256;
/// The most contexts that a client may select: each has a part in every answer.
pub(super) const MAX_CONTEXTS: usize = 16;

const ALLOCATION: &str = "base:allocation";
/// What names of bitmaps begin with, in QEMU and hence in backup programs.
const BITMAPS: &str = "qemu:dirty-bitmap:";
const SINCE: &str = "qemu:dirty-bitmap:since-";

/// What a client asks for by LIST_META_CONTEXT or SET_META_CONTEXT.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Queries<'d> {
    pub export: &'d [u8],
    pub queries: Vec<&'d [u8]>,
}

/// Why the data of such an option is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadQueries {
    /// Its lengths contradict each other.
    Invalid,
    TooMany,
}

/// Length of the export's name 4, the name, number of queries 4, and of each its length 4 and itself.
pub(super) fn parse(mut data: &[u8]) -> Result<Queries<'_>, BadQueries> {
    let rest = &mut data;
    let export = take_string(rest).ok_or(BadQueries::Invalid)?;
    let count = wire::take_u32(rest).ok_or(BadQueries::Invalid)?;
    if count > MAX_QUERIES {
        return Err(BadQueries::TooMany);
    }
    let queries = (0..count).map(|_| take_string(rest)).collect::<Option<_>>().ok_or(BadQueries::Invalid)?;
    if rest.is_empty() { Ok(Queries { export, queries }) } else { Err(BadQueries::Invalid) }
}

fn take_string<'d>(rest: &mut &'d [u8]) -> Option<&'d [u8]> {
    let length = wire::take_u32(rest)? as usize;
    let (text, after) = rest.split_at_checked(length).filter(|_| length <= MAX_STRING)?;
    *rest = after;
    Some(text)
}

fn offered(device: &dyn Device) -> Vec<String> {
    let since = device.snapshots().into_iter().map(|snapshot| format!("{SINCE}{snapshot}"));
    std::iter::once(ALLOCATION.to_owned()).chain(since).collect()
}

/// The contexts that match one of the queries: by their own names, or a namespace's. All, where there is no query.
pub(super) fn listed(device: &dyn Device, queries: &[&[u8]]) -> Vec<String> {
    let mut offered = offered(device);
    let matches = |query: &[u8], name: &str| match query {
        b"base:" | b"qemu:" => name.as_bytes().starts_with(query),
        query if query == BITMAPS.as_bytes() => name.starts_with(BITMAPS),
        query => query == name.as_bytes(),
    };
    offered.retain(|name| queries.is_empty() || queries.iter().any(|query| matches(query, name)));
    offered
}

/// The contexts that are named, each once.
pub(super) fn selected(device: &dyn Device, queries: &[&[u8]]) -> Vec<String> {
    let mut offered = offered(device);
    offered.retain(|name| queries.contains(&name.as_bytes()));
    offered
}

/// Something that BLOCK_STATUS tells.
pub(super) enum Context {
    Allocation,
    Changes(Box<dyn Changes>),
}

/// None if it is not offered any more.
pub(super) fn open(device: &dyn Device, name: &str) -> Option<Context> {
    match name.strip_prefix(SINCE) {
        Some(snapshot) => device.changes_since(snapshot).map(Context::Changes),
        None => (name == ALLOCATION).then_some(Context::Allocation),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn string(text: &[u8]) -> Vec<u8> {
        [&(text.len() as u32).to_be_bytes(), text].concat()
    }

    #[test]
    fn names_and_numbers_are_limited() {
        let long = [string(&[b'x'; MAX_STRING + 1]), vec![0; 4]].concat();
        assert_eq!(parse(&long), Err(BadQueries::Invalid));
        let many = [string(b"vol"), (MAX_QUERIES + 1).to_be_bytes().to_vec()].concat();
        assert_eq!(parse(&many), Err(BadQueries::TooMany));
        let more = [string(b"vol"), vec![0; 4], vec![7]].concat();
        assert_eq!(parse(&more), Err(BadQueries::Invalid));
    }

    proptest! {
        #[test]
        fn what_was_put_together_is_taken_apart(
            export in prop::collection::vec(any::<u8>(), 0..50),
            queries in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..10),
            cut: prop::sample::Index,
        ) {
            let mut data = string(&export);
            data.extend((queries.len() as u32).to_be_bytes());
            queries.iter().for_each(|query| data.extend(string(query)));
            let parsed = parse(&data).unwrap();
            prop_assert_eq!(parsed.export, &export);
            prop_assert_eq!(parsed.queries, queries);
            prop_assert_eq!(parse(&data[..cut.index(data.len())]), Err(BadQueries::Invalid));
        }
    }
}
