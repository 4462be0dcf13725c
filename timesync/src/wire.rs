//! The messages of an exchange: IEEE 1588-2019 peer delay, and one TLV of our own.
//!
//! `Pdelay_Req` (§11.4, §13.9), `Pdelay_Resp` (§13.10) and `Pdelay_Resp_Follow_Up` (§13.11) as a stock responder sends
//! them. A module adds a [`Reading`]: the same timestamp on its own timeline, and what the server must know to trust
//! it. The request carries the TLV too, empty: so all three messages are equally long and take equally long to
//! serialise, and the module knows that it is understood. It stands *behind* the request, not counted by messageLength:
//! a stock `ptp4l` refuses a `Pdelay_Req` with TLVs, but must pass over octets behind the message, as UDP over IPv6 has
//! some (§D.1).
//!
//! A daemon that measures end to end knows no peer delay. As a NetSync monitor it answers a `Delay_Req` (§13.6) that carries
//! a TLV of linuxptp's with a `Delay_Resp` (§13.8), a `Sync` and a `Follow_Up` (§13.6 and §13.7): see [`crate::net_sync`].
//!
//! Nothing here does I/O, and nothing here panics whatever arrives.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::exchange::StampClass;
use crate::identity::{BootId, Incarnation, ProcessId};
use crate::time::{Time, Wall};

/// A message without TLVs: header (34), timestamp (10) and 10 more octets, in all three types.
pub const PLAIN_LEN: usize = 54;
/// A message with our TLV.
pub const EXTENDED_LEN: usize = PLAIN_LEN + TLV_LEN;
/// Event messages (those with timestamps) go to this UDP port (IEEE 1588-2019 annex C).
pub const EVENT_PORT: u16 = 319;
/// General messages go to this UDP port.
pub const GENERAL_PORT: u16 = 320;

/// Messages without a port identity behind the timestamp: `Sync`, `Delay_Req` and `Follow_Up`.
pub const SHORT_LEN: usize = 44;

const TLV_LEN: usize = 64;
/// linuxptp's PTPMON_REQ, which has no value.
const NET_SYNC_TLV: [u8; 4] = [0x21, 0xFE, 0, 0];
/// In the range for experiments, 0x2004 ..= 0x202F (IEEE 1588-2019 table 52).
const TLV_TYPE: u16 = 0x2026;
/// Tells our TLV from other people's experiments: "Cval".
const TLV_MAGIC: u32 = 0x4376_616C;
const TLV_VERSION: u8 = 1;
/// What a stamp class octet says in a request, which carries no reading.
const NO_READING: u8 = 0xFF;

/// Every instant from the network lies within ± this (2^61 ns, 73 years): see [`crate::time::Nanos`].
const LIMIT: i64 = 1 << 61;

/// Why a datagram is no message of ours. Each is a sentence for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Shorter than it has to be.
    #[error("the message ends after {0} octets, in the middle of a field")]
    Truncated(usize),
    /// The header's length field.
    #[error("the header says {said} octets, but the datagram has {got}")]
    Length {
        /// messageLength.
        said: usize,
        /// The datagram's.
        got: usize,
    },
    /// PTP of another version.
    #[error("PTP version {0} is not supported; version 2 is")]
    Version(u8),
    /// A message that has no part in an exchange.
    #[error("message type {0:#x} has no part in a time exchange")]
    Type(u8),
    /// A timestamp that cannot be one.
    #[error("the timestamp's nanoseconds field is {0}, which is a second or more")]
    Nanoseconds(u32),
    /// An instant beyond ±2^61 ns.
    #[error("an instant is more than 73 years from its timeline's zero")]
    Range,
    /// A TLV that does not fit into the message.
    #[error("a TLV is longer than the message that carries it")]
    Tlv,
    /// Our TLV, in a form that we do not know.
    #[error("the module's TLV is of version {0}; this program knows version 1: update the older of the two")]
    TlvVersion(u8),
    /// Our TLV, with contents that mean nothing.
    #[error("the module's TLV has an impossible {0}")]
    TlvField(&'static str),
}

/// Names a port of a PTP clock (§5.3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortIdentity {
    /// An EUI-64.
    pub clock: [u8; 8],
    /// From 1.
    pub port: u16,
}

/// All our servers and probes ask in this name, locally administered: a stock daemon complains in its log about every
/// change of its peer.
pub const REQUESTER: PortIdentity = PortIdentity { clock: [0x42, 0x63, 0x76, 0xFF, 0xFE, 0, 0, 1], port: 1 };

