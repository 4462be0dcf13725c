//! How many hosts one server can probe, and how many servers' requests one module can answer.
//!
//! A server in one network namespace and the module in another: the whole network 10.128.0.0/16 is local there, so that
//! the one module answers for as many hosts as are wanted. Both are the product's own; so is the pace, pairs of exchanges.
//! CPU time is that of the server's probing thread and of the module's thread. A packet's way through the receiver's
//! network stack is the sender's time on a virtual link, for everyone alike.

mod load;

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use harness::namespaces::{Namespace, Network};
use serde::Serialize;
use timesync::clock::{HostClock, pace_now};
use timesync::identity::Incarnation;
use timesync::module::{Module, ModuleConfig};
use timesync::server::{HostConfig, ServerConfig, TimeServer, Totals};
use timesync::source::SkewSource;
use timesync::time::Nanos;
use timesync::wire::EVENT_PORT;

use load::{Ntp, PeerDelay, Protocol};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The hosts' addresses.
const HOSTS: &str = "10.128.0.0/16";
const NTP_PORT: u16 = 123;
/// What may be lost at a rate that counts as sustained.
const TOLERATED: f64 = 0.001;
/// Hosts that are asked for their bounds, and how often.
const SAMPLED: u16 = 10;
const SAMPLES: u32 = 40;
/// Halvings of the range in which the highest rate is looked for.
const HALVINGS: u32 = 6;
/// Rounds in which module and chronyd take turns.
const ROUNDS: usize = 3;
/// Requests on their way to them: one at a time, and as many as no socket drops.
const ON_THEIR_WAY: [u16; 2] = [1, 64];

/// Options of the benchmark.
#[derive(clap::Args)]
pub struct Arguments {
    /// Hosts of one server, at most 60 000.
    #[arg(long, default_value_t = 10_000)]
    hosts: u16,
    /// How long the server probes all hosts at 1 Hz. Other parts take a third of it.
    #[arg(long, default_value_t = 15)]
    seconds: u32,
    /// Prints the figures as JSON.
    #[arg(long)]
    json: bool,
}

/// All figures.
#[derive(Serialize)]
struct Figures {
    few: Rate,
    at_1_hz: Rate,
    memory: Memory,
    highest: Rate,
    responders: Vec<Responder>,
}

/// A server and a module at one rate.
#[derive(Clone, Copy, Serialize)]
struct Rate {
    hosts: u16,
    pairs_per_second: u32,
    exchanges_per_s: f64,
    lost: f64,
    /// Processors.
    server_cores: f64,
    module_cores: f64,
    server_exchanges_per_cpu_s: f64,
    module_exchanges_per_cpu_s: f64,
    /// Of the hard bound.
    half_width_ns: Quantiles,
}

#[derive(Clone, Copy, Serialize)]
struct Quantiles {
    p50: i64,
    p99: i64,
}

/// The server's memory when every host's window is full.
#[derive(Serialize)]
struct Memory {
    hosts: u16,
    window: usize,
    resident_bytes_per_host: u64,
}

/// What a responder answers under one load.
#[derive(Serialize)]
struct Responder {
    who: &'static str,
    on_their_way: u16,
    answered_per_s: f64,
    answered_per_cpu_s: f64,
    /// Answers in the mode that was asked for.
    as_asked: f64,
}

/// Runs the benchmark and prints its figures.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let network = Network::new(2)?;
    let [near, far] = &network.hosts[..] else { return Err("two namespaces were asked for".into()) };
    connect(near, far)?;
    ip(far, &["route", "add", "local", HOSTS, "dev", "lo"])?;
    ip(near, &["route", "add", HOSTS, "via", &far.address.to_string()])?;
    let stage = Stage { near, far };
    let show = |lines: String| {
        if !arguments.json {
            println!("{lines}");
        }
    };
    let module = stage.module()?;
    let third = Nanos::from_millis(i64::from(arguments.seconds) * 1_000 / 3);
    let few = stage.few(third)?;
    show(format!("few: {few}"));
    let before = resident()?;
    let server = stage.server(arguments.hosts, 1)?;
    std::thread::sleep(Duration::from_secs(2));
    let time = Nanos::from_millis(i64::from(arguments.seconds) * 1_000);
    let at_1_hz = measure(&server, arguments.hosts, 1, time)?;
    show(format!("1 Hz: {at_1_hz}"));
    let memory = memory(&server, arguments.hosts, before)?;
    show(memory.to_string());
    drop(server);
    let highest = stage.highest(third)?;
    show(format!("highest rate: {highest}"));
    drop(module);
    let responders = stage.responders(Nanos::from_millis(i64::from(arguments.seconds) * 1_000 / 15))?;
    responders.iter().for_each(|row| show(row.to_string()));
    if arguments.json {
        let figures = Figures { few, at_1_hz, memory, highest, responders };
        println!("{}", serde_json::to_string(&figures)?);
    }
    Ok(())
}

