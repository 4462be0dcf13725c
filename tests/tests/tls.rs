//! The control plane over HTTPS, with the real binary: both ends present a certificate of the fleet's authority.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::path::Path;
use std::process::{Command, Output};

use coeval_cli::cluster::{HostReady, ServerReady};
use coeval_cli::daemon::Daemon;
use harness::coeval;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

/// Writes an authority and certificates that it issued into `directory`.
fn issue(directory: &Path, authority: &str, names: &[&str]) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(directory.join(format!("{authority}.pem")), issuer.pem()).unwrap();
    for name in names {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(directory.join(format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(directory.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

fn start(directory: &Path, role: &str, config: &str) -> Daemon {
    let file = directory.join(format!("{role}.toml"));
    let tls = format!(
        "[tls]\ncert = {:?}\nkey = {:?}\nca = {:?}\n",
        directory.join(format!("{role}.pem")),
        directory.join(format!("{role}.key")),
        directory.join("ours.pem")
    );
    std::fs::write(&file, config.replace("TLS\n", &tls)).unwrap();
    let mut command = Command::new(coeval());
    command.args([role, "--with-parent", "--config"]).arg(&file);
    Daemon::start(command, &directory.join(format!("{role}.log"))).unwrap()
}

#[test]
fn only_certificates_of_the_fleets_authority_are_admitted() {
    let temporary = tempfile::tempdir().unwrap();
    let directory = temporary.path();
    issue(directory, "ours", &["server", "host", "admin"]);
    issue(directory, "theirs", &["stranger"]);
    let config = format!(
        "name = \"a\"\nlisten = \"127.0.0.1:0\"\ntime = \"127.0.0.1:0\"\nnbd = [\"tcp://127.0.0.1:0\"]\nvolumes = {:?}\nTLS\n",
        directory.join("volumes")
    );
    let host = start(directory, "host", &config);
    let HostReady { control, time, .. } = host.ready().unwrap();
    assert!(control.starts_with("https://"), "{control}");
    let config = format!(
        "listen = \"127.0.0.1:0\"\nstate = {:?}\n[time]\nport = 0\nTLS\n[[host]]\nname = \"a\"\ntime = \"{time}\"\ncontrol = \"{control}\"\n",
        directory.join("state")
    );
    let server = start(directory, "server", &config);
    let ServerReady { api } = server.ready().unwrap();

    let command = |name: Option<&str>, arguments: &[&str]| -> Output {
        let mut command = Command::new(coeval());
        command.args(arguments).args(["--server", &api]);
        if let Some(name) = name {
            command.arg("--cert").arg(directory.join(format!("{name}.pem")));
            command.arg("--key").arg(directory.join(format!("{name}.key")));
            command.arg("--ca").arg(directory.join("ours.pem"));
        }
        command.output().unwrap()
    };
    let created = command(Some("admin"), &["volume", "create", "a/data", "16MiB"]);
    assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
    let taken = command(Some("admin"), &["snapshot", "create", "first", "--mode", "barrier"]);
    assert!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
    for name in [None, Some("stranger")] {
        let refused = command(name, &["volume", "list"]);
        assert!(!refused.status.success() && refused.stdout.is_empty(), "{name:?} was admitted");
    }
}
