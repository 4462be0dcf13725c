//! correctionField (IEEE 1588-2019 §13.3.2.9): for how long transparent clocks say that they held the packets.
//!
//! A one-step transparent clock adds the time for which it held an event message to that very message (§10.3.1). A
//! responder repeats the request's correction in its follow-up (§11.4.2). So the response's correction is the way back's, and
//! the follow-up's is the way there's. A two-step transparent clock would add both to the follow-up: nobody could tell them
//! apart, so trusting corrections supposes that there is none on the path.

use serde::{Deserialize, Serialize};

use crate::exchange::{Backward, Exchange, Forward};
use crate::time::Nanos;

/// The corrections of one exchange, in 2⁻¹⁶ ns, as they were received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Corrections {
    /// The request's, as the follow-up repeats it.
    pub forward: i64,
    /// The response's.
    pub backward: i64,
}

/// Why corrections cannot be true. Each is a sentence for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Implausible {
    /// Nothing holds a packet for less than no time.
    #[error("a correctionField is negative: a transparent clock on the path is broken, or somebody lies")]
    Negative,
    /// A packet cannot be held for longer than it was on its way.
    #[error(
        "the correctionFields exceed the round trip: a transparent clock on the path is broken, or somebody lies"
    )]
    TooLong,
}

impl Corrections {
    /// The exchange without the time for which its packets were held, if the transparent clocks tell the truth and run
    /// within ρ = `rate_ppb` · 10⁻⁹ of the server's clock. Half an exchange stays as it is.
    ///
    /// A packet that was held for c by a transparent clock's time was on its way for d ≥ c·(1 − ρ) by the server's, in
    /// which θ moved by at most ρ·d. So θ(t1) ≤ t2 − t1 − d·(1 − ρ) ≤ (t2 − c·(1 − 2ρ)) − t1, and likewise for t3.
    ///
    /// # Errors
    /// [`Implausible`].
    pub fn apply(self, exchange: &Exchange, rate_ppb: u32) -> Result<Exchange, Implausible> {
        let (Some(forward), Some(backward)) = (exchange.forward, exchange.backward) else {
            return Ok(*exchange);
        };
        if self.forward < 0 || self.backward < 0 {
            return Err(Implausible::Negative);
        }
        let there_and_back = backward.received.latest - forward.sent.earliest;
        let turnaround = backward.sent.earliest - forward.received.latest;
        let [there, back] = [self.forward, self.backward].map(|correction| Nanos::new(correction >> 16));
        if there + back > there_and_back - turnaround {
            return Err(Implausible::TooLong);
        }
        let [there, back] = [there, back].map(|held| held - spread(held, rate_ppb));
        let (mut received, mut sent) = (forward.received, backward.sent);
        (received.earliest, received.latest) = (received.earliest - there, received.latest - there);
        (sent.earliest, sent.latest) = (sent.earliest + back, sent.latest + back);
        Ok(Exchange {
            forward: Some(Forward { received, ..forward }),
            backward: Some(Backward { sent, ..backward }),
        })
    }
}

/// 2ρ of `held`, rounded up.
fn spread(held: Nanos, rate_ppb: u32) -> Nanos {
    let spread = (i128::from(held.get()) * 2 * i128::from(rate_ppb) + 999_999_999) / 1_000_000_000;
    // ρ is below 1 %, so this is less than what it is a part of.
    Nanos::new(i64::try_from(spread).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bound::{Assumptions, Window};
    use crate::time::{Host, Offset, Server, Span, Time};

    /// A host that is 5 000 ns ahead. `there` and `back` are the delays.
    fn exchange(there: i64, back: i64) -> Exchange {
        let server = |at| Span::<Server>::exact(Time::from_nanos(at));
        let host = |at: i64| Span::<Host>::exact(Time::from_nanos(at + 5_000));
        let (t1, t2) = (1_000_000, 1_000_000 + there);
        let t3 = t2 + 300;
        Exchange {
            forward: Some(Forward { sent: server(t1), received: host(t2) }),
            backward: Some(Backward { sent: host(t3), received: server(t3 + back) }),
        }
    }

    fn ns(forward: i64, backward: i64) -> Corrections {
        Corrections { forward: forward << 16, backward: backward << 16 }
    }

    #[test]
    fn what_cannot_be_true_is_refused() {
        let exchange = exchange(900, 400);
        for (corrections, expected) in [
            (ns(-1, 0), Some(Implausible::Negative)),
            (ns(0, -1), Some(Implausible::Negative)),
            (Corrections { forward: -1, backward: 0 }, Some(Implausible::Negative)),
            (ns(901, 400), Some(Implausible::TooLong)),
            (ns(i64::MAX >> 16, i64::MAX >> 16), Some(Implausible::TooLong)),
            (Corrections { forward: i64::MAX, backward: i64::MAX }, Some(Implausible::TooLong)),
            (ns(900, 400), None),
            (ns(0, 0), None),
        ] {
            assert_eq!(corrections.apply(&exchange, 200_000).err(), expected, "{corrections:?}");
        }
    }

    #[test]
    fn held_packets_count_as_if_they_had_not_been_and_half_an_exchange_stays() {
        let asymmetric = exchange(50_400, 400);
        let corrected = ns(50_000, 0).apply(&asymmetric, 100_000).unwrap();
        assert_eq!(asymmetric.round_trip(), Some(Nanos::new(50_800)));
        assert_eq!(corrected.round_trip(), Some(Nanos::new(810)), "2 · 100 ppm of it stays");
        let half = Exchange { backward: None, ..asymmetric };
        assert_eq!(ns(50_000, 0).apply(&half, 100_000), Ok(half));
    }

    proptest! {
        /// With true residence times, a bound from corrected exchanges covers the truth, and is no wider.
        #[test]
        fn true_corrections_keep_the_bound_true(
            path in (1_i64..10_000, 1_i64..10_000),
            held in (0_i64..1_000_000, 0_i64..1_000_000),
            rate_ppb in 1_u32..1_000_000,
        ) {
            let exchange = exchange(path.0 + held.0, path.1 + held.1);
            let corrected = ns(held.0, held.1).apply(&exchange, rate_ppb).unwrap();
            let assumptions = Assumptions { rate_ppb, ..Assumptions::default() };
            let bound = |exchange: &Exchange| {
                let mut window = Window::new(assumptions, 8);
                window.push(exchange);
                window.hard(Time::from_nanos(1_000_000)).unwrap()
            };
            let (plain, narrow) = (bound(&exchange), bound(&corrected));
            prop_assert!(narrow.contains(Offset::new(5_000)), "{:?}", narrow);
            prop_assert!(narrow.half_width() <= plain.half_width());
        }
    }
}
