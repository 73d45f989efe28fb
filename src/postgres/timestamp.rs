//! A moment as the replication protocol counts it.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

const MICROS_PER_SECOND: i64 = 1_000_000;
const MICROS_PER_DAY: i64 = 86_400 * MICROS_PER_SECOND;
/// From 1970-01-01 to 2000-01-01.
const UNIX_TO_POSTGRES: Duration = Duration::from_secs(946_684_800);
const UNIX_TO_POSTGRES_MICROS: i64 = 946_684_800 * MICROS_PER_SECOND;
/// From 0000-03-01 to 2000-01-01: a year that begins in March has its leap day at its end.
const MARCH_0000_TO_POSTGRES_DAYS: i64 = 730_425;
/// 400 years of the Gregorian calendar, after which it repeats.
const DAYS_PER_ERA: i64 = 146_097;

/// Microseconds since 2000-01-01 00:00:00 UTC.
///
/// Every `i64` is a moment (within the years -290278 to 294277) and prints as one.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The system's clock.
    #[must_use]
    pub fn now() -> Timestamp {
        Timestamp::from_system_time(SystemTime::now())
    }

    /// Seconds from then to now, by the system's clock; 0 when it lies ahead.
    #[must_use]
    pub fn age(self) -> f64 {
        let micros = Timestamp::now().0.saturating_sub(self.0).max(0);
        Duration::from_micros(micros.unsigned_abs()).as_secs_f64()
    }

    /// A moment of the system's clock, to the microsecond.
    #[must_use]
    pub fn from_system_time(time: SystemTime) -> Timestamp {
        let micros = |distance: Duration| i64::try_from(distance.as_micros()).unwrap_or(i64::MAX);
        Timestamp::from_unix_micros(match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(since) => micros(since),
            Err(before) => -micros(before.duration()),
        })
    }

    /// The inverse of [`to_unix_micros`](Timestamp::to_unix_micros).
    #[must_use]
    pub fn from_unix_micros(micros: i64) -> Timestamp {
        Timestamp(micros.saturating_sub(UNIX_TO_POSTGRES_MICROS))
    }

    /// Microseconds since 1970-01-01; `i64::MAX` in the last thirty years that a timestamp reaches.
    #[must_use]
    pub fn to_unix_micros(self) -> i64 {
        self.0.saturating_add(UNIX_TO_POSTGRES_MICROS)
    }

    /// The same moment on the system's clock, where that reaches as far; else its epoch.
    #[must_use]
    pub fn to_system_time(self) -> SystemTime {
        let epoch = SystemTime::UNIX_EPOCH + UNIX_TO_POSTGRES;
        let distance = Duration::from_micros(self.0.unsigned_abs());
        let moment = if self.0 < 0 { epoch.checked_sub(distance) } else { epoch.checked_add(distance) };
        moment.unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

impl fmt::Display for Timestamp {
    /// `2026-11-23T22:20:01.123456Z`: always UTC and six digits. The year has at least four; before
    /// the year 0 a minus stands in front.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = date(self.0.div_euclid(MICROS_PER_DAY));
        let micros = self.0.rem_euclid(MICROS_PER_DAY);
        let seconds = micros / MICROS_PER_SECOND;
        let sign = if year < 0 { "-" } else { "" };
        write!(
            f,
            "{sign}{:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}Z",
            year.abs(),
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60,
            micros % MICROS_PER_SECOND,
        )
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a moment in the form that [`Timestamp`] prints.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a timestamp like 2026-11-23T22:20:01.123456Z")]
pub struct ParseTimestampError(String);

impl FromStr for Timestamp {
    type Err = ParseTimestampError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text)
            // A February 30th, a 25th hour or a sign within is whatever does not print as it was read.
            .filter(|moment| moment.to_string() == text)
            .ok_or_else(|| ParseTimestampError(text.to_owned()))
    }
}

/// Reads the numbers, leaving to the caller whether they are in their ranges.
fn parse(text: &str) -> Option<Timestamp> {
    let (sign, unsigned) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
    let (date, time) = unsigned.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<i32>().ok().map(i64::from));
    let year = sign * date.next()??;
    let (month, day) = (date.next()??, date.next()??);
    let (time, micros) = time.split_once('.')?;
    let mut time = time.splitn(3, ':').map(|part| part.parse::<i32>().ok().map(i64::from));
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    let micros = i64::from(micros.parse::<i32>().ok()?);
    if !(1..=12).contains(&month) {
        return None;
    }
    let within_day = ((hour * 60 + minute) * 60 + second) * MICROS_PER_SECOND + micros;
    // The first day begins before i64::MIN; its later hours do not.
    let moment = i128::from(days(year, month, day)) * i128::from(MICROS_PER_DAY) + i128::from(within_day);
    i64::try_from(moment).ok().map(Timestamp)
}

