//! What a snapshot costs with what people would use instead: freezing ext4, and QEMU's transaction of blockdev-snapshot.
//! Two volumes each, that are snapshotted together.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use harness::eventually;
use harness::filesystem::{Kind, dies_with_us, with_own_mounts};
use serde_json::{Value, json};
use snapshot::nbd::Endpoint;

use super::writer::{SIZE, Writer};
use super::{Arguments, Failure, Row, Samples, TAIL, now, rows};

const VOLUMES: usize = 2;
/// What a file system needs for itself.
const ROOM: u64 = 64 << 20;
const QUIET: Duration = Duration::from_millis(150);

/// Measures `snapshot`, which is prepared before the quiet window.
fn measure(
    arguments: &Arguments,
    mode: &str,
    writers: Vec<Writer>,
    mut prepare: impl FnMut(usize) -> Result<(), Failure>,
    mut snapshot: impl FnMut(usize) -> Result<(), Failure>,
) -> Result<Vec<Row>, Failure> {
    let mut samples = Samples::default();
    for number in 0..arguments.peers {
        prepare(number)?;
        writers.iter().for_each(|writer| drop(writer.drain()));
        std::thread::sleep(Duration::from_millis(20));
        let quiet_from = now();
        std::thread::sleep(QUIET);
        let began = now();
        snapshot(number)?;
        let ended = now();
        std::thread::sleep(Duration::from_nanos(TAIL.unsigned_abs()));
        let writes: Vec<(i64, i64)> = writers.iter().flat_map(Writer::drain).collect();
        samples.add(&writes, quiet_from, began..ended + TAIL, began..ended);
        samples.hold.push(ended - began);
    }
    for writer in writers {
        writer.stop()?;
    }
    Ok(rows("peers", VOLUMES as u8, &[(mode.to_owned(), samples)]))
}

/// Freezes loop-mounted file systems and thaws them again; nothing is done in between. Buffered writes.
pub fn ext4(arguments: &Arguments) -> Result<Vec<Row>, Failure> {
    with_own_mounts(|| {
        let directory = tempfile::tempdir()?;
        let mut mounted = Vec::new();
        for number in 0..VOLUMES {
            let image = directory.path().join(format!("image{number}"));
            File::create(&image)?.set_len(ROOM)?;
            Kind::Ext4.make(&image);
            mounted.push(Kind::Ext4.mount(&image, &directory.path().join(format!("mount{number}"))));
        }
        let think = Duration::from_micros(arguments.think_us);
        let writer = |at: &Path| -> Result<Writer, Failure> {
            let file = OpenOptions::new().write(true).create(true).truncate(true).open(at.join("file"))?;
            file.set_len(SIZE)?;
            Writer::on(think, move |offset, data| Ok(file.write_all_at(data, offset)?))
        };
        let writers = mounted.iter().map(|at| writer(&at.at)).collect::<Result<Vec<_>, Failure>>()?;
        let all = |flag: &str| -> Result<(), Failure> {
            let started = mounted.iter().map(|at| Command::new("fsfreeze").arg(flag).arg(&at.at).spawn());
            let started = started.collect::<Result<Vec<_>, _>>()?;
            for mut child in started {
                if !child.wait()?.success() {
                    return Err(format!("fsfreeze {flag} failed").into());
                }
            }
            Ok(())
        };
        let mode = "fsfreeze, ext4 on loop";
        let result = measure(
            arguments,
            mode,
            writers,
            |_| Ok(()),
            |_| {
                // Whatever comes of the first: nothing stays frozen.
                let frozen = all("--freeze");
                all("--unfreeze").and(frozen)
            },
        );
        mounted.into_iter().for_each(|mounted| mounted.unmount());
        result
    })
}