struct Stage<'a> {
    near: &'a Namespace,
    far: &'a Namespace,
}

impl Stage<'_> {
    fn module(&self) -> Result<Module, Failure> {
        let incarnation = Incarnation::of_this_process()?;
        Ok(self.far.inside(|| Module::start(&ModuleConfig::default(), HostClock::real(), incarnation))??)
    }

    fn server(&self, hosts: u16, pairs_per_second: u32) -> Result<TimeServer, Failure> {
        let host = |number: u16| {
            let [high, low] = number.to_be_bytes();
            let address = SocketAddr::new(IpAddr::from([10, 128, high, low]), EVENT_PORT);
            HostConfig::new(name(number), address)
        };
        // Not the network's own address, which some take for a broadcast.
        let hosts = (1..=hosts).map(host).collect();
        let config = ServerConfig { hosts, pairs_per_second, ..ServerConfig::default() };
        config.check()?;
        let incarnation = Incarnation::of_this_process()?;
        Ok(self.near.inside(|| TimeServer::start(&config, incarnation))??)
    }

    fn few(&self, time: Nanos) -> Result<Rate, Failure> {
        let pairs = ServerConfig::default().pairs_per_second;
        let server = self.server(3, pairs)?;
        std::thread::sleep(Duration::from_secs(2));
        measure(&server, 3, pairs, time)
    }

    /// The most exchanges a second, with hosts at the default pace, of which hardly any is lost.
    fn highest(&self, time: Nanos) -> Result<Rate, Failure> {
        let pairs = ServerConfig::default().pairs_per_second;
        let (mut most, mut too_many): (u16, u16) = (0, 10_000);
        let mut best = None;
        for _ in 0..HALVINGS {
            let hosts = most.midpoint(too_many);
            let server = self.server(hosts, pairs)?;
            std::thread::sleep(Duration::from_millis(500));
            let rate = measure(&server, hosts, pairs, time)?;
            // A server that falls behind its pace loses nothing, but does not sustain the rate either.
            let wanted = f64::from(hosts) * f64::from(pairs) * 2.0;
            if rate.lost < TOLERATED && rate.exchanges_per_s > 0.99 * wanted {
                (most, best) = (hosts, Some(rate));
            } else {
                too_many = hosts;
            }
        }
        best.ok_or_else(|| "not even a few hosts can be probed without loss".into())
    }

    fn responders(&self, time: Nanos) -> Result<Vec<Responder>, Failure> {
        let chronyd = Chronyd::start(self.far)?;
        let module = self.module()?;
        let at = |port| SocketAddr::new(self.far.address, port);
        let mut medians = Vec::new();
        for on_their_way in ON_THEIR_WAY {
            let mut rounds: [Vec<Responder>; 3] = Default::default();
            for _ in 0..ROUNDS {
                let cpu = || cpu_of_thread("time-module");
                let load = Load { at: at(EVENT_PORT), on_their_way, time };
                let mut peer_delay = PeerDelay::new(on_their_way);
                rounds[0].push(self.respond("coeval module", &mut peer_delay, load, cpu)?.1);
                for (interleaved, who) in [(true, "chronyd interleaved"), (false, "chronyd basic")] {
                    let mut ntp = Ntp::new(interleaved, on_their_way);
                    let cpu = || cpu_of(&format!("/proc/{}/schedstat", chronyd.child.id()));
                    let load = Load { at: at(NTP_PORT), on_their_way, time };
                    let (answered, mut row) = self.respond(who, &mut ntp, load, cpu)?;
                    row.as_asked = ratio(ntp.as_asked, answered);
                    rounds[if interleaved { 1 } else { 2 }].push(row);
                }
            }
            medians.extend(rounds.into_iter().filter_map(median));
        }
        drop(module);
        Ok(medians)
    }

    fn respond(
        &self,
        who: &'static str,
        protocol: &mut (impl Protocol + Send),
        load: Load,
        cpu: impl Fn() -> Result<u64, Failure>,
    ) -> Result<(u64, Responder), Failure> {
        let Load { at, on_their_way, time } = load;
        let before = cpu()?;
        let answered = self.near.inside(|| load::load(protocol, at, on_their_way, time))??;
        let used = cpu()? - before;
        let row = Responder {
            who,
            on_their_way,
            answered_per_s: ratio(answered * 1_000_000_000, time.get().unsigned_abs()),
            answered_per_cpu_s: ratio(answered * 1_000_000_000, used),
            as_asked: 1.0,
        };
        Ok((answered, row))
    }
}

