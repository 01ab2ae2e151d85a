//! Directories that change while they are read, and positions in them.

use crate::common::files::put;
use crate::{agree, need_unionfs, python};

#[test]
fn what_stays_is_listed_once_while_a_directory_changes() {
    need_unionfs!();
    agree(
        |root| {
            for i in 0..3000 {
                put(root.join(format!("d/{}{i:04}", if i % 3 == 0 { "stay" } else { "go" })), "");
            }
        },
        |root| {
            python(
                root,
                r#"
stay = {f'stay{i:04}' for i in range(0, 3000, 3)}
for attempt_number in range(2):
    seen, it = [], os.scandir('d')
    for i, entry in enumerate(it):
        seen.append(entry.name)
        # Names come and go, before and behind where the reader is.
        if i % 10 == 0:
            open(f'd/new{attempt_number}-{i}', 'w').close()
            for gone in (f'd/go{i:04}', f'd/go{2999 - i:04}', f'd/new{attempt_number}-{i - 50}'):
                attempt(os.unlink, gone)
            attempt(os.rename, f'd/go{i + 1:04}', f'd/moved{attempt_number}-{i}')
    here = [n for n in seen if n in stay]
    print(len(here), set(here) == stay, len(seen) == len(set(seen)))
print(sorted(os.listdir('d')) == sorted(set(os.listdir('d'))), len([n for n in os.listdir('d') if n in stay]))
"#,
            )
        },
    );
}

#[test]
fn rm_while_reading_leaves_nothing() {
    need_unionfs!();
    agree(
        |root| {
            for i in 0..2000 {
                put(root.join(format!("d/f{i:04}")), "");
            }
        },
        |root| {
            python(
                root,
                r#"
# As rm -r does: unlink while the listing goes on, until it is at its end.
count = 0
for entry in os.scandir('d'):
    os.unlink(entry.path); count += 1
print(count, os.listdir('d')); os.rmdir('d'); print(attempt(os.stat, 'd'))
"#,
            )
        },
    );
}

#[test]
fn who_reads_on_when_the_cached_listing_is_gone_misses_nothing() {
    need_unionfs!();
    agree(
        |root| {
            for i in 0..2000 {
                put(root.join(format!("d/f{i:04}")), "");
            }
            for i in 0..100 {
                put(root.join(format!("short/f{i:04}")), "");
            }
        },
        |root| {
            python(
                root,
                r#"
import struct
def some(fd):
    # A small buffer, as that of musl.
    buffer = ctypes.create_string_buffer(2048)
    length = libc.getdents64(fd, buffer, len(buffer))
    at = 0
    while at < length:
        size, = struct.unpack_from('H', buffer, at + 16)
        yield buffer.raw[at + 19:at + size].split(b'\0')[0].decode()
        at += size
for d in ('d', 'short'):
    # Now the kernel has a listing, from which the next reader is served, until memory is short.
    there = sorted(os.listdir(d))
    fd = os.open(d, os.O_RDONLY | os.O_DIRECTORY)
    seen = list(some(fd))
    gone = [name for name in seen if name not in ('.', '..')][::2]
    for name in gone:
        os.unlink(f'{d}/{name}')
    open('/proc/sys/vm/drop_caches', 'w').write('1')
    while names := list(some(fd)):
        seen += names
    print(len(gone) > 10, len(seen) == len(set(seen)), sorted(set(seen) - {'.', '..'}) == there)
"#,
            )
        },
    );
}

#[test]
fn seekdir_telldir_rewinddir() {
    need_unionfs!();
    agree(
        |root| {
            for i in 0..500 {
                put(root.join(format!("d/entry{i:04}")), "");
            }
        },
        |root| {
            python(
                root,
                r#"
class Dirent(ctypes.Structure):
    _fields_ = [('ino', ctypes.c_uint64), ('off', ctypes.c_int64), ('len', ctypes.c_uint16), ('type', ctypes.c_uint8),
                ('name', ctypes.c_char * 256)]
for name, args, result in (('opendir', [ctypes.c_char_p], ctypes.c_void_p), ('readdir', [ctypes.c_void_p],
        ctypes.POINTER(Dirent)), ('telldir', [ctypes.c_void_p], ctypes.c_long), ('seekdir', [ctypes.c_void_p,
        ctypes.c_long], None), ('rewinddir', [ctypes.c_void_p], None), ('closedir', [ctypes.c_void_p], ctypes.c_int)):
    f = getattr(libc, name); f.argtypes, f.restype = args, result
def read(d):
    e = libc.readdir(d)
    return e.contents.name if e else None
def rest(d):
    return list(iter(lambda: read(d), None))
d = libc.opendir(b'd')
positions, names = [], []
while True:
    at = libc.telldir(d); name = read(d)
    if name is None:
        end = at
        break
    positions.append(at); names.append(name)
print(len(names), len(set(names)), len(set(positions)))
for i in (0, 501, 250, 3, 499, 100, 99):
    libc.seekdir(d, positions[i]); print(read(d) == names[i], rest(d) == names[i + 1:])
libc.seekdir(d, end); print(rest(d))
libc.rewinddir(d); print(rest(d) == names)
# After a change, rewinddir shows it; the rest is where it was.
open('d/new', 'w').close(); os.unlink('d/entry0123')
libc.rewinddir(d); print(set(rest(d)) ^ set(names) == {b'new', b'entry0123'})
libc.closedir(d)
# And by a second reader at the same time.
a, b = libc.opendir(b'd'), libc.opendir(b'd')
first = [read(a) for _ in range(50)]
print([read(b) for _ in range(50)] == first, rest(a) == rest(b))
"#,
            )
        },
    );
}
