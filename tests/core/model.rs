//! Random operations on the union and on a model that is nothing but a map of paths.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use rustix::fs::RenameFlags;
use rustix::io::Errno;
use unionfs::fs::SetAttr;

use crate::tree::Tree;
use crate::union::{KEEP, Result, Union};

/// What is under a path.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Thing {
    Dir,
    /// A file, by its number in the model.
    File(usize),
    /// A symlink likewise: it may have several names, too.
    Link(usize),
}

/// The whole of it.
#[derive(Debug, Clone, Default)]
struct Model {
    things: BTreeMap<String, Thing>,
    contents: Vec<String>,
}

#[derive(Debug, Clone)]
pub enum Op {
    Put(String),
    Write(String, String),
    Truncate(String),
    Mkdir(String),
    Symlink(String),
    Link(String, String),
    Unlink(String),
    Rmdir(String),
    Rename(String, String),
    Exchange(String, String),
    Chmod(String),
    Forget,
    Reopen,
}

fn inside<'a>(path: &'a str, dir: &str) -> Option<&'a str> {
    path.strip_prefix(dir).filter(|rest| rest.starts_with('/'))
}

impl Model {
    fn of(layers: &[&str]) -> Self {
        let mut model = Self::default();
        for line in layers.iter().rev().flat_map(|l| l.lines()) {
            let words: Vec<&str> = line.splitn(3, ' ').collect();
            let path = words[1];
            let mut at = 0;
            while let Some(end) = path[at..].find('/') {
                model.things.insert(path[..at + end].to_owned(), Thing::Dir);
                at += end + 1;
            }
            let arg = words.get(2).copied().unwrap_or("").to_owned();
            match words[0] {
                "d" => drop(model.things.insert(path.to_owned(), Thing::Dir)),
                "f" => {
                    model.contents.push(arg);
                    model.things.insert(path.to_owned(), Thing::File(model.contents.len() - 1));
                }
                "l" => {
                    model.contents.push(arg);
                    model.things.insert(path.to_owned(), Thing::Link(model.contents.len() - 1));
                }
                "h" => drop(model.things.insert(path.to_owned(), model.things[&arg].clone())),
                "w" | "o" => {
                    model.things.retain(|p, _| p != path && inside(p, path).is_none());
                    if words[0] == "o" {
                        model.things.insert(path.to_owned(), Thing::Dir);
                    }
                }
                _ => unreachable!(),
            }
        }
        model
    }

    fn find(&self, path: &str) -> Result<&Thing> {
        self.parent(path)?;
        self.things.get(path).ok_or(Errno::NOENT)
    }

    fn parent(&self, path: &str) -> Result<()> {
        let Some((dir, _)) = path.rsplit_once('/') else { return Ok(()) };
        match self.find(dir)? {
            Thing::Dir => Ok(()),
            _ => Err(Errno::NOTDIR),
        }
    }

    fn file(&self, path: &str) -> Result<usize> {
        match self.find(path)? {
            Thing::Dir => Err(Errno::ISDIR),
            Thing::File(n) => Ok(*n),
            Thing::Link(_) => Err(Errno::NXIO),
        }
    }

    fn free(&self, path: &str) -> Result<()> {
        match self.find(path) {
            Ok(_) => Err(Errno::EXIST),
            Err(Errno::NOENT) => self.parent(path),
            Err(e) => Err(e),
        }
    }

    fn empty(&self, path: &str) -> bool {
        !self.things.keys().any(|p| inside(p, path).is_some())
    }

    fn take(&mut self, path: &str) -> BTreeMap<String, Thing> {
        let all = std::mem::take(&mut self.things);
        let (moved, rest) = all.into_iter().partition(|(p, _)| p == path || inside(p, path).is_some());
        self.things = rest;
        moved
    }

    fn give(&mut self, moved: BTreeMap<String, Thing>, from: &str, to: &str) {
        self.things.extend(moved.into_iter().map(|(p, t)| (format!("{to}{}", &p[from.len()..]), t)));
    }

