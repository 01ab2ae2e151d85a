//! An experiment, not a feature: a daemon that another one can follow on a live mount (docs/adr/0002-takeover.md).
//!
//! It is started by `tools/takeover`, which has mounted, holds the descriptor of /dev/fuse and gives it to each daemon in
//! turn, together with a file in memory for the journal and a socket for descriptors of removed files. The journal is made
//! of what requests and answers say, so the core knows nothing of it.
//!
//!     takeover DEVICE JOURNAL SOCKET MEMORY (first|next) (device|clones|ring|shared) LOWERS UPPER WORK MNT [INO:FD...]
//!
//! Ways: `device` reads one descriptor, which the holder has too; `clones` reads clones of it that nobody else has; `ring`
//! is io_uring with buffers of the process; `shared` is io_uring with buffers in MEMORY, at addresses that are always the
//! same, so that a successor finds the requests which were not answered, and answers them.
#![allow(unsafe_code)] // Descriptors come by number; buffers for io_uring lie where the predecessor had them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // It may end whenever it likes: that is the experiment.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{IoSlice, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, RwLock};
use std::thread;
use std::time::Instant;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::{Deserialize, Serialize};
use unionfs::config::{LayerPaths, Options};
use unionfs::fs::gate::Gate;
use unionfs::fs::snapshot::{FileRecord, Kept, NodeRecord, Snapshot, flags_of_request};
use unionfs::fs::{Backing, UnionFs};
use unionfs::fuse::adapter::Adapter;
use unionfs::fuse::handshake::{MAX_WRITE, REQUEST_ROOM, Wanted, shake};
use unionfs::fuse::message::{Outcome, Request};
use unionfs::fuse::wire::{self, Dirent, EntryOut, OpenOut, OutHeader, fopen};
use unionfs::layer::claim;
use unionfs::sys::fuse::{BackingFile, Device};
use unionfs::sys::ring::Ring;
use zerocopy::{FromBytes, IntoBytes};

/// `FUSE_NOTIFY_RESEND`
const NOTIFY_RESEND: i32 = 7;
const WORKERS: usize = 4;

/// What the kernel was told, or has told.
#[derive(Debug, Serialize, Deserialize)]
enum Event {
    Entry(u64, Vec<u8>, u64),
    Forget(u64, u64),
    Gone(u64, Vec<u8>),
    Moved(u64, Vec<u8>, u64, Vec<u8>, bool),
    Nameless(NodeRecord),
    Open(FileRecord),
    Close(u64),
    Whole(Snapshot),
}

/// The sum of the events.
#[derive(Debug, Default)]
struct Known {
    nodes: HashMap<u64, NodeRecord>,
    names: HashMap<(u64, Vec<u8>), u64>,
    files: HashMap<u64, FileRecord>,
}

