//! Lookups through 1, 16 and 200 layers.

use std::ffi::OsStr;
use std::hint::black_box;

use criterion::{BenchmarkId, Criterion};
use rustix::fs::{CWD, FileType, Mode};
use unionfs::config::Options;

use crate::layers::{Layers, at_root};

pub fn all(c: &mut Criterion) {
    let mut group = c.benchmark_group("lookup");
    for lowers in [1, 16, 200] {
        let layers = Layers::new(lowers);
        let last = layers.lower(lowers - 1).join("d");
        std::fs::write(layers.lower(0).join("d/top"), "x").unwrap();
        std::fs::write(last.join("bottom"), "x").unwrap();
        std::fs::write(last.join("removed"), "x").unwrap();
        for i in 0..lowers {
            std::fs::create_dir(layers.lower(i).join("d/merged")).unwrap();
        }
        if lowers > 1 {
            let whiteout = layers.lower(0).join("d/removed");
            rustix::fs::mknodat(CWD, whiteout, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        } else {
            std::fs::remove_file(last.join("removed")).unwrap();
        }
        let (fs, _top) = layers.union(&Options::default());
        let d = at_root(&fs, "d");
        let mut bench = |what: &str, name: &str| {
            let name = OsStr::new(name);
            group.bench_function(BenchmarkId::new(what, lowers), |b| {
                b.iter(|| {
                    if let Ok(attr) = fs.lookup(d, black_box(name)) {
                        fs.forget(attr.ino, 1);
                    }
                });
            });
        };
        // Nothing holds these objects: each lookup makes a node, each forget drops it.
        bench("hit in the topmost lower", "top");
        bench("hit in the last lower", "bottom");
        bench("hit merged directory", "merged");
        bench("miss", "nowhere");
        bench("negative by whiteout", "removed");
        let held = fs.lookup(d, OsStr::new("bottom")).unwrap();
        bench("hit known object", "bottom");
        fs.forget(held.ino, 1);
    }
    group.finish();
}
