//! `unionfs demo`: a union filesystem at work, for someone who has never seen one. The mount is made by
//! the same commands that a user would type.

mod sample;
mod view;

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use parking_lot::Mutex;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use self::view::{Line, Special};
use crate::error::MountError;
use crate::format::mountinfo;
use crate::fuse::{mounts, session};

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const LAYER: Style = AnsiColor::Cyan.on_default();
const CALL: Style = AnsiColor::Green.on_default();

/// The layers, topmost first.
const LAYERS: [&str; 5] = ["upper", "init", "image2", "image1", "base"];
/// Where the column behind the names starts.
const COLUMN: usize = 22;

/// How long a signal waits for a step that is under way. A step takes milliseconds, unless the mount
/// hangs.
const PATIENCE: Duration = Duration::from_secs(3);

/// Runs the demonstration.
///
/// # Errors
/// What is missing, or the step that failed. Nothing is left mounted or in the temporary directory.
pub fn run() -> Result<(), MountError> {
    session::check_device()?;
    let failed = |e: io::Error| MountError::System(format!("the demo has failed: {e}"));
    let scene = Arc::new(Scene::default());
    // Before there is anything to clean up.
    clean_up_on_signal(Arc::clone(&scene)).map_err(failed)?;
    let dir = scene.set().map_err(failed)?;
    let mut story = Story { out: Box::new(anstream::stdout()), scene: Arc::clone(&scene), dir, step: 0 };
    let told = story.tell();
    let cleaned = scene.clean_up(&mut scene.over.lock());
    told.map_err(failed)?;
    cleaned.map_err(failed)?;
    story.farewell().map_err(failed)
}

/// The temporary directory, and the mount in it while there is one.
#[derive(Debug, Default)]
struct Scene {
    dir: OnceLock<PathBuf>,
    /// Set once all is cleaned up. Held while something is done that would have to be cleaned up.
    over: Mutex<bool>,
}

impl Scene {
    /// Makes the temporary directory.
    fn set(&self) -> io::Result<PathBuf> {
        self.act(|| {
            let dir = tempfile::Builder::new().prefix("unionfs-demo-").tempdir()?;
            // The mount table knows the path without symlinks.
            let path = dir.path().canonicalize()?;
            let _ = dir.keep();
            Ok(self.dir.get_or_init(|| path).clone())
        })
    }

    /// Does something that leaves traces, unless all is over.
    fn act<T>(&self, what: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let over = self.over.lock();
        if *over { Err(io::ErrorKind::Interrupted.into()) } else { what() }
    }

    /// Unmounts what is mounted and removes the directory; once.
    fn clean_up(&self, over: &mut bool) -> io::Result<()> {
        if std::mem::replace(over, true) {
            return Ok(());
        }
        let Some(dir) = self.dir.get() else { return Ok(()) };
        let root = dir.join("root");
        if is_mounted(&root)? {
            session::unmount(&root, true)?;
        }
        fs::remove_dir_all(dir)
    }
}

fn is_mounted(root: &Path) -> io::Result<bool> {
    Ok(mounts::top_at(root)?.is_some_and(|entry| mountinfo::is_unionfs(&entry)))
}

fn clean_up_on_signal(scene: Arc<Scene>) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        let Some(signal) = signals.forever().next() else { return };
        // Kept until the exit: nothing may be done after it.
        let mut guard = scene.over.try_lock_for(PATIENCE);
        let cleaned = match &mut guard {
            Some(over) => scene.clean_up(over),
            None => scene.clean_up(&mut false),
        };
        if let Err(e) = cleaned {
            let _ = writeln!(io::stderr(), "unionfs: the demo could not clean up: {e}");
        }
        // As a shell tells of a death by signal.
        std::process::exit(128 + signal);
    })?;
    Ok(())
}

/// Tells what happens while it happens.
struct Story {
    out: Box<dyn Write>,
    scene: Arc<Scene>,
    dir: PathBuf,
    step: usize,
}

impl Story {
    fn tell(&mut self) -> io::Result<()> {
        self.say(
            "A union filesystem shows several directories, its layers, as one tree. The layers below are never\n\
             changed: what is changed, added or deleted lands in the layer on top.",
        )?;
        self.layers()?;
        let lowers = ["base", "image1", "image2"].map(|name| (name, self.dir.join(name)));
        let before: Vec<_> =
            lowers.iter().map(|(_, path)| view::snapshot(path)).collect::<io::Result<_>>()?;
        self.mount()?;
        self.step("The merged tree, and the layer that each entry comes from")?;
        self.merged()?;
        self.say(
            "The old tool is gone, the documentation is that of the application alone, and nobody had to\n\
             copy anything.",
        )?;
        self.changes()?;
        self.landed()?;
        for ((name, path), before) in lowers.iter().zip(before) {
            if view::snapshot(path)? != before {
                return Err(io::Error::other(format!("the lower layer {name} has changed")));
            }
        }
        self.say("base, image1 and image2 are byte for byte what they were.")?;
        self.step("The merged tree now")?;
        self.merged()?;
        self.step("Unmount it")?;
        self.call("unionfs umount root", |story| story.unionfs(&["umount", "root"]))?;
        if is_mounted(&self.dir.join("root"))? {
            return Err(io::Error::other("the mount is still there"));
        }
        self.say("The layers stay as they are; mounted again, they give the same tree.")
    }