impl Known {
    fn lose(&mut self, parent: u64, name: &[u8]) -> Option<u64> {
        let ino = self.names.remove(&(parent, name.to_vec()))?;
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.places.retain(|(p, n)| *p != parent || n != name);
        }
        Some(ino)
    }

    fn gain(&mut self, parent: u64, name: &[u8], ino: u64) {
        if self.names.get(&(parent, name.to_vec())) == Some(&ino) {
            return;
        }
        self.lose(parent, name);
        self.names.insert((parent, name.to_vec()), ino);
        self.nodes
            .entry(ino)
            .or_insert_with(|| NodeRecord { ino, ..NodeRecord::default() })
            .places
            .push((parent, name.to_vec()));
    }

    /// Gives the number of a node without a name that is forgotten by it.
    fn apply(&mut self, event: Event) -> Option<u64> {
        match event {
            Event::Entry(parent, name, ino) => {
                self.gain(parent, &name, ino);
                self.nodes.get_mut(&ino).unwrap().lookups += 1;
            }
            Event::Forget(ino, count) => {
                let node = self.nodes.get_mut(&ino)?;
                node.lookups = node.lookups.saturating_sub(count);
                if node.lookups == 0 {
                    let places = self.nodes.remove(&ino).unwrap().places;
                    let nameless = places.is_empty();
                    for place in places {
                        self.names.remove(&place);
                    }
                    return nameless.then_some(ino);
                }
            }
            Event::Gone(parent, name) => drop(self.lose(parent, &name)),
            Event::Moved(parent, name, to, new, exchange) => {
                let there = self.lose(to, &new);
                let here = self.lose(parent, &name);
                if let Some(ino) = here {
                    self.gain(to, &new, ino);
                }
                if let (true, Some(ino)) = (exchange, there) {
                    self.gain(parent, &name, ino);
                }
            }
            Event::Nameless(record) => {
                if let Some(node) = self.nodes.get_mut(&record.ino) {
                    (node.layer, node.hidden) = (record.layer, record.hidden);
                }
            }
            Event::Open(file) => drop(self.files.insert(file.fh, file)),
            Event::Close(fh) => drop(self.files.remove(&fh)),
            Event::Whole(snapshot) => {
                *self = Self::default();
                for node in snapshot.nodes {
                    self.names.extend(node.places.iter().map(|place| (place.clone(), node.ino)));
                    self.nodes.insert(node.ino, node);
                }
                self.files = snapshot.files.into_iter().map(|file| (file.fh, file)).collect();
            }
        }
        None
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            nodes: self.nodes.values().cloned().collect(),
            files: self.files.values().cloned().collect(),
        }
    }
}

struct Server {
    fs: Arc<Gate>,
    adapter: Adapter,
    known: Mutex<Known>,
    journal: Mutex<File>,
    socket: OwnedFd,
    /// Held shared while a request is served and answered.
    gate: RwLock<()>,
}

impl Server {
    fn note(&self, event: Event) {
        let mut line = serde_json::to_vec(&event).unwrap();
        line.push(b'\n');
        // One write is whole or not at all, whenever we are killed.
        self.journal.lock().unwrap().write_all(&line).unwrap();
        if let Some(ino) = self.known.lock().unwrap().apply(event) {
            // The holder can let go of it.
            let mut none = SendAncillaryBuffer::new(&mut []);
            let number = ino.to_ne_bytes();
            let message = [IoSlice::new(&number), IoSlice::new(&[0])];
            rustix::net::sendmsg(&self.socket, &message, &mut none, SendFlags::empty()).unwrap();
        }
    }

    fn keep(&self, ino: u64) {
        if let Some((record, fd)) = self.fs.enter().nameless(ino) {
            self.send(ino, &fd);
            self.note(Event::Nameless(record));
        }
    }