/// What a message's header says (§13.3). Fields that have one value only in these messages are not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Both ends must have the same one.
    pub domain: u8,
    /// majorSdoId and minorSdoId, 12 bits.
    pub sdo: u16,
    /// minorVersionPTP, 4 bits: 0 for 1588-2008, 1 for 1588-2019.
    pub minor_version: u8,
    /// A follow-up comes.
    pub two_step: bool,
    /// Answers shall go to the sender's address.
    pub unicast: bool,
    /// correctionField: nanoseconds · 2^16.
    pub correction: i64,
    /// The sender.
    pub source: PortIdentity,
    /// Chosen by the requester, repeated by the responder.
    pub sequence: u16,
}

impl Header {
    /// The header of our requests.
    pub fn request(domain: u8, sequence: u16) -> Self {
        Header {
            domain,
            sdo: 0,
            minor_version: 1,
            two_step: false,
            unicast: true,
            correction: 0,
            source: REQUESTER,
            sequence,
        }
    }
}

/// What the messages differ in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// `Pdelay_Req`. Its originTimestamp is left zero, as the standard allows.
    Request,
    /// `Pdelay_Resp`.
    Response {
        /// t2.
        received: Time<Wall>,
        /// The request's sender.
        requester: PortIdentity,
    },
    /// `Pdelay_Resp_Follow_Up`.
    FollowUp {
        /// t3.
        sent: Time<Wall>,
        /// The request's sender.
        requester: PortIdentity,
    },
    /// `Delay_Req`, as a NetSync monitor takes it.
    DelayRequest,
    /// `Delay_Resp`.
    DelayResponse {
        /// t2.
        received: Time<Wall>,
        /// The request's sender.
        requester: PortIdentity,
    },
    /// `Sync`.
    Sync {
        /// t3, if no follow-up comes.
        sent: Time<Wall>,
    },
    /// `Follow_Up`.
    SyncFollowUp {
        /// t3.
        sent: Time<Wall>,
    },
}

/// The octets of a message without its TLVs, by its messageType: see [`PLAIN_LEN`] and [`SHORT_LEN`].
pub fn plain_len(kind: u8) -> usize {
    if matches!(kind & 0xF, 0x0 | 0x1 | 0x8) { SHORT_LEN } else { PLAIN_LEN }
}

/// A message of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// The header.
    pub header: Header,
    /// The rest.
    pub body: Body,
    /// Our TLV, if it is there.
    pub extension: Option<Extension>,
}

/// Our TLV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// In a request: readings are wanted.
    Wanted,
    /// In an answer.
    Reading(Reading),
}

/// A timestamp on the host's own timeline, and what vouches for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The earliest `CLOCK_MONOTONIC_RAW` that the timestamp may stand for.
    pub raw_earliest: i64,
    /// The latest, less the earliest, in ns.
    pub raw_width: u32,
    /// Where the timestamp was taken.
    pub class: StampClass,
    /// The module.
    pub incarnation: Incarnation,
    /// How often the machine was suspended while the module ran: the timeline stands still meanwhile.
    pub suspends: u32,
    /// How often `CLOCK_REALTIME` was set while the module ran.
    pub steps: u32,
    /// The timeline is simulated.
    pub simulated: bool,
    /// The kernel's clock source keeps an oscillator's rate.
    pub trusted_source: bool,
}

impl Message {
    /// Writes the message.
    pub fn encode(&self) -> Encoded {
        let mut out = Writer { octets: [0; EXTENDED_LEN], at: 0 };
        let header = &self.header;
        let kind = match self.body {
            Body::Sync { .. } => 0x0,
            Body::DelayRequest => 0x1,
            Body::Request => 0x2,
            Body::Response { .. } => 0x3,
            Body::SyncFollowUp { .. } => 0x8,
            Body::DelayResponse { .. } => 0x9,
            Body::FollowUp { .. } => 0xA,
        };
        let monitor_len = if self.body == Body::DelayRequest { NET_SYNC_TLV.len() } else { 0 };
        let extension_len = if self.extension.is_some() { TLV_LEN } else { 0 };
        let len = plain_len(kind) + monitor_len + extension_len;
        let [major_sdo, minor_sdo] = header.sdo.to_be_bytes();
        out.put(&[major_sdo << 4 | kind, header.minor_version << 4 | 2]);
        let counted = if self.body == Body::Request { PLAIN_LEN } else { len };
        out.put(&[0, u8::try_from(counted).unwrap_or(u8::MAX)]);
        out.put(&[header.domain, minor_sdo]);
        out.put(&[u8::from(header.two_step) << 1 | u8::from(header.unicast) << 2, 0]);
        out.put(&header.correction.to_be_bytes());
        out.put(&[0; 4]);
        out.identity(header.source);
        out.put(&header.sequence.to_be_bytes());
        // controlField (§13.3.2.13), and logMessageInterval of a message that has none (§13.3.2.14).
        let control = match kind {
            0x0 | 0x1 => kind,
            0x8 | 0x9 => kind - 6,
            _ => 0x05,
        };
        out.put(&[control, 0x7F]);
        match self.body {
            Body::Request => out.put(&[0; 20]),
            Body::DelayRequest => {
                out.put(&[0; 10]);
                out.put(&NET_SYNC_TLV);
            }
            Body::Sync { sent: at } | Body::SyncFollowUp { sent: at } => out.timestamp(at),
            Body::Response { received: at, requester }
            | Body::DelayResponse { received: at, requester }
            | Body::FollowUp { sent: at, requester } => {
                out.timestamp(at);
                out.identity(requester);
            }
        }
        if let Some(extension) = &self.extension {
            out.extension(extension);
        }
        Encoded { octets: out.octets, len }
    }

