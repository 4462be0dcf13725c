//! A security association file as linuxptp has it (ptp4l(8), `sa_file`), with one key:
//!
//! ```text
//! [security_association]
//! spp 1
//! 1 SHA256-128 HEX:9a2f…
//! ```

use super::{Key, hex};

/// A secret shorter than this can be guessed.
const LEAST_SECRET: usize = 16;

/// Why there is no key in a file. Each is a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyFileError {
    /// A line that cannot be used.
    #[error("line {line}: {what}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// No key at all.
    #[error(
        "there is no key in it; write `spp 1` and below it `1 SHA256-128 HEX:` and 64 hexadecimal digits"
    )]
    Empty,
}

/// The file's key.
///
/// # Errors
/// [`KeyFileError`].
pub fn parse(text: &str) -> Result<Key, KeyFileError> {
    let (mut policy, mut key) = (None, None);
    for (line, text) in (1..).zip(text.lines()) {
        let wrong = |what| KeyFileError::Line { line, what };
        let words: Vec<&str> = text.split_whitespace().collect();
        match words[..] {
            [] | ["[security_association]"] => {}
            [first, ..] if first.starts_with('#') => {}
            ["spp", number] => {
                policy = Some(number.parse::<u8>().map_err(|_| wrong("an spp lies between 0 and 255"))?);
            }
            // Sequence ids are judged by the exchange that they belong to, and corrections are never covered.
            ["seqid_window" | "allow_mutable", _] | ["seqnum_length" | "res_length", "0"] => {}
            [id, algorithm, secret] | [id, algorithm, _, secret] => {
                let policy = policy.ok_or_else(|| wrong("a key needs a line `spp N` above it"))?;
                let id = id.parse().ok().filter(|id| *id > 0);
                let id = id.ok_or_else(|| wrong("a key's number lies between 1 and 4294967295"))?;
                if !algorithm.eq_ignore_ascii_case("SHA256-128") {
                    return Err(wrong("only keys of the type SHA256-128 are supported"));
                }
                if key.is_some() {
                    return Err(wrong("only one key is supported"));
                }
                let secret = octets(secret).ok_or_else(|| {
                    wrong(
                        "a secret is HEX: and an even number of hexadecimal digits, or ASCII: and characters",
                    )
                })?;
                if secret.len() < LEAST_SECRET {
                    return Err(wrong("a secret of fewer than 16 octets can be guessed"));
                }
                key = Some(Key::new(policy, id, &secret));
            }
            _ => return Err(wrong("this is no line of a security association file")),
        }
    }
    key.ok_or(KeyFileError::Empty)
}

fn octets(secret: &str) -> Option<Vec<u8>> {
    if let Some(digits) = secret.strip_prefix("HEX:") {
        return hex::decode(digits);
    }
    // linuxptp reads these as Base64, so they must not be taken for characters.
    if secret.starts_with("B64:") {
        return None;
    }
    Some(secret.strip_prefix("ASCII:").unwrap_or(secret).as_bytes().to_vec())
}