    fn apply(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::Put(path) => {
                self.free(path)?;
                self.contents.push("new".into());
                self.things.insert(path.clone(), Thing::File(self.contents.len() - 1));
            }
            Op::Write(path, text) => {
                let n = self.file(path)?;
                let old = self.contents[n].get(text.len()..).unwrap_or("").to_owned();
                self.contents[n] = text.clone() + &old;
            }
            Op::Truncate(path) => {
                let n = self.file(path)?;
                self.contents[n].clear();
            }
            Op::Mkdir(path) => {
                self.free(path)?;
                self.things.insert(path.clone(), Thing::Dir);
            }
            Op::Symlink(path) => {
                self.free(path)?;
                self.contents.push("target".into());
                self.things.insert(path.clone(), Thing::Link(self.contents.len() - 1));
            }
            Op::Link(old, new) => {
                let thing = self.find(old)?.clone();
                self.parent(new)?;
                if thing == Thing::Dir {
                    return Err(Errno::PERM);
                }
                self.free(new)?;
                self.things.insert(new.clone(), thing);
            }
            Op::Unlink(path) => match self.find(path)? {
                Thing::Dir => return Err(Errno::ISDIR),
                _ => drop(self.things.remove(path)),
            },
            Op::Rmdir(path) => match self.find(path)? {
                Thing::Dir if self.empty(path) => drop(self.things.remove(path)),
                Thing::Dir => return Err(Errno::NOTEMPTY),
                _ => return Err(Errno::NOTDIR),
            },
            Op::Rename(old, new) => {
                self.parent(old)?;
                self.parent(new)?;
                let thing = self.find(old)?.clone();
                match self.find(new) {
                    Ok(Thing::Dir) if thing != Thing::Dir => return Err(Errno::ISDIR),
                    Ok(Thing::Dir) if old == new => return Ok(()),
                    Ok(Thing::Dir) if !self.empty(new) => return Err(Errno::NOTEMPTY),
                    Ok(t) if *t != Thing::Dir && thing == Thing::Dir => return Err(Errno::NOTDIR),
                    Ok(t) if *t == thing && (*t != Thing::Dir || old == new) => return Ok(()),
                    Ok(_) | Err(Errno::NOENT) => {}
                    Err(e) => return Err(e),
                }
                let moved = self.take(old);
                self.things.remove(new);
                self.give(moved, old, new);
            }
            Op::Exchange(a, b) => {
                self.parent(a)?;
                self.parent(b)?;
                self.find(a)?;
                self.find(b)?;
                let (x, y) = (self.take(a), self.take(b));
                self.give(x, a, b);
                self.give(y, b, a);
            }
            Op::Chmod(path) => drop(self.find(path)?),
            Op::Forget | Op::Reopen => {}
        }
        Ok(())
    }

    fn show(&self) -> Vec<(String, u32)> {
        let names = |thing| self.things.values().filter(|t| *t == thing).count() as u32;
        let all = self.things.iter();
        all.map(|(path, thing)| match thing {
            Thing::Dir => (format!("{path}/"), 0),
            Thing::File(n) => (format!("{path}={}", self.contents[*n]), names(thing)),
            Thing::Link(n) => (format!("{path}>{}", self.contents[*n]), names(thing)),
        })
        .collect()
    }
}

fn show(u: &Union) -> Vec<(String, u32)> {
    let tree = u.tree();
    u.show().into_iter().zip(tree.values()).map(|(line, shown)| (line, shown.nlink)).collect()
}

/// Does an operation on a union.
pub fn apply(u: &Union, op: &Op) -> Result<()> {
    match op {
        Op::Put(path) => u.put(path, "new").map(drop),
        Op::Write(path, text) => u.write(path, text),
        Op::Truncate(path) => {
            let fh = u.open(path, libc::O_WRONLY | libc::O_TRUNC)?;
            u.fs.release(fh);
            Ok(())
        }
        Op::Mkdir(path) => u.mkdir(path).map(drop),
        Op::Symlink(path) => u.symlink(path, "target").map(drop),
        Op::Link(old, new) => u.link(old, new).map(drop),
        Op::Unlink(path) => u.unlink(path),
        Op::Rmdir(path) => u.rmdir(path),
        Op::Rename(old, new) => u.rename_with(old, new, RenameFlags::empty()),
        Op::Exchange(a, b) => u.exchange(a, b),
        // A change of the owner to what it is: copies up and shows nowhere.
        Op::Chmod(path) => {
            let uid = u.stat(path)?.uid;
            u.set(path, SetAttr { uid: Some(uid), ..KEEP }).map(drop)
        }
        Op::Forget => {
            u.forget_all();
            assert_eq!(u.fs.counts(), (1, 0, 0));
            Ok(())
        }
        Op::Reopen => Ok(()),
    }
}