    /// Reads a datagram. Octets after the length that the header gives are ignored, but for our TLV behind a request.
    ///
    /// # Errors
    /// [`WireError`]: what is wrong with it.
    pub fn parse(datagram: &[u8]) -> Result<Self, WireError> {
        let said = usize::from(u16::from_be_bytes(Reader { rest: datagram, at: 0 }.skip(2)?.array()?));
        if datagram[1] & 0xF != 2 {
            return Err(WireError::Version(datagram[1] & 0xF));
        }
        let (message, behind) =
            datagram.split_at_checked(said).ok_or(WireError::Length { said, got: datagram.len() })?;
        let mut from = Reader { rest: message, at: 0 };
        let [kind, version] = from.array()?;
        from = from.skip(2)?;
        let [domain, minor_sdo, flags, _] = from.array()?;
        let correction = i64::from_be_bytes(from.array()?);
        from = from.skip(4)?;
        let source = from.identity()?;
        let sequence = u16::from_be_bytes(from.array()?);
        from = from.skip(2)?;
        let header = Header {
            domain,
            sdo: u16::from(kind >> 4) << 8 | u16::from(minor_sdo),
            minor_version: version >> 4,
            two_step: flags & 0x02 != 0,
            unicast: flags & 0x04 != 0,
            correction,
            source,
            sequence,
        };
        let body = match kind & 0xF {
            0x0 => Body::Sync { sent: from.timestamp()? },
            0x1 => {
                from = from.skip(10)?;
                Body::DelayRequest
            }
            0x8 => Body::SyncFollowUp { sent: from.timestamp()? },
            0x9 => Body::DelayResponse { received: from.timestamp()?, requester: from.identity()? },
            0x2 => {
                from = from.skip(20)?;
                Body::Request
            }
            0x3 => Body::Response { received: from.timestamp()?, requester: from.identity()? },
            0xA => Body::FollowUp { sent: from.timestamp()?, requester: from.identity()? },
            other => return Err(WireError::Type(other)),
        };
        let mut extension = from.extension()?;
        if body == Body::Request && extension.is_none() {
            // Whatever else stands there is not part of the message, so it cannot make it wrong.
            extension = Reader { rest: behind, at: said }.extension().ok().flatten();
        }
        Ok(Message { header, body, extension })
    }
}

/// A message as octets.
#[derive(Clone, Copy, Debug)]
pub struct Encoded {
    octets: [u8; EXTENDED_LEN],
    len: usize,
}

impl std::ops::Deref for Encoded {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.octets[..self.len]
    }
}

struct Writer {
    octets: [u8; EXTENDED_LEN],
    at: usize,
}

impl Writer {
    fn put(&mut self, octets: &[u8]) {
        self.octets[self.at..self.at + octets.len()].copy_from_slice(octets);
        self.at += octets.len();
    }

    fn identity(&mut self, identity: PortIdentity) {
        self.put(&identity.clock);
        self.put(&identity.port.to_be_bytes());
    }

    /// §5.3.3: seconds as a u48, nanoseconds as a u32. A clock that stands before 1970 is sent as 1970.
    fn timestamp(&mut self, at: Time<Wall>) {
        let nanos = u64::try_from(at.as_nanos()).unwrap_or(0);
        self.put(&(nanos / 1_000_000_000).to_be_bytes()[2..]);
        self.put(&(nanos % 1_000_000_000).to_be_bytes()[4..]);
    }

