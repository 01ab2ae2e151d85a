#!/bin/bash
# Inside the tree: several processes write to one database in WAL mode, which shares memory by mmap and
# locks by fcntl; one is killed in the middle.
set -euo pipefail
transactions=$1

mkdir /srv/sqlite
cd /srv/sqlite
cat >writers.py <<'END'
import multiprocessing
import os
import signal
import sqlite3
import sys
import time

WRITERS = 4
COUNT = int(sys.argv[1])


def connect():
    db = sqlite3.connect("wal.db", timeout=60, isolation_level=None)
    db.execute("PRAGMA synchronous=NORMAL")
    return db


def write(writer):
    db = connect()
    for n in range(COUNT):
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO entry VALUES (?, ?, ?)", (writer, n, os.urandom(200)))
        db.execute("UPDATE total SET n = n + 1")
        db.execute("COMMIT")


def write_forever():
    db = connect()
    while True:
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO entry VALUES (-1, 0, zeroblob(100000))")
        db.execute("ROLLBACK")


def main():
    db = connect()
    assert db.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
    db.execute("CREATE TABLE entry (writer INTEGER, n INTEGER, data BLOB)")
    db.execute("CREATE INDEX by_writer ON entry (writer, n)")
    db.execute("CREATE TABLE total (n INTEGER)")
    db.execute("INSERT INTO total VALUES (0)")
    writers = [multiprocessing.Process(target=write, args=(w,)) for w in range(WRITERS)]
    victim = multiprocessing.Process(target=write_forever)
    for process in [*writers, victim]:
        process.start()
    time.sleep(0.5)
    os.kill(victim.pid, signal.SIGKILL)
    while any(w.is_alive() for w in writers):
        (entries, total) = db.execute("SELECT (SELECT count(*) FROM entry), n FROM total").fetchone()
        assert entries == total, (entries, total)
        time.sleep(0.01)
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0, writer.exitcode
    (total,) = db.execute("SELECT n FROM total").fetchone()
    assert total == WRITERS * COUNT, total


main()
END
python3 writers.py "$transactions"
test "$(sqlite3 wal.db 'PRAGMA integrity_check')" = ok
sqlite3 wal.db 'VACUUM; PRAGMA wal_checkpoint(TRUNCATE);'
test "$(sqlite3 wal.db 'PRAGMA integrity_check')" = ok
sqlite3 wal.db 'SELECT count(*) || " rows" FROM entry'
