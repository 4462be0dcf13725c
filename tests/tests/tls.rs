//! The control plane over HTTPS, with the real binary: both ends present a certificate of the fleet's authority.

use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Output};

use coeval_cli::cluster::{Cluster, Place};
use harness::coeval;
use harness::tls::Authority;
use snapshot::http::TlsFiles;

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

#[test]
fn only_certificates_of_the_fleets_authority_are_admitted() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let place = |name: &str| Place { tls: Some(ours.issue(name, HERE)), ..Place::loopback(&[]) };
    let cluster =
        Cluster::start(coeval(), &[("a", place("host"))], &place("server"), |_, address| Ok(address))
            .unwrap();
    assert!(cluster.api.starts_with("https://") && cluster.hosts[0].ready.control.starts_with("https://"));

    let command = |files: Option<&TlsFiles>, arguments: &[&str]| -> Output {
        let mut command = Command::new(coeval());
        command.args(arguments).args(["--server", &cluster.api]);
        if let Some(TlsFiles { cert, key, ca }) = files {
            command.arg("--cert").arg(cert).arg("--key").arg(key).arg("--ca").arg(ca);
        }
        command.output().unwrap()
    };
    let admin = ours.issue("admin", HERE);
    for arguments in
        [&["volume", "create", "a/data", "16MiB"][..], &["snapshot", "create", "first", "--mode", "barrier"]]
    {
        let output = command(Some(&admin), arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let stranger = TlsFiles { ca: admin.ca, ..theirs.issue("stranger", HERE) };
    for files in [None, Some(&stranger)] {
        let refused = command(files, &["volume", "list"]);
        assert!(!refused.status.success() && refused.stdout.is_empty(), "{files:?} was admitted");
    }
}
