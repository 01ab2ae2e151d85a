//! Mount options, as bytes: a path need not be UTF-8.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::given::{Given, split_options};
use super::layer_list::{Lowers, split_layers};
use crate::config::ids::{IdMap, Ids, Ranges};
use crate::config::{Atime, IoUring, Options, Permissions, RedirectDir};
use crate::error::MountError;
use crate::sys::process::overflow_ids;

/// The most worker threads that `threads=` takes.
pub const MAX_THREADS: usize = 512;

/// What the options say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parsed {
    /// How to mount.
    pub options: Options,
    /// What to mount.
    pub layers: NamedLayers,
    /// Options that are none, in their order: refused or only told of, as the caller wishes.
    pub unknown: Vec<OsString>,
    /// An existing mount is to have the other flags from now on (`remount`).
    pub remount: bool,
    owners: Owners,
}

/// What the options say of owners, until all of them are read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Owners {
    users: Ranges,
    groups: Ranges,
    squash_user: Option<u32>,
    squash_group: Option<u32>,
    squash_to_root: bool,
}

impl Owners {
    /// A number given alone counts more than root (fuse-overlayfs(1)).
    fn ids(self) -> Ids {
        if self == Self::default() {
            return Ids::default();
        }
        let root = self.squash_to_root.then_some(0);
        let (user, group) = overflow_ids();
        Ids {
            users: IdMap::new(self.users, self.squash_user.or(root), user),
            groups: IdMap::new(self.groups, self.squash_group.or(root), group),
        }
    }
}

/// The layers that options name. An empty path was given as such.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamedLayers {
    /// `lowerdir=`, `lowerdir+=` and `datadir+=`.
    pub lowers: Lowers,
    /// `upperdir=`.
    pub upper: Option<PathBuf>,
    /// `workdir=`.
    pub work: Option<PathBuf>,
    /// `init=`.
    pub init: Option<PathBuf>,
}

impl NamedLayers {
    /// Whether no option names a layer.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Reads the values of all `-o`. A later option overrides an earlier one, as with mount(8). `\,` stands
/// for a comma in a value, and a label for SELinux may be quoted; in paths, `\:` for a colon and `\\` for a
/// backslash.
///
/// # Errors
/// A wrong value, named.
pub fn parse(lists: &[OsString]) -> Result<Parsed, MountError> {
    let mut parsed = Parsed::default();
    for list in lists {
        for option in split_options(list.as_bytes()).iter().filter(|option| !option.is_empty()) {
            parsed.apply(option)?;
        }
    }
    // An ACL has a part of the mode in the inode.
    parsed.options.acl &= parsed.options.permissions == Permissions::Inode;
    parsed.options.ids = std::mem::take(&mut parsed.owners).ids();
    Ok(parsed)
}

impl Parsed {
    fn apply(&mut self, whole: &[u8]) -> Result<(), MountError> {
        let (name, given) = Given::new(whole);
        let known = self.apply_layer(name, &given)?
            || self.apply_owner(name, &given)?
            || self.apply_generic(name, &given)?
            || self.apply_option(name, &given)?;
        if !known {
            self.unknown.push(OsStr::from_bytes(whole).to_owned());
        }
        Ok(())
    }

