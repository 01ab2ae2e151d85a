//! One mount option, and what its value can be.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use super::layer_list::unescape;
use crate::config::Size;
use crate::config::ids::Ranges;
use crate::error::MountError;

/// Options whose value may be quoted, since labels have commas (mount(8), "context").
const QUOTED: [&[u8]; 4] = [b"context=\"", b"fscontext=\"", b"defcontext=\"", b"rootcontext=\""];

/// Splits at the commas that no backslash protects, and takes the backslashes before commas away. Those
/// before other bytes are left to the reader of the value.
pub(super) fn split_options(mut rest: &[u8]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut option: Vec<u8> = Vec::new();
    loop {
        if option.is_empty()
            && let Some(start) = QUOTED.iter().find(|start| rest.starts_with(start)).map(|start| start.len())
            && let Some(len) = rest[start..].iter().position(|byte| *byte == b'"')
        {
            let (quoted, tail) = rest.split_at(start + len + 1);
            option.extend_from_slice(quoted);
            rest = tail;
        }
        rest = match rest {
            [b'\\', b',', tail @ ..] => {
                option.push(b',');
                tail
            }
            [b'\\', b'\\', tail @ ..] => {
                option.extend_from_slice(br"\\");
                tail
            }
            [b',', tail @ ..] => {
                all.push(std::mem::take(&mut option));
                tail
            }
            [byte, tail @ ..] => {
                option.push(*byte);
                tail
            }
            [] => {
                all.push(option);
                return all;
            }
        };
    }
}

/// One option.
pub(super) struct Given<'a> {
    whole: &'a [u8],
    value: Option<&'a [u8]>,
}

impl<'a> Given<'a> {
    /// An option as it stands between commas: `NAME` or `NAME=VALUE`. Gives its name, too.
    pub(super) fn new(whole: &'a [u8]) -> (&'a [u8], Self) {
        match whole.iter().position(|b| *b == b'=') {
            Some(at) => (&whole[..at], Self { whole, value: Some(&whole[at + 1..]) }),
            None => (whole, Self { whole, value: None }),
        }
    }

    pub(super) fn wrong(&self, reason: impl Into<String>) -> MountError {
        MountError::option(OsStr::from_bytes(self.whole).to_string_lossy(), reason)
    }

    /// The meaning of a flag, which takes no value.
    pub(super) fn flag<T>(&self, meaning: T) -> Result<T, MountError> {
        match self.value {
            None => Ok(meaning),
            Some(_) => Err(self.wrong("takes no value")),
        }
    }

