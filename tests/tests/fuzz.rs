//! Every fuzz target on its corpus, and on octets that are like those in it. The long search is `fuzz/run`.

use std::path::Path;

use harness::fuzz::TARGETS;
use timesync::random::Random;

/// So often each input of the corpus is damaged.
const DAMAGED: u64 = 20;

/// Flips, cuts off, repeats or replaces something.
fn damage(octets: &mut Vec<u8>, random: &mut Random) {
    let at = random.below(octets.len().max(1));
    match random.below(4) {
        0 if !octets.is_empty() => octets[at] ^= 1 << random.below(8),
        1 => octets.truncate(at),
        2 => octets.extend_from_within(at..),
        _ if !octets.is_empty() => octets[at] = [0x00, 0xFF, 0x7F, 0x80][random.below(4)],
        _ => octets.push(0),
    }
}

#[test]
fn no_input_makes_a_parser_panic() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    for (name, target) in TARGETS {
        let mut files: Vec<_> =
            corpora.join(name).read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        assert!(!files.is_empty(), "{name} has no corpus");
        let mut random = Random(0x9E37_79B9_7F4A_7C15);
        for file in files {
            let octets = std::fs::read(&file).unwrap();
            target(&octets);
            for _ in 0..DAMAGED {
                let mut octets = octets.clone();
                damage(&mut octets, &mut random);
                damage(&mut octets, &mut random);
                target(&octets);
            }
        }
    }
}
