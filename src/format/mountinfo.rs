//! The mount table as /proc/PID/mountinfo writes it (proc_pid_mountinfo(5)).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// One mount. Paths are bytes: a mount point need not be UTF-8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Identifies the mount as long as it lives; `stx_mnt_id` of statx(2).
    pub id: u64,
    /// The device of the filesystem, as `major:minor`.
    pub device: OsString,
    /// The mount point as seen from the reader's root.
    pub mount_point: PathBuf,
    /// The mount translates owners (mount_setattr(2), `MOUNT_ATTR_IDMAP`).
    pub idmapped: bool,
    /// The type, with the subtype behind a dot: `fuse.unionfs`.
    pub fs_type: OsString,
    /// The source.
    pub source: OsString,
    /// Who mounted it, of FUSE mounts (`user_id=`).
    pub user: Option<u32>,
}

/// Reads a whole table, in the order of mounting. Lines that do not have the known form are left out.
pub fn parse(table: &[u8]) -> Vec<MountEntry> {
    table.split(|b| *b == b'\n').filter_map(parse_line).collect()
}

/// The mount that a path lookup arrives at: of those stacked on one mount point, the last one.
pub fn top_at<'a>(table: &'a [MountEntry], at: &Path) -> Option<&'a MountEntry> {
    table.iter().rev().find(|entry| entry.mount_point == at)
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    // 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
    let mut fields = line.split(|b| *b == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = unescape(fields.nth(1)?);
    let mount_point = PathBuf::from(unescape(fields.nth(1)?));
    let idmapped = fields.next()?.split(|b| *b == b',').any(|option| option == b"idmapped");
    // Optional fields end at a single hyphen.
    fields.by_ref().find(|field| *field == b"-")?;
    let fs_type = unescape(fields.next()?);
    let source = unescape(fields.next()?);
    let mut options = fields.next().unwrap_or_default().split(|b| *b == b',');
    let user = options.find_map(|o| std::str::from_utf8(o.strip_prefix(b"user_id=")?).ok()?.parse().ok());
    Some(MountEntry { id, device, mount_point, idmapped, fs_type, source, user })
}

/// Undoes the octal escapes of space, tab, newline, backslash and the like.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] => {
                out.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
                rest = after;
            }
            _ => {
                out.push(first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out)
}

/// Whether a mount is one of ours, alive or dead.
pub fn is_unionfs(entry: &MountEntry) -> bool {
    entry.fs_type == OsStr::from_bytes(b"fuse.unionfs")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_lines() {
        let table = b"22 27 0:21 / /proc rw,relatime - proc proc rw\n\
            36 35 98:0 /mnt1 /a\\040b\\134c rw,noatime master:1 shared:2 - fuse.unionfs union\\011fs rw\n\
            36 35 98:0 /mnt1 /a\\040b\\134c rw - ext4 /dev/root rw\n\
            nonsense\n";
        let entries = parse(table);
        assert_eq!(entries.len(), 3);
        assert_eq!(entries[0].mount_point, Path::new("/proc"));
        assert_eq!(entries[1].id, 36);
        assert_eq!(entries[1].mount_point, Path::new("/a b\\c"));
        assert_eq!(entries[1].source, "union\tfs");
        assert!(is_unionfs(&entries[1]));
        let top = top_at(&entries, Path::new("/a b\\c")).unwrap();
        assert_eq!(top.fs_type, "ext4");
        assert_eq!(top_at(&entries, Path::new("/a")), None);
    }

    #[test]
    fn leaves_what_is_no_escape() {
        assert_eq!(unescape(b"\\04"), "\\04");
        assert_eq!(unescape(b"\\999x"), "\\999x");
        assert_eq!(unescape(b"\\"), "\\");
    }

    proptest! {
        #[test]
        fn escapes_round_trip(name in proptest::collection::vec(1u8.., 0..40)) {
            let escaped: Vec<u8> = name
                .iter()
                .flat_map(|b| match b {
                    b' ' | b'\t' | b'\n' | b'\\' => format!("\\{b:03o}").into_bytes(),
                    b => vec![*b],
                })
                .collect();
            prop_assert_eq!(unescape(&escaped).into_vec(), name);
        }

        #[test]
        fn never_panics(table in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse(&table);
        }
    }
}