    fn send(&self, ino: u64, fd: &OwnedFd) {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [fd.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        rustix::net::sendmsg(
            &self.socket,
            &[IoSlice::new(&ino.to_ne_bytes())],
            &mut control,
            SendFlags::empty(),
        )
        .unwrap();
    }

    /// Writes down what an answer tells the kernel, before it is given.
    fn tap(&self, request: &Request<'_>, outcome: Outcome, body: &[u8]) {
        let node = request.header.nodeid;
        let entry = |name: &OsStr| {
            let (entry, rest) = EntryOut::read_from_prefix(body).unwrap();
            if entry.nodeid != 0 && entry.nodeid != 1 && name != "." && name != ".." {
                self.note(Event::Entry(node, name.as_bytes().to_vec(), entry.nodeid));
            }
            (entry.nodeid, rest)
        };
        let open = |ino, flags, rest: &[u8]| {
            let (out, _) = OpenOut::read_from_prefix(rest).unwrap();
            let passed = out.open_flags & fopen::PASSTHROUGH != 0;
            let backing = passed.then_some(out.backing_id);
            self.note(Event::Open(FileRecord {
                fh: out.fh,
                ino,
                flags: flags_of_request(flags),
                passed,
                backing,
            }));
        };
        match (request.header.opcode, outcome) {
            (2, _) => self.note(Event::Forget(node, request.fixed::<wire::ForgetIn>().unwrap().nlookup)),
            (42, _) => {
                let mut rest = request.rest();
                while let Ok((one, more)) = wire::ForgetOne::read_from_prefix(rest) {
                    self.note(Event::Forget(one.nodeid, one.nlookup));
                    rest = more;
                }
            }
            (18, _) => self.note(Event::Close(request.fixed::<wire::ReleaseIn>().unwrap().fh)),
            (_, Outcome::Failed(_) | Outcome::Silent) => {}
            (1 | 8 | 9 | 13, _) => drop(entry(request.name().unwrap())),
            (6, _) => drop(entry(request.two_texts().unwrap().0)),
            (35, _) => {
                let (ino, rest) = entry(request.name().unwrap());
                open(ino, request.fixed::<wire::CreateIn>().unwrap().flags, rest);
            }
            (14, _) => open(node, request.fixed::<wire::OpenIn>().unwrap().flags, body),
            (44, _) => {
                let mut rest = body;
                while let Ok((entry, more)) = EntryOut::read_from_prefix(rest) {
                    let Ok((dirent, more)) = Dirent::read_from_prefix(more) else { break };
                    let length = dirent.namelen as usize;
                    if entry.nodeid != 0 {
                        self.note(Event::Entry(node, more[..length].to_vec(), entry.nodeid));
                    }
                    let whole = (size_of::<EntryOut>() + size_of::<Dirent>() + length).next_multiple_of(8);
                    rest = &rest[whole.min(rest.len())..];
                }
            }
            (10 | 11, _) => {
                let name = request.name().unwrap().as_bytes().to_vec();
                let ino = self.known.lock().unwrap().names.get(&(node, name.clone())).copied();
                self.note(Event::Gone(node, name));
                ino.into_iter().for_each(|ino| self.keep(ino));
            }
            (12 | 45, _) => {
                let (to, flags) = match request.header.opcode {
                    12 => (request.fixed::<wire::RenameIn>().unwrap().newdir, 0),
                    _ => request.fixed::<wire::Rename2In>().map(|r| (r.newdir, r.flags)).unwrap(),
                };
                let (name, new) = request.two_texts().unwrap();
                let (name, new) = (name.as_bytes().to_vec(), new.as_bytes().to_vec());
                let there = self.known.lock().unwrap().names.get(&(to, new.clone())).copied();
                self.note(Event::Moved(node, name, to, new, flags & 2 != 0));
                there.into_iter().for_each(|ino| self.keep(ino));
            }
            _ => {}
        }
    }

    fn serve_device(&self, device: &Device) {
        let (mut input, mut output) = (vec![0; REQUEST_ROOM], vec![0; MAX_WRITE]);
        loop {
            let length = match device.read(&mut input) {
                Ok(length) => length,
                Err(rustix::io::Errno::NODEV) => std::process::exit(0),
                Err(_) => continue,
            };
            let _open = self.gate.read().unwrap();
            let request = Request::parse(&input[..length]).unwrap();
            let outcome = self.adapter.serve(&request, &mut output);
            let header = outcome.header(request.header.unique);
            self.tap(&request, outcome, &output[..header.map_or(0, |(_, body)| body)]);
            if let Some((header, body)) = header {
                let _ = device.write(header.as_bytes(), &output[..body]);
            }
        }
    }

    fn serve_ring(&self, device: &Arc<Device>, queue: u16) {
        let mut ring = Ring::new(device.clone(), &[queue], MAX_WRITE).unwrap();
        ring.register().unwrap();
        let mut output = vec![0; MAX_WRITE];
        loop {
            let Ok(place) = ring.wait() else { std::process::exit(0) };
            let _open = self.gate.read().unwrap();
            let arrived = ring.arrived(place);
            let (fixed, rest) = (*arrived.fixed, arrived.payload[..arrived.length].to_vec());
            let request = Request::new(arrived.header, &fixed, &rest).unwrap();
            let outcome = self.adapter.serve(&request, &mut output);
            let silent = (OutHeader { len: 16, error: 0, unique: request.header.unique }, 0);
            let (header, body) = outcome.header(request.header.unique).unwrap_or(silent);
            self.tap(&request, outcome, &output[..body]);
            arrived.payload[..body].copy_from_slice(&output[..body]);
            arrived.header[..size_of::<OutHeader>()].copy_from_slice(header.as_bytes());
            ring.commit(place, body).unwrap();
        }
    }
}

/// Where the buffers of io_uring lie in every daemon.
const BASE: usize = 0x6000_0000_0000;
/// `struct fuse_uring_req_header`, and behind it what we note.
const HEADERS: usize = 4096;
const COMMIT_ID: usize = 264;
const PAYLOAD_SIZE: usize = 272;
/// The last request of a slot that has an answer in it.
const ANSWERED: usize = 2048;
const SLOT: usize = HEADERS + MAX_WRITE;
const SLOTS_PER_QUEUE: usize = 2;

/// One place for a request in memory that outlives us.
struct Place {
    at: *mut u8,
    segments: Box<[libc::iovec; 2]>,
}

impl Place {
    fn new(index: usize) -> Self {
        let at = (BASE + index * SLOT) as *mut u8;
        let segment = |offset: usize, len| libc::iovec {
            iov_base: (BASE + index * SLOT + offset) as *mut _,
            iov_len: len,
        };
        // The kernel wants the size of its struct.
        Self { at, segments: Box::new([segment(0, 288), segment(HEADERS, MAX_WRITE)]) }
    }