/// Year, month and day of the day that lies `days` after 2000-01-01, in the proleptic Gregorian
/// calendar (the algorithm is Howard Hinnant's `civil_from_days`).
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + MARCH_0000_TO_POSTGRES_DAYS;
    let era = days.div_euclid(DAYS_PER_ERA);
    let day_of_era = days.rem_euclid(DAYS_PER_ERA);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / (DAYS_PER_ERA - 1)) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let months_since_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * months_since_march + 2) / 5 + 1;
    let month = if months_since_march < 10 { months_since_march + 3 } else { months_since_march - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

/// Days from 2000-01-01 to a date: the inverse of [`date`].
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let months_since_march = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * months_since_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * DAYS_PER_ERA + day_of_era - MARCH_0000_TO_POSTGRES_DAYS
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_timestamp_prints_and_parses_in_utc_with_six_digits() {
        for (micros, text) in [
            (0, "2000-01-01T00:00:00.000000Z"),
            (-1, "1999-12-31T23:59:59.999999Z"),
            (848_787_601_123_456, "2026-11-23T22:20:01.123456Z"),
            (-UNIX_TO_POSTGRES_MICROS, "1970-01-01T00:00:00.000000Z"),
            (5_097_599_999_999, "2000-02-28T23:59:59.999999Z"),
            (5_097_600_000_000, "2000-02-29T00:00:00.000000Z"),
            (3_160_857_600_000_000, "2100-03-01T00:00:00.000000Z"),
            (252_455_616_000_000_000, "10000-01-01T00:00:00.000000Z"),
            (-63_113_904_000_000_000, "0000-01-01T00:00:00.000000Z"),
            (-63_113_904_000_000_001, "-0001-12-31T23:59:59.999999Z"),
            // The last one that Postgres itself accepts, and the ends of the type.
            (9_223_371_331_199_999_999, "294276-12-31T23:59:59.999999Z"),
            (i64::MAX, "294277-01-09T04:00:54.775807Z"),
            (i64::MIN, "-290278-12-22T19:59:05.224192Z"),
        ] {
            assert_eq!(Timestamp(micros).to_string(), text);
            assert_eq!(text.parse(), Ok(Timestamp(micros)), "{text}");
        }
    }

    #[test]
    fn a_text_that_no_timestamp_prints_is_refused() {
        for bad in [
            "",
            "Z",
            "2026-11-23",
            "2026-11-23T22:20:01Z",
            "2026-11-23T22:20:01.123Z",
            "2026-11-23T22:20:01.123456",
            "2026-11-23 22:20:01.123456Z",
            "2026-11-23T22:20:01.123456+00:00",
            "+2026-11-23T22:20:01.123456Z",
            "2026-+1-23T22:20:01.123456Z",
            "2026-02-29T00:00:00.000000Z",
            "2026-00-01T00:00:00.000000Z",
            "2026-13-01T00:00:00.000000Z",
            "2026-11-23T24:00:00.000000Z",
            "2026-11-23T23:59:60.000000Z",
            "-0000-01-01T00:00:00.000000Z",
            "02026-11-23T22:20:01.123456Z",
            "294277-01-09T04:00:54.775808Z",
            "2147483647-12-31T00:00:00.000000Z",
        ] {
            assert!(bad.parse::<Timestamp>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_unix_time_is_counted_from_1970_and_stops_at_its_end() {
        assert_eq!(Timestamp(848_787_601_123_456).to_unix_micros(), 1_795_472_401_123_456);
        assert_eq!(Timestamp(-UNIX_TO_POSTGRES_MICROS).to_unix_micros(), 0);
        assert_eq!(Timestamp(i64::MAX).to_unix_micros(), i64::MAX);
    }

    proptest! {
        #[test]
        fn every_timestamp_parses_back_and_agrees_with_the_system_clock(micros: i64) {
            let moment = Timestamp(micros);
            prop_assert_eq!(moment.to_string().parse(), Ok(moment));
            let expected = i128::from(micros) + i128::from(UNIX_TO_POSTGRES_MICROS);
            let actual = match moment.to_system_time().duration_since(SystemTime::UNIX_EPOCH) {
                Ok(after) => i128::try_from(after.as_micros()),
                Err(before) => i128::try_from(before.duration().as_micros()).map(|micros| -micros),
            };
            prop_assert_eq!(actual, Ok(expected));
        }

        #[test]
        fn any_text_parses_without_panic(text in r"-?[0-9T:.Z+-]{0,40}") {
            let _ = text.parse::<Timestamp>();
        }
    }
}