/// What a responder is loaded with.
#[derive(Clone, Copy)]
struct Load {
    at: SocketAddr,
    on_their_way: u16,
    time: Nanos,
}

/// Takes both off their bridge, whose part of the way would only be more of the sender's time, and connects them directly.
fn connect(near: &Namespace, far: &Namespace) -> io::Result<()> {
    for namespace in [near, far] {
        ip(namespace, &["link", "delete", "eth0"])?;
    }
    ip(near, &["link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", &far.name])?;
    for namespace in [near, far] {
        ip(namespace, &["address", "add", &format!("{}/24", namespace.address), "dev", "eth0"])?;
        ip(namespace, &["link", "set", "eth0", "up"])?;
    }
    Ok(())
}

/// A chronyd that serves its own clock and steers nothing.
struct Chronyd {
    child: Child,
    pidfile: PathBuf,
}

impl Chronyd {
    fn start(namespace: &Namespace) -> Result<Self, Failure> {
        let base = std::env::temp_dir().join(format!("coeval-bench-chronyd-{}", std::process::id()));
        let (config, pidfile) = (base.with_extension("conf"), base.with_extension("pid"));
        let settings = "local stratum 1\nallow all\ncmdport 0\nbindcmdaddress /\npidfile";
        fs::write(&config, format!("{settings} {}\n", pidfile.display()))?;
        let mut command = namespace.command("chronyd");
        // -x: the clock is everybody's.
        command.args(["-x", "-n", "-u", "root", "-f"]).arg(&config);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child =
            child.map_err(|error| format!("chronyd does not start ({error}): install Debian's chrony"))?;
        let chronyd = Chronyd { child, pidfile };
        let address = SocketAddr::new(namespace.address, NTP_PORT);
        let socket = namespace.inside(|| std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        for _ in 0..100 {
            socket.send_to(&Ntp::new(false, 1).request(0), address)?;
            if socket.recv(&mut [0; 64]).is_ok() {
                let _ = fs::remove_file(&config);
                return Ok(chronyd);
            }
        }
        Err("chronyd does not answer".into())
    }
}

impl Drop for Chronyd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.pidfile);
    }
}

fn measure(server: &TimeServer, hosts: u16, pairs_per_second: u32, time: Nanos) -> Result<Rate, Failure> {
    let take = || -> Result<(Nanos, Totals, u64, u64), Failure> {
        Ok((pace_now(), server.totals(), cpu_of_thread("time-prober")?, cpu_of_thread("time-module")?))
    };
    let before = take()?;
    std::thread::sleep(time.to_std());
    let after = take()?;
    let exchanges = after.1.exchanges - before.1.exchanges;
    let lost = after.1.lost - before.1.lost;
    let half_width_ns = half_widths(server, hosts);
    let wall = (after.0 - before.0).get().unsigned_abs();
    let (prober, module) = (after.2 - before.2, after.3 - before.3);
    Ok(Rate {
        hosts,
        pairs_per_second,
        exchanges_per_s: ratio(exchanges * 1_000_000_000, wall),
        lost: ratio(lost, exchanges.max(1)),
        server_cores: ratio(prober, wall),
        module_cores: ratio(module, wall),
        server_exchanges_per_cpu_s: ratio(exchanges * 1_000_000_000, prober),
        module_exchanges_per_cpu_s: ratio(exchanges * 1_000_000_000, module),
        half_width_ns,
    })
}

