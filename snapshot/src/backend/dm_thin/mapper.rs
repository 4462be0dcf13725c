//! Requests to the kernel's device mapper, as far as thin volumes need them (linux/dm-ioctl.h, version 4).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;

use crate::sys::{DM_HEADER, device_mapper};

const CONTROL: &str = "/dev/mapper/control";

/// Bytes for an answer: a device of ours has one target, described in a line.
const ROOM: usize = 16 << 10;

/// Where the header's fields lie.
mod at {
    pub const VERSION: usize = 0;
    pub const DATA_SIZE: usize = 12;
    pub const DATA_START: usize = 16;
    pub const TARGET_COUNT: usize = 20;
    pub const OPEN_COUNT: usize = 24;
    pub const FLAGS: usize = 28;
    pub const DEVICE: usize = 40;
    pub const NAME: usize = 48;
    pub const UUID: usize = 176;
}
const NAME_LENGTH: usize = 128;
const UUID_LENGTH: usize = 129;
/// Before a target's parameters: its start and length, the next one's place, and its kind in 16 bytes.
const TARGET: usize = 40;

const DEV_SUSPEND: u8 = 6;
const DEV_STATUS: u8 = 7;
const TABLE_STATUS: u8 = 12;
const TARGET_MESSAGE: u8 = 14;

const SUSPENDED: u32 = 1 << 1;
/// Tells a device's table, not the state of its targets.
const TABLE: u32 = 1 << 4;
const BUFFER_FULL: u32 = 1 << 8;
/// Leaves a file system on the device alone: it is not frozen and written out first.
const SKIP_LOCKFS: u32 = 1 << 10;

/// Which device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// By its name under /dev/mapper.
    Named(String),
    /// By its number, as the kernel encodes it: it stays the same when the device is renamed.
    Numbered(u64),
}

/// What the device mapper says of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Its number.
    pub number: u64,
    /// Its name.
    pub name: String,
    /// Whose it is: LVM's begin with `LVM-`.
    pub uuid: String,
    /// Whether its I/O is held.
    pub suspended: bool,
    /// How many have it open.
    pub opened: u32,
}

/// A part of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// In sectors of 512 bytes.
    pub length: u64,
    /// Such as `thin`.
    pub kind: String,
    /// In the kind's own terms.
    pub parameters: String,
}

/// The device mapper's control file.
#[derive(Debug)]
pub struct Mapper(OwnedFd);

impl Mapper {
    /// Opens it.
    ///
    /// # Errors
    /// When the kernel has no device mapper, or this process may not use it.
    pub fn open() -> io::Result<Mapper> {
        Ok(Mapper(File::options().read(true).write(true).open(CONTROL)?.into()))
    }

    /// One that is open already.
    pub fn new(control: OwnedFd) -> Mapper {
        Mapper(control)
    }

    /// The same for another process.
    ///
    /// # Errors
    /// When there are no file descriptors left.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }

    /// How a device is.
    ///
    /// # Errors
    /// ENXIO where there is none.
    pub fn status(&self, device: &Device) -> nix::Result<Status> {
        let answer = self.request(DEV_STATUS, device, 0, &[])?;
        Ok(Status {
            number: number(&answer, at::DEVICE),
            name: text(&answer[at::NAME..][..NAME_LENGTH]),
            uuid: text(&answer[at::UUID..][..UUID_LENGTH]),
            suspended: word(&answer, at::FLAGS) & SUSPENDED != 0,
            opened: word(&answer, at::OPEN_COUNT),
        })
    }

    /// A device's table.
    ///
    /// # Errors
    /// ENXIO where there is none.
    pub fn table(&self, device: &Device) -> nix::Result<Vec<Target>> {
        targets(&self.request(TABLE_STATUS, device, TABLE, &[])?)
    }

    /// The state of a device's targets.
    ///
    /// # Errors
    /// ENXIO where there is none.
    pub fn state(&self, device: &Device) -> nix::Result<Vec<Target>> {
        targets(&self.request(TABLE_STATUS, device, 0, &[])?)
    }

    /// Holds a device's I/O: returns when what had begun is finished. A file system on it is not told.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn suspend(&self, device: &Device) -> nix::Result<()> {
        self.request(DEV_SUSPEND, device, SUSPENDED | SKIP_LOCKFS, &[]).map(|_| ())
    }

    /// Lets a device's I/O go on.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn resume(&self, device: &Device) -> nix::Result<()> {
        self.request(DEV_SUSPEND, device, 0, &[]).map(|_| ())
    }

    /// Tells a device's target something.
    ///
    /// # Errors
    /// What the target says.
    pub fn message(&self, device: &Device, text: &str) -> nix::Result<()> {
        // For whichever target holds sector 0.
        let mut data = 0u64.to_ne_bytes().to_vec();
        data.extend(text.as_bytes());
        data.push(0);
        self.request(TARGET_MESSAGE, device, 0, &data).map(|_| ())
    }

    fn request(&self, command: u8, device: &Device, flags: u32, data: &[u8]) -> nix::Result<Vec<u8>> {
        let mut message = encode(device, flags, data)?;
        device_mapper(self.0.as_fd(), command, &mut message)?;
        if word(&message, at::FLAGS) & BUFFER_FULL != 0 {
            return Err(Errno::ENOBUFS);
        }
        Ok(message)
    }
}

