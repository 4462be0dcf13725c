//! BLOCK_STATUS, incremental copies and TLS, with the clients that people use, on real volumes. A client that is not
//! installed fails its test.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use snapshot::host::{HostOptions, HostService};
use snapshot::http::TlsFiles;
use snapshot::nbd::{Client, Endpoint, Server};
use snapshot::orders::CreateVolume;
use tempfile::TempDir;
use timesync::clock::HostClock;
use timesync::identity::Incarnation;
use timesync::time::Nanos;
use uuid::Uuid;

const SIZE: u64 = 16 << 20;

/// A host with a volume `data`, on a Unix socket and, with certificates, by TLS.
struct Served {
    service: Arc<HostService>,
    server: Server,
    directory: TempDir,
}

impl Served {
    fn start(tls: Option<&TlsFiles>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = HostOptions {
            name: "a".to_owned(),
            volumes: directory.path().join("volumes"),
            max_stretch: Nanos::from_millis(100),
            import_from: Vec::new(),
            merge_rate: 1 << 30,
        };
        let clock = HostClock::real();
        let service =
            HostService::open(options, Incarnation::of_this_process().unwrap(), clock.clone()).unwrap();
        service.create_volume(&CreateVolume { name: "data".to_owned(), size: SIZE }).unwrap();
        let mut endpoints = vec![Endpoint::Unix(directory.path().join("nbd"))];
        endpoints.extend(tls.map(|_| "tls://127.0.0.1:0".parse::<Endpoint>().unwrap()));
        let server = Server::bind_with_tls(&endpoints, Arc::clone(&service) as _, clock, tls).unwrap();
        Served { service, server, directory }
    }

    fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.directory.path().join("nbd").display())
    }

    fn port(&self) -> u16 {
        let Some(Endpoint::Tls(address)) = self.server.endpoints().get(1) else { unreachable!() };
        address.port()
    }

    fn write(&self, offset: u64, length: usize, byte: u8) {
        let mut client = Client::connect(&self.server.endpoints()[0], "data").unwrap();
        client.write(offset, &vec![byte; length], false).unwrap();
        client.disconnect().unwrap();
    }

    fn snapshot(&self, name: &str) {
        self.service.uncoordinated(Uuid::new_v4(), &["data".to_owned()], name).unwrap();
    }
}