    fn word(&self, offset: usize) -> *mut u64 {
        self.at.wrapping_add(offset).cast()
    }

    fn read(&self, offset: usize) -> u64 {
        // SAFETY: inside of the mapping that `map_shared` made, on a multiple of eight.
        unsafe { self.word(offset).read_volatile() }
    }

    fn write(&self, offset: usize, value: u64) {
        // SAFETY: as for `read`.
        unsafe { self.word(offset).write_volatile(value) }
    }

    #[allow(clippy::mut_from_ref)] // It is the kernel's memory as much as ours.
    fn bytes(&self, offset: usize, len: usize) -> &mut [u8] {
        // SAFETY: inside of the mapping; one thread has this place, and the kernel writes to it only while that waits.
        unsafe { std::slice::from_raw_parts_mut(self.at.add(offset), len) }
    }
}

fn map_shared(memory: &OwnedFd, slots: usize) {
    let flags = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping where there was none, which stays until the end.
    let at = unsafe { libc::mmap(BASE as *mut _, slots * SLOT, access, flags, memory.as_raw_fd(), 0) };
    assert_eq!(at as usize, BASE);
}

type Uring = io_uring::IoUring<io_uring::squeue::Entry128, io_uring::cqueue::Entry>;

impl Server {
    fn serve_shared(&self, device: &Device, queue: u16, index: usize) {
        let place = Place::new(index);
        let mut ring: Uring =
            io_uring::IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(1).unwrap();
        let push = |ring: &mut Uring, operation: u32, id: u64| -> i32 {
            let mut command = [0_u8; 80];
            command[8..16].copy_from_slice(&id.to_ne_bytes());
            command[16..18].copy_from_slice(&queue.to_ne_bytes());
            let fd = io_uring::types::Fd(device.as_fd().as_raw_fd());
            let mut request = io_uring::opcode::UringCmd80::new(fd, operation)
                .cmd(command)
                .addr(Some(place.segments.as_ptr() as u64))
                .build();
            // SAFETY: the length of `segments`, in the place that struct io_uring_sqe has for it.
            unsafe { std::ptr::from_mut(&mut request).cast::<u8>().add(24).cast::<u32>().write(2) };
            // SAFETY: what it points to lives as long as this function, which ends with the process.
            unsafe { ring.submission().push(&request) }.unwrap();
            loop {
                match ring.submit_and_wait(1) {
                    Ok(_) => {}
                    Err(e) if e.raw_os_error() == Some(libc::EINTR) => continue,
                    Err(e) => panic!("{e}"),
                }
                if let Some(done) = ring.completion().next() {
                    return done.result();
                }
            }
        };
        let (mut output, mut noted) = (vec![0; MAX_WRITE], place.read(COMMIT_ID));
        // What the predecessor left: nothing yet; a request without an answer; an answer, given or not.
        let mut fresh = noted == 0;
        if noted != 0 && place.read(ANSWERED) == noted {
            let result = push(&mut ring, 2, noted);
            eprintln!("takeover: queue {queue}: answer {noted:#x} given again: {result}");
            fresh = result == -libc::ENOENT;
        } else if noted != 0 {
            eprintln!("takeover: queue {queue}: request {noted:#x} has no answer yet");
        }
        if fresh && push(&mut ring, 1, 0) < 0 {
            std::process::exit(0);
        }
        loop {
            noted = place.read(COMMIT_ID);
            {
                let _open = self.gate.read().unwrap();
                let length = (place.read(PAYLOAD_SIZE) & 0xffff_ffff) as usize;
                let (header, fixed) = (place.bytes(0, 128), place.bytes(128, 128).to_vec());
                let rest = place.bytes(HEADERS, length).to_vec();
                let request = Request::new(header, &fixed, &rest).unwrap();
                let outcome = self.adapter.serve(&request, &mut output);
                let silent = (OutHeader { len: 16, error: 0, unique: request.header.unique }, 0);
                let (answer, body) = outcome.header(request.header.unique).unwrap_or(silent);
                self.tap(&request, outcome, &output[..body]);
                place.bytes(HEADERS, body).copy_from_slice(&output[..body]);
                place.bytes(0, 16).copy_from_slice(answer.as_bytes());
                place.write(PAYLOAD_SIZE, body as u64);
                place.write(ANSWERED, noted);
            }
            let result = push(&mut ring, 2, noted);
            if result < 0 {
                eprintln!("takeover: queue {queue}: {result}");
                std::process::exit(0);
            }
        }
    }
}

/// Asks the mount for something on each CPU. A queue that had no place left hands out what it has kept only behind an
/// answer, not when a place comes.
fn poke(mnt: &str) {
    for cpu in 0..thread::available_parallelism().unwrap().get() {
        let name = PathBuf::from(mnt).join(format!(".poke-{}-{cpu}", std::process::id()));
        thread::spawn(move || {
            let mut only = rustix::thread::CpuSet::new();
            only.set(cpu);
            let _ = rustix::thread::sched_setaffinity(None, &only);
            let _ = name.symlink_metadata();
        });
    }
}

/// What was handed over beside the journal.
struct Handed {
    pins: HashMap<u64, OwnedFd>,
    device: Arc<Device>,
    backings: HashMap<i32, Backing>,
}

impl Kept for Handed {
    fn pin(&mut self, ino: u64) -> Option<OwnedFd> {
        self.pins.remove(&ino)
    }

