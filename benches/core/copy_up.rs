//! Copying up, each time into a new upper.

use criterion::{BatchSize, BenchmarkId, Criterion};
use unionfs::config::Options;
use unionfs::fs::{Caller, SetAttr, SetTime};

use crate::layers::{Layers, at_root};

const CHMOD: SetAttr = SetAttr {
    mode: Some(0o600),
    uid: None,
    gid: None,
    size: None,
    atime: SetTime::Keep,
    mtime: SetTime::Keep,
};

pub fn all(c: &mut Criterion) {
    let layers = Layers::new(4);
    let (small, large) = (vec![1; 4 << 10], vec![1; 64 << 20]);
    for (name, content) in [("empty", &Vec::new()), ("4 KiB", &small), ("64 MiB", &large)] {
        std::fs::write(layers.lower(2).join(name), content).unwrap();
    }
    let mut group = c.benchmark_group("copy-up");
    group.sample_size(10);
    for (how, volatile) in [("synced", false), ("volatile", true)] {
        let options = Options { volatile, ..Options::default() };
        for name in ["empty", "4 KiB", "64 MiB"] {
            group.bench_function(BenchmarkId::new(how, name), |b| {
                b.iter_batched(
                    || {
                        let (fs, top) = layers.union(&options);
                        let ino = at_root(&fs, name);
                        (fs, top, ino)
                    },
                    |(fs, top, ino)| {
                        fs.setattr(&Caller::daemon(), ino, &CHMOD, None).unwrap();
                        // Dropped when the clock has stopped.
                        (fs, top)
                    },
                    BatchSize::PerIteration,
                );
            });
        }
    }
    group.finish();
}
