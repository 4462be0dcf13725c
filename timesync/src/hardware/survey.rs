//! What the network cards of this machine can do, without changing anything.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use super::{Device, TOLERANCE_PPB, enough, interfaces_with};
use crate::phc::device::Method;
use crate::sys;

/// A network interface that is up and has an address, as far as it can stamp packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// Its name.
    pub interface: String,
    /// Whether it stands for several cards: which one's clock stamps is not said then.
    pub bond: bool,
    /// Whether the kernel stamps what it sends as it hands it to the card.
    pub kernel_stamps: bool,
    /// How the card stamps; none if it cannot.
    pub card_stamps: Option<CardStamps>,
}

/// How a card stamps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CardStamps {
    /// Its clock: /dev/ptpN.
    pub phc: u32,
    /// How far its setting goes now.
    pub setting: Setting,
    /// How its clock is read; or why it cannot be.
    pub reading: Result<Method, String>,
}

/// How far a card's present setting suffices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// Our packets are stamped.
    On,
    /// They are not; that can be switched on without taking stamps from anybody, with CAP_NET_ADMIN.
    Off,
    /// Another program uses it in a way that does not go with ours.
    Taken,
    /// The driver does not say.
    Unknown,
}

/// The interfaces that packets may pass. `socket` is any socket in their network namespace.
pub fn survey(socket: BorrowedFd<'_>) -> Vec<Card> {
    let mut names = interfaces_with(IpAddr::from([0_u8; 4]));
    names.extend(interfaces_with(IpAddr::from([0_u16; 8])));
    names.sort();
    names.dedup();
    names.into_iter().map(|name| card(socket, name)).collect()
}

fn card(socket: BorrowedFd<'_>, interface: String) -> Card {
    let bond = std::path::Path::new("/sys/class/net").join(&interface).join("bonding").exists();
    let info = sys::timestamp_info(socket, &interface).ok();
    let can = info.map_or(0, |info| info.so_timestamping);
    let has = |flag: u32| can & flag != 0;
    let phc = info.and_then(|info| u32::try_from(info.phc_index).ok());
    let phc = phc.filter(|_| has(libc::SOF_TIMESTAMPING_RAW_HARDWARE));
    let card_stamps = phc.map(|phc| CardStamps {
        phc,
        setting: setting(socket, &interface),
        reading: Device::open(phc, TOLERANCE_PPB)
            .map(|device| device.method())
            .map_err(|error| error.to_string()),
    });
    Card { interface, bond, kernel_stamps: has(libc::SOF_TIMESTAMPING_TX_SOFTWARE), card_stamps }
}

fn setting(socket: BorrowedFd<'_>, interface: &str) -> Setting {
    let Ok(current) = sys::hardware_stamping(socket, interface) else { return Setting::Unknown };
    let steps = enough(current.tx_type.cast_unsigned(), current.rx_filter.cast_unsigned());
    match steps.first() {
        Some(None) => Setting::On,
        Some(Some(_)) => Setting::Off,
        None => Setting::Taken,
    }
}