    fn backing(&mut self, id: i32) -> Option<Backing> {
        let device = self.device.clone();
        Some(self.backings.entry(id).or_insert_with(|| Arc::new(BackingFile::adopt(&device, id))).clone())
    }
}

fn given(number: &str) -> OwnedFd {
    // SAFETY: the one who starts us has opened it for us alone.
    unsafe { OwnedFd::from_raw_fd(number.parse().unwrap()) }
}

fn main() {
    let begin = Instant::now();
    let args: Vec<String> = std::env::args().collect();
    let [device, journal, socket, memory, when, way, lowers, upper, work, mnt] = &args[1..11] else {
        panic!("see the comment")
    };
    unionfs::sys::process::raise_open_files();
    let device = Arc::new(Device::new(given(device)));
    let mut journal = File::from(given(journal));
    let pins = args[11..].iter().map(|pin| {
        let (ino, fd) = pin.split_once(':').unwrap();
        (ino.parse().unwrap(), given(fd))
    });
    let mut handed = Handed { pins: pins.collect(), device: device.clone(), backings: HashMap::new() };
    let layers = LayerPaths {
        lowers: lowers.split(':').map(PathBuf::from).collect(),
        upper: Some(upper.into()),
        work: Some(work.into()),
        ..LayerPaths::default()
    };
    let options = Options::default();
    let mut claim = claim::claim(&layers).expect("layers");
    let fs = Arc::new(Gate::new(UnionFs::open(claim.take_fds().unwrap(), &options).expect("union")));
    let ring = way == "ring" || way == "shared";
    if when == "first" {
        let agreed = shake(&device, Wanted { passthrough: true, ring, acl: true }).expect("handshake");
        assert_eq!(agreed.ring, ring);
    }
    let opened = begin.elapsed();
    let mut known = Known::default();
    let mut text = Vec::new();
    journal.rewind().unwrap();
    journal.read_to_end(&mut text).unwrap();
    for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        known.apply(serde_json::from_slice(line).unwrap());
    }
    let snapshot = known.snapshot();
    let pinned: Vec<(u64, OwnedFd)> =
        handed.pins.iter().map(|(i, fd)| (*i, fd.try_clone().unwrap())).collect();
    let lost = fs.enter().restore(&snapshot, &mut handed);
    let restored = begin.elapsed();
    eprintln!(
        "takeover: {} nodes, {} files, {} names; lost {:?}; opened {:.1} ms, restored {:.1} ms",
        snapshot.nodes.len(),
        snapshot.files.len(),
        known.names.len(),
        lost,
        opened.as_secs_f64() * 1e3,
        (restored - opened).as_secs_f64() * 1e3,
    );
    // A shorter journal for the next one.
    journal.set_len(0).unwrap();
    journal.rewind().unwrap();
    let server = Arc::new(Server {
        fs: fs.clone(),
        adapter: Adapter::new(fs, device.clone(), true, &options),
        known: Mutex::default(),
        journal: Mutex::new(journal),
        socket: given(socket),
        gate: RwLock::new(()),
    });
    server.note(Event::Whole(snapshot));
    // Those of this process serve from now on; the holder keeps its own.
    drop(pinned);
    if when == "next" {
        let resend = OutHeader { len: 16, error: NOTIFY_RESEND, unique: 0 };
        match device.write(resend.as_bytes(), &[]) {
            Ok(()) => {
                eprintln!("takeover: resend asked for after {:.1} ms", begin.elapsed().as_secs_f64() * 1e3)
            }
            Err(e) => eprintln!("takeover: no resend: {e}"),
        }
    }
    let handover = server.clone();
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGUSR2]).unwrap();
    thread::spawn(move || {
        signals.forever().next();
        // Nobody is served from here on: what was read and not answered is sent again.
        let _closed = handover.gate.write().unwrap();
        let id_of = |backing: &Backing| backing.downcast_ref::<BackingFile>().map(BackingFile::id);
        handover.note(Event::Whole(handover.fs.enter().snapshot(id_of)));
        std::process::exit(17);
    });
    if ring {
        let queues = thread::available_parallelism().unwrap().get();
        let memory = given(memory);
        if way == "shared" {
            map_shared(&memory, queues * SLOTS_PER_QUEUE);
        }
        for index in 0..queues * SLOTS_PER_QUEUE {
            let (server, device, queue) = (server.clone(), device.clone(), (index / SLOTS_PER_QUEUE) as u16);
            let shared = way == "shared";
            thread::spawn(move || {
                if shared {
                    server.serve_shared(&device, queue, index)
                } else {
                    server.serve_ring(&device, queue)
                }
            });
        }
        if when == "next" {
            thread::sleep(std::time::Duration::from_millis(5));
            poke(mnt);
        }
    }
    for _ in 1..WORKERS {
        let (server, device, clone) = (server.clone(), device.clone(), way == "clones");
        thread::spawn(move || {
            let own = clone.then(|| device.another().unwrap());
            server.serve_device(own.as_ref().unwrap_or(&device));
        });
    }
    let _ = server.socket.as_raw_fd();
    server.serve_device(&device);
}
