//! Listing a directory of 10,000 names, spread over layers.

use criterion::{BenchmarkId, Criterion, Throughput};
use unionfs::config::Options;
use unionfs::fs::UnionFs;

use crate::layers::{Layers, at_root};

const NAMES: usize = 10_000;

/// Lists as the kernel does without attributes, and gives the number of entries.
fn plain(fs: &UnionFs, dir: u64) -> usize {
    let mut count = 0;
    fs.readdir(dir, 0, &mut |_| {
        count += 1;
        false
    })
    .unwrap();
    count
}

/// The same with attributes, as READDIRPLUS. The kernel forgets the entries afterwards.
fn with_attributes(fs: &UnionFs, dir: u64) -> usize {
    let mut seen = Vec::with_capacity(NAMES);
    let mut count = 0;
    fs.readdirplus(dir, 0, true, &mut |entry, attr| {
        count += 1;
        seen.extend(attr.is_some().then_some(entry.ino));
        false
    })
    .unwrap();
    for ino in seen {
        fs.forget(ino, 1);
    }
    count
}

pub fn all(c: &mut Criterion) {
    let mut group = c.benchmark_group("readdir of 10k names");
    group.sample_size(20).throughput(Throughput::Elements(NAMES as u64));
    for lowers in [1, 16, 200] {
        let layers = Layers::new(lowers);
        for i in 0..NAMES {
            std::fs::write(layers.lower(i % lowers).join(format!("d/name{i}")), "").unwrap();
        }
        let (fs, _top) = layers.union(&Options::default());
        let d = at_root(&fs, "d");
        // With "." and "..".
        assert_eq!((plain(&fs, d), with_attributes(&fs, d)), (NAMES + 2, NAMES + 2));
        group.bench_function(BenchmarkId::new("names", lowers), |b| b.iter(|| plain(&fs, d)));
        group.bench_function(BenchmarkId::new("names and attributes", lowers), |b| {
            b.iter(|| with_attributes(&fs, d));
        });
    }
    group.finish();
}
