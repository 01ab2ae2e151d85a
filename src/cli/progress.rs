//! How far a long command has come: a bar on a terminal, nothing else where.

use std::io::IsTerminal;
use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressStyle};

use crate::oci::Watch;

/// Shows progress on standard error.
#[derive(Debug, Default)]
pub struct Progress {
    bar: Mutex<Option<ProgressBar>>,
    /// Without a terminal, one line for each piece of work.
    lines: bool,
}

impl Progress {
    /// Quiet but on a terminal.
    pub fn bars() -> Self {
        Self::default()
    }

    /// A bar on a terminal, a line for each piece of work in a log.
    pub fn bars_or_lines() -> Self {
        Self { bar: Mutex::default(), lines: true }
    }

    /// Begins something that is counted, without an end that is known; quiet but on a terminal.
    pub fn begin_count(&self, what: &str) {
        if !std::io::stderr().is_terminal() {
            return;
        }
        let bar = ProgressBar::no_length();
        if let Ok(style) = ProgressStyle::with_template("{msg} {human_pos} entries, {per_sec}") {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        self.replace(Some(bar));
    }

    /// So many more are done.
    pub fn count(&self, entries: u64) {
        self.step(entries);
    }

    /// All of them are done.
    pub fn end_count(&self) {
        self.replace(None);
    }

    fn replace(&self, new: Option<ProgressBar>) {
        let old = match self.bar.lock() {
            Ok(mut bar) => std::mem::replace(&mut *bar, new),
            // Only the look of things is at stake.
            Err(_) => None,
        };
        if let Some(old) = old {
            old.finish_and_clear();
        }
    }
}

impl Watch for Progress {
    fn begin(&self, what: &str, bytes: Option<u64>) {
        if !std::io::stderr().is_terminal() {
            if self.lines {
                super::say(what);
            }
            return;
        }
        let template = match bytes {
            Some(_) => "{msg} {bar:24} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            None => "{msg} {bytes} {bytes_per_sec}",
        };
        let bar = bytes.map_or_else(ProgressBar::no_length, ProgressBar::new);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        self.replace(Some(bar));
    }

    fn step(&self, bytes: u64) {
        if let Ok(bar) = self.bar.lock()
            && let Some(bar) = &*bar
        {
            bar.inc(bytes);
        }
    }

    fn end(&self) {
        self.replace(None);
    }
}
