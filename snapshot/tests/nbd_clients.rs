//! The NBD server under the clients that people use. A client that is not installed fails its test.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use nix::fcntl::{FallocateFlags, fallocate};
use snapshot::device::{Device, DeviceError, Exports, Outcome};
use snapshot::nbd::{Endpoint, Server};
use tempfile::TempDir;
use timesync::clock::HostClock;

const SIZE: u64 = 64 << 20;

/// A file as a device.
struct FileDevice {
    file: File,
    read_only: bool,
}

impl FileDevice {
    fn change(&self, fua: bool, change: impl FnOnce(&File) -> std::io::Result<()>) -> Outcome {
        if self.read_only {
            return Outcome::now(Err(DeviceError::ReadOnly));
        }
        let sync = |()| if fua { self.file.sync_data() } else { Ok(()) };
        Outcome::now(change(&self.file).and_then(sync).map_err(DeviceError::from))
    }

    fn punch(&self, offset: u64, length: u64, fua: bool) -> Outcome {
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        self.change(fua, |file| Ok(fallocate(file, mode, offset.cast_signed(), length.cast_signed())?))
    }
}

impl Device for FileDevice {
    fn size(&self) -> u64 {
        SIZE
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Outcome {
        Outcome::now(self.file.read_exact_at(buffer, offset).map_err(DeviceError::from))
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Outcome {
        self.change(fua, |file| file.write_all_at(data, offset))
    }

    fn write_zeroes(&self, offset: u64, length: u64, _may_punch: bool, fua: bool) -> Outcome {
        self.punch(offset, length, fua)
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> Outcome {
        self.punch(offset, length, fua)
    }

    fn flush(&self) -> Outcome {
        Outcome::now(self.file.sync_data().map_err(DeviceError::from))
    }
}

/// A volume and a snapshot, which here is the same file, read-only.
struct Files(PathBuf);

impl Exports for Files {
    fn list(&self) -> Vec<String> {
        vec!["vol".into(), "vol@monday".into()]
    }

    fn open(&self, name: &str) -> Option<Arc<dyn Device>> {
        let read_only = match name {
            "vol" => false,
            "vol@monday" => true,
            _ => return None,
        };
        let file = File::options().read(true).write(!read_only).open(&self.0).unwrap();
        Some(Arc::new(FileDevice { file, read_only }))
    }
}

struct Served {
    server: Server,
    directory: TempDir,
}

impl Served {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let backing = directory.path().join("backing");
        File::create_new(&backing).unwrap().set_len(SIZE).unwrap();
        let endpoints =
            [Endpoint::Unix(directory.path().join("socket")), "tcp://127.0.0.1:0".parse().unwrap()];
        let server = Server::bind(&endpoints, Arc::new(Files(backing)), HostClock::real()).unwrap();
        Served { server, directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn unix(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.path("socket").display())
    }

    fn tcp(&self, export: &str) -> String {
        match &self.server.endpoints()[1] {
            Endpoint::Tcp(address) => format!("nbd://{address}/{export}"),
            _ => unreachable!("the second endpoint is TCP"),
        }
    }

    /// A file of the volume's size with a hole and with data that does not repeat.
    fn image(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let file = File::create_new(&path).unwrap();
        file.set_len(SIZE).unwrap();
        let mut state = 1u64;
        for offset in (0..SIZE / 2).step_by(8) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            if offset % 65_536 == 0 || offset < (1 << 20) {
                file.write_all_at(&state.to_le_bytes(), offset).unwrap();
            }
        }
        path
    }
}

/// Runs a tool that the Debian package `package` brings and returns what it printed.
fn run(package: &str, tool: &str, arguments: &[&str]) -> String {
    let output = match Command::new(tool).args(arguments).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            panic!("{tool} is missing: install the Debian package {package}")
        }
        other => other.unwrap(),
    };
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(
        output.status.success(),
        "{tool} of the Debian package {package}, {arguments:?}: {}\n{stdout}{stderr}",
        output.status
    );
    stdout.into_owned()
}

