//! Debian's chronyd, which measures and steers nothing (`-x`).

use harness::namespaces::Network;
use tempfile::TempDir;

use super::process::{Client, Process, received};
use super::{Cpu, Failure, Times, Turn, follow};

/// One turn. Its own bound is |offset| + root dispersion + root delay / 2 (chronyc(1), `tracking`).
pub fn turn(network: &Network, interleaved: bool, times: Times) -> Result<Turn, Failure> {
    let [here, there] = &network.hosts[..] else { unreachable!("a pair") };
    let directory = TempDir::new()?;
    let start = |place, name: &str, config: String| {
        let file = directory.path().join(format!("{name}.conf"));
        let pid = directory.path().join(format!("{name}.pid"));
        std::fs::write(&file, format!("{config}pidfile {}\n", pid.display()))?;
        let file = file.display().to_string();
        let arguments = ["-x", "-n", "-u", "root", "-f", &file];
        Process::start(place, "chronyd", arguments, &directory.path().join(format!("{name}.log")))
    };
    // `bindcmdaddress /` leaves no Unix socket behind.
    let answering = "local stratum 1\nallow\ncmdport 0\nbindcmdaddress /\n";
    let answering = start(there, "answering", answering.to_owned())?;
    let xleave = if interleaved { "xleave" } else { "" };
    let measuring = format!("server {} minpoll -6 maxpoll -6 {xleave}\nbindcmdaddress /\n", there.address);
    let measuring = start(here, "measuring", measuring)?;
    let cpu = || {
        let exchanges = received(there)?;
        Ok(Cpu { exchanges, measuring: measuring.cpu()?, answering: answering.cpu()? })
    };
    let client = || Client::start(here, &["chronyc", "-c", "-n", "-h", "127.0.0.1"]);
    follow(times, cpu, client, |client, turn| {
        let tracking = client.ask("tracking", tracking)?;
        turn.errors.push(tracking.offset.abs());
        turn.half_widths.push(tracking.offset.abs() + tracking.root_dispersion + tracking.root_delay / 2);
        Ok(())
    })
}

/// What `chronyc tracking` says, in ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tracking {
    offset: i64,
    root_delay: i64,
    root_dispersion: i64,
}

/// A line of `chronyc -c tracking`: reference, address, stratum, time, *system time*, last offset, RMS offset, frequency,
/// residual frequency, skew, *root delay*, *root dispersion*, update interval, leap status. None unless synchronised.
fn tracking(line: &str) -> Option<Tracking> {
    let fields: Vec<&str> = line.split(',').collect();
    if fields.len() != 14 || fields[13] != "Normal" {
        return None;
    }
    let nanos = |field: &str| Some((field.parse::<f64>().ok()? * 1e9).round() as i64);
    Some(Tracking {
        offset: nanos(fields[4])?,
        root_delay: nanos(fields[10])?,
        root_dispersion: nanos(fields[11])?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tracking_line_is_read() {
        let line = "0A4E0002,10.78.0.2,2,1795378116.028022522,-0.000000005,-0.000000000,0.000000001,-0.002,\
                    -0.000,0.014,0.000000219,0.000000622,0.2,Normal";
        assert_eq!(tracking(line), Some(Tracking { offset: -5, root_delay: 219, root_dispersion: 622 }));
        assert_eq!(tracking(&line.replace("Normal", "Not synchronised")), None);
        assert_eq!(tracking("506 Cannot talk to daemon"), None);
    }
}
