//! Random operations with the upper frozen now and then.

use std::path::Path;

use proptest::prelude::*;
use rustix::io::Errno;

use crate::special::Process;
use crate::{Case, Pair, case, check, common};

/// A case, and before which operations the upper is frozen.
#[derive(Debug, Clone)]
struct Frozen {
    case: Case,
    at: Vec<usize>,
}

#[test]
fn random_operations_across_freezes() {
    crate::need_unionfs!();
    let with = (case(90), prop::collection::vec(0..90_usize, 1..6))
        .prop_map(|(case, at)| Frozen { case, at })
        .prop_filter("an init layer may stand in the way", |frozen| !frozen.case.init);
    check(&with, 2, |frozen| {
        let mut done = Vec::new();
        attempt(frozen, &mut done).map_err(|e| format!("{e}\nafter\n  {}", done.join("\n  ")))
    });
}

fn attempt(frozen: &Frozen, log: &mut Vec<String>) -> Result<(), String> {
    let case = &frozen.case;
    let mut pair = Pair::new(case);
    let mut processes = (Process::default(), Process::default());
    let mut layers: Vec<(std::path::PathBuf, String)> = Vec::new();
    for (i, op) in case.ops.iter().enumerate() {
        if frozen.at.contains(&i) {
            let mut out = pair.union.freeze();
            if !out.status.success() {
                // Files are open for writing.
                processes.0.let_go();
                processes.1.let_go();
                out = pair.union.freeze();
            }
            if !out.status.success() {
                return Err(format!("freeze before operation {i}: {}", common::text(&out)));
            }
            log.push("freeze".into());
            let layer = pair.union.past_upper(layers.len(), "");
            layers.push((layer.clone(), whole(&layer)));
            pair.compare(&format!("after the freeze before operation {i}"))?;
        }
        if pair.remounts(case, op, &mut processes, log) {
            continue;
        }
        let busy = |e: &String| !layers.is_empty() && e.contains(&format!("union Err({:?})", Errno::TXTBSY));
        match pair.step(case, op, &mut processes, log) {
            Ok(()) => {}
            Err(e) if busy(&e) => {
                // Read by the kernel since before the freeze: the plain directory has done it.
                return Ok(());
            }
            Err(e) => return Err(format!("operation {i}, {op:?}: {e}")),
        }
    }
    pair.compare("at the end")?;
    drop(processes);
    pair.union.remount();
    pair.compare("after a remount")?;
    for (layer, before) in &layers {
        if whole(layer) != *before {
            return Err(format!("{} has changed", layer.display()));
        }
    }
    pair.union.unmount();
    Ok(())
}

/// All of a layer, the marks too.
fn whole(layer: &Path) -> String {
    let script = "cd \"$0\" && find . -printf '%p %y %m %U:%G %s %n %t %l\\n' | sort && find . -type f -print0 | \
                  sort -z | xargs -0r sha256sum && getfattr -dhR -m- . 2>/dev/null | cat";
    common::run("sh", &["-c".as_ref(), script.as_ref(), layer.as_os_str()])
}
