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

/// How far back, such as `10min`, `2h` or `7d`; at least a second, at most a week.
///
/// # Errors
/// A sentence that names the units.
pub fn span(text: &str) -> Result<Nanos, String> {
    let units = [&DURATION_UNITS[..], &[("h", 3_600_000_000_000), ("d", 86_400_000_000_000)]].concat();
    let nanos = scaled(text, &units).ok_or_else(|| {
        format!("`{text}` is not a span of time; write a number and s, min, h or d, such as `90min` or `2d`")
    })?;
    match nanos {
        1_000_000_000..=604_800_000_000_000 => Ok(Nanos::new(nanos)),
        _ => Err(format!("`{text}` is not between 1s and 7d")),
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

/// A duration that is not negative in three digits, such as `740 ns`, `13.1 µs`. Rounded up: a bound is not made smaller.
pub fn format_short(nanos: i64) -> String {
    let units = [("ns", 1), ("µs", 1_000), ("ms", 1_000_000), ("s", 1_000_000_000_i128)];
    let nanos = i128::from(nanos.max(0));
    for (name, unit) in units {
        for decimals in (0..=2_u32).rev() {
            let Some(step) = unit.checked_div(10_i128.pow(decimals)).filter(|step| *step > 0) else {
                continue;
            };
            let steps = nanos.unsigned_abs().div_ceil(step.unsigned_abs());
            if steps < 1_000 {
                let scale = 10_u128.pow(decimals);
                return match decimals {
                    0 => format!("{steps} {name}"),
                    _ => format!("{}.{:0w$} {name}", steps / scale, steps % scale, w = decimals as usize),
                };
            }
        }
    }
    format!("{} s", nanos / 1_000_000_000)
}

/// An offset that is known to within `half_width`, with its sign, in digits down to a tenth of that, and in some
/// fourteen characters.
pub fn format_offset_within(nanos: i64, half_width: i64) -> String {
    let magnitude = nanos.unsigned_abs();
    let (name, digits) = match magnitude {
        0..1_000 => ("ns", 0_usize),
        1_000..1_000_000 => ("µs", 3),
        1_000_000..1_000_000_000 => ("ms", 6),
        _ => ("s", 9),
    };
    let known = (half_width.max(1).ilog10() as usize).saturating_sub(1);
    let whole = (magnitude / 10_u64.pow(digits as u32)).to_string().len();
    let room = 14_usize.saturating_sub("+. ".len() + name.chars().count() + whole);
    let decimals = digits.saturating_sub(known).min(room);
    let step = 10_u64.pow((digits - decimals) as u32);
    let rounded = magnitude.saturating_add(step / 2) / step;
    let scale = 10_u64.pow(decimals as u32);
    let sign = if nanos < 0 { '-' } else { '+' };
    match decimals {
        0 => format!("{sign}{rounded} {name}"),
        _ => format!("{sign}{}.{:0decimals$} {name}", rounded / scale, rounded % scale),
    }
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

/// For serde: a span of time in a string.
///
/// # Errors
/// As [`span`].
pub fn deserialize_span<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Nanos, D::Error> {
    let text = String::deserialize(deserializer)?;
    span(&text).map_err(serde::de::Error::custom)
}

/// For serde: a size in a string.
///
/// # Errors
/// As [`size`].
pub fn deserialize_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = String::deserialize(deserializer)?;
    size(&text).map_err(serde::de::Error::custom)
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
    fn spans() {
        assert_eq!(span("90min"), Ok(Nanos::from_millis(5_400_000)));
        assert_eq!((span("1.5h"), span("7d").unwrap()), (span("90min"), Nanos::from_millis(604_800_000)));
        for text in ["8d", "0s", "1ms", "h", "-1h"] {
            assert!(span(text).is_err(), "{text}");
        }
    }

    #[test]
    fn three_digits_are_never_less() {
        for (nanos, text) in [
            (0, "0 ns"),
            (740, "740 ns"),
            (999, "999 ns"),
            (1_000, "1.00 µs"),
            (1_311, "1.32 µs"),
            (9_991, "10.0 µs"),
            (13_100, "13.1 µs"),
            (99_901, "100 µs"),
            (999_001, "1.00 ms"),
            (1_500_000_000, "1.50 s"),
            (86_400_000_000_000, "86400 s"),
        ] {
            assert_eq!(format_short(nanos), text, "{nanos}");
        }
    }

    #[test]
    fn offsets_have_the_digits_that_their_bounds_allow() {
        for (nanos, half_width, text) in [
            (812, 380, "+812 ns"),
            (-12_345, 1_310, "-12.3 µs"),
            (-12_345, 90, "-12.345 µs"),
            (35_000_123, 1_310, "+35.0001 ms"),
            (35_000_123, 2_000_000, "+35.0 ms"),
            (123_456_789, 5_000, "+123.4568 ms"),
            (-31_536_000_000_000_123, 900, "-31536000.00 s"),
            (0, 0, "+0 ns"),
            (i64::MIN, 1, "-9223372037 s"),
        ] {
            let written = format_offset_within(nanos, half_width);
            assert_eq!(written, text, "{nanos} ± {half_width}");
        }
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
