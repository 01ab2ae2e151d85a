//! `unionfs check`: what is wrong with an upper layer on disk.

use std::ffi::OsString;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use super::diff::printed_all;
use super::layer_list::{Lowers, split_layers};
use super::layers::default_work;
use super::progress::Progress;
use crate::check::convert::{Form, convert};
use crate::check::{self, Check, Finding, Level, Repair, Report};
use crate::config::{LayerPaths, Options};
use crate::error::Outcome;

/// What was found is mended.
const REPAIRED: u8 = 1;
/// Faults are left.
const LEFT: u8 = 4;
/// The check could not be done.
const FAILED: u8 = 8;
/// The command line is wrong.
pub const USAGE: u8 = 16;

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
#[command(override_usage = "unionfs check --upper DIR [--lower LOWER[:LOWER...]]... [OPTIONS]
       unionfs check --upper DIR --convert overlay|aufs")]
#[command(
    after_help = "One line for each finding: its class, the path, and what it means; a note is harmless, and what was
mended says so. Paths of the work directory begin with WORK/. Without --lower, what depends on the
lower layers is left out.

Classes that --repair mends: leftover, half-copy, spare-whiteout (work files; the next mount removes
them as well), impure-missing, opaque-malformed, whiteout-malformed, origin-malformed, origin-dangling,
nlink-malformed, nlink-wrong, index-stale unless it is the last name of changed data, gone-stale,
gone-wrong. With --tidy also: whiteout-of-nothing, opaque-of-nothing.
Classes that are told of: redirect-dangling, redirect-malformed, metacopy-without-data (are all lower
layers named, in their order?), whiteout-unseen, wh-name (see --convert), index-mismatch, volatile,
unreadable, mixed-whiteouts, foreign-marks (see --userxattr).

Exit status, as of fsck, the sum of:
  0   clean, or notes alone
  1   faults were mended
  4   faults are left
  8   the check could not be done
  16  wrong usage

Examples:
  unionfs check --upper container/upper --lower image2:image1:base
  unionfs check --upper container/upper --lower image2:image1:base --repair
  unionfs check --upper layer --convert overlay"
)]
pub struct CheckArgs {
    /// Upper layer
    #[arg(long, value_name = "DIR")]
    upper: PathBuf,

    /// Work directory of the upper layer [default: .NAME.work beside it]
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,

    /// Lower layers below it, topmost first, as for mount; may be given again for further ones
    #[arg(long, value_name = "LOWER[:LOWER...]")]
    lower: Vec<OsString>,

    /// Init layer between the two
    #[arg(long, value_name = "DIR", requires = "lower")]
    init: Option<PathBuf>,

    /// Mend what cannot lose anything; refused while the layer is mounted
    #[arg(long, conflicts_with = "convert")]
    repair: bool,

    /// With --repair: remove whiteouts and opaque marks that hide nothing in the lower layers named, which
    /// must be those of the mount
    #[arg(long, requires = "repair", requires = "lower")]
    tidy: bool,

    /// Change all whiteouts and opaque marks of the layer to those of overlayfs (devices, attributes) or
    /// of AUFS and image layers (.wh. names); what was interrupted goes on
    #[arg(long, value_name = "overlay|aufs", value_parser = form)]
    convert: Option<Form>,

    /// Redirects and the like are in user.overlay. attributes (default: root takes trusted.overlay.)
    #[arg(long)]
    userxattr: bool,

    /// Print a JSON array of objects with class, level, path, says and mended
    #[arg(long)]
    json: bool,
}

fn form(text: &str) -> Result<Form, String> {
    match text {
        "overlay" => Ok(Form::Overlay),
        "aufs" => Ok(Form::Aufs),
        _ => Err("name overlay or aufs".into()),
    }
}

/// Checks, and gives the exit status.
pub fn run(args: &CheckArgs) -> ExitCode {
    let done = match args.convert {
        Some(to) => run_convert(args, to),
        None => run_check(args),
    };
    match done {
        Ok(status) => ExitCode::from(status),
        Err(e) => {
            super::complain(&e);
            ExitCode::from(FAILED)
        }
    }
}

fn work_of(args: &CheckArgs) -> Option<PathBuf> {
    args.work.clone().or_else(|| default_work(&args.upper))
}

fn layers_of(args: &CheckArgs) -> Outcome<LayerPaths> {
    let mut layers = LayerPaths {
        init: args.init.clone(),
        upper: Some(args.upper.clone()),
        work: work_of(args),
        ..LayerPaths::default()
    };
    for list in &args.lower {
        let Lowers { merged, data } = split_layers(list)?;
        layers.lowers.extend(merged);
        layers.data.extend(data);
    }
    Ok(layers)
}

