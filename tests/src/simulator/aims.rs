//! Worlds in which one kind of mistake shows far more often than elsewhere. Each is what happens to other worlds too,
//! only more of it: a thread that sleeps at one of some lines around a cut, a crash in some milliseconds of it. A third
//! of the worlds is such a one, whatever mistake there is.

use snapshot::messages::RequestedMode;
use snapshot::simulation::Mutation;
use timesync::random::Random;

use super::faults::{Fault, When};
use super::fibers::{Until, WorstPlace};
use super::world::Setting;

/// What a world is aimed at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aim {
    /// Threads that arm a host sleep into the stretch.
    Arming,
    /// Writers sleep from around their classification into the stretch,
    Writing,
    /// or until the cut is being sealed, or named.
    Straggling,
    /// Readers sleep into the stretch.
    Reading,
    /// Clients make much zero, and ask much about holes and changes; who answers them sleeps into the stretch.
    Asking,
    /// T is far ahead, and hosts' timers run wrongly.
    Timers,
    /// Machines lose their power while a cut is armed, just after clients have flushed.
    Flushes,
    /// Machines lose their power between the end of a stretch and its sealing, and come again at once.
    Unsealed,
    /// A clock breaks its assumption between the plan and T.
    Clocks,
    /// Orders to strike a barrier take longer than `max_stretch`.
    Strikes,
}

impl Aim {
    /// All of them.
    pub const ALL: [Aim; 10] = [
        Aim::Arming,
        Aim::Writing,
        Aim::Straggling,
        Aim::Reading,
        Aim::Asking,
        Aim::Timers,
        Aim::Flushes,
        Aim::Unsealed,
        Aim::Clocks,
        Aim::Strikes,
    ];

    /// The world in which a mistake shows; none where it shows anywhere.
    pub fn at(mistake: Mutation) -> Option<Aim> {
        match mistake {
            Mutation::ArmedTooEarly | Mutation::LateOrder => Some(Aim::Arming),
            Mutation::LockAfterReading | Mutation::ClassifyByTimer => Some(Aim::Writing),
            Mutation::RegisterAfterReading => Some(Aim::Straggling),
            Mutation::ReadHoldTooEarly | Mutation::NoReadHold => Some(Aim::Reading),
            Mutation::NoStatusHold => Some(Aim::Asking),
            Mutation::ReleaseByTimer => Some(Aim::Timers),
            Mutation::FlushSkipsSealing => Some(Aim::Flushes),
            Mutation::RestartedEvidence => Some(Aim::Unsealed),
            Mutation::PlannedMargin => Some(Aim::Clocks),
            Mutation::TimeoutCertified => Some(Aim::Strikes),
            Mutation::ReadBeforeComplete
            | Mutation::LargerError
            | Mutation::ZeroStretch
            | Mutation::NotRemeasured
            | Mutation::AbortForgetsOne
            | Mutation::DiscardDeletes => None,
        }
    }

    /// Makes a world such a one.
    pub fn bend(self, setting: &mut Setting, random: &mut Random) {
        setting.mode = Some(RequestedMode::Timed);
        let mut sleep = |work, points: std::ops::Range<u32>, until| {
            let point = points.start + random.below(points.len()) as u32;
            let chance = random.between(0.2, 0.9);
            setting.pace.worst = Some(WorstPlace { work, point, chance, until });
        };
        match self {
            Aim::Arming => sleep("arm", 0..16, Until::Stretch),
            Aim::Writing => sleep("write", 0..10, Until::Stretch),
            Aim::Straggling => sleep("write", 1..8, Until::Sealing(120e6)),
            Aim::Reading => sleep("read", 1..8, Until::Stretch),
            Aim::Asking => {
                sleep("status", 0..6, Until::Stretch);
                (setting.questions, setting.units) = (0.4, 0.8);
            }
            Aim::Timers => setting.lead = (5e7, 3e8),
            Aim::Flushes => (setting.flushes, setting.leisure_ns) = (0.25, 400_000.0),
            Aim::Unsealed => (setting.longest_absence, setting.leisure_ns) = (20_000_000, 800_000.0),
            Aim::Clocks => setting.lead = (2e7, 6e7),
            Aim::Strikes => {
                setting.mode = Some(RequestedMode::Barrier);
                setting.max_stretch = random.nanos(3_000_000, 6_000_000);
                setting.network.slowest = Some(("strike", random.between(0.2, 0.5)));
                setting.network.longest_ns = random.between(5e6, 2e7);
            }
        }
        if matches!(self, Aim::Straggling | Aim::Reading | Aim::Asking | Aim::Writing) {
            setting.leisure_ns = random.between(2e5, 2e6);
        }
        setting.faulty |= matches!(self, Aim::Flushes | Aim::Unsealed | Aim::Clocks);
    }

    /// What goes wrong in such a world besides.
    pub fn faults(self, hosts: usize, random: &mut Random) -> Vec<(When, Fault)> {
        let strikes = 1 + random.below(3);
        let mut fault = |when: fn(u64) -> When| {
            let nth = 1 + random.below(hosts * 3) as u64;
            let host = random.below(hosts);
            (when(nth), if random.chance(0.2) { Fault::KillHost(host) } else { Fault::LosePower(host) })
        };
        match self {
            Aim::Flushes => (0..strikes).map(|_| fault(When::Armed)).collect(),
            Aim::Unsealed => (0..strikes).map(|_| fault(When::Released)).collect(),
            _ => Vec::new(),
        }
    }
}
