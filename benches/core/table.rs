//! The node table under several threads.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use rustix::fs::FileType;
use unionfs::node::{Node, State, Table};

/// Nodes in the table while others come and go.
const STANDING: u64 = 100_000;

fn insert(table: &Arc<Table>, ino: u64) -> Arc<Node> {
    let (node, _) = table.admit(ino, FileType::RegularFile, 1, State::default);
    table.count(&node);
    node
}

/// The time in which each of `threads` threads does `work` so many times; it gets the number of the
/// thread and of the time.
fn in_parallel(threads: u64, times: u64, work: impl Fn(u64, u64) + Sync) -> Duration {
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let work = &work;
            scope.spawn(move || (0..times).for_each(|i| work(thread, i)));
        }
    });
    begin.elapsed()
}

pub fn all(c: &mut Criterion) {
    let table = Arc::new(Table::default());
    for ino in 2..STANDING + 2 {
        insert(&table, ino);
    }
    let mut group = c.benchmark_group("table");
    for threads in [1, 2, 4] {
        group.throughput(Throughput::Elements(threads));
        group.bench_function(BenchmarkId::new("insert and forget", threads), |b| {
            b.iter_custom(|times| {
                in_parallel(threads, times, |thread, i| {
                    let ino = STANDING + 2 + (thread << 40) + i;
                    drop(insert(&table, ino));
                    table.forget(ino, 1);
                })
            });
        });
        group.bench_function(BenchmarkId::new("get", threads), |b| {
            b.iter_custom(|times| {
                in_parallel(threads, times, |thread, i| {
                    // A stride that visits all, elsewhere in each thread.
                    let ino = 2 + (i * 7919 + thread * 50_021) % STANDING;
                    black_box(table.get(ino));
                })
            });
        });
        group.bench_function(BenchmarkId::new("count and forget one", threads), |b| {
            let node = table.get(2).unwrap();
            b.iter_custom(|times| {
                in_parallel(threads, times, |_, _| {
                    table.count(&node);
                    table.forget(2, 1);
                })
            });
        });
    }
    group.finish();
}
