use proptest::prelude::*;

use super::*;
use ExportError as E;
use ExtentState::{Data, Unchanged, Zero};

fn extents(runs: &[(u64, ExtentState)]) -> Vec<Extent> {
    let mut offset = 0;
    let next = |&(blocks, state): &(u64, ExtentState)| {
        let extent = Extent { offset, length: blocks * BLOCK, state };
        offset += extent.length;
        extent
    };
    runs.iter().map(next).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn runs_say_block_by_block_what_the_extents_say(
        list in proptest::collection::vec((1_u64..40, prop_oneof![Just(Data), Just(Zero), Just(Unchanged)]), 1..60),
        grain_blocks in prop_oneof![Just(1_u64), Just(16)],
        range_blocks in prop_oneof![Just(16_u64), Just(64)],
    ) {
        let extents = extents(&list);
        let blocks: Vec<_> =
            list.iter().flat_map(|&(count, state)| std::iter::repeat_n(state, count as usize)).collect();
        let size = blocks.len() as u64 * BLOCK;
        prop_assert!(check_extents(&extents, size).is_ok());
        let (mut rest, mut told) = (&extents[..], Vec::new());
        for start in (0..size).step_by((range_blocks * BLOCK) as usize) {
            let range = start..size.min(start + range_blocks * BLOCK);
            let mut end = range.start;
            for (run, state) in runs_of(&mut rest, &range, grain_blocks * BLOCK) {
                prop_assert_eq!(run.start, end);
                prop_assert!(run.end == size || run.end.is_multiple_of(grain_blocks * BLOCK));
                end = run.end;
                told.extend(std::iter::repeat_n(state, ((run.end - run.start) / BLOCK) as usize));
            }
            prop_assert_eq!(end, range.end);
        }
        // A grain is what all of its blocks are, or data.
        let expected = blocks.chunks(grain_blocks as usize).flat_map(|grain| {
            let state = if grain.iter().all(|state| *state == grain[0]) { grain[0] } else { Data };
            std::iter::repeat_n(state, grain.len())
        });
        prop_assert_eq!(told, expected.collect::<Vec<_>>());
    }
}

#[test]
fn a_list_of_extents_with_a_gap_is_refused() {
    let whole = extents(&[(3, Data), (1, Zero)]);
    assert!(check_extents(&whole, 4 * BLOCK).is_ok());
    assert!(matches!(check_extents(&whole, 5 * BLOCK), Err(E::Extents(_))), "too short");
    assert!(matches!(check_extents(&whole, 3 * BLOCK), Err(E::Extents(_))), "too long");
    assert!(matches!(check_extents(&whole[1..], 4 * BLOCK), Err(E::Extents(_))), "its start is missing");
    let twice = [whole[0].clone(), whole[0].clone()];
    assert!(matches!(check_extents(&twice, 6 * BLOCK), Err(E::Extents(_))), "an overlap");
}

#[test]
fn a_backing_file_is_named_as_seen_from_the_image() {
    for (from, to, way) in [
        ("/b", "/b/full.qcow2", "./full.qcow2"),
        ("/b", "/b/12:00.qcow2", "./12:00.qcow2"),
        ("/b/mon/a", "/b/sun/a/v.qcow2", "../../sun/a/v.qcow2"),
        ("/", "/x/v", "./x/v"),
    ] {
        assert_eq!(relative(Path::new(from), Path::new(to)), Path::new(way));
    }
}
