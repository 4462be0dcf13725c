//! The NBD clients that people use, against a real `coeval host` with real volumes, while snapshots are taken.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use coeval_cli::cluster::Cluster;
use harness::tools::{ask, command, finish, one_host, run, run_eventually, stop_all};
use nix::sys::signal::Signal;
use serde_json::Value;

const SIZE: u64 = 32 << 20;

/// One host `a` with one volume `data`, and files beside it.
struct Served {
    cluster: Cluster,
    files: tempfile::TempDir,
}

impl Served {
    fn start() -> Self {
        let served = Served { cluster: one_host(&[]), files: tempfile::tempdir().unwrap() };
        let created = ask(&served.cluster, &["volume", "create", "a/data", "32MiB"]);
        assert_eq!(created["size"], SIZE);
        served
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    fn unix(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.cluster.hosts[0].nbd_socket.display())
    }

    fn tcp(&self, export: &str) -> String {
        let ready = &self.cluster.hosts[0].ready;
        let address = ready.nbd.iter().find(|uri| uri.starts_with("nbd://")).unwrap();
        format!("{address}/{export}")
    }

    fn snapshot(&self, name: &str) {
        let manifest = ask(&self.cluster, &["snapshot", "create", name]);
        assert_eq!((&manifest["verdict"], &manifest["name"]), (&"consistent".into(), &name.into()));
    }

    /// As soon as nothing reads it any more: that a client has left is noticed a moment later.
    fn delete(&self, snapshot: &str) {
        let deleted = run_eventually(command(&self.cluster).args(["snapshot", "delete", snapshot, "--json"]));
        assert_eq!(serde_json::from_str::<Value>(&deleted).unwrap()["deleted"], snapshot);
    }

    /// Verifies a snapshot, which exits badly where a digest differs.
    fn verify(&self, name: &str) {
        let report = ask(&self.cluster, &["snapshot", "verify", name]);
        assert_eq!((&report["verdict"], &report["intact"]), (&"consistent".into(), &true.into()), "{report}");
    }