fn encode(device: &Device, flags: u32, data: &[u8]) -> nix::Result<Vec<u8>> {
    let mut message = vec![0; DM_HEADER + data.len().max(ROOM)];
    let length = u32::try_from(message.len()).map_err(|_| Errno::EINVAL)?;
    // The oldest version that has all this.
    message[at::VERSION..][..4].copy_from_slice(&4u32.to_ne_bytes());
    message[at::DATA_SIZE..][..4].copy_from_slice(&length.to_ne_bytes());
    message[at::DATA_START..][..4].copy_from_slice(&(DM_HEADER as u32).to_ne_bytes());
    message[at::FLAGS..][..4].copy_from_slice(&flags.to_ne_bytes());
    match device {
        Device::Named(name) if name.len() < NAME_LENGTH => {
            message[at::NAME..][..name.len()].copy_from_slice(name.as_bytes());
        }
        Device::Named(_) => return Err(Errno::ENAMETOOLONG),
        Device::Numbered(number) => message[at::DEVICE..][..8].copy_from_slice(&number.to_ne_bytes()),
    }
    message[DM_HEADER..][..data.len()].copy_from_slice(data);
    Ok(message)
}

/// The targets in an answer. Each says where the next one begins, counted from the first.
fn targets(answer: &[u8]) -> nix::Result<Vec<Target>> {
    let first = word(answer, at::DATA_START) as usize;
    let data = answer.get(first..).ok_or(Errno::EBADMSG)?;
    let (mut targets, mut place) = (Vec::new(), 0);
    for _ in 0..word(answer, at::TARGET_COUNT) {
        let target = data.get(place..).filter(|target| target.len() > TARGET).ok_or(Errno::EBADMSG)?;
        let next = word(target, 20) as usize;
        targets.push(Target {
            length: number(target, 8),
            kind: text(&target[24..TARGET]),
            parameters: text(&target[TARGET..]),
        });
        if next <= place {
            break;
        }
        place = next;
    }
    Ok(targets)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

fn number(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

/// Up to the first zero.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_laid_out_as_the_kernel_reads_it() {
        let message = encode(&Device::Named("pool".to_owned()), SUSPENDED | SKIP_LOCKFS, b"data").unwrap();
        assert_eq!(word(&message, at::VERSION), 4);
        assert_eq!(word(&message, at::DATA_SIZE) as usize, message.len());
        assert_eq!(word(&message, at::DATA_START), 312);
        assert_eq!(word(&message, at::FLAGS), 0x402);
        assert_eq!(text(&message[at::NAME..][..NAME_LENGTH]), "pool");
        assert_eq!(&message[DM_HEADER..][..5], b"data\0");
        let message = encode(&Device::Numbered(0xfd03), 0, &[]).unwrap();
        assert_eq!((number(&message, at::DEVICE), message[at::NAME]), (0xfd03, 0));
        assert_eq!(encode(&Device::Named("x".repeat(128)), 0, &[]), Err(Errno::ENAMETOOLONG));
    }

    /// An answer with targets of this kind, length and parameters, each padded to 8 bytes as the kernel does it.
    fn answer(described: &[(&str, u64, &str)]) -> Vec<u8> {
        let mut message = encode(&Device::Named("x".to_owned()), 0, &[]).unwrap();
        message.truncate(DM_HEADER);
        message[at::TARGET_COUNT..][..4].copy_from_slice(&(described.len() as u32).to_ne_bytes());
        for (kind, length, parameters) in described {
            let mut target = vec![0; (TARGET + parameters.len() + 1).next_multiple_of(8)];
            let next = message.len() - DM_HEADER + target.len();
            target[8..16].copy_from_slice(&length.to_ne_bytes());
            target[20..24].copy_from_slice(&(next as u32).to_ne_bytes());
            target[24..24 + kind.len()].copy_from_slice(kind.as_bytes());
            target[TARGET..][..parameters.len()].copy_from_slice(parameters.as_bytes());
            message.extend(target);
        }
        message
    }

    #[test]
    fn targets_are_read_one_after_the_other() {
        let found = targets(&answer(&[("thin", 2048, "253:2 1"), ("linear", 8, "8:1 0")])).unwrap();
        let target = |kind: &str, length, parameters: &str| Target {
            length,
            kind: kind.to_owned(),
            parameters: parameters.to_owned(),
        };
        assert_eq!(found, [target("thin", 2048, "253:2 1"), target("linear", 8, "8:1 0")]);
    }

    #[test]
    fn an_answer_that_is_cut_short_is_an_error() {
        let whole = answer(&[("thin", 2048, "253:2 1"), ("linear", 8, "8:1 0")]);
        for length in DM_HEADER..DM_HEADER + 40 {
            assert_eq!(targets(&whole[..length]), Err(Errno::EBADMSG), "{length}");
        }
        assert!(targets(&[]).is_ok_and(|targets| targets.is_empty()));
    }
}