pub const UPPER: &str = "f d/u up\nw b\no e/o\nf e/o/new 1";
pub const LOWERS: [&str; 3] = [
    "f a one\nf d/a two\nh d/b d/a\nh e/c d/a\nl e/l a\nw d/gone",
    "f b three\nf d/gone 4\nf e/o/old 5\nf d/s/a 6\nf d/s/t/b 7\nf e/s/c 8",
    "f d/s/t/c 9\nf d/s/d 10\nh e/e d/s/d\nf e/o/older 11\nd c/c",
];

fn path() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec!["a", "b", "c", "d", "e", "o", "s", "t"]);
    // Shallow ones meet more often.
    prop::collection::vec(name, 1..=3).prop_map(|names| names.join("/"))
}

fn known() -> impl Strategy<Value = String> {
    let paths =
        ["a", "d", "e", "d/a", "d/b", "e/c", "e/l", "d/s", "d/s/t", "d/s/t/b", "e/o", "e/e", "d/s/d", "c/c"];
    prop_oneof![3 => prop::sample::select(paths.map(str::to_owned).to_vec()), 1 => path()]
}

/// Any operation.
pub fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => path().prop_map(Op::Put),
        2 => (known(), prop::sample::select(vec!["X", "YYYY"])).prop_map(|(p, t)| Op::Write(p, t.into())),
        1 => known().prop_map(Op::Truncate),
        2 => path().prop_map(Op::Mkdir),
        1 => path().prop_map(Op::Symlink),
        2 => (known(), path()).prop_map(|(a, b)| Op::Link(a, b)),
        3 => known().prop_map(Op::Unlink),
        2 => known().prop_map(Op::Rmdir),
        6 => (known(), path()).prop_map(|(a, b)| Op::Rename(a, b)),
        2 => (known(), known()).prop_map(|(a, b)| Op::Exchange(a, b)),
        1 => known().prop_map(Op::Chmod),
        1 => Just(Op::Forget),
        1 => Just(Op::Reopen),
    ]
}

/// Whether the kernel would ask for it: it refuses by itself to move a directory below itself.
pub fn askable(op: &Op) -> bool {
    match op {
        Op::Rename(a, b) | Op::Exchange(a, b) => inside(a, b).is_none() && inside(b, a).is_none(),
        _ => true,
    }
}

/// The same operations each time, unless PROPTEST_RNG_SEED and PROPTEST_CASES say otherwise.
pub fn config(cases: u32) -> ProptestConfig {
    let given = ProptestConfig::default();
    let named = std::env::var_os("PROPTEST_CASES").is_some();
    ProptestConfig {
        cases: if named { given.cases } else { cases },
        rng_seed: match given.rng_seed {
            RngSeed::Random => RngSeed::Fixed(1),
            fixed => fixed,
        },
        max_shrink_iters: 2000,
        failure_persistence: None,
        ..given
    }
}

proptest! {
    #![proptest_config(config(150))]

    #[test]
    fn random_operations_agree_with_a_map(ops in prop::collection::vec(op(), 1..40)) {
        let t = Tree::on(UPPER, &LOWERS);
        let mut model = Model::of(&[UPPER, LOWERS[0], LOWERS[1], LOWERS[2]]);
        let mut u = t.open();
        prop_assert_eq!(show(&u), model.show());
        for op in ops.iter().filter(|op| askable(op)) {
            prop_assert_eq!(apply(&u, op), model.apply(op), "{:?}", op);
            if matches!(op, Op::Reopen) {
                prop_assert_eq!(show(&u), model.show(), "before reopening");
                let numbers = u.numbers();
                u = t.open();
                prop_assert_eq!(u.numbers(), numbers, "numbers after reopening");
            }
        }
        prop_assert_eq!(show(&u), model.show());
        prop_assert_eq!(t.open().tree(), u.tree());
        prop_assert_eq!(t.left_over(), [""; 0]);
    }
}
