//! Mistakes that the simulator must notice, each the way somebody might make it. They exist only with the feature
//! `simulation`: without it `mutated!` is the word `false`, so no shipped program holds one.

/// Whether this thread runs with one of these mistakes built in.
#[cfg(not(feature = "simulation"))]
macro_rules! mutated {
    ($($mistake:ident)|+) => {
        false
    };
}

/// Whether this thread runs with one of these mistakes built in.
#[cfg(feature = "simulation")]
macro_rules! mutated {
    ($($mistake:ident)|+) => {
        $($crate::mutation::is($crate::mutation::Mutation::$mistake))||+
    };
}

pub(crate) use mutated;

#[cfg(feature = "simulation")]
pub use built_in::{Mutation, is, mutate};

#[cfg(feature = "simulation")]
mod built_in {
    use std::cell::Cell;

    /// A mistake.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Mutation {
        /// Requests are classified by whether a timer for T has gone off, not by a reading.
        ClassifyByTimer,
        /// The clock is read when a request's head has come, before its data.
        ReadBeforeComplete,
        /// The stretch is ended by a timer of V, not by a reading.
        ReleaseByTimer,
        /// V is the larger half-width, not the sum of two; and nobody checks the margin.
        LargerError,
        /// V is 0; and nobody checks the margin.
        ZeroStretch,
        /// The plan's exchanges stand for those after T.
        NotRemeasured,
        /// The reading that completes arming is taken before the gates were passed.
        ArmedTooEarly,
        /// A request registers as in flight after its reading.
        RegisterAfterReading,
        /// A request takes its blocks' lock after its reading.
        LockAfterReading,
        /// Reads do not wait for held writes.
        NoReadHold,
        /// A read looks for held writes before it reads.
        ReadHoldTooEarly,
        /// Answers about holes and changes do not wait for held writes.
        NoStatusHold,
        /// An order that comes after its own T is carried out, as if it had come in time.
        LateOrder,
        /// An abort is not sent to the last host.
        AbortForgetsOne,
        /// A discarded attempt's layer is deleted with all that was written to it.
        DiscardDeletes,
        /// A flush leaves out the layer that is being sealed.
        FlushSkipsSealing,
        /// Readings are placed by the plan's translation alone.
        PlannedMargin,
        /// A daemon finds on its disk what its predecessor read, goes on with that, and is believed.
        RestartedEvidence,
        /// A cut that ended by `max_stretch` counts, and barriers are waited for beyond it.
        TimeoutCertified,
    }

    impl Mutation {
        /// All of them.
        pub const ALL: [Mutation; 19] = [
            Mutation::ClassifyByTimer,
            Mutation::ReadBeforeComplete,
            Mutation::ReleaseByTimer,
            Mutation::LargerError,
            Mutation::ZeroStretch,
            Mutation::NotRemeasured,
            Mutation::ArmedTooEarly,
            Mutation::RegisterAfterReading,
            Mutation::LockAfterReading,
            Mutation::NoReadHold,
            Mutation::ReadHoldTooEarly,
            Mutation::NoStatusHold,
            Mutation::LateOrder,
            Mutation::AbortForgetsOne,
            Mutation::DiscardDeletes,
            Mutation::FlushSkipsSealing,
            Mutation::PlannedMargin,
            Mutation::RestartedEvidence,
            Mutation::TimeoutCertified,
        ];
    }

    thread_local! {
        static CURRENT: Cell<Option<Mutation>> = const { Cell::new(None) };
    }

    /// From here on, everything on this thread runs with this mistake, or with none.
    pub fn mutate(mutation: Option<Mutation>) {
        CURRENT.set(mutation);
    }

    /// Whether this thread runs with it.
    pub fn is(mutation: Mutation) -> bool {
        CURRENT.get() == Some(mutation)
    }
}