    fn apply_layer(&mut self, name: &[u8], given: &Given<'_>) -> Result<bool, MountError> {
        let layers = &mut self.layers;
        match name {
            b"lowerdir" => layers.lowers = split_layers(OsStr::from_bytes(given.text()?))?,
            b"lowerdir+" => layers.lowers.merged.push(given.path()?),
            b"datadir+" => layers.lowers.data.push(given.path()?),
            b"upperdir" => layers.upper = Some(given.any_path()?),
            b"workdir" => layers.work = Some(given.any_path()?),
            b"init" => layers.init = Some(given.path()?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Who owns what, and where that is kept: the options of fuse-overlayfs(1).
    fn apply_owner(&mut self, name: &[u8], given: &Given<'_>) -> Result<bool, MountError> {
        let owners = &mut self.owners;
        match name {
            b"uidmapping" => owners.users = given.ranges()?,
            b"gidmapping" => owners.groups = given.ranges()?,
            b"squash_to_uid" => owners.squash_user = Some(given.id()?),
            b"squash_to_gid" => owners.squash_group = Some(given.id()?),
            b"squash_to_root" => owners.squash_to_root = given.flag(true)?,
            b"xattr_permissions" => {
                self.options.permissions = given.choice(&[
                    ("0", Permissions::Inode),
                    ("1", Permissions::Privileged),
                    ("2", Permissions::Containers),
                ])?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The options of every filesystem, as in mount(8).
    fn apply_generic(&mut self, name: &[u8], given: &Given<'_>) -> Result<bool, MountError> {
        let options = &mut self.options;
        match name {
            b"ro" => options.read_only = given.flag(true)?,
            b"rw" => options.read_only = given.flag(false)?,
            b"nodev" => options.nodev = given.flag(true)?,
            b"dev" => options.nodev = given.flag(false)?,
            b"nosuid" => options.nosuid = given.flag(true)?,
            b"suid" => options.nosuid = given.flag(false)?,
            b"noexec" => options.noexec = given.flag(true)?,
            b"exec" => options.noexec = given.flag(false)?,
            b"atime" | b"norelatime" | b"nostrictatime" => options.atime = given.flag(Atime::Default)?,
            b"noatime" => options.atime = given.flag(Atime::No)?,
            b"relatime" => options.atime = given.flag(Atime::Relative)?,
            b"strictatime" => options.atime = given.flag(Atime::Strict)?,
            b"nodiratime" => options.nodiratime = given.flag(true)?,
            b"diratime" => options.nodiratime = given.flag(false)?,
            b"sync" => options.sync = given.flag(true)?,
            b"async" => options.sync = given.flag(false)?,
            b"dirsync" => options.dirsync = given.flag(true)?,
            b"context" => options.context = Some(given.label()?),
            b"private" => options.private = given.flag(true)?,
            b"remount" => self.remount = given.flag(true)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn apply_option(&mut self, name: &[u8], given: &Given<'_>) -> Result<bool, MountError> {
        let options = &mut self.options;
        match name {
            b"volatile" => (options.volatile, options.volatile_mark) = given.flag((true, true))?,
            // Of fuse-overlayfs, which leaves no mark: who asks for it expects to mount the same layers again.
            b"fsync" => {
                options.volatile = given.choice(&[("0", true), ("1", false)])? || options.volatile_mark
            }
            b"static_nlink" => options.static_nlink = given.flag(true)?,
            b"noacl" => options.acl = given.flag(false)?,
            // Of fuse-overlayfs: one worker, or as many as we take.
            b"threaded" => options.threads = given.choice(&[("0", Some(1)), ("1", None)])?,
            // Always so: each worker has a clone of the device, and requests are as large as the kernel permits.
            b"clone_fd" => given.flag(())?,
            b"max_write" => drop(given.number(0..=usize::MAX)?),
            // Mounts of ours are known by theirs.
            b"subtype" => drop(given.text()?),
            b"userxattr" => options.userxattr = Some(given.lone_switch()?),
            b"allow_other" => options.allow_other = Some(given.lone_switch()?),
            // Always so: the kernel checks permissions.
            b"default_permissions" => given.flag(())?,
            // Always so: numbers are unique over all layers.
            b"xino" => given.choice(&[("on", ()), ("off", ()), ("auto", ())])?,
            // Origins carry the UUID of the layer's filesystem, and lead nowhere if it has none.
            b"uuid" => given.choice(&[("on", ()), ("off", ()), ("null", ()), ("auto", ())])?,
            b"redirect_dir" => {
                options.redirect_dir = given.choice(&[
                    ("on", RedirectDir::On),
                    ("off", RedirectDir::Follow),
                    ("follow", RedirectDir::Follow),
                    ("nofollow", RedirectDir::NoFollow),
                ])?;
            }
            b"index" => options.index = given.switch()?,
            b"metacopy" => options.metacopy = given.switch()?,
            b"passthrough" => options.passthrough = given.switch()?,
            b"sandbox" => options.sandbox = given.switch()?,
            b"timeout" => options.timeout = Some(given.seconds()?),
            b"io_uring" => {
                options.io_uring =
                    given.choice(&[("on", IoUring::On), ("off", IoUring::Off), ("auto", IoUring::Auto)])?;
            }
            b"threads" => options.threads = Some(given.number(1..=MAX_THREADS)?),
            b"size" => options.size = Some(given.size()?),
            // The second name is that of tmpfs.
            b"inodes" | b"nr_inodes" => options.inodes = Some(given.count()?),
            b"fsname" => options.fsname = Some(given.utf8()?),
            b"log" => options.log = Some(given.path()?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Refuses what is unknown.
    ///
    /// # Errors
    /// The first unknown option, named.
    pub fn refuse_unknown(&self) -> Result<(), MountError> {
        match self.unknown.first() {
            None => Ok(()),
            Some(option) => Err(MountError::option(
                option.to_string_lossy(),
                "is unknown; `unionfs mount --help` lists the options",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Size;
    use proptest::prelude::*;
    use std::os::unix::ffi::OsStringExt;

    fn options(list: &str) -> Options {
        let parsed = parse(&[list.into()]).unwrap();
        assert_eq!((parsed.unknown, parsed.layers.is_empty()), (Vec::new(), true));
        parsed.options
    }

    fn layers(list: &str) -> NamedLayers {
        let parsed = parse(&[list.into()]).unwrap();
        assert_eq!((parsed.unknown, parsed.options), (Vec::new(), Options::default()));
        parsed.layers
    }

    fn paths(names: &[&str]) -> Vec<PathBuf> {
        names.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn reads_options() {
        let lists = ["ro,nodev,threads=3".into(), "nosuid,noexec,noatime,,volatile,userxattr".into()];
        let expected = Options {
            read_only: true,
            nodev: true,
            threads: Some(3),
            nosuid: true,
            noexec: true,
            atime: Atime::No,
            volatile: true,
            volatile_mark: true,
            userxattr: Some(true),
            ..Options::default()
        };
        assert_eq!(parse(&lists).unwrap().options, expected);
        let given = options("fsname=a=b,passthrough=off,allow_other,log=/x y");
        assert_eq!(given.fsname.as_deref(), Some("a=b"));
        assert!(!given.passthrough);
        assert_eq!(given.allow_other, Some(true));
        assert_eq!(given.log, Some(PathBuf::from("/x y")));
        let given = options("ro,nodev,sync,rw,dev,async,allow_other=off,userxattr=off");
        assert!(!given.read_only && !given.nodev && !given.sync);
        assert_eq!((given.allow_other, given.userxattr), (Some(false), Some(false)));
        assert_eq!(parse(&[]).unwrap(), Parsed::default());
    }

    #[test]
    fn reads_options_of_overlayfs() {
        for (value, meaning) in [
            ("on", RedirectDir::On),
            ("off", RedirectDir::Follow),
            ("follow", RedirectDir::Follow),
            ("nofollow", RedirectDir::NoFollow),
        ] {
            assert_eq!(options(&format!("redirect_dir={value}")).redirect_dir, meaning);
        }
        let given = options("index=off,metacopy=on,nodiratime,strictatime,dirsync");
        assert!(!given.index && given.metacopy && given.nodiratime && given.dirsync);
        assert_eq!(given.atime, Atime::Strict);
        let none = "xino=auto,xino=on,xino=off,uuid=on,uuid=off,uuid=null,uuid=auto,default_permissions";
        assert_eq!(options(none), Options::default());
        for (value, millis) in [("0", 0), ("1", 1000), ("0.25", 250), ("1e1", 10_000)] {
            let timeout = options(&format!("timeout={value}")).timeout;
            assert_eq!(timeout, Some(Duration::from_millis(millis)));
        }
        for value in ["1000000000000", "inf"] {
            let timeout = options(&format!("timeout={value}")).timeout;
            assert_eq!(timeout, Some(Duration::from_secs(u64::from(u32::MAX))));
        }
    }

    #[test]
    fn reads_limits() {
        for (value, bytes) in
            [("4096", 4096), ("4k", 4096), ("3M", 3 << 20), ("2g", 2 << 30), ("1T", 1 << 40)]
        {
            assert_eq!(options(&format!("size={value}")).size, Some(Size::Bytes(bytes)));
        }
        assert_eq!(options("size=50%").size, Some(Size::Percent(50)));
        assert_eq!((options("inodes=10").inodes, options("nr_inodes=2k").inodes), (Some(10), Some(2048)));
    }

    #[test]
    fn reads_layers() {
        assert_eq!(
            layers("lowerdir=a:b::d,upperdir=u,workdir=w,init=i"),
            NamedLayers {
                lowers: Lowers { merged: paths(&["a", "b"]), data: paths(&["d"]) },
                upper: Some("u".into()),
                work: Some("w".into()),
                init: Some("i".into()),
            }
        );
        let lowers =
            layers("lowerdir=x::y,lowerdir=a,lowerdir+=b:c,lowerdir+=d,datadir+=e,datadir+=f").lowers;
        assert_eq!(lowers, Lowers { merged: paths(&["a", "b:c", "d"]), data: paths(&["e", "f"]) });
        assert_eq!(layers("upperdir=").upper, Some(PathBuf::new()));
    }

    #[test]
    fn knows_escapes() {
        let given = layers(r"lowerdir=a\,b:c\:d\\:e\f,upperdir=u\:\,\\,workdir=w\\,init=i");
        assert_eq!(given.lowers.merged, paths(&["a,b", r"c:d\", r"e\f"]));
        assert_eq!(given.upper, Some(r"u:,\".into()));
        assert_eq!((given.work, given.init), (Some(r"w\".into()), Some("i".into())));
        assert_eq!(options(r"fsname=a\,b,log=x\,y").fsname.as_deref(), Some("a,b"));
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
            ("redirect_dir", "on, off, follow or nofollow"),
            ("redirect_dir=yes", "on, off, follow or nofollow"),
            ("index=1", "on or off"),
            ("xino=x", "on, off or auto"),
            ("uuid=", "on, off, null or auto"),
            ("default_permissions=on", "no value"),
            ("timeout=", "needs a value"),
            ("timeout=x", "seconds"),
            ("timeout=-1", "seconds"),
            ("timeout=nan", "seconds"),
            ("strictatime=1", "no value"),
            ("lowerdir+=", "needs a value"),
            ("datadir+", "needs a value"),
            ("init=", "needs a value"),
            ("size=", "needs a value"),
            ("size=0", "number of bytes"),
            ("size=1x", "number of bytes"),
            ("size=k", "number of bytes"),
            ("size=101%", "number of bytes"),
            ("size=16777216t", "number of bytes"),
            ("inodes=-1", "takes a number"),
            ("inodes=5%", "takes a number"),
        ] {
            let list = format!("rw,{option},nodev").into();
            let error = parse(&[list]).and_then(|p| p.refuse_unknown()).unwrap_err().to_string();
            assert!(error.contains(&format!("option {option}: ")) && error.contains(says), "{error}");
        }
    }

    #[test]
    fn collects_what_is_unknown() {
        let parsed = parse(&["a=1,ro,b".into(), "c".into()]).unwrap();
        assert_eq!(parsed.unknown, ["a=1", "b", "c"]);
        assert!(parsed.options.read_only);
    }

    proptest! {
        #[test]
        fn options_never_panic(list in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = parse(&[OsString::from_vec(list)]);
        }

        #[test]
        fn commas_can_be_written(name in proptest::collection::vec(prop_oneof![Just(b','), Just(b'a')], 1..9)) {
            let mut list = b"ro,upperdir=".to_vec();
            list.extend(name.iter().flat_map(|b| if *b == b',' { vec![b'\\', b','] } else { vec![*b] }));
            let parsed = parse(&[OsString::from_vec(list)]).unwrap();
            prop_assert_eq!(parsed.layers.upper, Some(PathBuf::from(OsString::from_vec(name))));
        }
    }
}
