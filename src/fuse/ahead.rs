//! What is read ahead, by a thread of its own: nobody waits for it.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};

use crate::fs::UnionFs;

/// So many directories may wait. When there are more, the device has enough to do.
const WAITING: usize = 8;
/// There is no deep recursion in it.
const STACK: usize = 256 << 10;

/// Files of a directory: all, or those behind one.
type Job = (u64, Option<u64>);

/// Reads files ahead. The thread begins with the first.
#[derive(Debug, Default)]
pub struct Ahead(OnceLock<Option<SyncSender<Job>>>);

impl Ahead {
    /// Asks for the small files of a directory to be brought into memory: those that are listed behind the file
    /// `after`, if that is given.
    pub fn read(&self, fs: &Arc<UnionFs>, directory: u64, after: Option<u64>) {
        let sender = self.0.get_or_init(|| {
            let (sender, jobs) = sync_channel(WAITING);
            let fs = Arc::clone(fs);
            let thread = std::thread::Builder::new().name("read-ahead".into()).stack_size(STACK);
            match thread.spawn(move || run(&fs, &jobs)) {
                Ok(_) => Some(sender),
                Err(e) => {
                    tracing::debug!("nothing is read ahead: {e}");
                    None
                }
            }
        });
        if let Some(sender) = sender {
            // Who finds too many before him waits for his files himself.
            let _ = sender.try_send((directory, after));
        }
    }
}

fn run(fs: &UnionFs, jobs: &Receiver<Job>) {
    while let Ok((directory, after)) = jobs.recv() {
        // Whoever needs the files is told what is wrong with them.
        let _ = fs.read_ahead(directory, after);
    }
}
