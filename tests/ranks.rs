//! The modules form ranks, and each uses only modules of lower rank; `unsafe` stands in one place;
//! files stay readable in one sitting.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// The most lines of one file in `src/`.
const MAX_LINES: usize = 600;

fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    let mut stack = vec![root.clone()];
    while let Some(dir) = stack.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                stack.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                files.push((path.strip_prefix(&root).unwrap().to_owned(), text));
            }
        }
    }
    files.sort();
    files
}

/// The ranks as the table in `src/lib.rs` has them: `| 3 | [`a`], [`b`] |`. Rank 0 is the floor, whose
/// modules build on each other from left to right: they get negative ranks in that order.
fn ranks(lib: &str) -> HashMap<String, i32> {
    let mut ranks = HashMap::new();
    for line in lib.lines().filter_map(|l| l.strip_prefix("//! | ")) {
        let Some((rank, modules)) = line.split_once(" | ") else { continue };
        let Ok(rank) = rank.trim().parse::<i32>() else { continue };
        for (i, module) in (0..).zip(modules.split('`').skip(1).step_by(2)) {
            ranks.insert(module.to_owned(), if rank == 0 { i - 100 } else { rank });
        }
    }
    ranks
}

/// Source without comments, so that links in documentation do not count as use.
fn code(text: &str) -> String {
    text.lines().map(|l| l.split_once("//").map_or(l, |(code, _)| code)).collect::<Vec<_>>().join("\n")
}

/// The top-level modules that the code names by `crate::module` or `use crate::{module, ...}`.
fn used(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut word = String::new();
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    _ => {}
                }
                if depth == 0 && (c.is_alphanumeric() || c == '_') {
                    word.push(c);
                } else if depth == 0 && c == ',' {
                    found.insert(std::mem::take(&mut word));
                } else if depth == 0 && c == ':' {
                    // The rest of this path is inside the module.
                    found.insert(std::mem::take(&mut word));
                    word.push(' ');
                }
            }
            found.insert(word);
        } else {
            found.insert(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    found.into_iter().filter(|w| !w.is_empty() && !w.starts_with(' ')).collect()
}

fn module_of(file: &Path) -> String {
    let first = Path::new(file.components().next().unwrap().as_os_str());
    first.file_stem().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn modules_use_lower_ranks_only() {
    let sources = sources();
    let ranks = ranks(&sources.iter().find(|(p, _)| p == Path::new("lib.rs")).unwrap().1);
    assert!(ranks.len() >= 12, "the table of ranks in lib.rs was not understood: {ranks:?}");
    let mut wrong = Vec::new();
    for (file, text) in &sources {
        let module = module_of(file);
        if module == "lib" || module == "main" {
            continue;
        }
        let Some(rank) = ranks.get(&module) else {
            wrong.push(format!("{}: module {module} has no rank in lib.rs", file.display()));
            continue;
        };
        for other in used(&code(text)) {
            match ranks.get(&other) {
                Some(_) if other == module => {}
                Some(r) if r < rank => {}
                Some(r) => wrong.push(format!("{} (rank {rank}) uses {other} (rank {r})", file.display())),
                None => {}
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_stands_in_sys_only() {
    for (file, text) in sources() {
        if file.starts_with("sys") {
            continue;
        }
        for (n, line) in code(&text).lines().enumerate() {
            let words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            for word in words {
                assert!(word != "unsafe" && word != "unsafe_code", "{}:{}: unsafe", file.display(), n + 1);
            }
        }
    }
}

#[test]
fn each_unsafe_has_its_reason() {
    for (file, text) in sources().iter().filter(|(f, _)| f.starts_with("sys")) {
        let lines: Vec<_> = text.lines().collect();
        for (n, line) in lines.iter().enumerate() {
            let code = line.split_once("//").map_or(*line, |(code, _)| code);
            if code.contains("unsafe {") || code.contains("unsafe impl") || code.contains("unsafe fn") {
                let reason = lines[n.saturating_sub(6)..n].iter().any(|l| l.contains("SAFETY:"));
                assert!(reason, "{}:{}: unsafe without `// SAFETY:`", file.display(), n + 1);
            }
        }
    }
}

#[test]
fn files_are_short() {
    for (file, text) in sources() {
        let lines = text.lines().count();
        assert!(lines <= MAX_LINES, "{} has {lines} lines, more than {MAX_LINES}", file.display());
    }
}

#[test]
fn paths_are_found() {
    let code = "use crate::{fs::Attr, sys};\nlet x = crate::merge::y(); use crate::{a::{b, c}, d};";
    assert_eq!(used(code), ["a", "d", "fs", "merge", "sys"].map(String::from).into());
}
