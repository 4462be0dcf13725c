//! Instants and durations, typed by the timeline they belong to.
//!
//! Every value is an integer number of nanoseconds. A host's instant cannot be subtracted from a server's: only an
//! [`Offset`] leads from one timeline to the other.
//!
//! ```compile_fail
//! use timesync::time::{Host, Server, Time};
//! let difference = Time::<Host>::from_nanos(1) - Time::<Server>::from_nanos(1);
//! ```

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Add, Neg, Sub};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The server's timeline: its `CLOCK_MONOTONIC_RAW`. Everything is compared on this axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Server {}

/// A host's timeline: its `CLOCK_MONOTONIC_RAW` (for a host without our module: the clock of its timestamps).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {}

/// A machine's `CLOCK_MONOTONIC_RAW` as its kernel reads it. The server's timeline is this; a host's is this, or a
/// simulation on top of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Raw {}

/// A machine's wall clock, `CLOCK_REALTIME`, in nanoseconds since 1970. It may step and slew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Wall {}

/// A signed duration in nanoseconds.
///
/// Arithmetic saturates: what enters from the network is checked to lie within ±2^61 ns (73 years) before it gets
/// here, so sums of a few terms never come near the limits.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(transparent)]
pub struct Nanos(i64);

impl Nanos {
    /// No time at all.
    pub const ZERO: Nanos = Nanos(0);

    /// A duration of `nanos` nanoseconds.
    pub const fn new(nanos: i64) -> Self {
        Nanos(nanos)
    }

    /// A duration of `micros` microseconds.
    pub const fn from_micros(micros: i64) -> Self {
        Nanos(micros.saturating_mul(1_000))
    }

    /// A duration of `millis` milliseconds.
    pub const fn from_millis(millis: i64) -> Self {
        Nanos(millis.saturating_mul(1_000_000))
    }

    /// The number of nanoseconds.
    pub const fn get(self) -> i64 {
        self.0
    }

    /// The distance from zero.
    pub const fn abs(self) -> Self {
        Nanos(self.0.saturating_abs())
    }

    /// For the standard library and tokio; a negative duration becomes zero.
    pub fn to_std(self) -> std::time::Duration {
        std::time::Duration::from_nanos(u64::try_from(self.0).unwrap_or(0))
    }
}

impl Add for Nanos {
    type Output = Nanos;
    fn add(self, other: Nanos) -> Nanos {
        Nanos(self.0.saturating_add(other.0))
    }
}

impl Sub for Nanos {
    type Output = Nanos;
    fn sub(self, other: Nanos) -> Nanos {
        Nanos(self.0.saturating_sub(other.0))
    }
}

impl Neg for Nanos {
    type Output = Nanos;
    fn neg(self) -> Nanos {
        Nanos(self.0.saturating_neg())
    }
}

impl fmt::Display for Nanos {
    /// With the unit that keeps the number readable: `740 ns`, `1.31 µs`, `2.02 ms`, `1.50 s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        #[expect(clippy::cast_precision_loss, reason = "three digits are printed")]
        let value = self.0 as f64;
        let text = match self.0.unsigned_abs() {
            0..1_000 => format!("{} ns", self.0),
            1_000..1_000_000 => format!("{:.2} µs", value / 1e3),
            1_000_000..1_000_000_000 => format!("{:.2} ms", value / 1e6),
            _ => format!("{:.2} s", value / 1e9),
        };
        f.pad(&text)
    }
}

/// An instant on the timeline `T`, in nanoseconds since that timeline's own zero.
#[derive(Serialize, Deserialize)]
#[serde(transparent, bound = "")]
pub struct Time<T>(i64, #[serde(skip)] PhantomData<fn() -> T>);

impl<T> Time<T> {
    /// The instant `nanos` nanoseconds after the timeline's zero.
    pub const fn from_nanos(nanos: i64) -> Self {
        Time(nanos, PhantomData)
    }

    /// Nanoseconds since the timeline's zero.
    pub const fn as_nanos(self) -> i64 {
        self.0
    }
}

// Derived impls would ask the same of the marker `T`, which has no values.
impl<T> Clone for Time<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Time<T> {}
impl<T> PartialEq for Time<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl<T> Eq for Time<T> {}
impl<T> PartialOrd for Time<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Time<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}
impl<T> fmt::Debug for Time<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ns", self.0)
    }
}

