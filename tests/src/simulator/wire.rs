//! The control network: carries the coordinator's requests to the hosts' own routers, or loses, delays and repeats
//! them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::http::{Method, Request, Response};
use snapshot::orders::{ArmOrder, ArmTiming, RestoreOrder};
use snapshot::simulation::{Carry, Driver, block_on};
use tokio::sync::oneshot;
use tower::ServiceExt;
use uuid::Uuid;

use super::fibers::Process;
use super::world::{World, world};
use super::{faults, hosts};

/// How the control network behaves.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    /// The mean way there, in ns.
    pub delay_ns: f64,
    /// How likely a message takes far longer,
    pub stray: f64,
    /// and by how much at most, in ns.
    pub longest_ns: f64,
    /// The step whose messages do so most often, and how often.
    pub slowest: Option<(&'static str, f64)>,
    /// How likely a message is lost,
    pub loss: f64,
    /// or comes twice.
    pub repeated: f64,
}

/// The first host's port; the others' follow.
pub const FIRST_PORT: u16 = 10_000;

/// The steps of an attempt, as the paths of their orders end.
pub const STEPS: [&str; 7] = ["prepare", "arm", "strike", "release", "seal", "commit", "abort"];

type Answer = Result<(u16, Bytes), Option<String>>;

/// Where an answer goes; empty once there is one, or if nobody waits for it.
pub type Reply = Arc<Mutex<Option<oneshot::Sender<Answer>>>>;

fn answer(reply: &Reply, answer: Answer) {
    let taken = reply.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(reply) = taken {
        // Whoever does not wait any more does not miss it.
        let _ = reply.send(answer);
    }
}

/// The network as one server sees it.
pub struct Wire {
    /// Which of the servers.
    pub server: usize,
}

impl Carry for Wire {
    fn carry(
        &self,
        request: Request<Bytes>,
        limit: Duration,
    ) -> std::pin::Pin<Box<dyn Future<Output = Answer> + Send>> {
        let world = world();
        if world.over.get() {
            // What is undone, deleted or put back is asked for until it is done.
            let (status, body) = if request.method() == Method::DELETE {
                (200, "null")
            } else if request.uri().path().ends_with("/switch") {
                (200, r#"{"overtaken":[]}"#)
            } else {
                (410, r#"{"status":410,"title":"gone","detail":"the world ends"}"#)
            };
            return Box::pin(async move { Ok((status, Bytes::from_static(body.as_bytes()))) });
        }
        let host = usize::from(request.uri().port_u16().unwrap_or(FIRST_PORT) - FIRST_PORT);
        let (sender, receiver) = oneshot::channel();
        let reply: Reply = Arc::new(Mutex::new(Some(sender)));
        let waiting = Arc::clone(&reply);
        world.fibers.alarm(limit, Box::new(move || answer(&waiting, Err(None))));
        let step = step(request.uri().path());
        let stretch_ends = watch(&request, step, host).map(|end| end - world.fibers.now());
        let path = request.uri().path().to_owned();
        world.note(|| format!("server {} → {}: {} {path}", self.server, World::name(host), request.method()));
        let order = Order { host, step, request };
        let again = world.random(|random| random.chance(world.setting.network.repeated));
        if again && !world.calm.get() {
            order.clone().send(Arc::default());
        }
        order.send(reply);
        let (message, nth) = world.count(step);
        faults::due(message, step, nth, stretch_ends);
        Box::pin(async move { receiver.await.unwrap_or(Err(None)) })
    }
}

/// What a message is about.
fn step(path: &str) -> &'static str {
    let last = path.rsplit('/').next();
    STEPS.into_iter().find(|step| Some(*step) == last).unwrap_or("")
}

/// Remembers when the hosts are to cut, so that the clients can be busy then. Gives the end of the stretch that a host is
/// ordered.
fn watch(request: &Request<Bytes>, step: &str, host: usize) -> Option<i64> {
    let world = world();
    let now = world.fibers.now();
    let busy = |from: i64, to: i64| world.busy.borrow_mut().push(from..to);
    if step == "strike" {
        busy(now, now + world.setting.max_stretch + 1_000_000);
    }
    if step != "arm" {
        return None;
    }
    let order = serde_json::from_slice::<ArmOrder>(request.body()).ok()?;
    let ArmTiming::Timed { at, stretch } = order.timing else { return None };
    let at = world.hosts[host].borrow().timing.clock.first(at.as_nanos(), now, now + 2_000_000_000);
    let end = at + stretch.get();
    busy(at - 300_000, end + 400_000);
    world.fibers.expect_stretch(at, end);
    Some(end)
}

/// How long a message takes; none if it is lost.
fn way(host: usize, step: &str, direction: usize) -> Option<i64> {
    let world = world();
    let network = world.setting.network;
    let calm = world.calm.get();
    let now = world.fibers.now();
    let state = world.hosts[host].borrow();
    let cut_off = [state.cut_off.0, state.cut_off.1][direction] > now;
    let slow = network.slowest.filter(|(slowest, _)| *slowest == step).map_or(0.0, |(_, chance)| chance);
    world.random(|random| {
        let stray = random.chance(network.stray.max(slow)) && !calm;
        let lost = random.chance(network.loss) && !calm;
        let delay = 20_000.0 + random.exponential(network.delay_ns);
        let more = if stray { random.between(0.0, network.longest_ns) } else { 0.0 };
        (!lost && !cut_off).then_some((delay + more) as i64)
    })
}

/// What a server asks of a host.
#[derive(Clone)]
struct Order {
    host: usize,
    step: &'static str,
    request: Request<Bytes>,
}

impl Order {
    fn send(self, reply: Reply) {
        let world = world();
        let Some(delay) = way(self.host, self.step, 0) else { return };
        // A connection to a machine that is not up yet either is tried again, one to a machine that is gets refused.
        let tries = if world.random(|random| random.chance(0.3)) { 20 } else { 0 };
        world.fibers.after(delay, move || self.arrive(reply, tries));
    }