fn run_check(args: &CheckArgs) -> Outcome<u8> {
    let layers = layers_of(args)?;
    let options = Options { userxattr: args.userxattr.then_some(true), ..Options::default() };
    let repair = match (args.repair, args.tidy) {
        (false, _) => Repair::No,
        (true, false) => Repair::Safe,
        (true, true) => Repair::Tidy,
    };
    let mut printer = Printer::new(args.json, "checking");
    let done = check::run(&Check { layers: &layers, options: &options, repair }, &mut printer);
    printer.end()?;
    if done? {
        super::say(
            "a live mount uses the layer: what it is changing may be told of, and the work directory was left out",
        );
    }
    if layers.lowers.is_empty() {
        super::say("no lower layers are named: what depends on them was not checked");
    }
    let (mended, left) = (printer.mended > 0, printer.left > 0);
    if !args.json {
        printer.sum_up();
    }
    Ok(if mended { REPAIRED } else { 0 } | if left { LEFT } else { 0 })
}

fn run_convert(args: &CheckArgs, to: Form) -> Outcome<u8> {
    let mut printer = Printer::new(false, "converting");
    let converted = convert(&args.upper, work_of(args).as_deref(), args.userxattr, to, &mut printer);
    printer.progress.end_count();
    let converted = converted?;
    let line = if args.json {
        format!("{{\"whiteouts\":{},\"opaque\":{}}}", converted.whiteouts, converted.opaque)
    } else {
        format!("{} whiteouts and {} opaque marks converted", converted.whiteouts, converted.opaque)
    };
    printed_all(writeln!(io::stdout(), "{line}"))?;
    Ok(0)
}

/// Prints findings as they come, so that there may be any number.
struct Printer {
    json: bool,
    out: BufWriter<io::Stdout>,
    /// The first failure of printing.
    failed: io::Result<()>,
    printed: u64,
    notes: u64,
    mended: u64,
    left: u64,
    entries: u64,
    progress: Progress,
}

/// A finding as JSON has it.
#[derive(Serialize)]
struct Line<'a> {
    class: &'a str,
    level: &'a str,
    path: std::borrow::Cow<'a, str>,
    /// The bytes of the path in hexadecimal, when they are not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    says: &'a str,
    mended: bool,
}

impl Printer {
    fn new(json: bool, what: &str) -> Self {
        let progress = Progress::bars();
        progress.begin_count(what);
        Self {
            json,
            out: BufWriter::new(io::stdout()),
            failed: Ok(()),
            printed: 0,
            notes: 0,
            mended: 0,
            left: 0,
            entries: 0,
            progress,
        }
    }

    fn print(&mut self, finding: &Finding) -> io::Result<()> {
        let level = match finding.class.level() {
            Level::Note => "note",
            Level::Fault => "fault",
        };
        if self.json {
            let path = finding.place.path();
            let utf8 = std::str::from_utf8(&path).is_ok();
            let line = Line {
                class: finding.class.name(),
                level,
                path: String::from_utf8_lossy(&path),
                path_hex: (!utf8).then(|| hex::encode(&path)),
                says: &finding.says,
                mended: finding.mended,
            };
            self.out.write_all(if self.printed == 0 { b"[\n  " } else { b",\n  " })?;
            serde_json::to_writer(&mut self.out, &line)?;
        } else {
            let mended = if finding.mended { " (mended)" } else { "" };
            let (class, place, says) = (finding.class.name(), &finding.place, &finding.says);
            writeln!(self.out, "{level} {class} {place}: {says}{mended}")?;
            // One by one for who watches, together for who reads later.
            if io::stdout().is_terminal() {
                self.out.flush()?;
            }
        }
        self.printed += 1;
        Ok(())
    }

    fn end(&mut self) -> Outcome<()> {
        self.progress.end_count();
        let mut result = std::mem::replace(&mut self.failed, Ok(()));
        if result.is_ok() && self.json {
            result = self.out.write_all(if self.printed == 0 { b"[]\n" } else { b"\n]\n" });
        }
        printed_all(result.and_then(|()| self.out.flush()))
    }

    fn sum_up(&self) {
        let entries = self.entries;
        let Self { left, mended, notes, .. } = self;
        super::say(&format!(
            "{entries} entries looked at: {left} faults left, {mended} findings mended, {notes} notes"
        ));
    }
}

impl Report for Printer {
    fn found(&mut self, finding: Finding) {
        match (finding.mended, finding.class.level()) {
            (true, _) => self.mended += 1,
            (false, Level::Fault) => self.left += 1,
            (false, Level::Note) => self.notes += 1,
        }
        let printed = if self.failed.is_ok() { self.print(&finding) } else { Ok(()) };
        if printed.is_err() {
            self.failed = printed;
        }
    }

    fn looked_at(&mut self, entries: u64) {
        self.entries += entries;
        self.progress.count(entries);
    }
}
