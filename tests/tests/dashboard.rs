//! The dashboard in a real browser, on real daemons.
//!
//! `COEVAL_PICTURES=docs/dashboard cargo test -p coeval-tests --test dashboard` also takes the pictures that the docs show.

#![expect(clippy::unwrap_used, reason = "a panic is how a test's helpers fail")]

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use coeval_cli::cluster::{Cluster, Place, ServerReady};
use coeval_cli::daemon::Daemon;
use coeval_cli::workload::{Export, Workload};
use harness::browser::{Browser, DESKTOP, ENTER, PHONE, RIGHT, Screen, TAB};
use harness::fleet::kill;
use harness::tls::Authority;
use harness::tools::{self, free_port};
use harness::{coeval, eventually};
use rusqlite::{Connection, params};
use snapshot::http::{Role, TlsFiles};
use snapshot::nbd::Endpoint;
use timesync::clock::wall_now;

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// What a page must show as it is.
const MARKUP: &str = "<img src=x>";

const NO_SIDEWAYS: &str = "document.documentElement.scrollWidth <= innerWidth";
/// The rows have their charts.
const DRAWN: &str = "document.querySelectorAll('.hosts .spark.widths').length > 0";

/// Hosts with a volume each, and a server that comes back to the same port.
fn fleet(names: &[&str]) -> Cluster {
    let port = format!("127.0.0.1:{}", free_port());
    let hosts: Vec<_> = names.iter().map(|name| (*name, Place::loopback(&[]))).collect();
    let server = Place::loopback(&["--listen", &port]);
    let cluster = Cluster::start(coeval(), &hosts, &server, |_, address| Ok(address)).unwrap();
    for host in &cluster.hosts {
        let volume = format!("{}/data", host.name);
        tools::run(tools::command(&cluster).args(["volume", "create", &volume, "16MiB"]));
    }
    cluster
}

/// Where the docs' pictures go, if they are wanted.
fn pictures() -> Option<PathBuf> {
    let directory = std::env::var_os("COEVAL_PICTURES")?;
    // Tests run in their package's directory.
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(directory);
    std::fs::create_dir_all(&directory).unwrap();
    Some(directory)
}

fn take_picture(browser: &Browser, name: &str) {
    if let Some(directory) = pictures() {
        browser.run("document.activeElement.blur(); scrollTo(0, 0)");
        browser.picture(&directory.join(format!("{name}.webp")));
    }
}

