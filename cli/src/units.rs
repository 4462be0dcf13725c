//! Durations and sizes as people write them: `50ms`, `1.5us`, `16MiB`.

use serde::{Deserialize, Deserializer};
use timesync::time::Nanos;

const DURATION_UNITS: [(&str, i128); 6] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("min", 60_000_000_000),
];

const SIZE_UNITS: [(&str, i128); 9] = [
    ("K", 1 << 10),
    ("M", 1 << 20),
    ("G", 1 << 30),
    ("T", 1 << 40),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("", 1),
];

/// A duration that is not negative, such as `50ms`, `1.5us`, `2min`; whole nanoseconds.
///
/// # Errors
/// A sentence that names the units.
pub fn duration(text: &str) -> Result<Nanos, String> {
    scaled(text, &DURATION_UNITS).map(Nanos::new).ok_or_else(|| {
        format!(
            "`{text}` is not a duration; write a number and ns, us, ms, s or min, such as `50ms` or `1.5us`"
        )
    })
}

/// A duration that may be negative, such as `-37ms`.
///
/// # Errors
/// As [`duration`].
pub fn signed_duration(text: &str) -> Result<Nanos, String> {
    match text.strip_prefix('-') {
        Some(positive) => duration(positive).map(|nanos| -nanos),
        None => duration(text),
    }
}

/// A size in bytes, such as `16MiB`, `2G` or `4096`. Units are powers of 1024.
///
/// # Errors
/// A sentence that names the units.
pub fn size(text: &str) -> Result<u64, String> {
    scaled(text, &SIZE_UNITS).and_then(|bytes| u64::try_from(bytes).ok()).ok_or_else(|| {
        format!("`{text}` is not a size; write a number and KiB, MiB, GiB or TiB, such as `16MiB`")
    })
}

/// A size with a unit, for people: `16.0 MiB`.
pub fn format_size(bytes: u64) -> String {
    let (unit, name) = match bytes {
        0..0x10_0000 => (1 << 10, "KiB"),
        0x10_0000..0x4000_0000 => (1 << 20, "MiB"),
        0x4000_0000..0x100_0000_0000 => (1 << 30, "GiB"),
        _ => (1u64 << 40, "TiB"),
    };
    let tenths = u128::from(bytes) * 10 / u128::from(unit);
    format!("{}.{} {name}", tenths / 10, tenths % 10)
}

/// A duration that is not negative, for people.
pub fn format_unsigned(nanos: u64) -> String {
    Nanos::new(i64::try_from(nanos).unwrap_or(i64::MAX)).to_string()
}

/// An offset for people, with its sign and in milliseconds with six decimals, since offsets may be of milliseconds while
/// their bounds are of nanoseconds.
pub fn format_offset(nanos: i64) -> String {
    let sign = if nanos < 0 { '-' } else { '+' };
    let magnitude = nanos.unsigned_abs();
    format!("{sign}{}.{:06} ms", magnitude / 1_000_000, magnitude % 1_000_000)
}

/// For serde: a duration in a string.
///
/// # Errors
/// When it is no string, or [`duration`] refuses it.
pub fn deserialize_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Nanos, D::Error> {
    let text = String::deserialize(deserializer)?;
    duration(&text).map_err(serde::de::Error::custom)
}

/// For serde: a duration in a string, where the key may be absent.
///
/// # Errors
/// As [`deserialize_duration`].
pub fn deserialize_some_duration<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Nanos>, D::Error> {
    deserialize_duration(deserializer).map(Some)
}

/// A decimal number and a unit, as a whole number of the smallest unit; none if it is not that or does not fit.
fn scaled(text: &str, units: &[(&str, i128)]) -> Option<i64> {
    let number_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(number_end);
    let (_, scale) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() || whole.len() + fraction.len() > 24 {
        return None;
    }
    let denominator = 10i128.pow(u32::try_from(fraction.len()).ok()?);
    let fraction = fraction.parse::<i128>().ok()? * scale;
    if fraction % denominator != 0 {
        return None;
    }
    i64::try_from(whole.parse::<i128>().ok()?.checked_mul(*scale)? + fraction / denominator).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, nanos) in [
            ("0s", 0),
            ("7ns", 7),
            ("1.5us", 1_500),
            ("1.5 µs", 1_500),
            ("50ms", 50_000_000),
            ("0.000000001s", 1),
            ("2min", 120_000_000_000),
        ] {
            assert_eq!(duration(text), Ok(Nanos::new(nanos)), "{text}");
        }
        for text in
            ["", "5", "ms", "-5ms", "1.5ns", "1.2.3ms", ".5ms", "5.ms", "5 m s", "5h", "9999999999999min"]
        {
            assert!(duration(text).is_err(), "{text} is no duration");
        }
        assert_eq!(signed_duration("-37ms"), Ok(Nanos::from_millis(-37)));
        assert!(signed_duration("--37ms").is_err());
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("4096", 4096), ("16MiB", 16 << 20), ("16M", 16 << 20), ("1.5 GiB", 3 << 29)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "16 MB", "-1", "1.5", "99999999TiB"] {
            assert!(size(text).is_err(), "{text} is no size");
        }
        for (bytes, text) in [
            (0, "0.0 KiB"),
            (4096, "4.0 KiB"),
            (16 << 20, "16.0 MiB"),
            (3 << 29, "1.5 GiB"),
            (1 << 41, "2.0 TiB"),
        ] {
            assert_eq!(format_size(bytes), text);
        }
    }
}
