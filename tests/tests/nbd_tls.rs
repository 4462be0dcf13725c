//! Volumes by TLS, with the real binary and the fleet's own certificates.

#![expect(clippy::unwrap_used, reason = "a panic is how a test's helpers fail")]

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::Command;

use coeval_cli::cluster::{Cluster, Place};
use harness::coeval;
use harness::tls::Authority;
use harness::tools::{finish, refusal, run, stop_all};
use snapshot::http::{Role, TlsFiles};
use snapshot::nbd::{Client, Endpoint};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The files under the names that GnuTLS's programs look for.
fn directory(files: &TlsFiles) -> PathBuf {
    let directory = files.cert.with_extension("d");
    std::fs::create_dir(&directory).unwrap();
    for (from, to) in
        [(&files.ca, "ca-cert.pem"), (&files.cert, "client-cert.pem"), (&files.key, "client-key.pem")]
    {
        std::fs::copy(from, directory.join(to)).unwrap();
    }
    directory
}

#[test]
fn operators_read_and_write_volumes_by_tls_and_viewers_do_not() {
    let authority = Authority::new();
    let place = |role, name| Place { tls: Some(authority.issue(role, name, HERE)), ..Place::loopback(&[]) };
    let (host, server) = (place(Role::Host, "a"), place(Role::Server, "backup"));
    let cluster = Cluster::start(coeval(), &[("a", host)], &server, |_, address| Ok(address)).unwrap();
    let anna = authority.issue(Role::Operator, "anna", HERE);
    let as_anna = |words: &[&str]| {
        let TlsFiles { cert, key, ca } = &anna;
        let mut command = Command::new(coeval());
        command.args(words).args(["--server", &cluster.api]);
        run(command.arg("--cert").arg(cert).arg("--key").arg(key).arg("--ca").arg(ca))
    };
    as_anna(&["volume", "create", "a/data", "16MiB"]);

    let address = cluster.hosts[0].ready.nbd.iter().find_map(|uri| uri.strip_prefix("nbds://")).unwrap();
    let (gnutls, eve) = (directory(&anna), directory(&authority.issue(Role::Viewer, "eve", HERE)));
    let uri = |files: &PathBuf| format!("nbds://{address}/data?tls-certificates={}", files.display());
    let (image, copy) = (gnutls.join("image"), gnutls.join("copy"));
    std::fs::write(&image, "by TLS..".repeat(2 << 20)).unwrap();
    run(Command::new("nbdcopy").arg(&image).arg(uri(&gnutls)));
    run(Command::new("nbdcopy").arg(uri(&gnutls)).arg(&copy));
    assert!(std::fs::read(&image).unwrap() == std::fs::read(&copy).unwrap());

    // An export takes the first endpoint that it reaches: from another machine, this one.
    as_anna(&["snapshot", "create", "s"]);
    std::fs::remove_file(&cluster.hosts[0].nbd_socket).unwrap();
    let export = gnutls.join("export");
    as_anna(&["snapshot", "export", "s", export.to_str().unwrap(), "--volume", "a/data", "--format", "raw"]);
    assert!(std::fs::read(&image).unwrap() == std::fs::read(&export).unwrap());
    let endpoint = Endpoint::Tls(address.parse().unwrap());
    let refused = Client::connect(&endpoint, "data").unwrap_err().to_string();
    assert!(refused.contains("wants TLS"), "{refused}");
    let stranger = Authority::new().issue(Role::Operator, "anna", HERE);
    Client::connect_with(&endpoint, "data", Some(&stranger)).unwrap_err();

    let credentials = format!("tls-creds-x509,id=tls0,endpoint=client,dir={}", gnutls.display());
    let (server, port) = address.rsplit_once(':').unwrap();
    let export = format!(
        "driver=nbd,server.type=inet,server.host={server},server.port={port},export=data,tls-creds=tls0"
    );
    run(Command::new("qemu-img").args(["info", "--object", &credentials, "--image-opts", &export]));

    assert!(!finish(Command::new("nbdinfo").arg(uri(&eve))).status.success());
    let plain = format!("nbd://{address}/data");
    assert!(!finish(Command::new("nbdinfo").arg(plain)).status.success());
    stop_all(cluster);
}

#[test]
fn plain_nbd_beyond_loopback_must_be_asked_for() {
    let sentence = refusal(["host", "--check", "--nbd", "tcp://0.0.0.0:10809"]);
    assert!(sentence.contains("tls://0.0.0.0:10809") && sentence.contains("insecure"), "{sentence}");
    let sentence = refusal(["host", "--check", "--nbd", "tls://0.0.0.0:10809"]);
    assert!(sentence.contains("[tls]"), "{sentence}");
}