impl<T> Sub for Time<T> {
    type Output = Nanos;
    fn sub(self, other: Self) -> Nanos {
        Nanos(self.0.saturating_sub(other.0))
    }
}

impl<T> Add<Nanos> for Time<T> {
    type Output = Self;
    fn add(self, duration: Nanos) -> Self {
        Self::from_nanos(self.0.saturating_add(duration.0))
    }
}

impl<T> Sub<Nanos> for Time<T> {
    type Output = Self;
    fn sub(self, duration: Nanos) -> Self {
        Self::from_nanos(self.0.saturating_sub(duration.0))
    }
}

/// θ = host − server, in nanoseconds: positive where the host's clock reads more than the server's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offset(i64);

impl Offset {
    /// An offset of `nanos` nanoseconds.
    pub const fn new(nanos: i64) -> Self {
        Offset(nanos)
    }

    /// The offset between two readings taken at the same instant.
    pub fn between(host: Time<Host>, server: Time<Server>) -> Self {
        Offset(host.0.saturating_sub(server.0))
    }

    /// The number of nanoseconds.
    pub const fn get(self) -> i64 {
        self.0
    }
}

impl Add<Nanos> for Offset {
    type Output = Offset;
    fn add(self, duration: Nanos) -> Offset {
        Offset(self.0.saturating_add(duration.0))
    }
}

impl Sub<Nanos> for Offset {
    type Output = Offset;
    fn sub(self, duration: Nanos) -> Offset {
        Offset(self.0.saturating_sub(duration.0))
    }
}

impl Sub for Offset {
    type Output = Nanos;
    fn sub(self, other: Offset) -> Nanos {
        Nanos(self.0.saturating_sub(other.0))
    }
}

impl Add<Offset> for Time<Server> {
    type Output = Time<Host>;
    fn add(self, offset: Offset) -> Time<Host> {
        Time::from_nanos(self.0.saturating_add(offset.0))
    }
}

impl Sub<Offset> for Time<Host> {
    type Output = Time<Server>;
    fn sub(self, offset: Offset) -> Time<Server> {
        Time::from_nanos(self.0.saturating_sub(offset.0))
    }
}

/// The instants that an event may have happened at: `earliest ..= latest`, both on the timeline `T`.
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub struct Span<T> {
    /// The event did not happen before this instant.
    pub earliest: Time<T>,
    /// The event did not happen after this instant.
    pub latest: Time<T>,
}

impl<T> Span<T> {
    /// An event whose instant is known to the nanosecond.
    pub const fn exact(at: Time<T>) -> Self {
        Span { earliest: at, latest: at }
    }

    /// The instant halfway.
    pub fn middle(self) -> Time<T> {
        self.earliest + Nanos::new(self.width().get() / 2)
    }

    /// How much is unknown about the instant.
    pub fn width(self) -> Nanos {
        self.latest - self.earliest
    }
}

impl<T> Clone for Span<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Span<T> {}
impl<T> PartialEq for Span<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.earliest, self.latest) == (other.earliest, other.latest)
    }
}
impl<T> Eq for Span<T> {}
impl<T> fmt::Debug for Span<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}..={:?}", self.earliest, self.latest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_lead_from_one_timeline_to_the_other() {
        let server = Time::<Server>::from_nanos(1_000);
        let host = server + Offset::new(-300);
        assert_eq!(host, Time::from_nanos(700));
        assert_eq!(host - Offset::new(-300), server);
        assert_eq!(Offset::between(host, server), Offset::new(-300));
    }

    #[test]
    fn durations_print_with_a_fitting_unit() {
        for (nanos, text) in
            [(740, "740 ns"), (-1_310, "-1.31 µs"), (2_020_000, "2.02 ms"), (1_500_000_000, "1.50 s")]
        {
            assert_eq!(Nanos::new(nanos).to_string(), text);
        }
        assert_eq!(format!("{:>8}", Nanos::new(7)), "    7 ns");
    }
}