    fn layers(&mut self) -> io::Result<()> {
        self.step("The layers, from the bottom up")?;
        self.scene.act(|| sample::build(&self.dir))?;
        for (name, what) in sample::LOWERS {
            self.layer(name, what)?;
        }
        self.layer("init", "files of this one container; changed in place")?;
        self.layer("upper", "takes everything new; still empty")
    }

    fn mount(&mut self) -> io::Result<()> {
        self.step("Mount them: lower layers topmost first, then the upper, then the place")?;
        self.call("unionfs mount --init init image2:image1:base upper root", |story| {
            story.unionfs(&["mount", "--init", "init", "image2:image1:base", "upper", "root"])
        })?;
        if is_mounted(&self.dir.join("root"))? {
            Ok(())
        } else {
            Err(io::Error::other("the mount did not appear"))
        }
    }

    fn changes(&mut self) -> io::Result<()> {
        self.step("Use it like any directory")?;
        self.note("edit a file of base")?;
        self.call("echo 'Have fun.' >> root/etc/motd", |s| append(&s.dir, "etc/motd", "Have fun.\n"))?;
        self.note("add to a file of the container, and replace another one as editors do")?;
        self.call("echo '192.0.2.7 db' >> root/etc/hosts", |s| {
            append(&s.dir, "etc/hosts", "192.0.2.7 db\n")
        })?;
        self.call("sed -i s/192.0.2.1/192.0.2.2/ root/etc/resolv.conf", |s| {
            let etc = s.dir.join("root/etc");
            fs::write(etc.join("sedTmp"), "nameserver 192.0.2.2\n")?;
            fs::rename(etc.join("sedTmp"), etc.join("resolv.conf"))
        })?;
        self.note("delete a file of base, rename one of image2")?;
        self.call("rm root/usr/bin/greet", |s| fs::remove_file(s.dir.join("root/usr/bin/greet")))?;
        self.call("mv root/srv/app/settings root/srv/app/settings.old", |s| {
            let app = s.dir.join("root/srv/app");
            fs::rename(app.join("settings"), app.join("settings.old"))
        })?;
        self.note("make something new")?;
        self.call("mkdir root/home", |s| fs::create_dir(s.dir.join("root/home")))?;
        self.call("echo 'Buy milk.' > root/home/notes", |s| {
            fs::write(s.dir.join("root/home/notes"), "Buy milk.\n")
        })
    }

    fn landed(&mut self) -> io::Result<()> {
        self.step("What landed where")?;
        self.layer("upper", "what was new, changed or deleted")?;
        self.layer("init", "changes to the container's own files")
    }

    fn farewell(&mut self) -> io::Result<()> {
        self.say("Unmounted and cleaned up. Now your own: unionfs mount --help")
    }

    /// Shows what lies in one layer.
    fn layer(&mut self, name: &str, what: &str) -> io::Result<()> {
        writeln!(self.out, "\n   {LAYER}{name}{LAYER:#}: {what}")?;
        let root = self.dir.join(name);
        let lines = view::walk(&root)?;
        if lines.is_empty() {
            writeln!(self.out, "     {DIM}(nothing){DIM:#}")?;
        }
        for line in lines {
            let path = root.join(&line.path);
            let remark = match view::special(&path)? {
                Some(Special::Whiteout) => "whiteout: deletes the name from the layers below".into(),
                Some(Special::Opaque) => "opaque: hides what the layers below have here".into(),
                None => view::excerpt(&path),
            };
            self.row(&line, &remark, DIM)?;
        }
        Ok(())
    }

    /// Shows the merged tree with the layers that its entries come from.
    fn merged(&mut self) -> io::Result<()> {
        writeln!(self.out)?;
        for line in view::walk(&self.dir.join("root"))? {
            let sources = view::sources(&self.dir, &LAYERS, &line)?;
            if sources.is_empty() {
                let path = line.path.display();
                return Err(io::Error::other(format!("{path} is in the merged tree but in no layer")));
            }
            self.row(&line, &sources.join(" + "), LAYER)?;
        }
        Ok(())
    }

    fn row(&mut self, line: &Line, remark: &str, style: Style) -> io::Result<()> {
        if remark.is_empty() {
            return writeln!(self.out, "     {}", line.label());
        }
        writeln!(self.out, "     {:COLUMN$} {style}{remark}{style:#}", line.label())
    }

    fn step(&mut self, title: &str) -> io::Result<()> {
        self.step += 1;
        writeln!(self.out, "\n{BOLD}{}. {title}{BOLD:#}", self.step)
    }

    fn say(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "\n{text}")
    }

    fn note(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "\n   {DIM}# {text}{DIM:#}")
    }

    /// Shows a command and does what it says.
    fn call(&mut self, command: &str, act: impl FnOnce(&Self) -> io::Result<()>) -> io::Result<()> {
        writeln!(self.out, "   {CALL}$ {command}{CALL:#}")?;
        self.out.flush()?;
        self.scene.act(|| act(self)).map_err(|e| io::Error::other(format!("{command}: {e}")))
    }

    /// Runs this program in the directory of the layers.
    fn unionfs(&self, args: &[&str]) -> io::Result<()> {
        let output = Command::new(std::env::current_exe()?)
            .args(args)
            .current_dir(&self.dir)
            // Ctrl-C in a terminal is for this process alone, which lets the mount be made first.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output()?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim();
        Err(io::Error::other(said.strip_prefix("unionfs: ").unwrap_or(said).to_owned()))
    }
}

fn append(dir: &Path, path: &str, text: &str) -> io::Result<()> {
    OpenOptions::new().append(true).open(dir.join("root").join(path))?.write_all(text.as_bytes())
}
