//! The layouts and numbers of the NBD protocol (NetworkBlockDevice/nbd, `doc/proto.md`). Pure: bytes in, values out.
//! Everything is big-endian.

use crate::device::DeviceError;

/// The longest READ or WRITE, in bytes: what a server must take that advertises nothing, and what we advertise.
pub(super) const MAX_PAYLOAD: u32 = 32 << 20;
/// The longest string that the protocol allows, in bytes.
pub(super) const MAX_STRING: usize = 4096;
/// The longest data of an option that we listen to, in bytes.
pub(super) const MAX_OPTION: u32 = 64 << 10;
/// The most options that a client may send. Programs that list ask two things about each export.
pub(super) const MAX_OPTIONS: usize = 4096;
/// The block sizes that suit us: any, pages, and `MAX_PAYLOAD`.
pub(super) const BLOCK_SIZES: [u32; 3] = [1, 4096, MAX_PAYLOAD];

pub(super) const MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
pub(super) const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Handshake flags, the same bits from the server and from the client.
pub(super) mod handshake_flag {
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// What an export can do.
pub(super) mod transmission_flag {
    pub const HAS_FLAGS: u16 = 1 << 0;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_CACHE: u16 = 1 << 10;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

pub(super) mod option {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
}

pub(super) mod option_reply {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    /// Set in every reply that is an error.
    pub const ERROR: u32 = 1 << 31;
    pub const ERR_UNSUP: u32 = ERROR | 1;
    pub const ERR_POLICY: u32 = ERROR | 2;
    pub const ERR_INVALID: u32 = ERROR | 3;
    pub const ERR_TLS_REQD: u32 = ERROR | 5;
    pub const ERR_UNKNOWN: u32 = ERROR | 6;
    pub const ERR_TOO_BIG: u32 = ERROR | 9;
}

pub(super) mod info {
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

pub(super) mod command {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

pub(super) mod command_flag {
    pub const FUA: u16 = 1 << 0;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// What BLOCK_STATUS says of a run.
pub(super) mod status_flag {
    /// `base:allocation`: it takes no space.
    pub const HOLE: u32 = 1 << 0;
    /// `base:allocation`: it reads as zeros.
    pub const ZERO: u32 = 1 << 1;
    /// `qemu:dirty-bitmap:`: it may have changed.
    pub const DIRTY: u32 = 1 << 0;
}

const CHUNK_DONE: u16 = 1;
const CHUNK_OFFSET_DATA: u16 = 1;
const CHUNK_BLOCK_STATUS: u16 = 5;
const CHUNK_ERROR: u16 = (1 << 15) | 1;

/// The peer broke the protocol beyond what an error reply can mend: the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    #[error("the client sent a wrong magic number")]
    Magic,
    #[error("the client sent handshake flags that this server did not offer")]
    HandshakeFlags,
    #[error("the client sent an option of {0} bytes")]
    LongOption(u32),
    #[error("the client sent more than {MAX_OPTIONS} options")]
    ManyOptions,
    #[error("the client asked for an export that does not exist")]
    NoSuchExport,
}

/// Why a request failed, in the protocol's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ErrorCode {
    /// `NBD_EPERM`: the export is read-only.
    #[error("the export is read-only")]
    NotPermitted,
    /// `NBD_EIO`: the storage below failed.
    #[error("input/output error")]
    Io,
    /// `NBD_EINVAL`: the request makes no sense, or reads beyond the end.
    #[error("the request is invalid")]
    Invalid,
    /// `NBD_ENOSPC`: no room for the data, or a write beyond the end.
    #[error("no space left")]
    NoSpace,
    /// `NBD_ENOTSUP`: not supported, and not done.
    #[error("not supported")]
    Unsupported,
    /// Any other number.
    #[error("error {0}")]
    Other(u32),
}

impl ErrorCode {
    pub(super) fn number(self) -> u32 {
        match self {
            ErrorCode::NotPermitted => 1,
            ErrorCode::Io => 5,
            ErrorCode::Invalid => 22,
            ErrorCode::NoSpace => 28,
            ErrorCode::Unsupported => 95,
            ErrorCode::Other(number) => number,
        }
    }

