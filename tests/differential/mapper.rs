//! A process of its own that maps files: the tests have no `unsafe`.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;

use rustix::io::Errno;

/// Maps shared, 512 KiB, and keeps no descriptor but one that does no I/O.
const PROGRAM: &str = r#"
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + 3 * [ctypes.c_int] + [ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.msync.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
LEN = 1 << 19
maps = {}
def check(result):
    if result in (-1, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), '')
    return result
def unmap(slot):
    if slot in maps:
        address, fd, _ = maps.pop(slot)
        libc.munmap(address, LEN)
        os.close(fd)
def do(verb, slot, a, b):
    if verb == 'map':
        unmap(slot)
        writable = a == '1'
        fd = os.open(b, (os.O_RDWR if writable else os.O_RDONLY) | os.O_NONBLOCK)
        try:
            address = check(libc.mmap(None, LEN, 3 if writable else 1, 1, fd, 0))
            maps[slot] = address, os.open(f'/proc/self/fd/{fd}', os.O_PATH), writable
        finally:
            os.close(fd)
        return ''
    if verb == 'unmap':
        unmap(slot)
        return ''
    if verb == 'free':
        for slot in list(maps):
            unmap(slot)
        return ''
    if slot not in maps:
        return ''
    address, fd, writable = maps[slot]
    at = int(a)
    # Beyond the end is SIGBUS.
    n = max(0, min(int(b), os.fstat(fd).st_size - at, LEN - at))
    if verb == 'read':
        return ctypes.string_at(address + at, n).hex()
    if writable and n:
        ctypes.memmove(address + at, bytes(((i * 31 + at * 977) >> 3) & 255 for i in range(n)), n)
        check(libc.msync(address, LEN, 4))
    return ''
for line in sys.stdin:
    try:
        answer = 'ok ' + do(*line.rstrip('\n').split(' ', 3))
    except OSError as e:
        answer = f'error {e.errno}'
    print(answer, flush=True)
"#;

/// Processes that have nothing mapped, for the next one: they are slow to start.
static IDLE: Mutex<Vec<Process>> = Mutex::new(Vec::new());

struct Process {
    child: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.requests = None;
        let _ = self.child.wait();
    }
}

/// What a process has mapped; unmapped when dropped.
pub struct Mapper(Option<Process>);

impl Mapper {
    /// Has nothing mapped.
    pub fn new() -> Self {
        let idle = IDLE.lock().unwrap().pop();
        Self(Some(idle.unwrap_or_else(|| {
            let mut child = Command::new("python3")
                .args(["-c", PROGRAM])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let (requests, answers) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
            Process { child, requests, answers }
        })))
    }

    fn ask(&mut self, request: &str) -> Result<Vec<u8>, Errno> {
        let process = self.0.as_mut().unwrap();
        writeln!(process.requests.as_ref().unwrap(), "{request}").unwrap();
        let mut answer = String::new();
        process.answers.read_line(&mut answer).unwrap();
        match answer.trim_end_matches('\n').split_once(' ') {
            Some(("ok", hex)) => Ok((0..hex.len())
                .step_by(2)
                .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap())
                .collect()),
            Some((_, errno)) => Err(Errno::from_raw_os_error(errno.parse().unwrap())),
            None => panic!("the process that maps has ended: {answer:?}"),
        }
    }

    /// Maps a file in a slot.
    pub fn map(&mut self, slot: usize, path: &Path, writable: bool) -> Result<Vec<u8>, Errno> {
        self.ask(&format!("map {slot} {} {}", u8::from(writable), path.to_str().unwrap()))
    }

    /// Reads as far as the file goes; nothing from an empty slot.
    pub fn read(&mut self, slot: usize, at: u64, len: usize) -> Result<Vec<u8>, Errno> {
        self.ask(&format!("read {slot} {at} {len}"))
    }

    /// Writes as far as the file goes, if the mapping is writable, and waits until it is done.
    pub fn write(&mut self, slot: usize, at: u64, len: usize) -> Result<Vec<u8>, Errno> {
        self.ask(&format!("write {slot} {at} {len}"))
    }

    /// Empties a slot.
    pub fn unmap(&mut self, slot: usize) -> Result<Vec<u8>, Errno> {
        self.ask(&format!("unmap {slot} 0 0"))
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        let free = !std::thread::panicking() && self.ask("free 0 0 0").is_ok();
        if let Some(process) = self.0.take().filter(|_| free) {
            IDLE.lock().unwrap().push(process);
        }
    }
}
