//! Snapshots that are taken wrongly on purpose, each opened and checked: how much does the check see, and does the
//! certificate refuse them?

use std::fmt;
use std::time::Duration;

use coeval_cli::table::Table;
use coeval_cli::workload::{Workload, check_exports};
use snapshot::http::ControlError;
use snapshot::messages::{Control, CreateRequest, RequestedMode, Verdict};
use timesync::time::Nanos;

use crate::chaos::{TOKENS, exports};
use crate::eventually;
use crate::fleet::{Fleet, Setup, VOLUME, assert_writes_go_on};

/// What time exchanges take longer, one way.
const ADDED: Nanos = Nanos::from_millis(2);

/// A token's rest between two writes. Shorter than [`ADDED`], by which two hosts' cuts differ without V: what a token wrote
/// after the one's must have reached the other before its own.
const REST: Duration = Duration::from_micros(500);

/// Larger than any two clocks' difference, so that no host refuses an untranslated T as late.
const LONG_LEAD: Nanos = Nanos::from_millis(250);

/// What came of them.
#[derive(Debug)]
pub struct Controls(Vec<Kind>);

#[derive(Debug)]
struct Kind {
    name: &'static str,
    taken: usize,
    /// That are no consistent cut.
    torn: usize,
    /// Writes that one image knows of and another one lacks, in all of them.
    violations: usize,
    certified: usize,
    /// Certified and torn.
    wrong: usize,
}

impl Controls {
    /// How many are certified and torn: none may be. Certified, one that was planned wrongly may be: where every host
    /// happened to release as late as it should have been told to, the readings say so, and the cut is consistent.
    pub fn certified_wrongly(&self) -> usize {
        self.0.iter().map(|kind| kind.wrong).sum()
    }
}

impl fmt::Display for Controls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headings = ["taken wrongly", "taken", "torn per 1000", "violations per 1000", "certified"];
        let mut table = Table::new(&headings);
        for Kind { name, taken, torn, violations, certified, .. } in &self.0 {
            let per_1000 = |count: usize| (count * 1_000 / (*taken).max(1)).to_string();
            let row = [(*name).to_owned(), taken.to_string(), per_1000(*torn), per_1000(*violations)];
            table.row(row.into_iter().chain([certified.to_string()]).collect());
        }
        write!(f, "{table}")
    }
}

/// Takes so many of each kind on a fleet of so many hosts, whose clocks differ and whose time network is lopsided.
///
/// # Panics
/// When a write fails or a daemon does not start.
pub fn run(hosts: u8, count: usize) -> Controls {
    let names: Vec<String> = (1..=hosts).map(|number| format!("host{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let setup = Setup { lopsided: Some(ADDED), ..Setup::default() };
    let fleet = Fleet::start_with(&names, &setup).unwrap();
    names.iter().for_each(|name| fleet.create_volume(name));
    fleet.wait_for_bounds();
    let workload = Workload::start(&exports(&fleet.cluster.hosts, VOLUME), TOKENS, REST).unwrap();
    assert_writes_go_on(&workload);
    let kinds = [
        ("uncoordinated: each cuts when it is told", Control::Uncoordinated),
        ("untranslated: T is one number everywhere", Control::Untranslated),
        ("zero stretch: V = 0", Control::ZeroStretch),
    ];
    let kinds = kinds.map(|(name, control)| {
        let mut kind = Kind { name, taken: 0, torn: 0, violations: 0, certified: 0, wrong: 0 };
        for _ in 0..count {
            take(&fleet, control, &mut kind);
        }
        kind
    });
    workload.stop().unwrap();
    Controls(kinds.into())
}

fn take(fleet: &Fleet, control: Control, kind: &mut Kind) {
    let order = CreateRequest {
        mode: RequestedMode::Timed,
        control: Some(control),
        attempts: Some(10),
        lead_ns: (control == Control::Untranslated).then_some(LONG_LEAD),
        ..CreateRequest::default()
    };
    let manifest = match fleet.api(async |api| api.create(&order, |_| {}).await) {
        Ok(manifest) => manifest,
        // A busy machine armed its hosts too late each time.
        Err(ControlError::Refused { .. }) => return,
        Err(error) => panic!("{error}"),
    };
    let exports = exports(&fleet.cluster.hosts, &format!("{VOLUME}@{}", manifest.name));
    let violations = eventually(|| check_exports(&exports, TOKENS)).len();
    kind.taken += 1;
    kind.torn += usize::from(violations > 0);
    kind.violations += violations;
    let certified = manifest.verdict == Verdict::Consistent;
    kind.certified += usize::from(certified);
    kind.wrong += usize::from(certified && violations > 0);
    fleet.delete(&manifest.name);
}