    pub(super) fn from_number(number: u32) -> Result<(), ErrorCode> {
        match number {
            0 => Ok(()),
            1 => Err(ErrorCode::NotPermitted),
            5 => Err(ErrorCode::Io),
            22 => Err(ErrorCode::Invalid),
            28 => Err(ErrorCode::NoSpace),
            95 => Err(ErrorCode::Unsupported),
            other => Err(ErrorCode::Other(other)),
        }
    }
}

impl From<DeviceError> for ErrorCode {
    fn from(error: DeviceError) -> Self {
        match error {
            DeviceError::Invalid => ErrorCode::Invalid,
            DeviceError::NoSpace => ErrorCode::NoSpace,
            DeviceError::ReadOnly => ErrorCode::NotPermitted,
            DeviceError::Io => ErrorCode::Io,
            DeviceError::Unsupported => ErrorCode::Unsupported,
        }
    }
}

/// Takes the first `N` bytes off the front.
pub(super) fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*first)
}

pub(super) fn take_u16(bytes: &mut &[u8]) -> Option<u16> {
    take(bytes).map(u16::from_be_bytes)
}

pub(super) fn take_u32(bytes: &mut &[u8]) -> Option<u32> {
    take(bytes).map(u32::from_be_bytes)
}

pub(super) fn take_u64(bytes: &mut &[u8]) -> Option<u64> {
    take(bytes).map(u64::from_be_bytes)
}

/// What a client asks for, once its flags and its range were found to make sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Read,
    Write { fua: bool },
    Flush,
    Trim { fua: bool },
    WriteZeroes { may_punch: bool, fua: bool, fast: bool },
    Cache,
    BlockStatus { one: bool },
}

impl Command {
    /// Whether the request is answered only after the disk has answered.
    pub fn waits_for_disk(self) -> bool {
        match self {
            Command::Flush => true,
            Command::Write { fua } | Command::Trim { fua } | Command::WriteZeroes { fua, .. } => fua,
            Command::Read | Command::Cache | Command::BlockStatus { .. } => false,
        }
    }
}

/// The head of a request: magic 4, flags 2, command 2, cookie 8, offset 8, length 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub length: u32,
}

impl Request {
    pub const LEN: usize = 28;