    /// One of the values in `choices`. Named by the error: all of them.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T, MountError> {
        let found = choices.iter().find(|(name, _)| self.value == Some(name.as_bytes()));
        found.map(|(_, meaning)| *meaning).ok_or_else(|| {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            let names = match names.split_last() {
                Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
                _ => names.concat(),
            };
            self.wrong(format!("takes the value {names}"))
        })
    }

    pub(super) fn switch(&self) -> Result<bool, MountError> {
        self.choice(&[("on", true), ("off", false)])
    }

    /// A switch that is on when it has no value.
    pub(super) fn lone_switch(&self) -> Result<bool, MountError> {
        if self.value.is_none() { Ok(true) } else { self.switch() }
    }

    pub(super) fn text(&self) -> Result<&'a [u8], MountError> {
        match self.value {
            Some(value) if !value.is_empty() => Ok(value),
            _ => Err(self.wrong("needs a value after an equals sign")),
        }
    }

    pub(super) fn utf8(&self) -> Result<String, MountError> {
        let name = unescape(self.text()?);
        name.into_string().map_err(|_| self.wrong("takes a name in UTF-8"))
    }

    pub(super) fn path(&self) -> Result<PathBuf, MountError> {
        self.text().map(|text| PathBuf::from(unescape(text)))
    }

    /// A path, or an empty one.
    pub(super) fn any_path(&self) -> Result<PathBuf, MountError> {
        if self.value == Some(b"") { Ok(PathBuf::new()) } else { self.path() }
    }

    pub(super) fn number(&self, range: std::ops::RangeInclusive<usize>) -> Result<usize, MountError> {
        let number = OsStr::from_bytes(self.text()?).to_str().and_then(|s| s.parse().ok());
        number
            .filter(|n| range.contains(n))
            .ok_or_else(|| self.wrong(format!("takes a number from {} to {}", range.start(), range.end())))
    }

    /// A number of a user or group.
    pub(super) fn id(&self) -> Result<u32, MountError> {
        let id = OsStr::from_bytes(self.text()?).to_str().and_then(|s| s.parse().ok());
        id.filter(|id| *id != u32::MAX).ok_or_else(|| self.wrong("takes the number of a user or group"))
    }

    pub(super) fn ranges(&self) -> Result<Ranges, MountError> {
        let ranges = OsStr::from_bytes(self.text()?).to_str().and_then(|s| s.parse().ok());
        ranges.ok_or_else(|| self.wrong("takes LAYER-ID:SHOWN-ID:COUNT, more of them after another colon"))
    }

    /// The text of a value that may be quoted.
    pub(super) fn label(&self) -> Result<String, MountError> {
        let text = self.text()?;
        let text = text.strip_prefix(b"\"").and_then(|t| t.strip_suffix(b"\"")).unwrap_or(text);
        match OsStr::from_bytes(text).to_str() {
            Some(label) if !label.is_empty() && !label.contains(['"', '\0']) => Ok(label.to_owned()),
            _ => Err(self.wrong("takes a label of SELinux")),
        }
    }

    pub(super) fn seconds(&self) -> Result<Duration, MountError> {
        let text = OsStr::from_bytes(self.text()?).to_str();
        let seconds: Option<f64> = text.and_then(|s| s.parse().ok());
        // So large a number means no limit.
        let longest = Duration::from_secs(u64::from(u32::MAX));
        match seconds {
            Some(s) if s >= 0.0 => Ok(Duration::try_from_secs_f64(s).unwrap_or(longest).min(longest)),
            _ => Err(self.wrong("takes a number of seconds, such as 1 or 0.5")),
        }
    }

    /// A number that may end with a unit of 2^10, 2^20, 2^30 or 2^40 (`k`, `m`, `g`, `t`, or in capitals).
    fn amount(&self, text: &[u8]) -> Option<u64> {
        let (digits, unit) = match text.split_last()? {
            (last, rest) if last.is_ascii_alphabetic() => (rest, last.to_ascii_lowercase()),
            _ => (text, b'b'),
        };
        let shift = 10 * b"bkmgt".iter().position(|u| *u == unit)?;
        let plain = digits.iter().all(u8::is_ascii_digit) && (unit != b'b' || digits.len() == text.len());
        let number: u64 = OsStr::from_bytes(digits).to_str().filter(|_| plain)?.parse().ok()?;
        number.checked_mul(1 << shift).filter(|amount| *amount > 0)
    }

    /// A size as tmpfs takes it (tmpfs(5)).
    pub(super) fn size(&self) -> Result<Size, MountError> {
        let text = self.text()?;
        let size = match text.strip_suffix(b"%") {
            Some(percent) => {
                let percent: Option<u8> = OsStr::from_bytes(percent).to_str().and_then(|s| s.parse().ok());
                percent.filter(|p| (1..=100).contains(p)).map(Size::Percent)
            }
            None => self.amount(text).map(Size::Bytes),
        };
        size.ok_or_else(|| {
            self.wrong("takes a number of bytes, with k, m, g or t after it if you like, or 1% to 100% of the filesystem")
        })
    }

    /// A number of things.
    pub(super) fn count(&self) -> Result<u64, MountError> {
        let count = self.amount(self.text()?);
        count.ok_or_else(|| self.wrong("takes a number, with k, m or g after it if you like"))
    }
}