fn assert_no_complaint(browser: &Browser) {
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn an_operator_takes_and_verifies_a_snapshot_with_the_keyboard_alone() {
    let mut cluster = fleet(&["alpha", "beta", MARKUP]);
    let browser = Browser::start("");
    browser.open(&cluster.api);
    browser.await_that("document.querySelectorAll('tr[data-state=bounded]').length === 3");
    browser.await_that("document.querySelector('#who').textContent === 'operator'");
    assert_eq!(
        browser.run("return document.querySelectorAll('main img').length"),
        0,
        "a name became an image"
    );
    assert!(browser.text(".hosts").contains(MARKUP));

    // A row opens, and its chart has a cursor.
    browser.await_that(DRAWN);
    browser.run("document.querySelectorAll('.disclose[aria-expanded=true]').forEach((open) => open.click())");
    browser.tab_to(".disclose");
    browser.press(ENTER);
    browser.tab_to(".chart.offsets");
    browser.await_that("document.querySelector('.chart.offsets .middle')?.getAttribute('d')");
    browser.press(RIGHT);
    browser.await_that(
        "/bound|hard/.test(document.querySelector('.details:not([hidden]) .readout').textContent)",
    );
    browser.tab_to("canvas.matrix");
    browser.press(RIGHT);
    browser.await_that("/±/.test(document.querySelector('.matrix-box + .readout').textContent)");

    browser.run("document.activeElement.blur()");
    browser.tab_to("nav a[href='#/snapshots']");
    browser.press(ENTER);
    browser.await_that("document.querySelector('.snapshots') && document.querySelector('#name')");
    browser.await_that(
        "document.querySelector('.list .notice') && !document.querySelector('.list .notice').hidden",
    );
    browser.tab_to("#name");
    browser.press("by-hand");
    browser.tab_to("button.primary");
    browser.press(ENTER);
    browser.await_that("document.querySelector('.said.good')");
    assert!(browser.text(".take .said").contains("by-hand is consistent"));
    browser.await_that("document.querySelector('.detail .timeline .margin')");
    assert!(browser.text(".detail").contains("What each host did"));
    assert!(browser.text(".did").contains(MARKUP));
    browser.tab_to(".detail button");
    browser.press(ENTER);
    browser.await_that("document.querySelector('.verified .said.good')");
    assert!(browser.text(".verified").contains("every volume reads as it did"));
    let shown = tools::ask(&cluster, &["snapshot", "show", "by-hand"]);
    assert_eq!(shown["manifest"]["verdict"], "consistent");

    // A name that is taken is refused in a sentence.
    browser.run("document.querySelector('#name').focus()");
    browser.press("by-hand\u{e007}");
    browser.await_that("document.querySelector('.take .said.bad')");
    assert!(browser.text(".take .said").contains("by-hand"), "{}", browser.text(".take .said"));

    browser.tab_to("nav a[href='#/volumes']");
    browser.press(ENTER);
    browser.await_that(
        "document.querySelectorAll('.space tbody tr').length === 3 && document.querySelector('.spaces')",
    );
    // The refusal was one for the page, not for the console: it came as a line of a good answer.
    assert_no_complaint(&browser);

    let dark = Screen { dark: true, ..PHONE };
    for screen in [PHONE, dark, DESKTOP] {
        browser.screen(screen);
        for view in ["#/clocks", "#/snapshots", "#/volumes"] {
            browser.run(&format!("location.hash = {view:?}"));
            browser.await_that("document.querySelector('#view table')");
            browser.await_that(NO_SIDEWAYS);
        }
        let ground = browser.run("return getComputedStyle(document.body).backgroundColor");
        let light = "rgb(244, 245, 246)";
        assert_eq!(ground == light, !screen.dark, "{ground} on {screen:?}");
    }
    assert_no_complaint(&browser);

    kill(&cluster.server);
    browser.await_that("!document.querySelector('#gone').hidden");
    assert!(browser.text("#gone").contains("does not answer"));
    assert_eq!(browser.text("#live"), "not connected");
    cluster.restart_server().unwrap();
    browser.await_that("document.querySelector('#gone').hidden");
    assert_eq!(browser.text("#live"), "live");
}

/// Only where the pictures are wanted: on real daemons with a workload, which have been there for a while.
#[test]
fn pictures_for_the_docs() {
    if pictures().is_none() {
        return;
    }
    let names = ["db1", "db2", "web"];
    let mut cluster = fleet(&names);
    kill(&cluster.server);
    remember_an_hour(&cluster.state().join("history.sqlite"), &names.map(str::to_owned));
    cluster.restart_server().unwrap();
    let coeval = |arguments: &str| {
        tools::run(tools::command(&cluster).args(arguments.split(' ')));
    };
    coeval("volume quota db1/data 1MiB");
    coeval("volume quota web/data 512KiB --warn 50%");
    for arguments in [["hourly", "0 * * * *", "--keep-hourly"], ["nightly", "0 3 * * *", "--keep-daily"]] {
        let [name, cron, rule] = arguments;
        tools::run(tools::command(&cluster).args(["schedule", "create", name, "--cron", cron, rule, "7"]));
    }
    let exports: Vec<Export> = cluster
        .hosts
        .iter()
        .map(|host| Export { endpoint: Endpoint::Unix(host.nbd_socket.clone()), name: "data".to_owned() })
        .collect();
    let workload = Workload::start(&exports, 8, Duration::from_micros(200)).unwrap();
    coeval("snapshot create by-messages --mode barrier");
    for number in 1..=12 {
        coeval(&format!("snapshot create test-{number} --mode timed --attempts 20"));
    }
    coeval("snapshot create before-upgrade --mode timed --attempts 20");
    drop(workload);

    let browser = Browser::start("");
    browser.open(&cluster.api);
    browser.await_that(DRAWN);
    browser.await_that("document.querySelector('.chart.offsets .middle')?.getAttribute('d')");
    take_picture(&browser, "clocks");
    let dark = Screen { dark: true, ..PHONE };
    browser.screen(PHONE);
    take_picture(&browser, "phone");
    browser.screen(DESKTOP);
    browser.run("location.hash = '#/snapshots'");
    browser.await_that("document.querySelector('.snapshots tbody a')");
    browser.run("document.querySelector('.snapshots tbody a').click()");
    browser.await_that("document.querySelector('.detail .timeline .margin')");
    take_picture(&browser, "snapshot");
    browser.screen(dark);
    browser.await_that("document.querySelector('.timeline').viewBox.baseVal.width < 360");
    browser.run("document.querySelector('.detail').scrollIntoView()");
    browser.picture(&pictures().unwrap().join("phone-dark.webp"));
    browser.screen(Screen { height: 560, ..DESKTOP });
    browser.run("location.hash = '#/volumes'");
    browser.await_that(
        "document.querySelectorAll('.space tbody tr').length === 3 && document.querySelector('.spaces')",
    );
    take_picture(&browser, "volumes");
}

#[test]
fn a_viewer_reads_and_has_no_buttons_that_change_anything() {
    let authority = Authority::new();
    let place =
        |role, name: &str| Place { tls: Some(authority.issue(role, name, HERE)), ..Place::loopback(&[]) };
    let hosts = [("a", place(Role::Host, "a")), ("b", place(Role::Host, "b"))];
    let server = place(Role::Server, "backup");
    let cluster = Cluster::start(coeval(), &hosts, &server, |_, address| Ok(address)).unwrap();
    let anna = authority.issue(Role::Operator, "anna", HERE);
    for arguments in
        [&["volume", "create", "a/data", "16MiB"][..], &["snapshot", "create", "first", "--mode", "barrier"]]
    {
        let mut command = tools::command(&cluster);
        command.args(arguments);
        command.env("COEVAL_CERT", &anna.cert).env("COEVAL_KEY", &anna.key).env("COEVAL_CA", &anna.ca);
        tools::run(&mut command);
    }

    let victor = authority.issue(Role::Viewer, "victor", HERE);
    let port = free_port();
    let _tunnel = Tunnel::start(port, &cluster.api, &victor);
    let browser = Browser::start("");
    eventually(|| std::net::TcpStream::connect(("127.0.0.1", port)).map(drop));
    browser.open(&format!("http://127.0.0.1:{port}/#/snapshots"));
    browser.await_that("document.querySelector('.snapshots tbody a')");
    browser.await_that("document.querySelector('#who').textContent === 'viewer victor'");
    browser.run("document.querySelector('.snapshots tbody a').click()");
    browser.await_that("document.querySelector('.detail .did')");
    assert!(browser.text(".detail").contains("barrier"));
    assert_eq!(browser.run("return document.querySelectorAll('main button').length"), 0);
    assert_no_complaint(&browser);
    // The buttons' absence protects nobody: the server does.
    let post = "return (await fetch('/api/v1/snapshots', {method: 'POST', headers: {'content-type': 'application/json'}, body: '{}'})).status";
    assert_eq!(browser.run_to_its_end(post), 403);
}

/// Speaks TLS on behalf of a browser, which has no certificate of its own here.
struct Tunnel(Child);

impl Tunnel {
    fn start(port: u16, api: &str, files: &TlsFiles) -> Tunnel {
        let server = api.strip_prefix("https://").unwrap();
        let (cert, key) = (files.cert.display(), files.key.display());
        let child = Command::new("socat")
            .arg(format!("TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr"))
            .arg(format!("OPENSSL:{server},cert={cert},key={key},verify=0"))
            .stderr(Stdio::null())
            .spawn();
        Tunnel(child.unwrap_or_else(|why| panic!("socat: {why}; `tests/run` installs the Debian packages")))
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_page_of_another_site_can_do_nothing() {
    let cluster = tools::one_host(&[]);
    tools::run(tools::command(&cluster).args(["volume", "create", "a/data", "16MiB"]));
    let port = cluster.api.rsplit_once(':').unwrap().1;
    // The name leads here for this browser, as it does for anybody's once its owner says so.
    let browser = Browser::start("MAP elsewhere.example 127.0.0.1");

    browser.open(&format!("http://elsewhere.example:{port}/api/v1/skew"));
    assert!(browser.text("body").contains("no name of this machine"), "{}", browser.text("body"));

    // A page of another site: the host's, as it happens. It sends what needs no leave: forms, and text.
    browser.open(&format!("{}/v1/ping", cluster.hosts[0].ready.control));
    for (kind, body) in
        [("text/plain", "{}"), ("application/x-www-form-urlencoded", "a=b"), ("text/plain", "")]
    {
        for path in ["snapshots", "snapshots/none/verify"] {
            let sent = browser.run_to_its_end(&format!(
                "await fetch('{}/api/v1/{path}', {{method: 'POST', mode: 'no-cors', headers: {{'content-type': '{kind}'}}, \
                 body: {body:?}}}); return 'sent'",
                cluster.api
            ));
            assert_eq!(sent, "sent");
        }
    }
    let answer = browser.run_to_its_end(&format!(
        "return await fetch('{}/api/v1/snapshots', {{method: 'POST', headers: {{'content-type': 'application/json'}}, body: '{{}}'}})\
         .then(() => 'answered', () => 'not sent')",
        cluster.api
    ));
    assert_eq!(answer, "not sent", "the browser asks for leave first, and gets none");
    assert_eq!(tools::ask(&cluster, &["snapshot", "list"]), serde_json::json!([]), "nothing came of it");

    // In the page itself no string becomes HTML.
    drop(browser.complaints());
    browser.open(&cluster.api);
    browser.await_that("document.querySelector('tr.host')");
    assert_no_complaint(&browser);
    let injected = "document.body.innerHTML = '<b>x</b>'";
    assert!(browser.run_to_its_end(injected).as_str().unwrap().contains("TrustedHTML"));
}

/// A hundred hosts that one process answers for, with an hour of history.
struct Hundred {
    server: Daemon,
    api: String,
    _host: Daemon,
    _directory: tempfile::TempDir,
}

const HOSTS: u32 = 100;

fn hundred() -> Hundred {
    let directory = tempfile::tempdir().unwrap();
    let (port, time) = (free_port(), free_port());
    let volumes = directory.path().join("volumes");
    let host = format!(
        "name = \"all\"\nlisten = \"127.0.0.1:0\"\ntime = \"0.0.0.0:{time}\"\nnbd = []\nvolumes = {volumes:?}\ninsecure = true\n"
    );
    let host = tools::start(Command::new(coeval()), "host", directory.path(), &host);
    let state = directory.path().join("state");
    let mut config =
        format!("listen = \"127.0.0.1:{port}\"\nstate = {state:?}\ninsecure = true\n[time]\nport = 0\n");
    for number in 1..=HOSTS {
        // All of 127.0.0.0/8 is this machine. The last one answers nobody.
        let at = if number == HOSTS { "127.0.0.1:9".to_owned() } else { format!("127.0.0.{number}:{time}") };
        config += &format!("[[host]]\nname = \"db-{number:03}\"\ntime = \"{at}\"\nagentless = true\n");
        if number % 5 == 0 {
            config += "asymmetry = \"2us\"\n";
        }
    }
    let mut server = tools::start(Command::new(coeval()), "server", directory.path(), &config);
    kill(&server);
    let names: Vec<String> = (1..=HOSTS).map(|number| format!("db-{number:03}")).collect();
    remember_an_hour(&state.join("history.sqlite"), &names);
    server.restart().unwrap();
    let ServerReady { api } = server.ready().unwrap();
    Hundred { server, api, _host: host, _directory: directory }
}

/// Points as a server would have kept them in memory, every ten seconds.
fn remember_an_hour(file: &Path, hosts: &[String]) {
    let mut database = Connection::open(file).unwrap();
    let now = wall_now().as_nanos() / 1_000_000;
    let transaction = database.transaction().unwrap();
    // Pictures come out alike.
    let mut random = 7_u32;
    let mut below = |limit: i64| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        i64::from(random >> 8) % limit
    };
    for (number, host) in hosts.iter().enumerate() {
        let width = (700 + below(1_500)) * if number % 17 == 9 { 5 } else { 1 };
        let mut walk = 0;
        for second in (0..3_600).step_by(10) {
            walk += below(width) / 5 - width / 10 - walk / 20;
            let spike = if below(150) == 0 { 9 } else { 1 };
            let hard = (width + below(width / 3 + 1)) * spike;
            let gap = number % 7 == 2 && (1_500..1_700).contains(&second);
            let statistical = if number % 5 == 0 { hard * 2 / 5 } else { hard };
            let values = (!gap).then_some((walk, hard, statistical));
            let point = params![
                host,
                now - 3_600_000 + second * 1_000,
                values.map(|(offset, ..)| offset),
                values.map(|(_, hard, _)| hard),
                values.map(|(.., statistical)| statistical),
                hard * 2,
                hard * 9
            ];
            let insert = "INSERT OR REPLACE INTO points VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 160, 0)";
            transaction.execute(insert, point).unwrap();
        }
    }
    transaction.commit().unwrap();
}

#[test]
fn a_hundred_hosts_are_one_page() {
    let hundred = hundred();
    let browser = Browser::start("");
    let bounded = "document.querySelectorAll('tr[data-state=bounded]').length";
    browser.open(&hundred.api);
    browser.await_that(&format!("{bounded} === {}", HOSTS - 1));
    browser.await_that("document.querySelectorAll('.hosts .spark.widths').length >= 99");

    // Not a promise of the page, but good to know: the first paint of anything, and of all that there is.
    let figures = "const at = (name) => Math.round(performance.getEntriesByName(name)[0]?.startTime ?? -1); \
                   return `first paint after ${at('first-contentful-paint')} ms, all drawn after ${at('drawn')} ms`";
    for _ in 0..3 {
        browser.open("about:blank");
        browser.open(&hundred.api);
        browser.await_that("performance.getEntriesByName('drawn').length && performance.getEntriesByName('first-contentful-paint').length");
        println!("{HOSTS} hosts and an hour of history: {}", browser.run(figures).as_str().unwrap());
    }

    browser.await_that(&format!("{bounded} === {}", HOSTS - 1));
    assert_eq!(browser.text(".hosts .host .disclose"), "db-100", "the one without a bound comes first");
    assert!(browser.text(".hosts .host .state").contains("silent"));
    browser.run("document.activeElement.blur()");
    browser.tab_to("#search");
    browser.press("db-04");
    browser
        .await_that("[...document.querySelectorAll('tr.host')].filter((row) => !row.hidden).length === 10");
    assert!(browser.text("[role=status].quiet").contains("10 hosts of 100"));
    browser.press(&"\u{e003}".repeat(5));
    browser.press(TAB);
    assert_no_complaint(&browser);

    browser.screen(Screen { dark: true, ..DESKTOP });
    take_picture(&browser, "hundred-dark");
    browser.screen(PHONE);
    browser.await_that(NO_SIDEWAYS);
    drop(hundred.server);
    browser.await_that("!document.querySelector('#gone').hidden");
}
