//! The server's half of the fixed newstyle handshake, up to the choice of an export. Pure: it is handed the bytes that
//! have arrived, and says how many it used and what to answer.

use std::sync::Arc;

use super::buffer::Buffer;
use super::meta::{self, BadQueries, Context, MAX_CONTEXTS, Queries};
use super::wire::{
    self, BLOCK_SIZES, MAGIC, MAX_OPTION, MAX_OPTIONS, MAX_STRING, OPTION_MAGIC, Violation, handshake_flag,
    info, option, option_reply, transmission_flag,
};
use crate::device::{Device, Exports};

/// What the client chose.
pub(super) struct Chosen {
    pub device: Arc<dyn Device>,
    /// Whether READs are answered in chunks.
    pub structured: bool,
    /// What BLOCK_STATUS tells, by the numbers that the client was given.
    pub contexts: Vec<(u32, Context)>,
}

/// What a step came to.
pub(super) enum Step {
    /// More bytes must arrive first.
    Incomplete,
    /// So many bytes were used, and another step may follow.
    Used(usize),
    /// So many bytes were used; requests follow.
    Chosen(usize, Chosen),
    /// The client gave up, politely.
    Aborted,
}

pub(super) struct Handshake<'a> {
    exports: &'a dyn Exports,
    /// None until the client's flags have arrived.
    no_zeroes: Option<bool>,
    structured: bool,
    /// The contexts that SET_META_CONTEXT selected, and the export that they are for.
    selected: Option<(Vec<u8>, Vec<String>)>,
    options: usize,
}

impl<'a> Handshake<'a> {
    /// Greets the client.
    pub fn start(exports: &'a dyn Exports, out: &mut Buffer) -> Self {
        out.push(&MAGIC.to_be_bytes());
        out.push(&OPTION_MAGIC.to_be_bytes());
        out.push(&(handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES).to_be_bytes());
        Handshake { exports, no_zeroes: None, structured: false, selected: None, options: 0 }
    }

    /// Handles the client's flags or one option at the front of `input`.
    pub fn step(&mut self, input: &[u8], out: &mut Buffer) -> Result<Step, Violation> {
        let mut rest = input;
        let Some(no_zeroes) = self.no_zeroes else {
            let Some(flags) = wire::take_u32(&mut rest) else { return Ok(Step::Incomplete) };
            let no_zeroes = u32::from(handshake_flag::NO_ZEROES);
            if flags & !(u32::from(handshake_flag::FIXED_NEWSTYLE) | no_zeroes) != 0 {
                return Err(Violation::HandshakeFlags);
            }
            self.no_zeroes = Some(flags & no_zeroes != 0);
            return Ok(Step::Used(4));
        };
        let (Some(magic), Some(option), Some(length)) =
            (wire::take_u64(&mut rest), wire::take_u32(&mut rest), wire::take_u32(&mut rest))
        else {
            return Ok(Step::Incomplete);
        };
        if magic != OPTION_MAGIC {
            return Err(Violation::Magic);
        }
        if length > MAX_OPTION {
            return Err(Violation::LongOption(length));
        }
        let Some(data) = rest.get(..length as usize) else { return Ok(Step::Incomplete) };
        let used = input.len() - rest.len() + data.len();
        self.options += 1;
        if self.options > MAX_OPTIONS {
            return Err(Violation::ManyOptions);
        }

        match option {
            option::EXPORT_NAME => {
                // The one option without an error reply: all a server can do is hang up.
                let device = self.open(data).ok_or(Violation::NoSuchExport)?;
                let contexts = self.contexts(data, &*device).ok_or(Violation::NoSuchExport)?;
                out.push(&device.size().to_be_bytes());
                out.push(&self.flags(&*device).to_be_bytes());
                if !no_zeroes {
                    out.push(&[0; 124]);
                }
                return Ok(Step::Chosen(used, Chosen { device, structured: self.structured, contexts }));
            }
            option::ABORT => {
                reply(out, option, option_reply::ACK, &[]);
                return Ok(Step::Aborted);
            }
            option if let Some(why) = self.exports.refusal() => {
                reply(out, option, option_reply::ERR_POLICY, &[why.as_bytes()]);
            }
            option::GO | option::INFO => {
                if let Some(chosen) = self.describe(option, data, out)
                    && option == option::GO
                {
                    return Ok(Step::Chosen(used, chosen));
                }
            }
            option::LIST if data.is_empty() => {
                for name in self.exports.list() {
                    let length = u32::try_from(name.len()).unwrap_or(u32::MAX).to_be_bytes();
                    let description = self.exports.describe(&name).unwrap_or_default();
                    let entry: [&[u8]; 3] = [&length, name.as_bytes(), description.as_bytes()];
                    reply(out, option, option_reply::SERVER, &entry);
                }
                reply(out, option, option_reply::ACK, &[]);
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT if self.structured => {
                self.meta_contexts(option, data, out);
            }
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                reply(out, option, option_reply::ACK, &[]);
            }
            option::LIST
            | option::STRUCTURED_REPLY
            | option::LIST_META_CONTEXT
            | option::SET_META_CONTEXT => reply(out, option, option_reply::ERR_INVALID, &[]),
            _ => reply(out, option, option_reply::ERR_UNSUP, &[]),
        }
        Ok(Step::Used(used))
    }

