//! The directories that take the place of an upper and its work directory when that is frozen.

use std::path::{Path, PathBuf};

use crate::config::LayerPaths;
use crate::error::{Errno, MountError, Outcome, errno};
use crate::layer::located::explain;
use crate::sys::place::{self, FileId, Place};

const UPPER: &str = "new upper layer";
const WORK: &str = "new work directory";

/// A directory, and the way to it from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// Its path, absolute and without symlinks.
    pub path: PathBuf,
    /// So many directories up.
    pub up: usize,
    /// And down by these names.
    pub below: PathBuf,
    /// Device and inode number.
    pub id: FileId,
}

/// Checks that `upper` and `work` can follow the upper of `layers`, whose paths have no symlinks: two directories on
/// its mount, empty, and no part of a layer. Gives the ways to them from the upper.
///
/// # Errors
/// A sentence that names the directory.
pub fn check(layers: &LayerPaths, upper: &Path, work: &Path) -> Outcome<(Way, Way)> {
    let Some(old) = &layers.upper else {
        return Err(MountError::path(UPPER, upper, "is of no use: the mount has no upper layer"));
    };
    let old_place = place_of("upper layer", old)?;
    let mut found: Vec<(&str, Place, Way)> = Vec::new();
    for (what, path) in [(UPPER, upper), (WORK, work)] {
        let here = path.canonicalize().map_err(|e| explain(what, path, errno(&e)))?;
        let at = place_of(what, &here)?;
        let wrong = |reason: String| Err(MountError::path(what, path, reason));
        if !at.shares_mount(&old_place) {
            return wrong(format!(
                "is not on the mount of the upper layer {}; name one there",
                old.display()
            ));
        }
        let taken = layers.upper.iter().chain(&layers.work).chain(&layers.init).chain(&layers.lowers);
        for layer in taken.chain(&layers.data) {
            // What is not to be found here, as in another mount namespace, has no place here either.
            let Ok(layer_at) = place_of(what, layer) else { continue };
            if at.is(&layer_at) || at.is_inside(&layer_at) || layer_at.is_inside(&at) {
                return wrong(format!("overlaps {}; keep the two apart", layer.display()));
            }
        }
        if let Some((other, other_at, _)) = found.first()
            && (at.is(other_at) || at.is_inside(other_at) || other_at.is_inside(&at))
        {
            return wrong(format!("overlaps the {other}; keep the two apart"));
        }
        if here.read_dir().map_err(|e| explain(what, path, errno(&e)))?.next().is_some() {
            return wrong("is not empty; name an empty directory".into());
        }
        let id = at.id;
        found.push((what, at, way(old, here, id)));
    }
    match (found.pop(), found.pop()) {
        (Some((_, _, work)), Some((_, _, upper))) => Ok((upper, work)),
        _ => Err(MountError::path(UPPER, upper, Errno::INVAL.to_string())),
    }
}

fn place_of(what: &'static str, path: &Path) -> Outcome<Place> {
    let complain = |e| explain(what, path, e);
    place::place(place::pin_named_dir(path).map_err(complain)?).map_err(complain)
}

fn way(from: &Path, to: PathBuf, id: FileId) -> Way {
    let shared = from.iter().zip(to.iter()).take_while(|(a, b)| a == b).count();
    Way { up: from.iter().count() - shared, below: to.iter().skip(shared).collect(), path: to, id }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_lead_there() {
        let way = |from: &str, to: &str| {
            let way = way(Path::new(from), to.into(), (0, 0));
            (way.up, way.below.to_str().unwrap().to_owned())
        };
        assert_eq!(way("/a/upper", "/a/upper.1"), (1, "upper.1".into()));
        assert_eq!(way("/a/b/upper", "/a/c/d"), (2, "c/d".into()));
        assert_eq!(way("/a", "/b/c"), (1, "b/c".into()));
    }

    #[test]
    fn refuses_what_cannot_follow() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for name in ["upper/sub", "work", "lower/sub", "next", "next-work", "full/x"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        let layers = LayerPaths {
            lowers: vec![root.join("lower")],
            data: Vec::new(),
            init: None,
            upper: Some(root.join("upper")),
            work: Some(root.join("work")),
            init_work: None,
        };
        let (upper, work) = check(&layers, &root.join("next"), &root.join("next-work")).unwrap();
        assert_eq!((upper.up, work.below.as_path()), (1, Path::new("next-work")));
        for (upper, work, says) in [
            ("upper", "next-work", "overlaps"),
            ("lower/sub", "next-work", "overlaps"),
            ("full", "next-work", "is not empty"),
            ("next", "next", "overlaps the new upper layer"),
            ("next", "work", "overlaps"),
            ("next", "none", "does not exist"),
        ] {
            let error = check(&layers, &root.join(upper), &root.join(work)).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
