//! Network cards that stamp packets: finds those that a socket's packets pass, switches their stamping on, and places
//! their stamps on the raw clock.
//!
//! How a card stamps is set for the whole machine, and another program may rely on it (ptp4l does). So it is looked up
//! first, changed only if it does not suffice, and only to a setting that stamps at least what was stamped before. It is
//! left as it is at the end.

mod survey;

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::module::source_is_trusted;
use crate::phc::Phc;
use crate::phc::device::Device;
use crate::sys;
use crate::time::{Nanos, Raw, Span, Time};

pub use crate::phc::device::Method;
pub use survey::{Card, CardStamps, Setting, survey};

/// Which timestamps are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Timestamps {
    /// The network card's where it has any, otherwise the kernel's.
    #[default]
    Auto,
    /// The kernel's only: no network card's settings are touched.
    Software,
}

/// The oscillators of card and processor may differ by so much: 100 ppm each.
const TOLERANCE_PPB: u32 = 200_000;
/// Where the clock source is no oscillator's counter (see [`clock::is_trusted_source`]).
const UNTRUSTED_TOLERANCE_PPB: u32 = 1_000_000;
/// Each card's clock is read so often, so that a packet nobody was waiting for lies between two readings.
const READ_EVERY: Nanos = Nanos::from_millis(10);
/// A reading before a packet may be so old: at 200 ppm, that costs 40 ns.
const FRESH: Nanos = Nanos::from_micros(200);

/// The network cards whose stamps one socket may get.
#[derive(Debug)]
pub struct Hardware {
    devices: Arc<Mutex<Vec<Device>>>,
    /// By interface: its clock in `devices`.
    interfaces: HashMap<u32, usize>,
}

impl Hardware {
    /// Finds the cards that packets to or from `listen` pass (any address: all that have one), and switches their
    /// stamping on. `socket` is any socket in their network namespace. None if there is none that can be used; why is
    /// logged for those that could be.
    pub fn set_up(socket: BorrowedFd<'_>, listen: IpAddr) -> Option<Self> {
        let mut clocks: HashMap<u32, usize> = HashMap::new();
        let (mut devices, mut interfaces) = (Vec::new(), HashMap::new());
        let tolerance = if source_is_trusted() { TOLERANCE_PPB } else { UNTRUSTED_TOLERANCE_PPB };
        for name in interfaces_with(listen) {
            let Ok(index) = if_nametoindex(name.as_str()) else { continue };
            let Some(phc) = switch_on(socket, &name) else { continue };
            let position = match clocks.get(&phc) {
                Some(position) => *position,
                None => match Device::open(phc, tolerance) {
                    Ok(device) => {
                        tracing::info!(interface = name, phc, method = ?device.method(), "hardware timestamps");
                        devices.push(device);
                        clocks.insert(phc, devices.len() - 1);
                        devices.len() - 1
                    }
                    Err(error) => {
                        tracing::warn!(
                            interface = name,
                            %error,
                            "cannot read /dev/ptp{phc}, so {name}'s hardware timestamps are of no use; run as root, \
                             or give this program the right to open it"
                        );
                        continue;
                    }
                },
            };
            interfaces.insert(index, position);
        }
        if interfaces.is_empty() {
            return None;
        }
        let devices = Arc::new(Mutex::new(devices));
        let shared = Arc::downgrade(&devices);
        let thread =
            std::thread::Builder::new().name("phc-reader".into()).spawn(move || keep_reading(&shared));
        if let Err(error) = thread {
            tracing::warn!(%error, "no thread to read network cards' clocks; using the kernel's timestamps");
            return None;
        }
        Some(Hardware { devices, interfaces })
    }

    /// Whether packets that pass this interface are stamped by its card.
    pub fn covers(&self, interface: u32) -> bool {
        self.interfaces.contains_key(&interface)
    }

    /// Sees to it that there is a reading just before a packet that is about to be sent.
    pub fn prepare(&self) {
        refresh(&mut lock(&self.devices), FRESH);
    }

    /// Reads the cards' clocks: stamps of packets that have passed before this can then be translated.
    pub fn read(&self) {
        lock(&self.devices).iter_mut().for_each(read);
    }

    /// When, on the raw clock, a packet passed that the card of `interface` stamped with `stamp`: before the latest
    /// [`Hardware::read`], and if `since` is given, after that. None where that cannot be known.
    pub fn translate(&self, interface: u32, stamp: Time<Phc>, since: Option<Time<Raw>>) -> Option<Span<Raw>> {
        let position = self.interfaces.get(&interface)?;
        lock(&self.devices).get(*position)?.history.translate(stamp, since)
    }
}

