//! The asking end: a request takes the next number, and only its own answers are taken.

use uuid::Uuid;

use super::{Key, Refused, Seal, Tlv};

/// The key that a server, or a probe, shares with one host, and the number of the exchange that is on its way.
#[derive(Clone, Debug)]
pub struct Association {
    key: Key,
    /// None towards a stock daemon, which knows no numbers.
    number: Option<u64>,
}

impl Association {
    /// `numbered`: the other end is a module of ours. The first number is random, so that answers recorded in an earlier
    /// run with the same key fit no request of this one.
    pub fn new(key: Key, numbered: bool) -> Self {
        let (random, _) = Uuid::new_v4().as_u64_pair();
        // Half of the range is left to count through.
        Association { key, number: numbered.then_some(random >> 1) }
    }

    /// What authenticates the next request.
    pub fn next_request(&mut self) -> Seal {
        self.number = self.number.map(|number| number.wrapping_add(1));
        Seal { key: self.key.clone(), number: self.number }
    }

    /// The message in `datagram`, if it answers the newest request: without octets behind it, which nobody vouches for.
    ///
    /// # Errors
    /// [`Refused`]. Without numbers, a replay is not among the reasons: the sequenceId has to tell.
    pub fn admit<'a>(&self, datagram: &'a [u8]) -> Result<&'a [u8], Refused> {
        let tlv = Tlv::find(datagram)?;
        self.key.check(&tlv)?;
        if tlv.number == self.number { Ok(tlv.message) } else { Err(Refused::Replayed) }
    }
}