fn assert_same(left: &Path, right: &Path) {
    assert!(std::fs::read(left).unwrap() == std::fs::read(right).unwrap(), "{left:?} and {right:?} differ");
}

#[test]
fn nbdinfo_sees_what_there_is() {
    let served = Served::start();
    for uri in [served.unix("vol@monday"), served.tcp("vol@monday")] {
        assert_eq!(run("libnbd-bin", "nbdinfo", &["--size", &uri]).trim(), SIZE.to_string());
        let json = run("libnbd-bin", "nbdinfo", &["--json", &uri]);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&json["protocol"], &json["structured"]), (&"newstyle-fixed".into(), &true.into()));
        let export = &json["exports"][0];
        assert_eq!(export["export-name"], "vol@monday");
        assert_eq!(export["is_read_only"], true);
        assert_eq!(export["can_multi_conn"], true);
        assert_eq!(export["block_size_minimum"], 1);
        assert_eq!(export["block_size_preferred"], 4096);
        assert_eq!(export["block_size_maximum"], 32 << 20);
    }
    let json = run("libnbd-bin", "nbdinfo", &["--list", "--json", &served.unix("")]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let exports = json["exports"].as_array().unwrap();
    let named = exports.iter().map(|export| (&export["export-name"], &export["is_read_only"]));
    assert!(named.eq([(&"vol".into(), &false.into()), (&"vol@monday".into(), &true.into())]), "{json}");
    for ability in [
        "can_flush",
        "can_fua",
        "can_trim",
        "can_zero",
        "can_df",
        "can_multi_conn",
        "can_cache",
        "can_fast_zero",
    ] {
        assert_eq!(exports[0][ability], true, "{ability}");
    }
}

#[test]
fn nbdcopy_brings_an_image_there_and_back() {
    let served = Served::start();
    let image = served.image("image");
    for (number, uri) in [served.unix("vol"), served.tcp("vol")].iter().enumerate() {
        let back = served.path(&format!("back{number}"));
        run("libnbd-bin", "nbdcopy", &["--flush", image.to_str().unwrap(), uri]);
        assert_same(&image, &served.path("backing"));
        run("libnbd-bin", "nbdcopy", &["--connections=4", uri, back.to_str().unwrap()]);
        assert_same(&image, &back);
        run("libnbd-bin", "nbdcopy", &["--synchronous", uri, back.to_str().unwrap()]);
        assert_same(&image, &back);
    }
}

/// Every request and every way to ask wrongly, with libnbd's own checks switched off so that the server has to.
const NBDSH: &str = r#"
import errno