/// Fills all windows and looks at what that takes, beyond the `before` without a server.
fn memory(server: &TimeServer, hosts: u16, before: u64) -> Result<Memory, Failure> {
    let window = ServerConfig::default().window;
    let names: Vec<String> = (1..=hosts).map(name).collect();
    while server.totals().exchanges < u64::from(hosts) * window as u64 {
        server.burst(&names);
    }
    let resident_bytes_per_host = resident()?.saturating_sub(before) / u64::from(hosts);
    Ok(Memory { hosts, window, resident_bytes_per_host })
}

/// Of the hard bounds of a few of the hosts, at instants that have nothing to do with the exchanges.
fn half_widths(server: &TimeServer, hosts: u16) -> Quantiles {
    let mut widths = Vec::new();
    for _ in 0..SAMPLES {
        std::thread::sleep(Duration::from_millis(17));
        let observed = (1..=hosts.min(SAMPLED)).filter_map(|number| server.observe(&name(number)).ok());
        let bounds = observed.filter_map(|observation| observation.window.hard(server.now()).ok());
        widths.extend(bounds.map(|bound| bound.half_width().get()));
    }
    widths.sort_unstable();
    let at = |percent: usize| widths.get(widths.len().saturating_sub(1) * percent / 100).copied();
    Quantiles { p50: at(50).unwrap_or(0), p99: at(99).unwrap_or(0) }
}

fn name(number: u16) -> String {
    format!("host{number}")
}

fn median(mut rows: Vec<Responder>) -> Option<Responder> {
    rows.sort_by(|a, b| a.answered_per_cpu_s.total_cmp(&b.answered_per_cpu_s));
    let middle = rows.len() / 2;
    rows.into_iter().nth(middle)
}

#[expect(clippy::cast_precision_loss, reason = "a few digits are printed")]
fn ratio(numerator: u64, denominator: u64) -> f64 {
    numerator as f64 / denominator as f64
}

/// The CPU time of this process's thread called `name`, in ns.
fn cpu_of_thread(name: &str) -> Result<u64, Failure> {
    // A thread that has just begun has yet to take its name.
    for _ in 0..100 {
        for task in fs::read_dir("/proc/self/task")? {
            let task = task?.path();
            // A thread may end meanwhile.
            if fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name) {
                return cpu_of(&task.join("schedstat").to_string_lossy());
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(format!("no thread is called {name}").into())
}

/// The time on a processor that a `schedstat` file tells first, in ns.
fn cpu_of(schedstat: &str) -> Result<u64, Failure> {
    let text = fs::read_to_string(schedstat)?;
    let first = text.split_whitespace().next().ok_or("an empty schedstat")?;
    Ok(first.parse()?)
}

/// This process's resident memory, in octets.
fn resident() -> Result<u64, Failure> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1_024)
}

fn ip(namespace: &Namespace, arguments: &[&str]) -> io::Result<()> {
    let status = namespace.command("ip").args(arguments).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("ip {arguments:?} failed"))) }
}

impl Display for Rate {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} hosts, {} pairs/s each: {:.0} exchanges/s, {:.3} % lost",
            self.hosts,
            self.pairs_per_second,
            self.exchanges_per_s,
            self.lost * 100.0
        )?;
        write!(
            f,
            "    server {:.2} cores, {:.0} exchanges per CPU-second; module {:.2} cores, {:.0}; \
             hard ± {} ns p50, {} ns p99",
            self.server_cores,
            self.server_exchanges_per_cpu_s,
            self.module_cores,
            self.module_exchanges_per_cpu_s,
            self.half_width_ns.p50,
            self.half_width_ns.p99
        )
    }
}

impl Display for Memory {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Memory { hosts, window, resident_bytes_per_host } = self;
        let kib = ratio(*resident_bytes_per_host, 1_024);
        write!(f, "memory: {kib:.1} KiB a host, with {hosts} hosts whose windows of {window} are full")
    }
}

impl Display for Responder {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Responder { who, on_their_way, answered_per_s, answered_per_cpu_s, as_asked } = self;
        write!(
            f,
            "{who:<20} {on_their_way:>2} on their way: {answered_per_cpu_s:>7.0} answered per CPU-second \
             ({answered_per_s:.0}/s, {:.1} % in the mode asked for)",
            as_asked * 100.0
        )
    }
}
