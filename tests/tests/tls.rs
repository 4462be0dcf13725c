//! The control plane over HTTPS, with the real binary: both ends present a certificate of the fleet's authority.

#![expect(clippy::unwrap_used, reason = "a panic is how a test's helpers fail")]

use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Output};
use std::time::Duration;

use coeval_cli::cluster::{Cluster, Place};
use harness::coeval;
use harness::tls::Authority;
use serde_json::Value;
use snapshot::http::{Connector, ControlError, Role, TlsFiles};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn start(authority: &Authority) -> Cluster {
    let place = |role, name| Place { tls: Some(authority.issue(role, name, HERE)), ..Place::loopback(&[]) };
    let (host, server) = (place(Role::Host, "a"), place(Role::Server, "backup"));
    Cluster::start(coeval(), &[("a", host)], &server, |_, address| Ok(address)).unwrap()
}

#[test]
fn only_certificates_of_the_fleets_authority_are_admitted() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let cluster = start(&ours);
    assert!(cluster.api.starts_with("https://") && cluster.hosts[0].ready.control.starts_with("https://"));

    let command = |files: Option<&TlsFiles>, arguments: &[&str]| -> Output {
        let mut command = Command::new(coeval());
        command.args(arguments).args(["--server", &cluster.api]);
        if let Some(TlsFiles { cert, key, ca }) = files {
            command.arg("--cert").arg(cert).arg("--key").arg(key).arg("--ca").arg(ca);
        }
        command.output().unwrap()
    };
    let admin = ours.issue(Role::Operator, "admin", HERE);
    for arguments in
        [&["volume", "create", "a/data", "16MiB"][..], &["snapshot", "create", "first", "--mode", "barrier"]]
    {
        let output = command(Some(&admin), arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let stranger = TlsFiles { ca: admin.ca, ..theirs.issue(Role::Operator, "stranger", HERE) };
    for files in [None, Some(&stranger)] {
        let refused = command(files, &["volume", "list"]);
        assert!(!refused.status.success() && refused.stdout.is_empty(), "{files:?} was admitted");
    }
}

/// Method and path of everything that the server offers; then of everything that a host does.
const API: [&str; 22] = [
    "GET api/v1/me",
    "GET api/v1/dashboard/history",
    "GET api/v1/dashboard/snapshots",
    "GET dashboard/main.js",
    "GET api/v1/snapshots",
    "GET api/v1/snapshots/none",
    "GET api/v1/volumes",
    "GET api/v1/skew",
    "GET api/v1/skew/history",
    "GET api/v1/schedules",
    "POST api/v1/schedules",
    "DELETE api/v1/schedules/none",
    "POST api/v1/snapshots",
    "POST api/v1/snapshots/none/verify",
    "POST api/v1/snapshots/none/restore",
    "POST api/v1/volumes",
    "DELETE api/v1/snapshots/none",
    "GET api/v1/groups",
    "GET api/v1/groups/none",
    "POST api/v1/groups",
    "DELETE api/v1/groups/none",
    "POST api/v1/volumes/a/none/labels",
];
const ATTEMPT: &str = "01940000-0000-7000-8000-000000000000";
const HOST: [&str; 23] = [
    "GET v1/host",
    "GET v1/ping",
    "GET v1/volumes",
    "GET v1/volumes/none/snapshots/none/digest",
    "DELETE v1/volumes/none/snapshots/none",
    "POST v1/volumes",
    "POST v1/cuts/ATTEMPT/prepare",
    "POST v1/cuts/ATTEMPT/arm",
    "POST v1/cuts/ATTEMPT/strike",
    "POST v1/cuts/ATTEMPT/release",
    "POST v1/cuts/ATTEMPT/seal",
    "POST v1/cuts/ATTEMPT/commit",
    "POST v1/cuts/ATTEMPT/abort",
    "POST v1/restores/ATTEMPT/prepare",
    "POST v1/restores/ATTEMPT/switch",
    "POST v1/restores/ATTEMPT/give-up",
    "POST v1/time-key",
    "GET v1/records",
    "GET v1/records/ATTEMPT",
    "POST v1/records/ATTEMPT",
    "GET v1/hooks/ATTEMPT",
    "POST v1/hooks/ATTEMPT/before",
    "POST v1/hooks/ATTEMPT/after",
];

#[test]
fn every_route_asks_for_the_role_that_may_use_it() {
    let authority = Authority::new();
    let cluster = start(&authority);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for role in [Role::Server, Role::Host, Role::Operator, Role::Viewer] {
        // The host's is the certificate of another host, which is no more of the fleet's business than its own.
        let files = authority.issue(role, &format!("other-{role}"), HERE);
        let connector = Connector::new(Some(&files), false).unwrap();
        for (url, routes) in [(&cluster.api, &API[..]), (&cluster.hosts[0].ready.control, &HOST[..])] {
            for route in routes {
                let may = match role {
                    Role::Operator => url == &cluster.api,
                    Role::Viewer => url == &cluster.api && route.starts_with("GET"),
                    Role::Server => url != &cluster.api,
                    Role::Host => false,
                };
                let refused = runtime.block_on(is_forbidden(&connector, url, route));
                assert_eq!(refused, !may, "{role} at {route}");
            }
        }
    }
}

async fn is_forbidden(connector: &Connector, url: &str, route: &str) -> bool {
    let client = connector.connect("the daemon", url).unwrap();
    let (method, path) = route.split_once(' ').unwrap();
    let path = path.replace("ATTEMPT", ATTEMPT);
    let page = client.page(&path.split('/').collect::<Vec<_>>());
    let limit = Duration::from_secs(30);
    let answer: Result<Value, ControlError> = match method {
        "GET" => client.get(page, limit).await,
        "DELETE" => client.delete(page, limit).await,
        _ => client.post(page, &Value::Null, limit).await,
    };
    match answer {
        // A host's certificate is good for being connected to, and for nothing else: the handshake ends there.
        Err(ControlError::Unreachable { .. }) => true,
        Err(error) => error.status() == Some(403),
        Ok(_) => false,
    }
}
