//! Extended header records (POSIX.1-2008, pax, "pax Extended Header").

/// Appends the record `key=value` with its length before it.
pub(super) fn encode(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    // The length counts its own digits.
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len.to_string().len() + rest > len {
        len += 1;
    }
    records.extend_from_slice(len.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// The records of an extended header; `None` where it does not have that form.
pub(super) fn decode(mut bytes: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let space = bytes.iter().position(|b| *b == b' ')?;
        let len: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
        let record = bytes.get(space + 1..len)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|b| *b == b'=')?;
        records.push((&record[..equals], &record[equals + 1..]));
        bytes = &bytes[len..];
    }
    Some(records)
}

/// A time as decimal seconds.
pub(super) fn encode_time((seconds, nanos): (i64, u32)) -> String {
    let billion = 1_000_000_000;
    let total = i128::from(seconds) * billion + i128::from(nanos);
    let sign = if total < 0 { "-" } else { "" };
    let (whole, part) = (total.abs() / billion, total.abs() % billion);
    if part == 0 {
        return format!("{sign}{whole}");
    }
    format!("{sign}{whole}.{}", format!("{part:09}").trim_end_matches('0'))
}

/// Reads decimal seconds; digits beyond nanoseconds are cut off.
pub(super) fn decode_time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    if !whole.bytes().chain(part.bytes()).all(|b| b.is_ascii_digit()) || whole.is_empty() {
        return None;
    }
    let whole: i64 = whole.parse().ok()?;
    let nanos: i64 = format!("{part:0<9}").get(..9)?.parse().ok()?;
    let (seconds, nanos) = match (negative, nanos) {
        (false, nanos) => (whole, nanos),
        (true, 0) => (-whole, 0),
        (true, nanos) => (-whole - 1, 1_000_000_000 - nanos),
    };
    Some((seconds, u32::try_from(nanos).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn records() {
        let mut out = Vec::new();
        encode(&mut out, b"path", b"a");
        assert_eq!(out, b"9 path=a\n");
        // With one byte more the length itself has one more digit.
        let mut out = Vec::new();
        encode(&mut out, b"path", b"ab");
        assert_eq!(out, b"11 path=ab\n");
        let mut out = Vec::new();
        encode(&mut out, b"k", &[b'x'; 94]);
        assert_eq!(out.len(), 100 + usize::from(out.starts_with(b"101")));
        assert_eq!(decode(&out).unwrap(), [(&b"k"[..], &[b'x'; 94][..])]);
        for bad in
            ["x", "5", "5 a=b", "6 a=bx", "99 a=b\n", "0 a=b\n", "3 a=b\n", "6 a_b\n", " a=b\n", "-6 a=b\n"]
        {
            assert_eq!(decode(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn times() {
        for (time, text) in [
            ((0, 0), "0"),
            ((5, 500_000_000), "5.5"),
            ((-1, 500_000_000), "-0.5"),
            ((-2, 0), "-2"),
            ((1, 1), "1.000000001"),
        ] {
            assert_eq!(encode_time(time), text);
            assert_eq!(decode_time(text.as_bytes()), Some(time));
        }
        assert_eq!(decode_time(b"1.0000000019"), Some((1, 1)));
        for bad in ["", ".", "-", "1e9", "1.x", "99999999999999999999", "--1", "+1"] {
            assert_eq!(decode_time(bad.as_bytes()), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn records_round_trip(values in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..2000), 0..5)) {
            let mut out = Vec::new();
            for value in &values {
                encode(&mut out, b"some.key", value);
            }
            let expected: Vec<_> = values.iter().map(|v| (&b"some.key"[..], &v[..])).collect();
            prop_assert_eq!(decode(&out).unwrap(), expected);
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            decode(&bytes);
            decode_time(&bytes);
        }
    }
}