    /// Answers GO or INFO: name length 4, name, number of requests 2, requests 2 each.
    fn describe(&self, option: u32, mut data: &[u8], out: &mut Buffer) -> Option<Chosen> {
        let Some((name, wanted)) = parse_info(&mut data) else {
            reply(out, option, option_reply::ERR_INVALID, &[]);
            return None;
        };
        let opened = self.open(name).and_then(|device| Some((self.contexts(name, &*device)?, device)));
        let Some((contexts, device)) = opened else {
            reply(out, option, option_reply::ERR_UNKNOWN, &[]);
            return None;
        };
        let (size, flags) = (device.size().to_be_bytes(), self.flags(&*device).to_be_bytes());
        reply(out, option, option_reply::INFO, &[&info::EXPORT.to_be_bytes(), &size, &flags]);
        if wanted.contains(&info::NAME) {
            reply(out, option, option_reply::INFO, &[&info::NAME.to_be_bytes(), name]);
        }
        let description = std::str::from_utf8(name).ok().and_then(|name| self.exports.describe(name));
        if let Some(text) = description.filter(|_| wanted.contains(&info::DESCRIPTION)) {
            let kind = info::DESCRIPTION.to_be_bytes();
            reply(out, option, option_reply::INFO, &[&kind, text.as_bytes()]);
        }
        if wanted.contains(&info::BLOCK_SIZE) {
            let [least, preferred, most] = BLOCK_SIZES.map(u32::to_be_bytes);
            let kind = info::BLOCK_SIZE.to_be_bytes();
            reply(out, option, option_reply::INFO, &[&kind, &least, &preferred, &most]);
        }
        reply(out, option, option_reply::ACK, &[]);
        Some(Chosen { device, structured: self.structured, contexts })
    }

    /// Answers LIST_META_CONTEXT or SET_META_CONTEXT. The latter forgets what was selected before, even if it fails.
    fn meta_contexts(&mut self, option: u32, data: &[u8], out: &mut Buffer) {
        let sets = option == option::SET_META_CONTEXT;
        if sets {
            self.selected = None;
        }
        let Queries { export, queries } = match meta::parse(data) {
            Ok(parsed) => parsed,
            Err(BadQueries::Invalid) => return reply(out, option, option_reply::ERR_INVALID, &[]),
            Err(BadQueries::TooMany) => return reply(out, option, option_reply::ERR_TOO_BIG, &[]),
        };
        let Some(device) = self.open(export) else {
            return reply(out, option, option_reply::ERR_UNKNOWN, &[]);
        };
        let names = if sets { meta::selected(&*device, &queries) } else { meta::listed(&*device, &queries) };
        if sets && names.len() > MAX_CONTEXTS {
            return reply(out, option, option_reply::ERR_TOO_BIG, &[]);
        }
        for (id, name) in (1_u32..).zip(&names) {
            reply(out, option, option_reply::META_CONTEXT, &[&id.to_be_bytes(), name.as_bytes()]);
        }
        reply(out, option, option_reply::ACK, &[]);
        if sets {
            self.selected = Some((export.to_vec(), names));
        }
    }

    /// What was selected for an export, under the numbers that the client knows. None if a snapshot has been deleted
    /// since: the client must not take an answer for what it is not.
    fn contexts(&self, export: &[u8], device: &dyn Device) -> Option<Vec<(u32, Context)>> {
        let names = match &self.selected {
            Some((name, contexts)) if name == export => contexts.as_slice(),
            _ => &[],
        };
        (1..).zip(names).map(|(id, name)| Some((id, meta::open(device, name)?))).collect()
    }

    fn open(&self, name: &[u8]) -> Option<Arc<dyn Device>> {
        if name.len() > MAX_STRING {
            return None;
        }
        self.exports.open(std::str::from_utf8(name).ok()?)
    }

    fn flags(&self, device: &dyn Device) -> u16 {
        use transmission_flag::*;
        // One device stands behind all connections, so a flush on any of them covers the writes of all.
        let mut flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN | SEND_CACHE;
        flags |= if device.read_only() { READ_ONLY } else { SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO };
        if self.structured {
            flags |= SEND_DF;
        }
        flags
    }
}

/// The export's name and the kinds of information that the client wants; none if the lengths contradict each other.
fn parse_info<'d>(data: &mut &'d [u8]) -> Option<(&'d [u8], Vec<u16>)> {
    let length = wire::take_u32(data)? as usize;
    let (name, rest) = data.split_at_checked(length)?;
    *data = rest;
    let count = wire::take_u16(data)?;
    if name.len() > MAX_STRING || data.len() != usize::from(count) * 2 {
        return None;
    }
    Some((name, std::iter::from_fn(|| wire::take_u16(data)).collect()))
}

fn reply(out: &mut Buffer, option: u32, kind: u32, data: &[&[u8]]) {
    let length = data.iter().map(|part| part.len()).sum::<usize>();
    out.push(&wire::option_reply_head(option, kind, u32::try_from(length).unwrap_or(u32::MAX)));
    for part in data {
        out.push(part);
    }
}
