//! The control network: carries the coordinator's requests to the hosts' own routers, or loses, delays and repeats
//! them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::Request;
use snapshot::orders::{ArmOrder, ArmTiming};
use snapshot::simulation::{Carry, Driver, block_on};
use tokio::sync::oneshot;
use tower::ServiceExt;

use super::faults;
use super::fibers::Process;
use super::hosts;
use super::world::{World, world};

/// How the control network behaves.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    /// The mean way there, in ns.
    pub delay_ns: f64,
    /// How likely a message takes far longer,
    pub stray: f64,
    /// and by how much at most, in ns.
    pub longest_ns: f64,
    /// How likely a message is lost,
    pub loss: f64,
    /// or comes twice.
    pub repeated: f64,
}

/// The first host's port; the others' follow.
pub const FIRST_PORT: u16 = 10_000;

type Answer = Result<(u16, Bytes), Option<String>>;
type Reply = Arc<Mutex<Option<oneshot::Sender<Answer>>>>;

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
            let gone = r#"{"status":410,"title":"gone","detail":"the world ends"}"#;
            return Box::pin(async move { Ok((410, Bytes::from_static(gone.as_bytes()))) });
        }
        let host = usize::from(request.uri().port_u16().unwrap_or(FIRST_PORT) - FIRST_PORT);
        let (sender, receiver) = oneshot::channel();
        let reply: Reply = Arc::new(Mutex::new(Some(sender)));
        let waiting = Arc::clone(&reply);
        world.fibers.alarm(limit, Box::new(move || answer(&waiting, Err(None))));
        watch(&request, host);
        let path = request.uri().path().to_owned();
        world.note(|| format!("server {} → {}: {} {path}", self.server, World::name(host), request.method()));
        send(host, &request, &reply);
        let again = world.random(|random| random.chance(world.setting.network.repeated));
        if again && !world.calm.get() {
            send(host, &request, &Arc::default());
        }
        let count = world.messages.get() + 1;
        world.messages.set(count);
        let due = world.due.borrow_mut().remove(&count);
        for fault in due.into_iter().flatten() {
            let delay = world.random(|random| random.exponential(300_000.0)) as i64;
            world.fibers.after(delay, move || faults::strike(fault));
        }
        Box::pin(async move { receiver.await.unwrap_or(Err(None)) })
    }
}

/// Remembers when the hosts are to cut, so that the clients can be busy then.
fn watch(request: &Request<Bytes>, host: usize) {
    let world = world();
    if !request.uri().path().ends_with("/arm") {
        return;
    }
    let Ok(order) = serde_json::from_slice::<ArmOrder>(request.body()) else { return };
    let now = world.fibers.now();
    let at = match order.timing {
        ArmTiming::Timed { at, .. } => {
            world.hosts[host].borrow().timing.clock.first(at.as_nanos(), now, now + 2_000_000_000)
        }
        ArmTiming::Barrier => now + 600_000,
    };
    world.cuts_at.borrow_mut().push(at);
}

/// How long a message takes; none if it is lost.
fn way(host: usize, direction: usize) -> Option<i64> {
    let world = world();
    let network = world.setting.network;
    let calm = world.calm.get();
    let now = world.fibers.now();
    let state = world.hosts[host].borrow();
    let cut_off = [state.cut_off.0, state.cut_off.1][direction] > now;
    world.random(|random| {
        let stray = random.chance(network.stray) && !calm;
        let lost = random.chance(network.loss) && !calm;
        let delay = 20_000.0 + random.exponential(network.delay_ns);
        let more = if stray { random.between(0.0, network.longest_ns) } else { 0.0 };
        (!lost && !cut_off).then_some((delay + more) as i64)
    })
}

fn send(host: usize, request: &Request<Bytes>, reply: &Reply) {
    let world = world();
    let Some(delay) = way(host, 0) else { return };
    let (mut copy, reply) = (Request::new(Body::from(request.body().clone())), Arc::clone(reply));
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    world.fibers.after(delay, move || {
        let world = super::world::world();
        let Some((process, router)) = daemon(host) else {
            return answer(&reply, Err(Some("connection refused".to_owned())));
        };
        let serve = move || {
            let path = copy.uri().path().to_owned();
            let response = block_on(router.oneshot(copy)).unwrap_or_else(|never| match never {});
            let status = response.status().as_u16();
            let body = block_on(to_bytes(response.into_body(), 1 << 24)).unwrap_or_default();
            let world = super::world::world();
            world.note(|| format!("{} answers {path}: {status} {}", World::name(host), said(status, &body)));
            if let Some(delay) = way(host, 1) {
                world.fibers.after(delay, move || answer(&reply, Ok((status, body))));
            }
        };
        world.fibers.start(process, "request", Box::new(serve));
    });
}

/// What may be told of an answer: ids differ from run to run.
fn said(status: u16, body: &Bytes) -> String {
    if status < 300 { String::new() } else { String::from_utf8_lossy(body).chars().take(200).collect() }
}

fn daemon(host: usize) -> Option<(Process, axum::Router)> {
    let world = world();
    let state = world.hosts[host].borrow();
    state.daemon.as_ref().map(|daemon| (daemon.process, daemon.router.clone()))
}

/// Whether a host runs.
pub fn reaches(host: usize) -> bool {
    hosts::is_up(host)
}
