//! Requests that arrive twice.
//!
//! A network may deliver a packet twice. If both copies of a request were answered, the server would get two responses
//! and two follow-ups that nothing tells apart; with the second follow-up taken for the first one's, t3 would be later
//! than the response really left, and the bound of θ from below would be *wrong*. So the second copy gets no answer.

use std::collections::VecDeque;
use std::net::SocketAddr;

/// So many requests are remembered. A server sends the next one when it has the last one's answer or has given it up,
/// and takes no answers to earlier ones: only the newest of each server matters.
const REMEMBERED: usize = 32;

/// The requests that were answered last.
#[derive(Clone, Debug, Default)]
pub struct Repeats {
    newest: VecDeque<(SocketAddr, u16)>,
}

impl Repeats {
    /// Whether the request with this sequence number from `from` was there before. Remembers it.
    pub fn repeated(&mut self, from: SocketAddr, sequence: u16) -> bool {
        if self.newest.contains(&(from, sequence)) {
            return true;
        }
        if self.newest.len() >= REMEMBERED {
            self.newest.pop_front();
        }
        self.newest.push_back((from, sequence));
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_number_from_the_same_address_is_a_repeat() {
        let mut repeats = Repeats::default();
        let [a, b]: [SocketAddr; 2] = ["10.0.0.1:319", "10.0.0.2:319"].map(|text| text.parse().unwrap());
        assert!(!repeats.repeated(a, 7) && !repeats.repeated(b, 7) && !repeats.repeated(a, 8));
        assert!(repeats.repeated(a, 7) && repeats.repeated(b, 7) && repeats.repeated(a, 8));
        // Sequence numbers come round again.
        for sequence in 100..200 {
            assert!(!repeats.repeated(a, sequence));
        }
        assert!(!repeats.repeated(a, 7));
    }
}
