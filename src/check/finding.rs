//! What can be found.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Nothing shows wrong because of it.
    Note,
    /// A mount shows something wrong, or refuses it, or a crash has left something.
    Fault,
}

/// Where something was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A path in the upper, without a slash at its start.
    Upper(Vec<u8>),
    /// A path in the work directory.
    Work(Vec<u8>),
}

/// Something that was found.
#[derive(Debug, Clone)]
pub struct Finding {
    /// What it is.
    pub class: Class,
    /// Where it is.
    pub place: Place,
    /// What it means here.
    pub says: String,
    /// It was there, and is mended.
    pub mended: bool,
}

macro_rules! classes {
    ($($(#[$doc:meta])* $name:ident $text:literal $level:ident,)*) => {
        /// The classes of findings.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Class {
            $($(#[$doc])* $name,)*
        }

        impl Class {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The word for it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            /// How bad it is.
            pub fn level(self) -> Level {
                match self {
                    $(Self::$name => Level::$level,)*
                }
            }
        }
    };
}

classes! {
    /// A whiteout of a name that no layer below has.
    WhiteoutOfNothing "whiteout-of-nothing" Note,
    /// An opaque mark where no layer below has anything.
    OpaqueOfNothing "opaque-of-nothing" Note,
    /// Whiteouts of several forms in one layer.
    MixedWhiteouts "mixed-whiteouts" Note,
    /// Marks in the namespace that this mount does not follow.
    ForeignMarks "foreign-marks" Note,
    /// A whiteout that the kernel's overlayfs keeps in its work directory for the next one to be made.
    SpareWhiteout "spare-whiteout" Note,
    /// An origin that leads to no object of the lowers.
    OriginDangling "origin-dangling" Note,
    /// A count of removed names that nothing looks at.
    GoneStale "gone-stale" Note,
    /// An origin that cannot be read.
    OriginMalformed "origin-malformed" Fault,
    /// A redirect that leads to nothing.
    RedirectDangling "redirect-dangling" Fault,
    /// A redirect that cannot be read.
    RedirectMalformed "redirect-malformed" Fault,
    /// A file without data of its own, whose data is not below either.
    MetacopyWithoutData "metacopy-without-data" Fault,
    /// An opaque mark that cannot be read, or is where it means nothing.
    OpaqueMalformed "opaque-malformed" Fault,
    /// A whiteout mark on what cannot be one.
    WhiteoutMalformed "whiteout-malformed" Fault,
    /// A whiteout in attribute form that no reader looks for.
    WhiteoutUnseen "whiteout-unseen" Fault,
    /// A whiteout by its name, in a layer where names are not whiteouts.
    WhName "wh-name" Fault,
    /// A directory whose entries have marks that are not looked for.
    ImpureMissing "impure-missing" Fault,
    /// A count of names that cannot be read.
    NlinkMalformed "nlink-malformed" Fault,
    /// A count of names that cannot be right.
    NlinkWrong "nlink-wrong" Fault,
    /// An entry of the index that nothing leads to.
    IndexStale "index-stale" Fault,
    /// An entry of the index that is not of the file that it is named after.
    IndexMismatch "index-mismatch" Fault,
    /// A count of removed names that cannot be right or be read.
    GoneWrong "gone-wrong" Fault,
    /// What a crash has left in the work directory.
    Leftover "leftover" Fault,
    /// A copy-up that a crash has ended.
    HalfCopy "half-copy" Fault,
    /// The last mount skipped syncs.
    Volatile "volatile" Fault,
    /// Something cannot be read.
    Unreadable "unreadable" Fault,
}

impl Class {
    /// Mending it is right only if the lower layers that were named are those of the mount.
    pub fn needs_tidy(self) -> bool {
        matches!(self, Self::WhiteoutOfNothing | Self::OpaqueOfNothing)
    }
}

impl Place {
    /// The path in bytes: from the root of the mount, or below `WORK`.
    pub fn path(&self) -> Vec<u8> {
        let (root, rest) = match self {
            Self::Upper(rest) => ("/", rest),
            Self::Work(rest) => ("WORK/", rest),
        };
        [root.as_bytes(), rest].concat()
    }
}

/// On a terminal and in a log harmless, and unambiguous: in quotes, with escapes, unless it has only characters that
/// need neither.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&quoted(&self.path()))
    }
}

/// A name or path as a line of text may hold it.
pub fn quoted(bytes: &[u8]) -> String {
    let quoted = format!("{:?}", OsStr::from_bytes(bytes));
    let inner = &quoted[1..quoted.len() - 1];
    if inner.as_bytes() == bytes && !inner.contains(char::is_whitespace) { inner.to_owned() } else { quoted }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_where_they_must() {
        let show = |path: &[u8]| Place::Upper(path.to_vec()).to_string();
        assert_eq!(show(b"usr/lib"), "/usr/lib");
        assert_eq!(show(b"a b"), "\"/a b\"");
        assert_eq!(show(b"a\nb\x1b"), "\"/a\\nb\\u{1b}\"");
        assert_eq!(show(b"\xff"), "\"/\\xFF\"");
        assert_eq!(show(b"q\"\\"), "\"/q\\\"\\\\\"");
        assert_eq!(show("größe".as_bytes()), "/größe");
    }

    #[test]
    fn names_are_unique() {
        let names: std::collections::HashSet<_> = Class::ALL.iter().map(|c| c.name()).collect();
        assert_eq!(names.len(), Class::ALL.len());
    }
}