    /// Layout of the value, big-endian: magic u32, version u8, class u8, flags u16 (1 simulated, 2 trusted source),
    /// earliest i64, width u32, suspends u32, steps u32, boot id 16 octets, process id 16 octets.
    fn extension(&mut self, extension: &Extension) {
        self.put(&TLV_TYPE.to_be_bytes());
        self.put(&[0, 60]);
        self.put(&TLV_MAGIC.to_be_bytes());
        self.put(&[TLV_VERSION]);
        let Extension::Reading(reading) = extension else {
            self.put(&[NO_READING]);
            self.put(&[0; 54]);
            return;
        };
        let class = match reading.class {
            StampClass::Hardware => 0,
            StampClass::Software => 1,
            StampClass::Userspace => 2,
        };
        self.put(&[class, 0, u8::from(reading.simulated) | u8::from(reading.trusted_source) << 1]);
        self.put(&reading.raw_earliest.to_be_bytes());
        self.put(&reading.raw_width.to_be_bytes());
        self.put(&reading.suspends.to_be_bytes());
        self.put(&reading.steps.to_be_bytes());
        self.put(reading.incarnation.boot.0.as_bytes());
        self.put(reading.incarnation.process.0.as_bytes());
    }
}

#[derive(Clone, Copy)]
struct Reader<'a> {
    rest: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) =
            self.rest.split_at_checked(len).ok_or(WireError::Truncated(self.at + self.rest.len()))?;
        (self.rest, self.at) = (rest, self.at + len);
        Ok(taken)
    }

    fn skip(mut self, len: usize) -> Result<Self, WireError> {
        self.take(len)?;
        Ok(self)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn identity(&mut self) -> Result<PortIdentity, WireError> {
        Ok(PortIdentity { clock: self.array()?, port: u16::from_be_bytes(self.array()?) })
    }

    fn timestamp(&mut self) -> Result<Time<Wall>, WireError> {
        let [a, b, c, d, e, f] = self.array()?;
        let seconds = i64::from_be_bytes([0, 0, a, b, c, d, e, f]);
        let nanos = u32::from_be_bytes(self.array()?);
        if nanos >= 1_000_000_000 {
            return Err(WireError::Nanoseconds(nanos));
        }
        let since_1970 = seconds.checked_mul(1_000_000_000).ok_or(WireError::Range)?;
        in_range(since_1970.checked_add(i64::from(nanos)).ok_or(WireError::Range)?).map(Time::from_nanos)
    }

    /// Walks the TLVs (§14.1) to ours. Others are somebody else's business.
    fn extension(&mut self) -> Result<Option<Extension>, WireError> {
        while !self.rest.is_empty() {
            let kind = u16::from_be_bytes(self.array().map_err(|_| WireError::Tlv)?);
            let len = u16::from_be_bytes(self.array().map_err(|_| WireError::Tlv)?);
            let value =
                Reader { rest: self.take(usize::from(len)).map_err(|_| WireError::Tlv)?, at: self.at };
            if kind == TLV_TYPE && value.rest.starts_with(&TLV_MAGIC.to_be_bytes()) {
                return value.skip(4)?.our_value().map(Some);
            }
        }
        Ok(None)
    }

    fn our_value(&mut self) -> Result<Extension, WireError> {
        let [version, class, _, flags] = self.array()?;
        if version != TLV_VERSION {
            return Err(WireError::TlvVersion(version));
        }
        let class = match class {
            0 => StampClass::Hardware,
            1 => StampClass::Software,
            2 => StampClass::Userspace,
            NO_READING => return Ok(Extension::Wanted),
            _ => return Err(WireError::TlvField("timestamp class")),
        };
        let raw_earliest = in_range(i64::from_be_bytes(self.array()?))?;
        let raw_width = u32::from_be_bytes(self.array()?);
        let suspends = u32::from_be_bytes(self.array()?);
        let steps = u32::from_be_bytes(self.array()?);
        let boot = BootId(Uuid::from_bytes(self.array()?));
        let process = ProcessId(Uuid::from_bytes(self.array()?));
        Ok(Extension::Reading(Reading {
            raw_earliest,
            raw_width,
            class,
            incarnation: Incarnation { boot, process },
            suspends,
            steps,
            simulated: flags & 1 != 0,
            trusted_source: flags & 2 != 0,
        }))
    }
}

fn in_range(nanos: i64) -> Result<i64, WireError> {
    if (-LIMIT..=LIMIT).contains(&nanos) { Ok(nanos) } else { Err(WireError::Range) }
}

#[cfg(test)]
mod tests;
