//! Lists of layers as the command line has them, as bytes: a path need not be UTF-8.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use crate::error::MountError;

/// What a list of lower layers names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lowers {
    /// The lowers, topmost first.
    pub merged: Vec<PathBuf>,
    /// Data-only lowers.
    pub data: Vec<PathBuf>,
}

/// Splits a list of layers at its colons; `::` stands before each data-only layer, which come last. As
/// in the kernel's `lowerdir=`, `\:` stands for a colon and `\\` for a backslash; a backslash before
/// anything else stands for itself.
///
/// # Errors
/// An empty name in the list; a lower behind a data-only one.
pub fn split_layers(list: &OsStr) -> Result<Lowers, MountError> {
    let wrong = |reason: &str| Err(MountError::option(list.to_string_lossy(), reason));
    let mut lowers = Lowers::default();
    let mut data_only = false;
    let mut rest = list.as_bytes();
    loop {
        let (name, tail) = next_name(rest);
        if name.is_empty() {
            return wrong(
                "a name in the list is empty; write LOWER[:LOWER...][::DATA...], with \\: for a colon in a name",
            );
        }
        let name = PathBuf::from(OsString::from_vec(name));
        if data_only {
            lowers.data.push(name)
        } else {
            lowers.merged.push(name)
        }
        rest = match tail {
            None => return Ok(lowers),
            Some([b':', tail @ ..]) => {
                data_only = true;
                tail
            }
            Some(_) if data_only => {
                return wrong("a lower layer cannot follow a data-only one; write those last, each after ::");
            }
            Some(tail) => tail,
        };
    }
}

/// Splits at every colon that is not escaped as in [`split_layers`]; names may be empty.
pub fn split_names(list: &[u8]) -> Vec<OsString> {
    let mut names = Vec::new();
    let mut rest = Some(list);
    while let Some(list) = rest {
        let (name, tail) = next_name(list);
        names.push(OsString::from_vec(name));
        rest = tail;
    }
    names
}

/// The name at the start of a list, and what follows its colon.
fn next_name(mut rest: &[u8]) -> (Vec<u8>, Option<&[u8]>) {
    let mut name = Vec::new();
    loop {
        match rest {
            [b'\\', escaped @ (b':' | b'\\'), tail @ ..] => {
                name.push(*escaped);
                rest = tail;
            }
            [b':', tail @ ..] => return (name, Some(tail)),
            [byte, tail @ ..] => {
                name.push(*byte);
                rest = tail;
            }
            [] => return (name, None),
        }
    }
}

/// A single name, with the escapes of a list.
pub fn unescape(name: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let [byte, tail @ ..] = rest {
        match rest {
            [b'\\', escaped @ (b':' | b'\\'), tail @ ..] => {
                out.push(*escaped);
                rest = tail;
            }
            _ => {
                out.push(*byte);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out)
}

/// Joins names to a list that [`split_layers`] takes apart again.
pub fn join_layers<'a>(layers: impl IntoIterator<Item = &'a OsStr>) -> OsString {
    let mut list = Vec::new();
    for (i, layer) in layers.into_iter().enumerate() {
        if i > 0 {
            list.push(b':');
        }
        for &byte in layer.as_bytes() {
            if matches!(byte, b':' | b'\\') {
                list.push(b'\\');
            }
            list.push(byte);
        }
    }
    OsString::from_vec(list)
}

/// The name of the work directory of a layer called `name`, unless another is given.
pub fn work_name(name: &OsStr) -> OsString {
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(".work");
    hidden
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(list: &str) -> (Vec<String>, Vec<String>) {
        let text = |paths: Vec<PathBuf>| paths.into_iter().map(|p| p.to_str().unwrap().to_owned()).collect();
        let lowers = split_layers(OsStr::new(list)).unwrap();
        (text(lowers.merged), text(lowers.data))
    }

    fn merged(list: &str) -> Vec<String> {
        let (merged, data) = split(list);
        assert_eq!(data, [""; 0]);
        merged
    }

    #[test]
    fn splits_at_plain_colons_only() {
        assert_eq!(merged("a"), ["a"]);
        assert_eq!(merged("a:b/c:/d"), ["a", "b/c", "/d"]);
        assert_eq!(merged(r"a\:b:c"), ["a:b", "c"]);
        assert_eq!(merged(r"a\\:b"), [r"a\", "b"]);
        assert_eq!(merged(r"a\b\"), [r"a\b\"]);
        assert_eq!(unescape(br"a\:b\\c\d:e\"), OsStr::new(r"a:b\c\d:e\"));
    }

    #[test]
    fn knows_data_only_layers() {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(split("a::d"), (names(&["a"]), names(&["d"])));
        assert_eq!(split(r"a:b::d::e\:::f"), (names(&["a", "b"]), names(&["d", "e:", "f"])));
        let error = split_layers(OsStr::new("a::d:b")).unwrap_err().to_string();
        assert!(error.contains("cannot follow"), "{error}");
    }

    #[test]
    fn refuses_empty_names() {
        for list in ["", ":", "::", "a:", ":a", "::a", "a::", "a:::b", "a::b::", "a::::b"] {
            let error = split_layers(OsStr::new(list)).unwrap_err().to_string();
            assert!(error.contains("empty"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn layers_round_trip(
            names in proptest::collection::vec(
                proptest::collection::vec(prop_oneof![Just(b':'), Just(b'\\'), 1u8..], 1..20),
                1..8,
            )
        ) {
            let names: Vec<OsString> = names.into_iter().map(OsString::from_vec).collect();
            let list = join_layers(names.iter().map(OsString::as_os_str));
            let split = split_layers(&list).unwrap();
            let merged = names.into_iter().map(PathBuf::from).collect::<Vec<_>>();
            prop_assert_eq!(split, Lowers { merged, data: Vec::new() });
        }
    }
}