    /// A file of the volume's size with data that does not repeat, and holes.
    fn image(&self, name: &str, seed: u64) -> PathBuf {
        let mut bytes = vec![0; SIZE as usize];
        let mut state = seed;
        for (number, word) in bytes[..SIZE as usize / 2].chunks_exact_mut(8).enumerate() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            if number % 2048 < 1024 {
                word.copy_from_slice(&state.to_le_bytes());
            }
        }
        let path = self.file(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// What an export holds, as nbdcopy reads it.
    fn content(&self, uri: &str) -> Vec<u8> {
        let file = self.file("content");
        run(Command::new("nbdcopy").args([uri.as_ref(), file.as_os_str()]));
        std::fs::read(file).unwrap()
    }
}

/// As the script `nbdsh` does, but with the Python that Debian's package is for, whatever else the PATH begins with.
fn nbdsh(uri: &str, script: &str) -> String {
    let import = "import errno\n\
                  def fails(number, call, *arguments):\n\
                  \x20   try:\n\
                  \x20       call(*arguments)\n\
                  \x20   except nbd.Error as error:\n\
                  \x20       assert error.errnum == number, (error, number)\n\
                  \x20   else:\n\
                  \x20       raise AssertionError('no error')\n";
    let connect = format!("h.set_strict_mode(0)\nh.connect_uri('{uri}')");
    run(Command::new("/usr/bin/python3").args(["-m", "nbd", "-c", import, "-c", &connect, "-c", script]))
}

fn fio(directory: &Path, uri: &str, options: &[&str]) -> Command {
    let mut command = Command::new("fio");
    command.args(["--name=test", "--ioengine=nbd", "--size=16m", "--bs=4k", "--iodepth=16"]);
    command.arg(format!("--uri={uri}")).arg(format!("--aux-path={}", directory.display())).args(options);
    // It leaves files with what it will verify.
    command.current_dir(directory);
    command
}

fn assert_same(left: &[u8], right: &[u8]) {
    assert_eq!(left.len(), right.len());
    assert_eq!(left.iter().zip(right).position(|(a, b)| a != b), None, "the first byte that differs");
}

#[test]
fn libnbds_tools_list_copy_and_compare() {
    let served = Served::start();
    let image = served.image("image", 1);
    for (round, uri) in [served.unix("data"), served.tcp("data")].iter().enumerate() {
        run(Command::new("nbdcopy").arg("--flush").arg(&image).arg(uri));
        served.snapshot(&format!("copied{round}"));
        assert_same(&served.content(uri), &std::fs::read(&image).unwrap());
        // Overwritten afterwards, over several connections; the snapshot keeps what it had.
        let other = served.image("other", 2 + round as u64);
        run(Command::new("nbdcopy").arg("--connections=4").arg(&other).arg(uri));
        assert_same(&served.content(uri), &std::fs::read(&other).unwrap());
        let snapshot = uri.replacen("data", &format!("data@copied{round}"), 1);
        assert_same(&served.content(&snapshot), &std::fs::read(&image).unwrap());
    }

    for uri in [served.unix(""), served.tcp("")] {
        let list = run(Command::new("nbdinfo").args(["--list", "--json", &uri]));
        let list: Value = serde_json::from_str(&list).unwrap();
        let exports = list["exports"].as_array().unwrap();
        let told: Vec<_> = exports
            .iter()
            .map(|export| (export["export-name"].as_str().unwrap(), &export["is_read_only"]))
            .collect();
        assert_eq!(
            told,
            [("data", &false.into()), ("data@copied0", &true.into()), ("data@copied1", &true.into())]
        );
        assert!(exports.iter().all(|export| export["export-size"] == SIZE), "{list}");
    }
    let nobody = finish(Command::new("nbdinfo").arg(served.unix("nobody")));
    assert!(!nobody.status.success());
    served.verify("copied0");
    served.verify("copied1");
    stop_all(served.cluster);
}

#[test]
fn a_snapshot_refuses_every_write() {
    let served = Served::start();
    nbdsh(&served.unix("data"), "h.pwrite(b'kept' * 1024, 4096)\nh.shutdown()");
    served.snapshot("s");
    for uri in [served.unix("data@s"), served.tcp("data@s")] {
        nbdsh(
            &uri,
            "assert h.is_read_only()\n\
             fails(errno.EPERM, h.pwrite, b'x', 4096)\n\
             fails(errno.EPERM, h.trim, 4096, 4096)\n\
             fails(errno.EPERM, h.zero, 4096, 4096)\n\
             assert h.pread(4096, 4096) == b'kept' * 1024\n\
             h.shutdown()",
        );
        assert!(
            !finish(Command::new("qemu-io").args(["-f", "raw", "-c", "write 0 4k", &uri])).status.success()
        );
        let image = served.image("image", 3);
        assert!(!finish(Command::new("nbdcopy").arg(image).arg(&uri)).status.success());
    }
    served.verify("s");
    stop_all(served.cluster);
}

#[test]
fn qemus_tools_convert_compare_and_write_patterns() {
    let served = Served::start();
    let image = served.image("image", 4);
    let raw = ["-f", "raw"];
    for (round, (uri, tcp)) in
        [(served.unix("data"), false), (served.tcp("data"), true)].into_iter().enumerate()
    {
        let info = run(Command::new("qemu-img").args(["info", "--output=json"]).args(raw).arg(&uri));
        assert_eq!(serde_json::from_str::<Value>(&info).unwrap()["virtual-size"], SIZE);
        run(Command::new("qemu-img").args(["convert", "-n", "-O", "raw"]).args(raw).arg(&image).arg(&uri));
        run(Command::new("qemu-img").args(["compare", "-F", "raw"]).args(raw).arg(&image).arg(&uri));
        let name = format!("s{round}");
        served.snapshot(&name);

        let commands = [
            "write -P 0xaa 0 64k",
            "write -f -P 0xbb 64k 64k",
            "write -z 16k 4k",
            "write -z -u 20k 4k",
            "discard 24k 4k",
            "aio_write -P 0xcc 1M 1M",
            "aio_write -P 0xdd 2M 1M",
            "aio_flush",
            "flush",
            "read -P 0xaa 0 16k",
            "read -P 0 16k 12k",
            "read -P 0xaa 28k 36k",
            "read -P 0xbb 64k 64k",
            "read -P 0xcc 1M 1M",
            "read -P 0xdd 2M 1M",
        ];
        let arguments = commands.iter().flat_map(|command| ["-c", command]);
        let printed = run(Command::new("qemu-io").args(raw).args(arguments).arg(&uri));
        assert!(!printed.contains("failed"), "{printed}");

        let export = format!("data@{name}");
        let snapshot = if tcp { served.tcp(&export) } else { served.unix(&export) };
        let kept = served.file("kept.qcow2");
        run(Command::new("qemu-img").args(["convert", "-O", "qcow2"]).args(raw).arg(snapshot).arg(&kept));
        run(Command::new("qemu-img").args(["compare", "-F", "qcow2"]).args(raw).arg(&image).arg(&kept));
        served.verify(&name);
    }
    stop_all(served.cluster);
}

#[test]
fn fio_verifies_what_it_writes_while_snapshots_are_taken() {
    let served = Served::start();
    // Limited, so that snapshots fall between its writes: 4096 of them, at 250 a second.
    let options = ["--rw=randwrite", "--verify=crc32c", "--verify_fatal=1", "--rate_iops=250", "--fsync=256"];
    let mut writer = Running(fio(served.files.path(), &served.tcp("data"), &options).spawn().unwrap());
    let mut taken = Vec::new();
    while writer.0.try_wait().unwrap().is_none() {
        let name = format!("s{}", taken.len());
        served.snapshot(&name);
        taken.push(name);
        // Old ones are deleted, and so merged, meanwhile.
        if let [.., old, _, _] = &taken[..] {
            served.delete(old);
        }
    }
    assert!(writer.0.wait().unwrap().success(), "fio found other data than it wrote");
    assert!(taken.len() > 2, "snapshots fell into its run: {taken:?}");
    served.verify(taken.last().unwrap());
    stop_all(served.cluster);
}

#[test]
fn fio_finds_the_old_data_on_the_snapshot_after_it_wrote_new() {
    let served = Served::start();
    let (live, snapshot) = (served.unix("data"), served.unix("data@s"));
    let directory = served.files.path();
    let checksums = ["--verify=crc32c", "--verify_fatal=1"];
    run(fio(directory, &live, &["--rw=write", "--do_verify=0"]).args(checksums));
    // Without the checksums that are looked for: one block of these in the snapshot fails the verification.
    served.snapshot("s");
    run(&mut fio(directory, &live, &["--rw=randwrite", "--buffer_pattern=0x5a"]));
    let written = served.content(&live);
    assert!(written[..16 << 20].chunks(4096).all(|block| block == [0x5a; 4096]), "it wrote everything anew");
    run(fio(directory, &snapshot, &["--rw=read"]).args(checksums));
    assert!(!finish(fio(directory, &live, &["--rw=read"]).args(checksums)).status.success());
    served.verify("s");
    stop_all(served.cluster);
}

#[test]
fn what_was_flushed_and_every_snapshot_survives_kill_9() {
    let mut served = Served::start();
    let (live, snapshot) = (served.unix("data"), served.unix("data@s"));
    let old = served.image("old", 5);
    run(Command::new("nbdcopy").arg("--flush").arg(&old).arg(&live));
    served.snapshot("s");
    nbdsh(
        &live,
        "h.pwrite(b'flushed.' * 512, 8192)\n\
         h.trim(65536, 1 << 20)\n\
         h.pwrite(b'partial', 12345)\n\
         h.flush()\n\
         h.pwrite(b'with FUA' * 512, 16384, nbd.CMD_FLAG_FUA)\n\
         h.pwrite(b'perhaps.' * 512, 32768)",
    );
    let before = served.content(&live);
    for round in 0..2 {
        served.cluster.hosts[0].daemon.signal(Signal::SIGKILL).unwrap();
        served.cluster.restart_host(0).unwrap();
        let mut after = served.content(&live);
        let unflushed = &after[32768..36864];
        assert!(
            unflushed == &before[32768..36864] || unflushed == &std::fs::read(&old).unwrap()[32768..36864]
        );
        after[32768..36864].copy_from_slice(&before[32768..36864]);
        assert_same(&after, &before);
        assert_same(&served.content(&snapshot), &std::fs::read(&old).unwrap());
        served.verify("s");
        let exports = run(Command::new("nbdinfo").args(["--list", &served.unix("")]));
        assert!(exports.contains("export=\"data@s\""), "{exports}");
        // It takes further snapshots, once the server knows its new run.
        served.snapshot(&format!("after{round}"));
    }
    served.delete("s");
    assert_same(&served.content(&live)[..32768], &before[..32768]);
    stop_all(served.cluster);
}

/// Killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already if this fails.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
