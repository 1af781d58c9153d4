//! Durations and sizes as people write them: `30s`, `5m`, `10MB`.
//!
//! Pure; knows nothing of where they stand.

use std::time::Duration;

/// Why a text is not a duration or a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a whole number followed by a known unit of time.
    #[error("`{0}` is not a duration; write a whole number and a unit: `500ms`, `30s`, `5m`, `1h` or `7d`")]
    NotADuration(String),
    /// Not a whole number followed by a known unit of size.
    #[error("`{0}` is not a size; write a whole number and a unit: `512B`, `64KB`, `10MB` or `1GB`")]
    NotASize(String),
    /// The number does not fit.
    #[error("`{0}` is too large")]
    TooLarge(String),
}

/// Parses `\d+(ms|s|m|h|d)`, such as `30s`.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let not_one = || UnitError::NotADuration(text.to_owned());
    let (digits, unit) = split(text).ok_or_else(not_one)?;
    let millis_per_unit: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(not_one()),
    };
    multiply(digits, millis_per_unit).map(Duration::from_millis).ok_or_else(|| UnitError::TooLarge(text.to_owned()))
}

/// Parses `\d+(B|KB|MB|GB)`, such as `10MB`; a KB is 1,024 bytes, as in nginx and Docker.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let not_one = || UnitError::NotASize(text.to_owned());
    let (digits, unit) = split(text).ok_or_else(not_one)?;
    let bytes_per_unit: u64 = match unit {
        "B" => 1,
        "KB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => return Err(not_one()),
    };
    multiply(digits, bytes_per_unit).ok_or_else(|| UnitError::TooLarge(text.to_owned()))
}

/// Splits a text into its leading digits, at least one, and the rest.
fn split(text: &str) -> Option<(&str, &str)> {
    let end = text.bytes().take_while(u8::is_ascii_digit).count();
    (end > 0).then(|| text.split_at(end))
}

fn multiply(digits: &str, factor: u64) -> Option<u64> {
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations() {
        for (text, want) in [
            ("0s", Duration::ZERO),
            ("500ms", Duration::from_millis(500)),
            ("30s", Duration::from_secs(30)),
            ("5m", Duration::from_secs(300)),
            ("1h", Duration::from_secs(3_600)),
            ("7d", Duration::from_secs(604_800)),
        ] {
            assert_eq!(parse_duration(text), Ok(want), "{text}");
        }
        for text in ["", "s", "30", "30 s", "-1s", "+1s", "1.5s", "1S", "1h30m", "٣s"] {
            assert_eq!(parse_duration(text), Err(UnitError::NotADuration(text.to_owned())), "{text}");
        }
        let huge = "99999999999999999999s";
        assert_eq!(parse_duration(huge), Err(UnitError::TooLarge(huge.to_owned())));
    }

    #[test]
    fn sizes() {
        for (text, want) in [("0B", 0), ("512B", 512), ("64KB", 65_536), ("10MB", 10_485_760), ("2GB", 2_147_483_648)] {
            assert_eq!(parse_size(text), Ok(want), "{text}");
        }
        for text in ["", "MB", "10", "10mb", "10M", "1.5GB", "-1B", "1TB"] {
            assert_eq!(parse_size(text), Err(UnitError::NotASize(text.to_owned())), "{text}");
        }
        let huge = "18446744073709551615GB";
        assert_eq!(parse_size(huge), Err(UnitError::TooLarge(huge.to_owned())));
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC*") {
            let _ = (parse_duration(&text), parse_size(&text));
        }

        #[test]
        fn seconds_round_trip(seconds in 0u64..=u64::MAX / 1_000) {
            prop_assert_eq!(parse_duration(&format!("{seconds}s")), Ok(Duration::from_secs(seconds)));
        }
    }
}