    pub fn encode(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    /// None while `bytes` are too few.
    pub fn decode(mut bytes: &[u8]) -> Option<Result<Request, Violation>> {
        let bytes = &mut bytes;
        let magic = take_u32(bytes)?;
        let request = Request {
            flags: take_u16(bytes)?,
            command: take_u16(bytes)?,
            cookie: take_u64(bytes)?,
            offset: take_u64(bytes)?,
            length: take_u32(bytes)?,
        };
        Some(if magic == REQUEST_MAGIC { Ok(request) } else { Err(Violation::Magic) })
    }

    /// Whether its answer, if there is no error, is more than that.
    pub fn has_content(self) -> bool {
        matches!(self.command, command::READ | command::BLOCK_STATUS)
    }

    /// Bytes that follow the head, even if the request is refused.
    pub fn payload(self) -> usize {
        if self.command == command::WRITE { self.length as usize } else { 0 }
    }

    /// What is asked for, of an export of `size` bytes. DISC is no such thing: it has no answer.
    pub fn check(self, size: u64, structured: bool) -> Result<Command, ErrorCode> {
        let fua = self.flags & command_flag::FUA != 0;
        // FUA may come with any command and means nothing to those that write nothing.
        let (command, more_flags) = match self.command {
            command::READ if structured => (Command::Read, command_flag::DF),
            command::READ => (Command::Read, 0),
            command::WRITE => (Command::Write { fua }, 0),
            command::FLUSH => (Command::Flush, 0),
            command::TRIM => (Command::Trim { fua }, 0),
            command::WRITE_ZEROES => {
                let may_punch = self.flags & command_flag::NO_HOLE == 0;
                let fast = self.flags & command_flag::FAST_ZERO != 0;
                let command = Command::WriteZeroes { may_punch, fua, fast };
                (command, command_flag::NO_HOLE | command_flag::FAST_ZERO)
            }
            command::CACHE => (Command::Cache, 0),
            command::BLOCK_STATUS if structured => {
                let one = self.flags & command_flag::REQ_ONE != 0;
                (Command::BlockStatus { one }, command_flag::REQ_ONE)
            }
            _ => return Err(ErrorCode::Invalid),
        };
        if self.flags & !(command_flag::FUA | more_flags) != 0 {
            return Err(ErrorCode::Invalid);
        }
        let has_payload = matches!(command, Command::Read | Command::Write { .. });
        if command == Command::Flush {
            return Ok(command);
        }
        if self.length == 0 || (has_payload && self.length > MAX_PAYLOAD) {
            return Err(ErrorCode::Invalid);
        }
        let fits = self.offset.checked_add(self.length.into()).is_some_and(|end| end <= size);
        match command {
            _ if fits => Ok(command),
            Command::Write { .. } | Command::WriteZeroes { .. } => Err(ErrorCode::NoSpace),
            _ => Err(ErrorCode::Invalid),
        }
    }
}

/// A reply without data, or the head of a READ's: magic 4, error 4, cookie 8.
pub(super) const SIMPLE_REPLY_LEN: usize = 16;

pub(super) fn simple_reply(cookie: u64, result: Result<(), ErrorCode>) -> [u8; SIMPLE_REPLY_LEN] {
    let mut bytes = [0; SIMPLE_REPLY_LEN];
    bytes[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&result.err().map_or(0, ErrorCode::number).to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

/// The cookie and the result; none if this is no simple reply.
pub(super) fn decode_simple_reply(bytes: [u8; SIMPLE_REPLY_LEN]) -> Option<(u64, Result<(), ErrorCode>)> {
    let bytes = &mut bytes.as_slice();
    if take_u32(bytes)? != SIMPLE_REPLY_MAGIC {
        return None;
    }
    let result = ErrorCode::from_number(take_u32(bytes)?);
    Some((take_u64(bytes)?, result))
}

/// Head of a chunk: magic 4, flags 2, type 2, cookie 8, length of what follows 4.
fn chunk_head(last: bool, kind: u16, cookie: u64, length: u32) -> [u8; 20] {
    let mut bytes = [0; 20];
    bytes[..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&if last { CHUNK_DONE } else { 0 }.to_be_bytes());
    bytes[6..8].copy_from_slice(&kind.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// What stands before a READ's data in the only chunk of its structured reply: the head, and the data's offset 8.
pub(super) const DATA_CHUNK_LEN: usize = 28;

/// `length` of the data is at most [`MAX_PAYLOAD`].
pub(super) fn data_chunk(cookie: u64, offset: u64, length: u32) -> [u8; DATA_CHUNK_LEN] {
    let mut bytes = [0; DATA_CHUNK_LEN];
    bytes[..20].copy_from_slice(&chunk_head(true, CHUNK_OFFSET_DATA, cookie, 8 + length));
    bytes[20..].copy_from_slice(&offset.to_be_bytes());
    bytes
}

/// What stands before the runs (length 4, flags 4 each) of one context: the head, and the context's number 4.
pub(super) fn status_chunk_head(cookie: u64, context: u32, runs: usize, last: bool) -> [u8; 24] {
    let mut bytes = [0; 24];
    // Few enough for any number to hold them.
    let length = 4 + 8 * runs as u32;
    bytes[..20].copy_from_slice(&chunk_head(last, CHUNK_BLOCK_STATUS, cookie, length));
    bytes[20..].copy_from_slice(&context.to_be_bytes());
    bytes
}

/// A structured reply that is an error: the head, error 4, length of its message 2 (always 0: the number says it).
pub(super) fn error_chunk(cookie: u64, code: ErrorCode) -> [u8; 26] {
    let mut bytes = [0; 26];
    bytes[..20].copy_from_slice(&chunk_head(true, CHUNK_ERROR, cookie, 6));
    bytes[20..24].copy_from_slice(&code.number().to_be_bytes());
    bytes
}

/// Head of an option: magic 8, option 4, length of its data 4.
pub(super) fn option_head(option: u32, length: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes[8..12].copy_from_slice(&option.to_be_bytes());
    bytes[12..].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// Head of an option's reply: magic 8, option 4, type 4, length of its data 4.
pub(super) fn option_reply_head(option: u32, kind: u32, length: u32) -> [u8; 20] {
    let mut bytes = [0; 20];
    bytes[..8].copy_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    bytes[8..12].copy_from_slice(&option.to_be_bytes());
    bytes[12..16].copy_from_slice(&kind.to_be_bytes());
    bytes[16..].copy_from_slice(&length.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::command_flag::{DF, FAST_ZERO, FUA, NO_HOLE, REQ_ONE};
    use super::*;

    const SIZE: u64 = 100 << 20;

    #[test]
    fn requests_are_checked_as_the_protocol_says() {
        let max = MAX_PAYLOAD;
        #[rustfmt::skip]
        let cases = [
            (command::READ, 0, 0, 1, Ok(Command::Read)),
            (command::READ, DF | FUA, SIZE - 1, 1, Ok(Command::Read)),
            (command::READ, 0, 0, max, Ok(Command::Read)),
            (command::READ, 0, 0, max + 1, Err(ErrorCode::Invalid)),
            (command::READ, 0, SIZE, 1, Err(ErrorCode::Invalid)),
            (command::READ, 0, u64::MAX, 1, Err(ErrorCode::Invalid)),
            (command::READ, 0, 0, 0, Err(ErrorCode::Invalid)),
            (command::READ, NO_HOLE, 0, 1, Err(ErrorCode::Invalid)),
            (command::WRITE, 0, 1, 2, Ok(Command::Write { fua: false })),
            (command::WRITE, FUA, 1, 2, Ok(Command::Write { fua: true })),
            (command::WRITE, DF, 1, 2, Err(ErrorCode::Invalid)),
            (command::WRITE, 0, SIZE - 1, 2, Err(ErrorCode::NoSpace)),
            (command::WRITE, 0, 0, max + 1, Err(ErrorCode::Invalid)),
            (command::FLUSH, FUA, 0, 0, Ok(Command::Flush)),
            (command::FLUSH, 1 << 15, 0, 0, Err(ErrorCode::Invalid)),
            (command::TRIM, FUA, 0, max * 2, Ok(Command::Trim { fua: true })),
            (command::TRIM, 0, SIZE, 1, Err(ErrorCode::Invalid)),
            (command::WRITE_ZEROES, 0, 0, max * 2, Ok(Command::WriteZeroes { may_punch: true, fua: false, fast: false })),
            (command::WRITE_ZEROES, NO_HOLE | FUA, 0, 9, Ok(Command::WriteZeroes { may_punch: false, fua: true, fast: false })),
            (command::WRITE_ZEROES, FAST_ZERO, 0, 9, Ok(Command::WriteZeroes { may_punch: true, fua: false, fast: true })),
            (command::WRITE_ZEROES, 0, SIZE - 1, u32::MAX, Err(ErrorCode::NoSpace)),
            (command::CACHE, 0, 0, max * 2, Ok(Command::Cache)),
            (command::CACHE, 0, SIZE, 1, Err(ErrorCode::Invalid)),
            (command::BLOCK_STATUS, 0, 0, max * 2, Ok(Command::BlockStatus { one: false })),
            (command::BLOCK_STATUS, REQ_ONE, 7, 1, Ok(Command::BlockStatus { one: true })),
            (command::BLOCK_STATUS, 0, SIZE - 1, 2, Err(ErrorCode::Invalid)),
            (command::BLOCK_STATUS, 0, 0, 0, Err(ErrorCode::Invalid)),
            (command::READ, REQ_ONE, 0, 1, Err(ErrorCode::Invalid)),
            (u16::MAX, 0, 0, 1, Err(ErrorCode::Invalid)),
        ];
        for (command, flags, offset, length, expected) in cases {
            let request = Request { flags, command, cookie: 7, offset, length };
            assert_eq!(request.check(SIZE, true), expected, "{request:?}");
        }
    }

    #[test]
    fn chunks_need_structured_replies() {
        for (command, flags) in [(command::READ, DF), (command::BLOCK_STATUS, 0)] {
            let request = Request { flags, command, cookie: 0, offset: 0, length: 1 };
            assert_eq!(request.check(SIZE, false), Err(ErrorCode::Invalid));
        }
    }

    #[test]
    fn replies_stand_as_the_protocol_has_them() {
        assert_eq!(
            simple_reply(0x0102, Err(ErrorCode::NoSpace)),
            [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 0, 0, 0, 0, 0, 0, 1, 2]
        );
        #[rustfmt::skip]
        assert_eq!(
            data_chunk(3, 0x1000, 0x200),
            [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 2, 8, 0, 0, 0, 0, 0, 0, 0x10, 0]
        );
        #[rustfmt::skip]
        assert_eq!(
            error_chunk(3, ErrorCode::Io),
            [0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 6, 0, 0, 0, 5, 0, 0]
        );
    }

    proptest! {
        #[test]
        fn requests_survive_the_wire(
            flags: u16, command: u16, cookie: u64, offset: u64, length: u32, cut in 0..Request::LEN,
        ) {
            let request = Request { flags, command, cookie, offset, length };
            let bytes = request.encode();
            prop_assert_eq!(Request::decode(&bytes), Some(Ok(request)));
            prop_assert_eq!(Request::decode(&bytes[..cut]), None);
        }

        #[test]
        fn accepted_requests_lie_inside_the_export(
            flags in 0..32u16, command in 0..8u16, offset in 0..SIZE * 2, length: u32, size in 0..SIZE * 2, structured: bool,
        ) {
            let request = Request { flags, command, cookie: 0, offset, length };
            if let Ok(accepted) = request.check(size, structured)
                && accepted != Command::Flush
            {
                prop_assert!(offset + u64::from(length) <= size);
                prop_assert!(request.payload() <= MAX_PAYLOAD as usize);
            }
        }

        #[test]
        fn simple_replies_survive_the_wire(cookie: u64, number: u32) {
            let result = ErrorCode::from_number(number);
            prop_assert_eq!(decode_simple_reply(simple_reply(cookie, result)), Some((cookie, result)));
        }
    }
}
