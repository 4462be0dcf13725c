//! The control plane over HTTPS, with the real binary: both ends present a certificate of the fleet's authority.

#![expect(clippy::unwrap_used, reason = "a panic is how a test's helpers fail")]

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
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

/// Which of a daemon's routes a role may use.
fn may(role: Role, is_server: bool, method: &str, path: &str) -> bool {
    let reads = method == "GET";
    match role {
        Role::Operator => is_server || (reads && path == "/metrics"),
        Role::Viewer => reads && (is_server || path == "/metrics"),
        Role::Server => !is_server,
        Role::Host => false,
    }
}

/// What is mounted without standing in a daemon's document: metrics, and the dashboard's files.
const BESIDE: [(&str, &str); 3] =
    [("metrics", "/metrics"), ("dashboard.rs", "/"), ("dashboard.rs", "/dashboard/{file}")];

/// Method and path of every route of a daemon: what its own document says, which is made of its router, and what is beside it.
fn routes(authority: &Authority, url: &str, (role, document): (Role, &str)) -> Vec<(String, String)> {
    let files = authority.issue(role, &format!("reads-{role}"), HERE);
    let connector = Connector::new(Some(&files), false).unwrap();
    let client = connector.connect("the daemon", url).unwrap();
    let page = client.page(&document.split('/').skip(1).collect::<Vec<_>>());
    let document: Value = block_on(client.get(page, LIMIT)).unwrap();
    let routes = document["paths"].as_object().unwrap().iter().flat_map(|(path, item)| {
        item.as_object().unwrap().keys().map(move |method| (method.to_uppercase(), path.clone()))
    });
    let is_server = role == Role::Operator;
    let beside = BESIDE.iter().filter(|(file, _)| is_server || *file == "metrics");
    routes.chain(beside.map(|(_, path)| ("GET".to_owned(), (*path).to_owned()))).collect()
}

const LIMIT: Duration = Duration::from_secs(30);

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// A route that is mounted by hand stands in no document, and so would not be asked below.
#[test]
fn whatever_is_mounted_stands_in_the_documents_or_is_known() {
    fn files(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files(&path, found);
            } else {
                found.push(path);
            }
        }
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut sources = Vec::new();
    for directory in ["snapshot/src", "cli/src"] {
        files(&workspace.join(directory), &mut sources);
    }
    let is_source = |path: &&PathBuf| {
        path.extension().is_some_and(|it| it == "rs")
            && !path.strip_prefix(workspace).unwrap().components().any(|it| it.as_os_str() == "tests")
    };
    let mut seen = 0;
    for path in sources.iter().filter(is_source).filter(|path| !path.ends_with("tests.rs")) {
        let text = std::fs::read_to_string(path).unwrap();
        for mounted in text.split(".route(\"").skip(1) {
            let route = mounted.split('"').next().unwrap();
            let known = |(file, its): &(&str, &str)| *its == route && path.to_string_lossy().contains(file);
            assert!(BESIDE.iter().any(known), "{} mounts {route} beside the documents", path.display());
            seen += 1;
        }
        assert!(!text.contains(".route_service(") && !text.contains(".nest("), "{}", path.display());
    }
    assert_eq!(seen, 4, "metrics of both daemons, the page, its files");
}

#[test]
fn every_route_asks_for_the_role_that_may_use_it() {
    let authority = Authority::new();
    let cluster = start(&authority);
    let server = routes(&authority, &cluster.api, (Role::Operator, "/api/v1/openapi.json"));
    let host = routes(&authority, &cluster.hosts[0].ready.control, (Role::Server, "/v1/openapi.json"));
    // The document is what it is taken for.
    let has = |routes: &[(String, String)], method: &str, path: &str| {
        routes.iter().any(|(its, found)| its == method && found == path)
    };
    assert!(server.len() > 25 && has(&server, "POST", "/api/v1/snapshots/{key}/restore"), "{server:?}");
    assert!(host.len() > 25 && has(&host, "POST", "/v1/cuts/{attempt}/arm"), "{host:?}");
    assert!(
        has(&host, "POST", "/v1/time-key") && has(&host, "POST", "/v1/hooks/{snapshot}/before"),
        "{host:?}"
    );
    assert!(has(&host, "POST", "/v1/records/{attempt}"), "{host:?}");
    assert!(has(&server, "POST", "/api/v1/groups") && has(&server, "GET", "/api/v1/me"), "{server:?}");
    for role in [Role::Server, Role::Host, Role::Operator, Role::Viewer] {
        // The host's is the certificate of another host, which is no more of the fleet's business than its own.
        let files = authority.issue(role, &format!("other-{role}"), HERE);
        let connector = Connector::new(Some(&files), false).unwrap();
        for (url, is_server, routes) in
            [(&cluster.api, true, &server), (&cluster.hosts[0].ready.control, false, &host)]
        {
            for (method, path) in routes {
                let refused = block_on(is_forbidden(&connector, url, method, path));
                assert_eq!(refused, !may(role, is_server, method, path), "{role} at {method} {path}");
            }
        }
    }
}