fn finish(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn run(command: &mut Command) -> String {
    let output = finish(command);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{stdout}{stderr}", output.status);
    stdout
}

fn nbdsh(script: &str) -> String {
    run(Command::new("/usr/bin/python3").args(["-m", "nbd", "-c", script]))
}

/// Offset, length and status of each run that nbdinfo shows.
fn nbdinfo_map(context: &str, uri: &str) -> Vec<(u64, u64, u64)> {
    let printed = run(Command::new("nbdinfo").args([&format!("--map={context}"), "--json", uri]));
    let runs: serde_json::Value = serde_json::from_str(&printed).unwrap();
    let number = |run: &serde_json::Value, key: &str| run[key].as_u64().unwrap();
    let runs = runs.as_array().unwrap().iter();
    runs.map(|run| (number(run, "offset"), number(run, "length"), number(run, "type"))).collect()
}

#[test]
fn maps_are_what_libnbd_and_qemu_make_of_them() {
    let served = Served::start(None);
    let mib = 1 << 20;
    served.write(mib, 64 << 10, 1);
    served.snapshot("monday");
    served.write(2 * mib, 4096, 2);
    served.snapshot("tuesday");
    served.write(3 * mib, 4096, 3);

    let (data, hole) = (0, 3);
    let monday = [(0, mib, hole), (mib, 64 << 10, data), (mib + (64 << 10), SIZE - mib - (64 << 10), hole)];
    assert_eq!(nbdinfo_map("base:allocation", &served.uri("data@monday")), monday);
    let since = |snapshot: &str| format!("qemu:dirty-bitmap:since-{snapshot}");
    let changed = |at: u64, from: u64| {
        [(0, from, 0), (from, 4096, 1), (from + 4096, at, 0)].into_iter().collect::<Vec<_>>()
    };
    assert_eq!(
        nbdinfo_map(&since("monday"), &served.uri("data@tuesday")),
        changed(SIZE - 2 * mib - 4096, 2 * mib)
    );
    assert_eq!(nbdinfo_map(&since("tuesday"), &served.uri("data")), changed(SIZE - 3 * mib - 4096, 3 * mib));
    let both = nbdinfo_map(&since("monday"), &served.uri("data"));
    let dirty: Vec<u64> = both.iter().filter(|run| run.2 == 1).map(|run| run.0).collect();
    assert_eq!(dirty, [2 * mib, 3 * mib]);

    let list = run(Command::new("nbdinfo").args(["--list", "--json", &served.uri("")]));
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let tuesday = &list["exports"][2];
    assert_eq!(tuesday["export-name"], "data@tuesday");
    assert_eq!(tuesday["description"], "volume data as it was in snapshot tuesday, read-only");
    assert_eq!(tuesday["contexts"], serde_json::json!(["base:allocation", since("monday")]));

    let map =
        run(Command::new("qemu-img").args(["map", "--output=json", "-f", "raw", &served.uri("data@monday")]));
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let runs: Vec<_> = map.as_array().unwrap().iter().map(|run| (&run["start"], &run["data"])).collect();
    assert_eq!(
        runs,
        [
            (&0.into(), &false.into()),
            (&mib.into(), &true.into()),
            (&(mib + (64 << 10)).into(), &false.into())
        ]
    );
    // QEMU reads a bitmap in place of the allocation: what has changed counts as a hole there.
    let options = format!(
        "driver=nbd,server.type=unix,server.path={},export=data@tuesday,x-dirty-bitmap={}",
        served.directory.path().join("nbd").display(),
        since("monday")
    );
    let map = run(Command::new("qemu-img").args(["map", "--output=json", "--image-opts", &options]));
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    assert_eq!(
        (&map[1]["start"], &map[1]["length"], &map[1]["data"]),
        (&(2 * mib).into(), &4096.into(), &false.into())
    );
}

#[test]
fn a_full_and_an_incremental_copy_make_the_image() {
    let served = Served::start(None);
    let random =
        |seed: u64| seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    let mut state = 1;
    let mut scatter = |count: u64| {
        for _ in 0..count {
            state = random(state);
            served.write((state >> 40) % (SIZE / 512) * 512, 512, (state >> 33) as u8);
        }
    };
    scatter(200);
    served.snapshot("full");
    let image = served.directory.path().join("image");
    run(Command::new("nbdcopy").arg(served.uri("data@full")).arg(&image));
    scatter(100);
    served.snapshot("later");
    // What a backup program does: reads what has changed, and nothing else.
    let map = nbdinfo_map("qemu:dirty-bitmap:since-full", &served.uri("data@later"));
    let changed: u64 = map.iter().filter(|run| run.2 == 1).map(|run| run.1).sum();
    assert!((1..SIZE / 2).contains(&changed), "{changed} bytes");
    let mut client = Client::connect(&served.server.endpoints()[0], "data@later").unwrap();
    let file = std::fs::File::options().write(true).open(&image).unwrap();
    for (offset, length, _) in map.into_iter().filter(|run| run.2 == 1) {
        let mut data = vec![0; length as usize];
        client.read(offset, &mut data).unwrap();
        file.write_all_at(&data, offset).unwrap();
    }
    let later = served.directory.path().join("later");
    run(Command::new("nbdcopy").arg(served.uri("data@later")).arg(&later));
    assert!(std::fs::read(&image).unwrap() == std::fs::read(&later).unwrap());
}

#[test]
fn libnbd_uses_all_that_is_offered() {
    let served = Served::start(None);
    served.write(0, 8192, 1);
    nbdsh(&format!(
        "h.add_meta_context('base:allocation')\n\
         h.connect_uri('{}')\n\
         assert h.can_cache() and h.can_fast_zero() and h.can_df() and h.can_multi_conn()\n\
         assert h.can_meta_context('base:allocation')\n\
         h.cache(8192, 0)\n\
         h.zero(4096, 0, nbd.CMD_FLAG_FAST_ZERO)\n\
         assert h.pread(8192, 0) == bytes(4096) + b'\\x01' * 4096\n\
         h.pread_structured(8192, 0, lambda data, *rest: None, nbd.CMD_FLAG_DF)\n\
         try:\n\
         \x20   h.zero(100, 50, nbd.CMD_FLAG_FAST_ZERO)\n\
         \x20   raise AssertionError('a part of a block was zeroed fast')\n\
         except nbd.Error as error:\n\
         \x20   assert error.errnum == __import__('errno').EOPNOTSUPP, error\n\
         seen = []\n\
         h.block_status(1 << 20, 0, lambda *told: seen.append(told[:3]), nbd.CMD_FLAG_REQ_ONE)\n\
         assert seen == [('base:allocation', 0, [4096, 3])], seen\n\
         h.shutdown()",
        served.uri("data")
    ));
}

/// Certificates as GnuTLS's programs look for them: a directory each.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    directory: TempDir,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem, directory: tempfile::tempdir().unwrap() }
    }

    fn issue(&self, role: &str, name: &str) -> TlsFiles {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.subject_alt_names = vec![
            SanType::IpAddress([127, 0, 0, 1].into()),
            SanType::URI(format!("coeval://{role}/{name}").try_into().unwrap()),
        ];
        params.key_usages =
            vec![rcgen::KeyUsagePurpose::DigitalSignature, rcgen::KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let directory = self.directory.path().join(name);
        std::fs::create_dir(&directory).unwrap();
        let write = |file: &str, text: &str| -> PathBuf {
            let path = directory.join(file);
            std::fs::write(&path, text).unwrap();
            path
        };
        TlsFiles {
            cert: write("client-cert.pem", &certificate.pem()),
            key: write("client-key.pem", &key.serialize_pem()),
            ca: write("ca-cert.pem", &self.pem),
        }
    }
}