fn lock(devices: &Mutex<Vec<Device>>) -> MutexGuard<'_, Vec<Device>> {
    // A history is whole after each of its methods, so a panic elsewhere leaves it usable.
    devices.lock().unwrap_or_else(PoisonError::into_inner)
}

fn keep_reading(shared: &Weak<Mutex<Vec<Device>>>) {
    while let Some(devices) = shared.upgrade() {
        refresh(&mut lock(&devices), READ_EVERY);
        drop(devices);
        std::thread::sleep(READ_EVERY.to_std());
    }
}

/// Reads the clocks whose newest reading is older than `age`.
fn refresh(devices: &mut [Device], age: Nanos) {
    let now = clock::raw_now();
    for device in devices {
        if device.history.newest().is_none_or(|newest| now - newest.raw.latest > age) {
            read(device);
        }
    }
}

fn read(device: &mut Device) {
    match device.read() {
        Ok(false) => {}
        Ok(true) => tracing::warn!(
            steps = device.history.steps(),
            "a network card's clock was set, or runs faster or slower than it can; its stamps are not used for a second"
        ),
        // Without readings, its stamps are not translated: the kernel's are used.
        Err(error) => tracing::debug!(%error, "cannot read a network card's clock"),
    }
}

/// The interfaces that are up and have the address `listen`, or any if that is unspecified.
fn interfaces_with(listen: IpAddr) -> Vec<String> {
    let mut names = Vec::new();
    for interface in getifaddrs().into_iter().flatten() {
        let usable = interface.flags.contains(InterfaceFlags::IFF_UP)
            && !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK);
        let address = interface.address.as_ref().and_then(|address| {
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
        });
        let wanted = address.is_some_and(|address| {
            if listen.is_unspecified() { address.is_ipv4() == listen.is_ipv4() } else { address == listen }
        });
        if usable && wanted && !names.contains(&interface.interface_name) {
            names.push(interface.interface_name);
        }
    }
    names
}

/// Switches an interface's stamping on, if it has any and that is off. Returns its clock's number.
fn switch_on(socket: BorrowedFd<'_>, name: &str) -> Option<u32> {
    // A bond stamps by the clock of whichever of its cards is in use: it is not said which.
    if std::path::Path::new("/sys/class/net").join(name).join("bonding").exists() {
        return None;
    }
    let info = sys::timestamp_info(socket, name).ok()?;
    let phc = u32::try_from(info.phc_index).ok()?;
    if info.so_timestamping & libc::SOF_TIMESTAMPING_RAW_HARDWARE == 0 {
        return None;
    }
    let current = sys::hardware_stamping(socket, name).ok()?;
    let mut refused = None;
    for wanted in enough(current.tx_type.cast_unsigned(), current.rx_filter.cast_unsigned()) {
        let Some((tx_type, rx_filter)) = wanted else { return Some(phc) };
        let config = libc::hwtstamp_config {
            flags: current.flags,
            tx_type: tx_type.cast_signed(),
            rx_filter: rx_filter.cast_signed(),
        };
        match sys::set_hardware_stamping(socket, name, config) {
            Ok(_) => return Some(phc),
            Err(error) => refused = Some(error),
        }
    }
    let reason = match refused {
        Some(error) if error.raw_os_error() == Some(Errno::EPERM as i32) => {
            "grant CAP_NET_ADMIN, or switch them on with `hwstamp_ctl`".to_owned()
        }
        Some(error) => error.to_string(),
        None => "another program uses them in another way".to_owned(),
    };
    tracing::warn!(interface = name, "hardware timestamps cannot be switched on: {reason}");
    None
}

