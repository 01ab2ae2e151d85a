//! Checks the directories of a mount and takes hold of the writable ones.
//!
//! Each directory is opened once; all checks and the mount itself go by that descriptor. Whether one
//! directory is or holds another is decided by device and inode number on the way up from it, never by
//! the spelling of paths.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::config::LayerPaths;
use crate::error::{MountError, errno};
use crate::layer::located::{Directories, Located, MOUNT_POINT, Opened, UPPER, explain, open};
use crate::layer::lock::{lock, patience, refuse_marked};
use crate::layer::stack::LayerFds;
use crate::sys::mount;
use crate::sys::place::{self, FileId, Place};

/// Proof that the layers of a mount are usable, and the locks on its writable directories: another
/// mount cannot claim them until this is dropped.
#[derive(Debug)]
pub struct Claim {
    fds: Option<LayerFds>,
    directories: Directories<Located>,
    /// Descriptors of the locked directories. A lock belongs to the open file description, so it stays
    /// as long as one of these or of their copies in `fds` is open.
    _locks: Vec<OwnedFd>,
}

impl Claim {
    /// The open layers, once; the locks stay with the claim.
    pub fn take_fds(&mut self) -> Option<LayerFds> {
        self.fds.take()
    }

    /// Checks the place where these layers are to be mounted. A lower may be mounted upon, as with the
    /// kernel's overlayfs; a writable directory may not: what the mount writes there would come back to
    /// the mount.
    ///
    /// # Errors
    /// A missing or non-directory mount point, or one that is or lies in a directory of the mount where
    /// it may not.
    pub fn check_mount_point(&self, path: &Path) -> Result<(), MountError> {
        let complain = |e| explain(MOUNT_POINT, path, e);
        let fd = place::pin_named_dir(path).map_err(complain)?;
        let place = place::place(&fd).map_err(complain)?;
        let at = Located { what: MOUNT_POINT, path: path.to_owned(), place };
        for own in self.directories.writable() {
            if let Some(relation) = relation(&at, own, false) {
                return Err(at.error(format!("{relation}; mount somewhere else")));
            }
        }
        // Lowers are read through private clones of their mounts, in which the new mount does not show.
        // Without the right to clone, a lookup in the lower would run into the mount and wait for itself.
        let fds = self.fds.iter().flat_map(|fds| fds.lowers.iter().chain(&fds.data));
        for (lower, fd) in self.directories.read_only().zip(fds) {
            if at.place.is_inside(&lower.place) && mount::clone_read_only(fd, &mut Vec::new()).is_err() {
                let reason = format!("lies inside {}, which takes root; mount somewhere else", lower.name());
                return Err(at.error(reason));
            }
        }
        Ok(())
    }
}

/// Checks `layers` and locks the writable ones.
///
/// # Errors
/// A missing or non-directory layer, overlapping layers, a work directory on another filesystem, a
/// layer in use by a live mount.
pub fn claim(layers: &LayerPaths) -> Result<Claim, MountError> {
    let mut opened = open(layers)?;
    let at = opened.map(|o| o.at.clone());
    check_stacking(&at)?;
    check_work(&at)?;
    let trees = hold_by_clones(&mut opened);
    let mut locks = Vec::new();
    // Without an upper nothing is written, not even to the init layer.
    if opened.upper.is_some() {
        let patience = patience(opened.work.iter().chain(&opened.init_work));
        for dir in opened.writable() {
            locks.push(lock(dir, patience)?);
        }
        for work in opened.work.iter().chain(&opened.init_work) {
            refuse_marked(work)?;
        }
    }
    let upper = match (opened.upper, opened.work) {
        (Some(upper), Some(work)) => Some((upper.fd, work.fd)),
        _ => None,
    };
    let fds = LayerFds {
        upper,
        init: opened.init.map(|o| o.fd),
        init_work: opened.init_work.map(|o| o.fd),
        lowers: opened.lowers.into_iter().map(|o| o.fd).collect(),
        data: opened.data.into_iter().map(|o| o.fd).collect(),
        trees,
    };
    Ok(Claim { fds: Some(fds), directories: at, _locks: locks })
}

