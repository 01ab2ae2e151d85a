//! The `redirect` xattr: where lower layers keep the lower part of a renamed directory
//! (overlayfs.rst, "redirect_dir").

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// A valid redirect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Redirect {
    /// Another name in the same parent.
    Sibling(OsString),
    /// A path from the root of the layers below, as its components.
    Absolute(Vec<OsString>),
}

/// The longest value the kernel reads (`OVL_REDIRECT_MAX`), in bytes.
pub const MAX: usize = 256;

fn component(bytes: &[u8]) -> Option<OsString> {
    let ok = !bytes.is_empty() && bytes != b"." && bytes != b".." && bytes.len() <= 255;
    (ok && !bytes.contains(&0) && !bytes.contains(&b'/')).then(|| OsString::from_vec(bytes.to_vec()))
}

impl Redirect {
    /// Reads the xattr value. `None` for anything that could lead out of a layer: empty components,
    /// `.` and `..`, a sibling name with a slash.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes.strip_prefix(b"/") {
            Some(rest) => {
                rest.split(|b| *b == b'/').map(component).collect::<Option<_>>().map(Self::Absolute)
            }
            None => component(bytes).map(Self::Sibling),
        }
    }

    /// The value of an absolute redirect; `None` when it is longer than [`MAX`] bytes.
    pub fn encode_absolute<'a>(components: impl IntoIterator<Item = &'a OsStr>) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        for c in components {
            out.push(b'/');
            out.extend_from_slice(c.as_bytes());
        }
        (!out.is_empty() && out.len() <= MAX).then_some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_and_bad_values() {
        assert_eq!(Redirect::decode(b"name"), Some(Redirect::Sibling("name".into())));
        assert_eq!(Redirect::decode(b"/a/b"), Some(Redirect::Absolute(vec!["a".into(), "b".into()])));
        for bad in [&b""[..], b"/", b"a/b", b"..", b"/a/../b", b"//a", b"/a/", b".", b"a\0b"] {
            assert_eq!(Redirect::decode(bad), None, "{bad:?}");
        }
        let path = ["a", "b"].map(OsStr::new);
        assert_eq!(Redirect::encode_absolute(path), Some(b"/a/b".to_vec()));
    }
}
