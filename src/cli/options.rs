//! Mount options and lists of layers, as bytes: a path need not be UTF-8.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use crate::config::Options;
use crate::error::MountError;

/// The most worker threads that `threads=` takes.
pub const MAX_THREADS: usize = 512;

/// Splits a list of layers at its colons. As in the kernel's `lowerdir=`, `\:` stands for a colon and
/// `\\` for a backslash; a backslash before anything else stands for itself.
///
/// # Errors
/// An empty name in the list.
pub fn split_layers(list: &OsStr) -> Result<Vec<PathBuf>, MountError> {
    let mut layers = Vec::new();
    let mut current = Vec::new();
    let mut rest = list.as_bytes();
    loop {
        match rest {
            [b'\\', escaped @ (b':' | b'\\'), tail @ ..] => {
                current.push(*escaped);
                rest = tail;
            }
            [b':', tail @ ..] => {
                layers.push(std::mem::take(&mut current));
                rest = tail;
            }
            [byte, tail @ ..] => {
                current.push(*byte);
                rest = tail;
            }
            [] => break,
        }
    }
    layers.push(current);
    if layers.iter().any(Vec::is_empty) {
        let reason = "a name in the list is empty; write LOWER[:LOWER...], with \\: for a colon in a name";
        return Err(MountError::option(show(list), reason));
    }
    Ok(layers.into_iter().map(|name| PathBuf::from(OsString::from_vec(name))).collect())
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

/// Reads the values of all `-o`. A later option overrides an earlier one, as with mount(8).
///
/// # Errors
/// An unknown option or a wrong value, named.
pub fn parse(lists: &[OsString]) -> Result<Options, MountError> {
    let mut options = Options::default();
    for list in lists {
        for option in list.as_bytes().split(|b| *b == b',').filter(|option| !option.is_empty()) {
            apply(&mut options, option)?;
        }
    }
    Ok(options)
}

fn apply(options: &mut Options, option: &[u8]) -> Result<(), MountError> {
    let (name, value) = match option.iter().position(|b| *b == b'=') {
        Some(at) => (&option[..at], Some(&option[at + 1..])),
        None => (option, None),
    };
    let wrong = |reason: String| MountError::option(show(OsStr::from_bytes(option)), reason);
    let switch = |on_alone: bool| match value {
        Some(b"on") => Ok(true),
        Some(b"off") => Ok(false),
        None if on_alone => Ok(true),
        _ => Err(wrong("takes the value on or off".into())),
    };
    let flag = |on: bool| match value {
        None => Ok(on),
        Some(_) => Err(wrong("takes no value".into())),
    };
    let text = || match value {
        Some(value) if !value.is_empty() => Ok(OsStr::from_bytes(value)),
        _ => Err(wrong("needs a value after an equals sign".into())),
    };
    match name {
        b"ro" => options.read_only = flag(true)?,
        b"rw" => options.read_only = flag(false)?,
        b"userxattr" => options.userxattr = Some(switch(true)?),
        b"volatile" => options.volatile = flag(true)?,
        b"nodev" => options.nodev = flag(true)?,
        b"dev" => options.nodev = flag(false)?,
        b"nosuid" => options.nosuid = flag(true)?,
        b"suid" => options.nosuid = flag(false)?,
        b"noexec" => options.noexec = flag(true)?,
        b"exec" => options.noexec = flag(false)?,
        b"noatime" => options.noatime = flag(true)?,
        b"atime" => options.noatime = flag(false)?,
        b"allow_other" => options.allow_other = Some(switch(true)?),
        b"threads" => {
            let count = text()?.to_str().and_then(|s| s.parse().ok());
            match count {
                Some(count) if (1..=MAX_THREADS).contains(&count) => options.threads = Some(count),
                _ => return Err(wrong(format!("takes a number from 1 to {MAX_THREADS}"))),
            }
        }
        b"fsname" => {
            let name = text()?.to_str().ok_or_else(|| wrong("takes a name in UTF-8".into()))?;
            options.fsname = Some(name.to_owned());
        }
        b"passthrough" => options.passthrough = switch(false)?,
        b"metacopy" => options.metacopy = switch(false)?,
        b"log" => options.log = Some(PathBuf::from(text()?)),
        _ => return Err(wrong("is unknown; `unionfs mount --help` lists the options".into())),
    }
    Ok(())
}

fn show(text: &OsStr) -> String {
    text.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(list: &str) -> Vec<String> {
        let layers = split_layers(OsStr::new(list)).unwrap();
        layers.into_iter().map(|p| p.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn splits_at_plain_colons_only() {
        assert_eq!(split("a"), ["a"]);
        assert_eq!(split("a:b/c:/d"), ["a", "b/c", "/d"]);
        assert_eq!(split(r"a\:b:c"), ["a:b", "c"]);
        assert_eq!(split(r"a\\:b"), [r"a\", "b"]);
        assert_eq!(split(r"a\b\"), [r"a\b\"]);
    }

    #[test]
    fn refuses_empty_names() {
        for list in ["", ":", "a:", ":a", "a::b"] {
            let error = split_layers(OsStr::new(list)).unwrap_err().to_string();
            assert!(error.contains("empty"), "{error}");
        }
    }

    #[test]
    fn reads_options() {
        let lists = ["ro,nodev,threads=3".into(), "nosuid,noexec,noatime,,volatile,userxattr".into()];
        let options = parse(&lists).unwrap();
        let expected = Options {
            read_only: true,
            nodev: true,
            threads: Some(3),
            nosuid: true,
            noexec: true,
            noatime: true,
            volatile: true,
            userxattr: Some(true),
            ..Options::default()
        };
        assert_eq!(options, expected);
        let options = parse(&["fsname=a=b,passthrough=off,allow_other,log=/x y".into()]).unwrap();
        assert_eq!(options.fsname.as_deref(), Some("a=b"));
        assert!(!options.passthrough);
        assert_eq!(options.allow_other, Some(true));
        assert_eq!(options.log, Some(PathBuf::from("/x y")));
        let options = parse(&["ro,nodev".into(), "rw,dev,allow_other=off,userxattr=off".into()]).unwrap();
        assert!(!options.read_only && !options.nodev);
        assert_eq!((options.allow_other, options.userxattr), (Some(false), Some(false)));
        assert_eq!(parse(&[]).unwrap(), Options::default());
    }

    #[test]
    fn names_what_is_wrong() {
        for (option, says) in [
            ("bogus", "unknown"),
            ("bogus=1", "unknown"),
            ("ro=1", "no value"),
            ("threads", "needs a value"),
            ("threads=", "needs a value"),
            ("threads=0", "1 to 512"),
            ("threads=x", "1 to 512"),
            ("threads=-1", "1 to 512"),
            ("passthrough", "on or off"),
            ("passthrough=maybe", "on or off"),
            ("fsname=", "needs a value"),
            ("=x", "unknown"),
        ] {
            let error = parse(&[format!("rw,{option},nodev").into()]).unwrap_err().to_string();
            assert!(error.contains(&format!("option {option}: ")) && error.contains(says), "{error}");
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
            prop_assert_eq!(split, names.into_iter().map(PathBuf::from).collect::<Vec<_>>());
        }

        #[test]
        fn options_never_panic(list in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = parse(&[OsString::from_vec(list)]);
        }
    }
}
