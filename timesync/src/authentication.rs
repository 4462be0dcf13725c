//! The AUTHENTICATION TLV (IEEE 1588-2019 §16.14): who made a message, and that nobody changed it.
//!
//! Immediate processing, HMAC-SHA256 cut to 128 bits, as linuxptp from 4.3 on does it (its `SHA256-128`). The value is
//! big-endian and follows type 0x8009 and length:
//!
//! | octets | field | |
//! | --- | --- | --- |
//! | 1 | SPP | names the set of keys |
//! | 1 | secParamIndicator | 2: a sequenceNo follows; 0: none does |
//! | 4 | keyID | names the key |
//! | 0 or 8 | sequenceNo | a request's own number, which its answers repeat |
//! | 16 | ICV | over the message from its first octet to here |
//!
//! It is the last TLV and inside the message: messageLength counts it, and our own TLV before it, in requests too.
//! linuxptp knows no sequenceNo: towards a stock daemon it is left out, and the header's sequenceId alone ties an
//! answer to its request.
//!
//! The ICV takes the correctionField as zero (linuxptp: `allow_mutable 1`): transparent clocks change it on the way. So
//! it is the one field that no key protects, and no bound believes it unless told to. Where it is zero, a daemon with
//! `allow_mutable 0` computes the same.

mod association;
mod hex;
mod key_file;
mod keyring;

use ring::hmac;
use subtle::ConstantTimeEq;

pub use association::Association;
pub use key_file::KeyFileError;
pub use keyring::{Keyring, SessionKey};

use serde::{Deserialize, Serialize};

use crate::wire::{self, EXTENDED_LEN, Message};

const TLV_TYPE: u16 = 0x8009;
const HEAD_LEN: usize = 4;
/// Of the value, before the sequenceNo.
const NAMES_LEN: usize = 6;
const NUMBER_LEN: usize = 8;
const ICV_LEN: usize = 16;
/// secParamIndicator: a sequenceNo is there.
const NUMBERED: u8 = 0x02;
const LENGTH_FIELD: usize = 2;
const CORRECTION_FIELD: std::ops::Range<usize> = 8..16;
/// A message of ours with all its TLVs.
const LONGEST: usize = EXTENDED_LEN + HEAD_LEN + NAMES_LEN + NUMBER_LEN + ICV_LEN;

/// Why a message is not taken. Each is a sentence for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refused {
    /// No AUTHENTICATION TLV.
    #[error("the message is not authenticated")]
    Missing,
    /// A TLV that is cut off, not the last, or of another layout.
    #[error("the message's authentication has a form that this program does not know")]
    Form,
    /// An SPP and keyID that nobody here has.
    #[error("the message is authenticated with a key that is not known here")]
    UnknownKey,
    /// The ICV is another one.
    #[error("the message was changed, or made by somebody without the key")]
    Forged,
    /// A sequenceNo that is not the expected one.
    #[error("the message was sent before, or out of its order")]
    Replayed,
}

/// A secret that two ends share, with its names.
#[derive(Clone)]
pub struct Key {
    policy: u8,
    id: u32,
    mac: hmac::Key,
}

impl std::fmt::Debug for Key {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("policy", &self.policy).field("id", &self.id).finish_non_exhaustive()
    }
}

impl Key {
    /// `policy` is the SPP, `id` the keyID.
    pub fn new(policy: u8, id: u32, secret: &[u8]) -> Self {
        Key { policy, id, mac: hmac::Key::new(hmac::HMAC_SHA256, secret) }
    }

    /// Reads the one key of a security association file as linuxptp has it (`sa_file`).
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn read(text: &str) -> Result<Self, KeyFileError> {
        key_file::parse(text)
    }

    fn is_named_by(&self, tlv: &Tlv<'_>) -> bool {
        (tlv.policy, tlv.id) == (self.policy, self.id)
    }

    /// `covered` is at least the header.
    fn icv(&self, covered: &[u8]) -> [u8; ICV_LEN] {
        let mut context = hmac::Context::with_key(&self.mac);
        context.update(&covered[..CORRECTION_FIELD.start]);
        context.update(&[0; CORRECTION_FIELD.end - CORRECTION_FIELD.start]);
        context.update(&covered[CORRECTION_FIELD.end..]);
        let mut icv = [0; ICV_LEN];
        icv.copy_from_slice(&context.sign().as_ref()[..ICV_LEN]);
        icv
    }

