//! chrony's SOCK reference clock (`refclock SOCK`, chrony.conf(5)): chronyd on the host is steered by the offset.
//!
//! One datagram a sample, `struct sock_sample` of chrony's `refclock_sock.c` with C's types of a 64-bit machine, in its own
//! order of bytes:
//!
//! ```text
//!  0  i64 ×2  when: seconds and microseconds of the host's CLOCK_REALTIME      24  i32  pulse: 0
//! 16  f64     offset: the true time less the host's, in seconds                28  i32  leap: 0, none announced
//!                                                                             32  i32  padding
//!                                                                             36  i32  magic 0x534f434b
//! ```
//! A sample carries no error: chrony.conf's `delay` says what to reckon with.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use super::Published;
use crate::time::Nanos;

/// A sample.
pub fn encode(published: &Published) -> [u8; 40] {
    let wall = published.wall.as_nanos();
    let (seconds, micros) = (wall.div_euclid(1_000_000_000), wall.rem_euclid(1_000_000_000) / 1_000);
    let (lo, hi) = published.offset;
    let middle = lo + Nanos::new((hi - lo).get() / 2);
    // Exact up to 100 days; beyond that the steps of an f64 do not matter.
    let offset = -(middle.get() as f64) / 1e9;
    let mut sample = [0; 40];
    sample[..8].copy_from_slice(&seconds.to_ne_bytes());
    sample[8..16].copy_from_slice(&micros.to_ne_bytes());
    sample[16..24].copy_from_slice(&offset.to_ne_bytes());
    sample[36..].copy_from_slice(&0x534f_434b_i32.to_ne_bytes());
    sample
}

/// Where chronyd listens.
#[derive(Debug)]
pub struct Refclock {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Refclock {
    /// Samples go to the socket at `path`, which chronyd makes when it starts.
    ///
    /// # Errors
    /// The system's.
    pub fn new(path: PathBuf) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        // A chronyd that hangs must not stop the other publications.
        socket.set_nonblocking(true)?;
        Ok(Refclock { socket, path })
    }

    /// Sends a sample.
    ///
    /// # Errors
    /// The system's: mostly, chronyd does not run.
    pub fn send(&self, published: &Published) -> io::Result<()> {
        self.socket.send_to(&encode(published), &self.path).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Time;

    #[test]
    #[cfg(all(target_endian = "little", target_pointer_width = "64"))]
    fn a_sample_is_laid_out_as_chronyd_expects() {
        let published = Published {
            wall: Time::from_nanos(5_000_001_999),
            monotonic: Nanos::ZERO,
            offset: (Nanos::new(1_499_999_000), Nanos::new(1_500_001_000)),
            growth_ppb: 0,
        };
        let sample = encode(&published);
        let i64_at = |at: usize| i64::from_le_bytes(sample[at..at + 8].try_into().unwrap());
        assert_eq!((i64_at(0), i64_at(8)), (5, 1));
        // The host is 1.5 s ahead of the truth.
        assert_eq!(f64::from_le_bytes(sample[16..24].try_into().unwrap()), -1.5);
        assert_eq!((sample[24..36].to_vec(), &sample[36..]), (vec![0; 12], b"KCOS".as_slice()));
    }
}