/// Checks the layers alone, before anything is created for them: without the work directories and,
/// where `missing_upper`, for an upper that is still to be created.
///
/// # Errors
/// Those of [`claim`] that concern the layers.
pub fn check(layers: &LayerPaths, missing_upper: bool) -> Result<(), MountError> {
    let mut without = LayerPaths { work: None, init_work: None, ..layers.clone() };
    let future = without.upper.take_if(|upper| missing_upper && !upper.exists());
    let at = open(&without)?.map(|o| o.at.clone());
    check_stacking(&at)?;
    let Some(upper) = future else { return Ok(()) };
    let complain = |e| explain(UPPER, &upper, e);
    let absolute = std::path::absolute(&upper).map_err(|e| complain(errno(&e)))?;
    let Some(nearest) = absolute.ancestors().skip(1).find(|p| p.exists()) else { return Ok(()) };
    let fd = place::pin_named_dir(nearest).map_err(complain)?;
    let nearest = place::place(&fd).map_err(complain)?;
    for layer in at.read_only().chain(&at.init) {
        if nearest.is(&layer.place) || nearest.is_inside(&layer.place) {
            let reason = format!("would lie inside {}; choose a directory outside of it", layer.name());
            return Err(MountError::path(UPPER, &upper, reason));
        }
    }
    Ok(())
}

/// Whether two directories are on one mount, so that a rename from one to the other can work.
///
/// # Errors
/// A missing or non-directory path, named as what `what` says it is.
pub fn share_mount(what: &'static str, a: &Path, b: &Path) -> Result<bool, MountError> {
    let place = |path: &Path| -> Result<Place, MountError> {
        let complain = |e| explain(what, path, e);
        let fd = place::pin_named_dir(path).map_err(complain)?;
        place::place(&fd).map_err(complain)
    };
    Ok(place(a)?.shares_mount(&place(b)?))
}

/// How `a` lies to `b`, if they overlap: "is also", "lies inside", and "contains" if that counts.
fn relation(a: &Located, b: &Located, containing: bool) -> Option<String> {
    if a.place.is(&b.place) {
        Some(format!("is also {}", b.name()))
    } else if a.place.is_inside(&b.place) {
        Some(format!("lies inside {}", b.name()))
    } else if containing && b.place.is_inside(&a.place) {
        Some(format!("contains {}", b.name()))
    } else {
        None
    }
}

fn check_apart(a: &Located, b: &Located) -> Result<(), MountError> {
    match relation(a, b, true) {
        Some(relation) => Err(a.error(format!("{relation}; keep the two directories apart"))),
        None => Ok(()),
    }
}

/// A changed layer must not be part of one that is read: changes would appear twice, or in a layer that
/// must not change.
pub(super) fn check_stacking(at: &Directories<Located>) -> Result<(), MountError> {
    // The kernel's overlayfs answers ELOOP to a lower that is named twice.
    let mut seen: HashMap<FileId, &Located> = HashMap::new();
    for lower in at.read_only() {
        if let Some(first) = seen.insert(lower.place.id, lower) {
            let reason = if first.path == lower.path {
                "is named twice; name each lower layer once".into()
            } else {
                format!("is the same directory as {}; name each lower layer once", first.path.display())
            };
            return Err(lower.error(reason));
        }
    }
    for writable in at.upper.iter().chain(&at.init) {
        for lower in at.read_only() {
            check_apart(writable, lower)?;
        }
    }
    if let (Some(init), Some(upper)) = (&at.init, &at.upper) {
        check_apart(init, upper)?;
    }
    Ok(())
}

fn check_work(at: &Directories<Located>) -> Result<(), MountError> {
    let Some(upper) = &at.upper else {
        return match at.work.iter().chain(&at.init_work).next() {
            Some(work) => Err(work.error("is of no use without an upper layer; leave it out")),
            None => Ok(()),
        };
    };
    let Some(work) = &at.work else {
        return Err(upper.error("needs a work directory on its filesystem; name one by --work DIR"));
    };
    if !work.place.shares_mount(&upper.place) {
        let reason =
            format!("is not on the same mount as {}; name a directory there by --work DIR", upper.name());
        return Err(work.error(reason));
    }
    if let Some(init) = &at.init {
        match &at.init_work {
            Some(own) if !own.place.shares_mount(&init.place) => {
                return Err(own.error(format!("is not on the same mount as {}", init.name())));
            }
            None if !init.place.shares_mount(&upper.place) => {
                let reason = format!(
                    "is not on the same mount as {} and has no work directory of its own; put the two on one \
                     filesystem",
                    upper.name()
                );
                return Err(init.error(reason));
            }
            _ => {}
        }
    }
    let works: Vec<&Located> = at.work.iter().chain(&at.init_work).collect();
    for (i, work) in works.iter().enumerate() {
        for layer in at.upper.iter().chain(&at.init).chain(at.read_only()) {
            check_apart(work, layer)?;
        }
        for other in &works[..i] {
            check_apart(work, other)?;
        }
    }
    Ok(())
}

