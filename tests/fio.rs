//! fio writes and verifies through a mount: sequential, random, by mmap, with several jobs at once, on
//! files that begin in a lower and on files that begin in the upper.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::process::Command;

use common::Union;
use common::files::put;
use common::tree;

/// The size of each job's file in MiB.
const MIB: usize = 8;

fn fio(u: &Union, name: &str, args: &[&str]) {
    let out = Command::new("timeout")
        .args(["100", "fio", "--output-format=terse", "--group_reporting", "--fallocate=none"])
        .args(["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--randseed=7"])
        .arg(format!("--name={name}"))
        .arg(format!("--directory={}", u.at("d").display()))
        .arg("--filename_format=$jobnum")
        .arg(format!("--size={MIB}m"))
        .args(args)
        .current_dir(u.dir())
        .output()
        .unwrap();
    assert!(out.status.success(), "{name}: {}", common::text(&out));
}

/// Runs fio with these options on files from each layer, with and without I/O through the kernel.
fn verify(name: &str, args: &[&str]) {
    need_mount!();
    if Command::new("fio").arg("--version").output().is_err() {
        return common::skip("fio is not installed");
    }
    for passthrough in ["on", "off"] {
        let u = Union::new(2).option(&format!("passthrough={passthrough}"));
        // Jobs 0 and 1 begin in a lower, 2 in the upper, 3 with no file.
        for (job, path) in [u.lower(0, "d/0"), u.lower(1, "d/1"), u.upper("d/2")].into_iter().enumerate() {
            put(path, vec![job as u8; MIB << 20]);
        }
        let before = [tree::fingerprint(&u.lower(0, "")), tree::fingerprint(&u.lower(1, ""))];
        let u = u.mounted();
        fio(&u, &format!("{name}-passthrough-{passthrough}"), args);
        let after = [tree::fingerprint(&u.lower(0, "")), tree::fingerprint(&u.lower(1, ""))];
        assert!(before == after, "{name}: a lower has changed");
    }
}

#[test]
fn sequential() {
    verify("sequential", &["--rw=write", "--bs=128k", "--numjobs=4"]);
}

#[test]
fn random() {
    verify("random", &["--rw=randwrite", "--bs=4k", "--numjobs=4"]);
}

#[test]
fn random_mixed_with_odd_blocks() {
    verify(
        "mixed",
        &["--rw=randrw", "--bsrange=512-64k", "--bs_unaligned=1", "--numjobs=4", "--verify_backlog=64"],
    );
}

#[test]
fn by_mmap() {
    verify("mmap", &["--ioengine=mmap", "--rw=randwrite", "--bs=4k", "--numjobs=4"]);
}

#[test]
fn with_syncs() {
    verify("sync", &["--rw=randwrite", "--bs=16k", "--fsync=64", "--numjobs=2", "--end_fsync=1"]);
}