fn directory(files: &TlsFiles) -> &Path {
    files.cert.parent().unwrap()
}

#[test]
fn tls_is_required_and_libnbd_and_qemu_speak_it() {
    let authority = Authority::new();
    let served = Served::start(Some(&authority.issue("host", "a")));
    served.write(0, 4096, 9);
    let port = served.port();
    let plain = format!("nbd://127.0.0.1:{port}/data");
    let refused = finish(Command::new("nbdinfo").arg(&plain));
    assert!(!refused.status.success());
    let refused = finish(Command::new("qemu-img").args(["info", "-f", "raw", &plain]));
    assert!(!refused.status.success());
    let sentence = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(sentence.contains("TLS"), "{sentence}");

    let (anna, eve) = (authority.issue("operator", "anna"), authority.issue("viewer", "eve"));
    let another = Authority::new();
    let stranger = another.issue("operator", "mallory");
    // He trusts the server's authority, but comes from another one.
    std::fs::copy(&anna.ca, &stranger.ca).unwrap();
    let uri = |files: &TlsFiles| {
        format!("nbds://127.0.0.1:{port}/data?tls-certificates={}", directory(files).display())
    };
    let info = run(Command::new("nbdinfo").arg(uri(&anna)));
    assert!(info.contains("TLS"), "{info}");
    nbdsh(&format!(
        "h.set_uri_allow_local_file(True)\n\
         h.connect_uri('{}')\n\
         assert h.get_tls_negotiated()\n\
         h.pwrite(b'by TLS..' * 65536, 1 << 20)\n\
         h.flush()\n\
         assert h.pread(1 << 19, 1 << 20) == b'by TLS..' * 65536\n\
         h.shutdown()",
        uri(&anna)
    ));
    let copy = served.directory.path().join("copy");
    run(Command::new("nbdcopy").arg("--connections=4").arg(uri(&anna)).arg(&copy));
    assert_eq!(std::fs::read(&copy).unwrap()[1 << 20..][..8], *b"by TLS..");
    assert_eq!(nbdinfo_map("base:allocation", &uri(&anna))[0], (0, 4096, 0));
    for files in [&eve, &stranger] {
        assert!(!finish(Command::new("nbdinfo").arg(uri(files))).status.success());
    }
    let nameless = format!("nbds://127.0.0.1:{port}/data");
    assert!(!finish(Command::new("nbdinfo").arg(nameless)).status.success());

    let qemu = |files: &TlsFiles| {
        let mut command = Command::new("qemu-img");
        let credentials =
            format!("tls-creds-x509,id=tls0,endpoint=client,dir={}", directory(files).display());
        let image = format!(
            "driver=nbd,server.type=inet,server.host=127.0.0.1,server.port={port},export=data,tls-creds=tls0"
        );
        finish(
            command
                .args(["compare", "--object", &credentials, "--image-opts", &image])
                .arg(format!("driver=raw,file.driver=file,file.filename={}", copy.display())),
        )
    };
    let compared = qemu(&anna);
    assert!(compared.status.success(), "{}", String::from_utf8_lossy(&compared.stderr));
    assert!(!qemu(&eve).status.success());
}