def fails(number, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except nbd.Error as error:
        assert error.errnum == number, (error, number)
    else:
        raise AssertionError("no error")

for structured in [False, True]:
    h = nbd.NBD()
    h.set_request_structured_replies(structured)
    h.set_opt_mode(True)
    h.set_strict_mode(0)
    h.connect_uri(uri)
    names = []
    h.opt_list(lambda name, description: names.append(name))
    assert names == ["vol", "vol@monday"], names
    h.set_export_name("none")
    fails(errno.ENOENT, h.opt_info)
    h.set_export_name("vol")
    h.opt_info()
    assert h.get_size() == 64 << 20
    h.opt_go()
    assert h.get_structured_replies_negotiated() == structured
    size = h.get_size()
    assert (h.get_block_size(nbd.SIZE_MINIMUM), h.get_block_size(nbd.SIZE_MAXIMUM)) == (1, 32 << 20)

    h.pwrite(b"abc" * 1000, 4095, nbd.CMD_FLAG_FUA)
    assert h.pread(3000, 4095) == b"abc" * 1000
    h.flush()
    h.trim(1000, 4095, nbd.CMD_FLAG_FUA)
    h.zero(1000, 5095, nbd.CMD_FLAG_NO_HOLE)
    assert h.pread(3000, 4095) == b"\0" * 2000 + (b"abc" * 1000)[2000:]
    if structured:
        assert len(h.pread(1 << 20, 0, nbd.CMD_FLAG_DF)) == 1 << 20
    fails(errno.EINVAL, h.pread, 1, size)
    fails(errno.ENOSPC, h.pwrite, b"xy", size - 1)
    fails(errno.EINVAL, h.trim, 1, size)
    fails(errno.ENOSPC, h.zero, 2, size - 1)
    fails(errno.EINVAL, h.pread, 0, 0)
    h.cache(1, 0)
    fails(errno.EINVAL, h.cache, 1, size)
    fails(errno.ENOTSUP, h.zero, 1, 0, nbd.CMD_FLAG_FAST_ZERO)
    fails(errno.EINVAL, h.pwrite, b"x", 0, 1 << 14)

    # Many in flight, answered in whatever order.
    buffers = [nbd.Buffer.from_bytearray(bytearray([number]) * 4096) for number in range(1, 65)]
    cookies = [h.aio_pwrite(buffer, number * 4096) for number, buffer in enumerate(buffers)]
    while h.aio_in_flight() > 0:
        h.poll(-1)
    assert all(h.aio_command_completed(cookie) for cookie in cookies)
    assert h.pread(64 * 4096, 0) == b"".join(bytes([number]) * 4096 for number in range(1, 65))
    h.shutdown()

    h = nbd.NBD()
    h.set_strict_mode(0)
    h.set_request_structured_replies(structured)
    h.connect_uri(uri.replace("/vol?", "/vol@monday?"))
    assert h.is_read_only()
    fails(errno.EPERM, h.pwrite, b"x", 0)
    fails(errno.EPERM, h.trim, 1, 0)
    fails(errno.EPERM, h.zero, 1, 0)
    assert h.pread(1, 0) == b"\1"
    h.shutdown()
"#;

#[test]
fn nbdsh_tries_every_request() {
    let served = Served::start();
    let uri = format!("uri = '{}'", served.unix("vol"));
    // As the script `nbdsh` does, but with the Python that the package is for, whatever else the PATH begins with.
    run("python3-libnbd", "/usr/bin/python3", &["-m", "nbd", "-c", &uri, "-c", NBDSH]);
}

#[test]
fn qemu_img_converts_and_compares() {
    let served = Served::start();
    let image = served.image("image");
    let (image, back) = (image.to_str().unwrap(), served.path("back"));
    for uri in [served.unix("vol"), served.tcp("vol")] {
        let info = run("qemu-utils", "qemu-img", &["info", "--output=json", "-f", "raw", &uri]);
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["virtual-size"], SIZE);
        run("qemu-utils", "qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", image, &uri]);
        run("qemu-utils", "qemu-img", &["compare", "-f", "raw", "-F", "raw", image, &uri]);
        run("qemu-utils", "qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, back.to_str().unwrap()]);
        run("qemu-utils", "qemu-img", &["compare", "-f", "raw", image, back.to_str().unwrap()]);
    }
    let snapshot = served.unix("vol@monday");
    run("qemu-utils", "qemu-img", &["compare", "-f", "raw", "-F", "raw", image, &snapshot]);
}

#[test]
fn qemu_io_writes_and_reads_patterns() {
    let served = Served::start();
    for uri in [served.unix("vol"), served.tcp("vol")] {
        let mut arguments = vec!["-f", "raw"];
        for command in [
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
        ] {
            arguments.extend(["-c", command]);
        }
        let printed = run("qemu-utils", "qemu-io", &[&arguments[..], &[&uri]].concat());
        assert!(!printed.contains("failed"), "{printed}");
    }
}

#[test]
fn fio_verifies_what_it_wrote() {
    let served = Served::start();
    for uri in [served.unix("vol"), served.tcp("vol")] {
        let uri = format!("--uri={uri}");
        let directory = format!("--aux-path={}", served.directory.path().display());
        run(
            "fio",
            "fio",
            &[
                "--name=verify",
                "--ioengine=nbd",
                &uri,
                &directory,
                "--rw=randwrite",
                "--bsrange=512-128k",
                "--blockalign=512",
                "--size=32m",
                "--iodepth=16",
                "--fsync=64",
                "--verify=crc32c",
                "--verify_fatal=1",
            ],
        );
    }
}