/// What to set, best first, where this is set: the kinds of transmit and receive stamps (HWTSTAMP_TX_* and
/// HWTSTAMP_FILTER_*). None stands for leaving it: it suffices.
///
/// Each receive filter is one that stamps our packets, PTPv2 event messages over UDP, and every packet that is stamped
/// now.
fn enough(tx_type: u32, rx_filter: u32) -> Vec<Option<(u32, u32)>> {
    use libc::{
        HWTSTAMP_FILTER_ALL as ALL, HWTSTAMP_FILTER_NONE as NONE,
        HWTSTAMP_FILTER_PTP_V2_DELAY_REQ as V2_DELAY_REQ, HWTSTAMP_FILTER_PTP_V2_EVENT as V2,
        HWTSTAMP_FILTER_PTP_V2_L2_DELAY_REQ as L2_DELAY_REQ, HWTSTAMP_FILTER_PTP_V2_L2_EVENT as L2,
        HWTSTAMP_FILTER_PTP_V2_L2_SYNC as L2_SYNC, HWTSTAMP_FILTER_PTP_V2_L4_DELAY_REQ as L4_DELAY_REQ,
        HWTSTAMP_FILTER_PTP_V2_L4_EVENT as L4, HWTSTAMP_FILTER_PTP_V2_L4_SYNC as L4_SYNC,
        HWTSTAMP_FILTER_PTP_V2_SYNC as V2_SYNC,
    };
    let tx = match tx_type {
        libc::HWTSTAMP_TX_OFF | libc::HWTSTAMP_TX_ON => libc::HWTSTAMP_TX_ON,
        // Stamps are put into Sync messages on their way, of which we send none.
        libc::HWTSTAMP_TX_ONESTEP_SYNC => tx_type,
        // The same of Pdelay_Resp: of those that we send, no stamp would come back.
        _ => return Vec::new(),
    };
    let filters: &[u32] = match rx_filter {
        L4 | V2 | ALL if tx == tx_type => return vec![None],
        NONE | L4_SYNC | L4_DELAY_REQ | L4 => &[L4, V2, ALL],
        L2 | L2_SYNC | L2_DELAY_REQ | V2_SYNC | V2_DELAY_REQ | V2 => &[V2, ALL],
        // PTPv1, NTP, or what only the driver knows.
        _ => &[ALL],
    };
    filters.iter().map(|filter| Some((tx, *filter))).collect()
}

#[cfg(test)]
mod tests {
    use libc::{
        HWTSTAMP_FILTER_ALL, HWTSTAMP_FILTER_NONE, HWTSTAMP_FILTER_NTP_ALL, HWTSTAMP_FILTER_PTP_V1_L4_EVENT,
        HWTSTAMP_FILTER_PTP_V2_EVENT, HWTSTAMP_FILTER_PTP_V2_L2_EVENT, HWTSTAMP_FILTER_PTP_V2_L4_EVENT,
        HWTSTAMP_FILTER_SOME, HWTSTAMP_TX_OFF, HWTSTAMP_TX_ON, HWTSTAMP_TX_ONESTEP_P2P,
        HWTSTAMP_TX_ONESTEP_SYNC,
    };

    use super::*;

    #[test]
    fn what_suffices_is_left_and_nothing_is_narrowed() {
        let (l4, l2, v2, all) = (
            HWTSTAMP_FILTER_PTP_V2_L4_EVENT,
            HWTSTAMP_FILTER_PTP_V2_L2_EVENT,
            HWTSTAMP_FILTER_PTP_V2_EVENT,
            HWTSTAMP_FILTER_ALL,
        );
        let on = HWTSTAMP_TX_ON;
        let set = |tx, filters: &[u32]| filters.iter().map(|rx| Some((tx, *rx))).collect::<Vec<_>>();
        for (tx, rx, expected) in [
            (HWTSTAMP_TX_OFF, HWTSTAMP_FILTER_NONE, set(on, &[l4, v2, all])),
            (on, HWTSTAMP_FILTER_NONE, set(on, &[l4, v2, all])),
            (HWTSTAMP_TX_OFF, all, set(on, &[all])),
            (HWTSTAMP_TX_OFF, v2, set(on, &[v2, all])),
            (on, l4, vec![None]),
            (on, v2, vec![None]),
            (on, all, vec![None]),
            (on, l2, set(on, &[v2, all])),
            (on, HWTSTAMP_FILTER_NTP_ALL, set(on, &[all])),
            (on, HWTSTAMP_FILTER_PTP_V1_L4_EVENT, set(on, &[all])),
            (on, HWTSTAMP_FILTER_SOME, set(on, &[all])),
            (HWTSTAMP_TX_ONESTEP_SYNC, l4, vec![None]),
            (HWTSTAMP_TX_ONESTEP_SYNC, l2, set(HWTSTAMP_TX_ONESTEP_SYNC, &[v2, all])),
            (HWTSTAMP_TX_ONESTEP_P2P, l4, vec![]),
        ] {
            assert_eq!(enough(tx, rx), expected, "{tx} {rx}");
        }
    }

    #[test]
    fn a_machine_without_such_cards_has_none() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(Hardware::set_up(std::os::fd::AsFd::as_fd(&socket), IpAddr::from([127, 0, 0, 1])).is_none());
    }
}