    fn arrive(self, reply: Reply, tries: u32) {
        let world = world();
        let Some((process, router)) = daemon(self.host) else {
            if tries == 0 || world.calm.get() {
                return answer(&reply, Err(Some("connection refused".to_owned())));
            }
            let pause = world.random(|random| random.nanos(1_000_000, 20_000_000));
            return world.fibers.after(pause, move || self.arrive(reply, tries - 1));
        };
        {
            let mut state = world.hosts[self.host].borrow_mut();
            state.under_way.retain(|reply| reply.lock().unwrap_or_else(PoisonError::into_inner).is_some());
            state.under_way.push(Arc::clone(&reply));
        }
        world.fibers.start(process, "request", Box::new(move || self.be_served(router, reply)));
    }

    /// The restore and the snapshot, if it is an order to put the volume back.
    fn switch(&self) -> Option<(Uuid, String)> {
        let path = self.request.uri().path().strip_suffix("/switch")?;
        let order: RestoreOrder = serde_json::from_slice(self.request.body()).ok()?;
        Some((path.rsplit('/').next()?.parse().ok()?, order.snapshot))
    }

    fn be_served(self, router: Router, reply: Reply) {
        let world = world();
        world.fibers.begin(self.step);
        let path = self.request.uri().path().to_owned();
        let switch = self.switch();
        if let Some((id, snapshot)) = &switch {
            let order = (*id, snapshot.clone(), world.fibers.now());
            world.hosts[self.host].borrow_mut().switching.push(order);
        }
        let response: Response<Body> =
            block_on(router.oneshot(self.request.map(Body::from))).unwrap_or_else(|never| match never {});
        let status = response.status().as_u16();
        let body = block_on(to_bytes(response.into_body(), 1 << 24)).unwrap_or_default();
        world.note(|| format!("{} answers {path}: {status} {}", World::name(self.host), said(status, &body)));
        if let Some((id, _)) = switch.filter(|_| !world.over.get()) {
            if let Some((_, service)) = hosts::daemon(self.host) {
                hosts::note_restored(self.host, &service);
            }
            let switching = &mut world.hosts[self.host].borrow_mut().switching;
            if let Some(this) = switching.iter().position(|(of, ..)| *of == id) {
                switching.remove(this);
            }
        }
        if let Some(delay) = way(self.host, self.step, 1) {
            world.fibers.after(delay, move || answer(&reply, Ok((status, body))));
        }
    }
}

/// A daemon was killed: its machine resets the connections that it had.
pub fn reset(host: usize) {
    let world = world();
    let broken = std::mem::take(&mut world.hosts[host].borrow_mut().under_way);
    for reply in broken {
        let Some(delay) = way(host, "", 1) else { continue };
        world.fibers.after(delay, move || answer(&reply, Err(Some("the connection was reset".to_owned()))));
    }
}

/// What may be told of an answer: ids differ from run to run.
fn said(status: u16, body: &Bytes) -> String {
    if status < 300 { String::new() } else { String::from_utf8_lossy(body).chars().take(200).collect() }
}

fn daemon(host: usize) -> Option<(Process, Router)> {
    let world = world();
    let state = world.hosts[host].borrow();
    state.daemon.as_ref().map(|daemon| (daemon.process, daemon.router.clone()))
}