const ID: &str = "01940000-0000-7000-8000-000000000000";

async fn is_forbidden(connector: &Connector, url: &str, method: &str, path: &str) -> bool {
    let client = connector.connect("the daemon", url).unwrap();
    let segments: Vec<_> = path
        .split('/')
        .skip(1)
        .map(|segment| match segment {
            "{attempt}" | "{restore}" | "{id}" => ID,
            variable if variable.starts_with('{') => "none",
            fixed => fixed,
        })
        .collect();
    let page = client.page(&segments);
    let answer: Result<Value, ControlError> = match method {
        "GET" => client.get(page, LIMIT).await,
        "DELETE" => client.delete(page, LIMIT).await,
        // Of a body that is none, nothing comes.
        "POST" => client.post(page, &Value::Null, LIMIT).await,
        other => panic!("no route is asked with {other} yet"),
    };
    match answer {
        // A host's certificate is good for being connected to, and for nothing else: the handshake ends there.
        Err(ControlError::Unreachable { .. }) => true,
        Err(error) => error.status() == Some(403),
        Ok(_) => false,
    }
}

#[test]
fn a_certificate_that_was_replaced_counts_without_a_restart() {
    let authority = Authority::new();
    let viewer = authority.issue(Role::Viewer, "anna", HERE);
    let cluster = start(&authority);
    let list = |files: &TlsFiles| {
        let connector = Connector::new(Some(files), false).unwrap();
        let client = connector.connect("the server", &cluster.api).unwrap();
        block_on(client.get::<Value>(client.page(&["api", "v1", "volumes"]), LIMIT))
    };
    let answered = list(&viewer).unwrap();
    assert_eq!(answered[0]["problem"], Value::Null, "{answered}");

    // Everybody gets certificates of another authority, in the same files.
    let next = Authority::new();
    let (server, host) = (next.issue(Role::Server, "backup", HERE), next.issue(Role::Host, "a", HERE));
    let new_viewer = next.issue(Role::Viewer, "anna", HERE);
    for (new, name) in [(&server, "backup"), (&host, "a")] {
        let old = authority.files(name);
        for (from, to) in [(&new.cert, &old.cert), (&new.key, &old.key), (&new.ca, &old.ca)] {
            std::fs::copy(from, to).unwrap();
        }
    }
    harness::eventually(|| {
        let answered = list(&new_viewer).map_err(|why| why.to_string())?;
        // The server's connections to its hosts, too.
        match &answered[0]["problem"] {
            Value::Null => Ok(()),
            problem => Err(problem.to_string()),
        }
    });
    harness::eventually(|| {
        let connector = Connector::new(Some(&server), false).unwrap();
        let client = connector.connect("the host", &cluster.hosts[0].ready.control).unwrap();
        block_on(client.get::<Value>(client.page(&["v1", "ping"]), LIMIT))
    });
    // The old authority is trusted no more. (Its own file holds the new certificate by now.)
    let error = list(&viewer).unwrap_err();
    assert!(matches!(error, ControlError::Unreachable { .. }), "{error}");
    for daemon in [&cluster.server, &cluster.hosts[0].daemon] {
        // What a daemon has done it has not always written yet.
        harness::eventually(|| {
            let log = daemon.log().unwrap();
            if log.contains("the TLS files were read again") { Ok(()) } else { Err(log) }
        });
    }
}

#[test]
fn a_certificate_that_expires_soon_is_told() {
    let authority = Authority::new();
    // For a day.
    let cluster = start(&authority);
    for daemon in [&cluster.server, &cluster.hosts[0].daemon] {
        let log = daemon.log().unwrap();
        assert!(log.contains("issue a new one with `coeval pki issue`"), "{log}");
        assert!(!log.contains("the authority's certificate"), "that one is good for years: {log}");
    }
}
