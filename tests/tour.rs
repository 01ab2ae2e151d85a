//! The tour of images in the README: its commands work, and print what it shows.
//!
//! `UNIONFS_TOUR=write` writes the block anew, with what the commands print.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A failed test is what they are for.

#[path = "common/mod.rs"]
mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use common::{temp_dir, text, unionfs};
use sha2::Digest;
use unionfs::oci::tar::{Entry, EntryKind, Writer};

const HEADING: &str = "### Layers as images\n";
const BEGIN: &str = "```console\n";

fn readme() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")
}

/// The block, and where it lies.
fn tour(text: &str) -> std::ops::Range<usize> {
    let section = text.find(HEADING).unwrap();
    let begin = section + text[section..].find(BEGIN).unwrap() + BEGIN.len();
    begin..begin + text[begin..].find("```\n").unwrap()
}

fn archive(files: &[(&str, Option<&[u8]>)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (path, content) in files {
        let (kind, mode) = match content {
            Some(content) => (EntryKind::File(content.len() as u64), 0o644),
            None => (EntryKind::Dir, 0o755),
        };
        let path = (*path).into();
        let entry =
            Entry { path, kind, mode, uid: 0, gid: 0, mtime: (1_700_000_000, 0), xattrs: Default::default() };
        writer.append(&entry, content.unwrap_or_default()).unwrap();
    }
    writer.finish().unwrap()
}

/// A small image in the form of docker save.
fn image() -> Vec<u8> {
    let layer = archive(&[
        ("etc", None),
        ("etc/motd", Some(b"welcome\n")),
        ("etc/issue", Some(b"Debian GNU/Linux 12\n")),
        ("usr/bin", None),
        ("usr/bin/tool", Some(&[b'#'; 5000])),
        ("srv", None),
    ]);
    let diff_id = format!("sha256:{}", hex::encode(sha2::Sha256::digest(&layer)));
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "created": "2026-11-01T12:00:00Z",
        "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": "2026-11-01T12:00:00Z", "created_by": "mmdebstrap"}],
    });
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": null, "Layers": ["layer.tar"]}]);
    archive(&[
        ("layer.tar", Some(&layer)),
        ("config.json", Some(config.to_string().as_bytes())),
        ("manifest.json", Some(manifest.to_string().as_bytes())),
    ])
}

/// A line without what differs from run to run: digests, numbers, widths of columns.
fn plain(line: &str) -> String {
    let mut out = String::new();
    for word in line.split_whitespace() {
        let mut word = word.to_owned();
        for part in word.clone().split(|c: char| !c.is_ascii_alphanumeric()).filter(|p| p.len() >= 12) {
            if part.chars().all(|c| c.is_ascii_hexdigit()) {
                word = word.replace(part, "H");
            }
        }
        let mut digit = false;
        for c in word.chars() {
            if !(c.is_ascii_digit() && digit) {
                out.push(if c.is_ascii_digit() { 'N' } else { c });
            }
            digit = c.is_ascii_digit();
        }
        out.push(' ');
    }
    out
}

#[test]
fn the_tour_of_the_readme_works() {
    need_mount!();
    let dir = temp_dir();
    let at = |name: &str| dir.path().join(name);
    for name in ["bin", "home", "mnt"] {
        std::fs::create_dir(at(name)).unwrap();
    }
    std::fs::write(at("home/debian.tar"), image()).unwrap();
    std::fs::write(at("home/app.py"), "print('hello')\n").unwrap();
    // The store of the test in place of root's.
    let program = unionfs().get_program().to_owned();
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = image ]; then shift; exec {program} image --store {store} \"$@\"; fi\nexec {program} \"$@\"\n",
        program = program.display(),
        store = at("store").display()
    );
    std::fs::write(at("bin/unionfs"), script).unwrap();
    std::fs::set_permissions(at("bin/unionfs"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", at("bin").display(), std::env::var("PATH").unwrap());
    let names = [(at("mnt"), "/mnt/root"), (at("store"), "/var/lib/unionfs"), (at("home"), "/home/me")];
    let here = |line: &str| line.replace("/mnt/root", at("mnt").to_str().unwrap());
    let there = |text: &str| {
        names.iter().fold(text.to_owned(), |text, (path, name)| text.replace(path.to_str().unwrap(), name))
    };

    let readme_text = std::fs::read_to_string(readme()).unwrap();
    let range = tour(&readme_text);
    let shown = &readme_text[range.clone()];
    let mut printed = String::new();
    for command in shown.lines().filter_map(|l| l.strip_prefix("$ ")) {
        let out = Command::new("sh")
            .args(["-ec", &format!("exec 2>&1; {}", here(command))])
            .current_dir(at("home"))
            .env("PATH", &path)
            .output()
            .unwrap();
        if !out.status.success() {
            let _ = rustix::mount::unmount(at("mnt"), rustix::mount::UnmountFlags::DETACH);
            panic!("{command}: {}", text(&out));
        }
        printed += &format!("$ {command}\n{}", there(&text(&out)));
    }
    assert!(!common::is_mounted(&at("mnt")), "the tour leaves a mount");
    if std::env::var_os("UNIONFS_TOUR").is_some_and(|v| v == "write") {
        let mut new = readme_text.clone();
        new.replace_range(range, &printed);
        std::fs::write(readme(), new).unwrap();
        return;
    }
    let lines = |text: &str| text.lines().map(plain).collect::<Vec<_>>().join("\n");
    assert_eq!(lines(shown), lines(&printed), "shown in the README, and printed:\n{printed}");
}