    /// In a time that does not tell where the difference is.
    fn check(&self, tlv: &Tlv<'_>) -> Result<(), Refused> {
        if !self.is_named_by(tlv) {
            return Err(Refused::UnknownKey);
        }
        if bool::from(self.icv(tlv.covered).ct_eq(tlv.icv)) { Ok(()) } else { Err(Refused::Forged) }
    }
}

/// The AUTHENTICATION TLV of a message, not checked yet.
struct Tlv<'a> {
    policy: u8,
    id: u32,
    number: Option<u64>,
    /// The message without what stands behind it in the datagram.
    message: &'a [u8],
    covered: &'a [u8],
    icv: &'a [u8],
}

impl<'a> Tlv<'a> {
    fn find(datagram: &'a [u8]) -> Result<Self, Refused> {
        let length = datagram.get(LENGTH_FIELD..LENGTH_FIELD + 2).ok_or(Refused::Form)?;
        let said = usize::from(u16::from_be_bytes([length[0], length[1]]));
        let message = datagram.get(..said).ok_or(Refused::Form)?;
        let mut rest = message.get(wire::plain_len(datagram[0])..).ok_or(Refused::Form)?;
        while !rest.is_empty() {
            let ([a, b, c, d], behind) = rest.split_first_chunk::<HEAD_LEN>().ok_or(Refused::Form)?;
            let len = usize::from(u16::from_be_bytes([*c, *d]));
            let (value, behind) = behind.split_at_checked(len).ok_or(Refused::Form)?;
            if u16::from_be_bytes([*a, *b]) == TLV_TYPE {
                // What stands behind it would not be covered.
                return if behind.is_empty() { Self::read(message, value) } else { Err(Refused::Form) };
            }
            rest = behind;
        }
        Err(Refused::Missing)
    }

    fn read(message: &'a [u8], value: &'a [u8]) -> Result<Self, Refused> {
        let (&[policy, indicator, a, b, c, d], rest) =
            value.split_first_chunk::<NAMES_LEN>().ok_or(Refused::Form)?;
        let (number, icv) = match indicator {
            0 => (None, rest),
            NUMBERED => {
                let (number, icv) = rest.split_first_chunk::<NUMBER_LEN>().ok_or(Refused::Form)?;
                (Some(u64::from_be_bytes(*number)), icv)
            }
            _ => return Err(Refused::Form),
        };
        if icv.len() != ICV_LEN {
            return Err(Refused::Form);
        }
        let covered = &message[..message.len() - ICV_LEN];
        Ok(Tlv { policy, id: u32::from_be_bytes([a, b, c, d]), number, message, covered, icv })
    }
}

/// What authenticates the messages of one exchange: a key, and the request's number if it has one.
#[derive(Clone, Debug)]
pub struct Seal {
    key: Key,
    number: Option<u64>,
}

/// A message as octets, ready to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Sealed {
    octets: [u8; LONGEST],
    len: usize,
}

impl std::ops::Deref for Sealed {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.octets[..self.len]
    }
}

impl Sealed {
    fn put(&mut self, octets: &[u8]) {
        self.octets[self.len..self.len + octets.len()].copy_from_slice(octets);
        self.len += octets.len();
    }
}

/// Writes a message, authenticated where there is a seal.
pub fn encode(message: &Message, seal: Option<&Seal>) -> Sealed {
    let mut sealed = Sealed { octets: [0; LONGEST], len: 0 };
    sealed.put(&message.encode());
    let Some(Seal { key, number }) = seal else { return sealed };
    let number_len = if number.is_some() { NUMBER_LEN } else { 0 };
    let len = NAMES_LEN + number_len + ICV_LEN;
    // Both are below 256.
    let [tlv_len, message_len] = [len, sealed.len + HEAD_LEN + len].map(|len| len as u16);
    sealed.put(&TLV_TYPE.to_be_bytes());
    sealed.put(&tlv_len.to_be_bytes());
    sealed.put(&[key.policy, if number.is_some() { NUMBERED } else { 0 }]);
    sealed.put(&key.id.to_be_bytes());
    if let Some(number) = number {
        sealed.put(&number.to_be_bytes());
    }
    sealed.octets[LENGTH_FIELD..LENGTH_FIELD + 2].copy_from_slice(&message_len.to_be_bytes());
    let icv = key.icv(&sealed);
    sealed.put(&icv);
    sealed
}

/// The message in an answer, where the asking end has a key: only if it is authenticated and answers the newest request.
///
/// # Errors
/// [`Refused`].
pub fn admit<'a>(association: Option<&Association>, datagram: &'a [u8]) -> Result<&'a [u8], Refused> {
    association.map_or(Ok(datagram), |association| association.admit(datagram))
}

#[cfg(test)]
mod tests;
