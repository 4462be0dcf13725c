//! What the client does, and what it and the server's process say of it.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::Failure;
use super::servers::{Server, Site};

/// What stands on top of the snapshots when a turn begins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Top {
    /// Whatever the layers were made with.
    AsMade,
    /// A layer in which every block has been written before.
    Written,
    /// A layer in which nothing has been written.
    Fresh,
}

/// A job of fio.
pub struct Job {
    pub name: &'static str,
    rw: &'static str,
    block: &'static str,
    depth: u32,
    /// Syncs after every write.
    sync: bool,
    pub top: Top,
}

const fn job(name: &'static str, rw: &'static str, depth: u32, top: Top) -> Job {
    Job { name, rw, block: "4k", depth, sync: false, top }
}

pub const JOBS: [Job; 9] = [
    job("read-4k-qd1", "randread", 1, Top::AsMade),
    job("read-4k-qd16", "randread", 16, Top::AsMade),
    Job { block: "1m", ..job("read-1m", "read", 4, Top::AsMade) },
    job("write-4k-qd1", "randwrite", 1, Top::Written),
    job("write-4k-qd16", "randwrite", 16, Top::Written),
    Job { sync: true, ..job("write-fsync-4k-qd1", "randwrite", 1, Top::Written) },
    Job { block: "1m", ..job("write-1m", "write", 4, Top::Written) },
    job("first-write-4k-qd16", "randwrite", 16, Top::Fresh),
    Job { sync: true, ..job("first-write-fsync-4k-qd1", "randwrite", 1, Top::Fresh) },
];

impl Job {
    /// Without a snapshot there is no layer to be touched first.
    pub fn takes_part(&self, chain: usize) -> bool {
        chain > 0 || self.top != Top::Fresh
    }
}

/// One turn's figures.
pub struct Measured {
    pub iops: f64,
    pub p50_ns: u64,
    pub p99_ns: u64,
    pub cpu_us_per_op: f64,
}

/// One turn of one server.
pub fn measure(
    site: &Site,
    server: &mut Server,
    job: &Job,
    connections: u32,
    seconds: f64,
) -> Result<Measured, Failure> {
    server.make_top(site, job.top)?;
    let export = server.export();
    let mut arguments = vec![
        format!("--rw={}", job.rw),
        format!("--bs={}", job.block),
        format!("--iodepth={}", job.depth),
        format!("--numjobs={connections}"),
        "--group_reporting".to_owned(),
        "--randrepeat=0".to_owned(),
    ];
    if job.top == Top::Fresh {
        // Each block once: a second write to it would be no first one.
        arguments.push(format!("--size={}", site.size / u64::from(connections)));
        arguments.push(format!("--offset_increment={}", site.size / u64::from(connections)));
        arguments.push(format!("--runtime={}ms", (seconds * 1e3) as u64));
    } else {
        arguments.push(format!("--size={}", site.size));
        arguments.extend([
            "--time_based".to_owned(),
            format!("--runtime={}ms", (seconds * 1e3) as u64),
            "--norandommap".to_owned(),
        ]);
    }
    if job.sync {
        arguments.push("--fsync=1".to_owned());
    }
    let before = server.cpu()?;
    let result = fio(&export, &arguments)?;
    let after = server.cpu()?;
    let direction = &result[if job.rw.ends_with("read") { "read" } else { "write" }];
    let latency = if job.sync { &result["sync"]["lat_ns"] } else { &direction["clat_ns"] };
    let operations = direction["total_ios"].as_f64().unwrap_or(0.0);
    if operations < 1.0 {
        return Err(format!("fio did nothing: {direction}").into());
    }
    if !job.sync && job.rw.ends_with("write") {
        server.flush()?;
    }
    let percentile = |which: &str| latency["percentile"][which].as_u64().unwrap_or(0);
    Ok(Measured {
        iops: direction["iops"].as_f64().unwrap_or(0.0),
        p50_ns: percentile("50.000000"),
        p99_ns: percentile("99.000000"),
        cpu_us_per_op: (after - before).as_secs_f64() * 1e6 / operations,
    })
}

/// Runs fio against an export, and returns what it says of its job.
pub fn fio(export: &Export<'_>, arguments: &[String]) -> Result<Value, Failure> {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "fio", "--name=job", "--ioengine=nbd", "--output-format=json"]);
    command.arg(format!("--uri=nbd+unix:///{}?socket={}", export.name, export.socket.display()));
    let output = command.arg("--percentile_list=50:99").args(arguments).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    // Notes may come before the JSON.
    let report: Option<Value> = text.find('{').and_then(|start| serde_json::from_str(&text[start..]).ok());
    match report {
        Some(mut report) if output.status.success() && report["jobs"][0]["error"] == 0 => {
            Ok(report["jobs"][0].take())
        }
        _ => Err(format!("fio: {text}{}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}

/// Where a client finds its data.
pub struct Export<'a> {
    pub name: &'static str,
    pub socket: &'a Path,
}
