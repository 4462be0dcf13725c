//! Octets as hexadecimal digits.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};

/// The octets that `text` spells; none where it is no even number of hexadecimal digits.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

/// For serde.
pub fn serialize<S: Serializer>(octets: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&octets.iter().map(|octet| format!("{octet:02x}")).collect::<String>())
}

/// For serde.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
    let octets = decode(&String::deserialize(deserializer)?);
    let octets = octets.and_then(|octets| octets.try_into().ok());
    octets.ok_or_else(|| D::Error::custom("a key is 64 hexadecimal digits"))
}