/// Puts an overlay, made before, on each of two disks of a qemu-storage-daemon in one transaction.
pub fn qemu(arguments: &Arguments) -> Result<Vec<Row>, Failure> {
    let directory = tempfile::tempdir()?;
    let file = |name: &str| directory.path().join(name);
    let mut command = dies_with_us("qemu-storage-daemon");
    for number in 0..VOLUMES {
        let image = file(&format!("image{number}"));
        File::create(&image)?.set_len(SIZE)?;
        let blockdev = json!({
            "driver": "raw",
            "node-name": format!("disk{number}-base"),
            "file": { "driver": "file", "filename": image },
        });
        command.args(["--blockdev", &blockdev.to_string()]);
    }
    let (nbd, monitor) = (file("nbd"), file("qmp"));
    command.args(["--nbd-server", &format!("addr.type=unix,addr.path={},max-connections=0", nbd.display())]);
    for number in 0..VOLUMES {
        let export =
            format!("type=nbd,id=e{number},node-name=disk{number}-base,name=disk{number},writable=on");
        command.args(["--export", &export]);
    }
    command.args(["--chardev", &format!("socket,id=m,path={},server=on,wait=off", monitor.display())]);
    let mut daemon = command.args(["--monitor", "chardev=m"]).spawn()?;
    let mut monitor = Monitor::connect(&monitor)?;
    let think = Duration::from_micros(arguments.think_us);
    let writer = |number: usize| Writer::start(&Endpoint::Unix(nbd.clone()), &format!("disk{number}"), think);
    let writers = (0..VOLUMES).map(writer).collect::<Result<Vec<_>, Failure>>()?;
    let node = |disk: usize, snapshot: Option<usize>| match snapshot {
        None => format!("disk{disk}-base"),
        Some(snapshot) => format!("disk{disk}-{snapshot}"),
    };
    let monitor = std::cell::RefCell::new(&mut monitor);
    let prepare = |snapshot: usize| -> Result<(), Failure> {
        for disk in 0..VOLUMES {
            let overlay = file(&node(disk, Some(snapshot)));
            let mut create = Command::new("qemu-img");
            create.args(["create", "-q", "-f", "qcow2"]).arg(&overlay).arg(SIZE.to_string());
            if !create.status()?.success() {
                return Err("qemu-img create failed".into());
            }
            monitor.borrow_mut().execute(json!({
                "execute": "blockdev-add",
                "arguments": {
                    "driver": "qcow2",
                    "node-name": node(disk, Some(snapshot)),
                    "file": { "driver": "file", "filename": overlay },
                    "backing": null,
                },
            }))?;
        }
        Ok(())
    };
    let take = |snapshot: usize| {
        let action = |disk: usize| {
            let (below, overlay) = (node(disk, snapshot.checked_sub(1)), node(disk, Some(snapshot)));
            json!({ "type": "blockdev-snapshot", "data": { "node": below, "overlay": overlay } })
        };
        let actions: Vec<Value> = (0..VOLUMES).map(action).collect();
        let transaction = json!({ "execute": "transaction", "arguments": { "actions": actions } });
        monitor.borrow_mut().execute(transaction)
    };
    let result = measure(arguments, "QEMU transaction, qcow2", writers, prepare, take);
    daemon.kill()?;
    daemon.wait()?;
    result
}

/// QMP: a JSON object a line, both ways.
struct Monitor {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Monitor {
    fn connect(socket: &Path) -> Result<Monitor, Failure> {
        let stream = eventually(|| UnixStream::connect(socket));
        let lines = BufReader::new(stream.try_clone()?);
        let mut monitor = Monitor { stream, lines };
        monitor.lines.read_line(&mut String::new())?;
        monitor.execute(json!({ "execute": "qmp_capabilities" }))?;
        Ok(monitor)
    }

    fn execute(&mut self, command: Value) -> Result<(), Failure> {
        writeln!(self.stream, "{command}")?;
        loop {
            let mut line = String::new();
            self.lines.read_line(&mut line)?;
            let answer: Value = serde_json::from_str(&line)?;
            if let Some(error) = answer.get("error") {
                return Err(format!("{command}: {error}").into());
            }
            // Events come in between.
            if answer.get("return").is_some() {
                return Ok(());
            }
        }
    }
}