/// Reaches the writable directories by way of clones of their mounts, so that these are free to be unmounted
/// as soon as our mount is, and not only once the daemon has ended. Those that must share a mount share a
/// clone. Where that is not permitted, they stay as they are. Gives what is to be closed later.
fn hold_by_clones(opened: &mut Directories<Opened>) -> Vec<OwnedFd> {
    let mut trees = Vec::new();
    let own = opened.init_work.is_some();
    let mut with_upper: Vec<&mut Opened> = Vec::new();
    let mut with_init: Vec<&mut Opened> = Vec::new();
    with_upper.extend(opened.upper.iter_mut().chain(&mut opened.work));
    if own { &mut with_init } else { &mut with_upper }.extend(&mut opened.init);
    with_init.extend(&mut opened.init_work);
    for group in [with_upper, with_init] {
        let dirs: Vec<&OwnedFd> = group.iter().map(|dir| &dir.fd).collect();
        let clones = match place::detach(&dirs, &mut trees) {
            Ok(clones) => clones,
            Err(e) => {
                tracing::debug!("the mount below {} directories is kept in use: {e}", dirs.len());
                continue;
            }
        };
        for (dir, clone) in group.into_iter().zip(clones) {
            dir.fd = clone;
        }
    }
    trees
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;

    use crate::config::MAX_LOWERS;
    use crate::layer::located::WORK;

    struct Tree {
        dir: tempfile::TempDir,
    }

    impl Tree {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            for name in ["a/sub", "b", "u/sub", "w", "i", "m"] {
                fs::create_dir_all(dir.path().join(name)).unwrap();
            }
            fs::write(dir.path().join("file"), "").unwrap();
            std::os::unix::fs::symlink("a", dir.path().join("link")).unwrap();
            Self { dir }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn layers(&self, lowers: &[&str], upper: &str, work: &str, init: &str) -> LayerPaths {
            let some = |name: &str| (!name.is_empty()).then(|| self.path(name));
            LayerPaths {
                lowers: lowers.iter().map(|l| self.path(l)).collect(),
                data: Vec::new(),
                init: some(init),
                upper: some(upper),
                work: some(work),
                init_work: None,
            }
        }

        fn refused(&self, lowers: &[&str], upper: &str, work: &str, init: &str, says: &str) {
            let error = claim(&self.layers(lowers, upper, work, init)).unwrap_err().to_string();
            assert!(error.contains(says), "{error:?} lacks {says:?}");
            assert!(!error.contains('\n'), "{error:?}");
        }
    }

    #[test]
    fn accepts_and_gives_descriptors_once() {
        let t = Tree::new();
        let mut claim = claim(&t.layers(&["a", "b"], "u", "w", "i")).unwrap();
        let fds = claim.take_fds().unwrap();
        assert_eq!(fds.lowers.len(), 2);
        assert!(fds.upper.is_some() && fds.init.is_some());
        assert!(claim.take_fds().is_none());
    }

    #[test]
    fn refuses_what_is_no_directory() {
        let t = Tree::new();
        t.refused(&["none"], "u", "w", "", "does not exist");
        t.refused(&["file"], "u", "w", "", "is not a directory");
        t.refused(&["a"], "file", "w", "", "is not a directory");
        t.refused(&["a"], "none", "w", "", "--create");
        t.refused(&["a"], "u", "none", "", "work directory");
        t.refused(&["a"], "u", "w", "none", "init layer");
    }

    #[test]
    fn refuses_bad_numbers_of_lowers() {
        let t = Tree::new();
        t.refused(&[], "u", "w", "", "0 lower layers");
        t.refused(&["a"; MAX_LOWERS + 1], "u", "w", "", "501 lower layers");
    }

    #[test]
    fn refuses_overlaps_whatever_they_are_called() {
        let t = Tree::new();
        t.refused(&["a", "b", "a"], "u", "w", "", "named twice");
        t.refused(&["a", "link"], "u", "w", "", "same directory as");
        t.refused(&["a"], "link", "w", "", "is also the lower layer");
        t.refused(&["a"], "link/sub", "w", "", "lies inside the lower layer");
        t.refused(&["link/sub"], "a", "w", "", "contains the lower layer");
        t.refused(&["a"], "u", "w", "u", "is also the upper layer");
        t.refused(&["a"], "u", "w", "u/sub", "lies inside the upper layer");
        t.refused(&["a"], "u", "w", "a/sub", "lies inside the lower layer");
        t.refused(&["a"], "u", "u/sub", "", "lies inside the upper layer");
        t.refused(&["a"], "u", "u", "", "is also the upper layer");
        t.refused(&["a"], "u", "a/sub", "", "lies inside the lower layer");
        t.refused(&["a"], "u", "i", "i", "is also the init layer");
    }

    #[test]
    fn data_only_layers_are_checked_like_lowers() {
        let t = Tree::new();
        let with = |data: &[&str]| LayerPaths {
            data: data.iter().map(|d| t.path(d)).collect(),
            ..t.layers(&["a"], "u", "w", "")
        };
        let mut good = claim(&with(&["b", "i"])).unwrap();
        assert_eq!(good.take_fds().unwrap().data.len(), 2);
        drop(good);
        for (data, says) in [
            ("none", "data-only layer"),
            ("file", "is not a directory"),
            ("a", "named twice"),
            ("link", "same directory as"),
            ("u/sub", "contains the data-only layer"),
            ("w", "is also the data-only layer"),
        ] {
            let error = claim(&with(&["b", data])).unwrap_err().to_string();
            assert!(error.contains(says), "{error:?} lacks {says:?}");
        }
        let error = claim(&LayerPaths { lowers: Vec::new(), ..with(&["b"]) }).unwrap_err().to_string();
        assert!(error.contains("lower layers are named"), "{error}");
    }

    #[test]
    fn nested_lowers_are_fine() {
        let t = Tree::new();
        claim(&t.layers(&["a", "a/sub"], "u", "w", "")).unwrap();
    }

    #[test]
    fn a_second_claim_waits_for_the_first_to_go() {
        let t = Tree::new();
        let first = claim(&t.layers(&["a"], "u", "w", "i")).unwrap();
        fs::create_dir_all(t.path("u2")).unwrap();
        fs::create_dir_all(t.path("w2")).unwrap();
        t.refused(&["b"], "u", "w2", "", "in use by a live mount");
        t.refused(&["b"], "u2", "w", "", "in use by a live mount");
        t.refused(&["b"], "u2", "w2", "i", "in use by a live mount");
        drop(first);
        claim(&t.layers(&["b"], "u", "w", "i")).unwrap();
    }

    #[test]
    fn the_lock_outlives_the_taken_descriptors() {
        let t = Tree::new();
        let mut first = claim(&t.layers(&["a"], "u", "w", "")).unwrap();
        drop(first.take_fds());
        t.refused(&["a"], "u", "w", "", "in use by a live mount");
    }

    #[test]
    fn a_read_only_mount_locks_nothing() {
        let t = Tree::new();
        let _first = claim(&t.layers(&["a"], "", "", "i")).unwrap();
        claim(&t.layers(&["a"], "", "", "i")).unwrap();
        t.refused(&["a"], "", "w", "", "without an upper");
    }

    #[test]
    fn refuses_another_filesystem_for_work() {
        let t = Tree::new();
        let Ok(shm) = tempfile::tempdir_in("/dev/shm") else {
            eprintln!("skipped: no /dev/shm");
            return;
        };
        if share_mount(WORK, shm.path(), t.dir.path()).unwrap() {
            eprintln!("skipped: /dev/shm is on the filesystem of the temporary directory");
            return;
        }
        let mut layers = t.layers(&["a"], "u", "", "");
        layers.work = Some(shm.path().to_owned());
        let error = claim(&layers).unwrap_err().to_string();
        assert!(error.contains("same mount"), "{error}");
        let mut layers = t.layers(&["a"], "u", "w", "");
        layers.init = Some(shm.path().to_owned());
        let error = claim(&layers).unwrap_err().to_string();
        assert!(error.contains("init layer") && error.contains("same mount"), "{error}");
    }

    #[test]
    fn checks_an_upper_that_is_yet_to_be() {
        let t = Tree::new();
        check(&t.layers(&["a"], "new/upper", "", ""), true).unwrap();
        let error = check(&t.layers(&["a"], "link/new/upper", "", ""), true).unwrap_err();
        assert!(error.to_string().contains("would lie inside the lower layer"), "{error}");
        let error = check(&t.layers(&["a"], "new/upper", "", ""), false).unwrap_err();
        assert!(error.to_string().contains("--create"), "{error}");
    }

    #[test]
    fn mount_points() {
        let t = Tree::new();
        let claim = claim(&t.layers(&["a", "b"], "u", "w", "i")).unwrap();
        claim.check_mount_point(&t.path("m")).unwrap();
        claim.check_mount_point(&t.path("b")).unwrap();
        for (name, says) in [
            ("u", "is also the upper"),
            ("u/sub", "lies inside the upper"),
            ("w", "is also the work"),
            ("i", "is also the init"),
            ("none", "does not exist"),
            ("file", "is not a directory"),
        ] {
            let error = claim.check_mount_point(&t.path(name)).unwrap_err().to_string();
            assert!(error.contains(says), "{error:?} lacks {says:?}");
        }
    }
}
