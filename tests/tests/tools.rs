//! What people run on a file system: copying tools, git, databases, locks, shared mappings, appending logs, disk usage.

use std::fs;
use std::path::Path;
use std::process::Command;

use vexfs_tests::stage::{Mount, Stage};
use vexfs_tests::{process, programs, tree};

/// A bash script in the mount.
fn bash(at: &Path, script: &str) -> Command {
    let mut command = programs::tool("bash");
    command.args(["-euo", "pipefail", "-c", script]).current_dir(at);
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null").env("LC_ALL", "C");
    command
}

/// A Python program in the mount.
fn python(at: &Path, program: &str) -> Command {
    let mut command = programs::tool("python3");
    command.args(["-c", program]).current_dir(at);
    command
}

fn remount(stage: &Stage, mount: Mount) -> Mount {
    mount.unmount();
    stage.mount()
}

#[test]
fn copies_by_tar_and_rsync_keep_everything() {
    let stage = Stage::vexfs(256);
    let mount = stage.mount();
    process::ok(&mut bash(
        mount.path(),
        r#"
        mkdir -p a/d/e && cd a
        for i in $(seq 100); do head -c $((i * 531)) /dev/urandom >d/f$i; done
        ln d/f1 d/e/hard && ln -s ../f2 d/e/soft && ln -s nowhere dangling
        mkfifo d/fifo && mknod d/null c 1 3
        truncate -s 1100M d/sparse && printf island | dd of=d/sparse bs=1 seek=1050M conv=notrunc status=none
        setfattr -n user.color -v green d/f3 && setfattr -n trusted.t -v x d/e
        chown 1234:4321 d/f4 && chmod 4755 d/f5 && chmod 2775 d/e && chmod 1777 d
        touch -d '1999-12-31 23:59:59.123456789' d/f6 && touch -h -d '2038-02-01 00:00:00.5' dangling
        cd ..
        tar --xattrs --xattrs-include='*' --sparse --numeric-owner -cf - a | (mkdir t && cd t && tar --xattrs --xattrs-include='*' -xpf -)
        rsync -aHAX --sparse --numeric-ids a r/
        rsync -aHAX --sparse --numeric-ids --itemize-changes a r/ >again
        [ ! -s again ] || { cat again; exit 1; }
        cp -a --sparse=always a c
        # The copies are as sparse.
        for copy in a t/a r/a c; do [ "$(du -k $copy/d/sparse | cut -f1)" -le 64 ] || { du -k $copy/d/sparse; exit 1; }; done
        "#,
    ));
    let mount = remount(&stage, mount);
    // Not rsync's copy: some versions leave times of directories and links, on any file system. It judges that by itself.
    for copy in ["t/a", "c"] {
        // The contents are compared below, of the sparse file without its hole.
        let (a, b) = (tree::read(&mount.join("a")).unwrap(), tree::read(&mount.join(copy)).unwrap());
        assert!(a.keys().eq(b.keys()), "{copy} has other names than a");
        for (path, entry) in &a {
            assert_eq!(entry, &b[path], "{copy}: {}", path.display());
        }
    }
    process::ok(&mut bash(
        mount.path(),
        r#"
        rsync -aHAX --numeric-ids --itemize-changes --dry-run a r/ >again
        [ ! -s again ] || { cat again; exit 1; }
        for copy in t/a r/a c; do
          diff -r --no-dereference -x sparse -x fifo -x null a $copy
          cmp <(dd if=a/d/sparse bs=1M skip=1049 status=none | head -c 2M) <(dd if=$copy/d/sparse bs=1M skip=1049 status=none | head -c 2M)
        done
        "#,
    ));
    mount.unmount();
}

#[test]
fn git_works_on_it() {
    let stage = Stage::vexfs(256);
    let mount = stage.mount();
    process::ok(&mut bash(
        mount.path(),
        r#"
        git init -q -b main repo && cd repo
        git config user.name n && git config user.email e
        mkdir -p a/b c
        for i in $(seq 150); do echo "line $i" >a/b/f$i; echo "$i" >c/g$i; done
        git add . && git commit -qm first
        for i in $(seq 1 3 150); do echo more >>a/b/f$i; done
        git commit -qam second
        git checkout -q HEAD~1 && git checkout -q main
        git gc -q && git fsck --strict --no-dangling
        cd .. && git clone -q repo clone && cd clone
        [ -z "$(git status --porcelain)" ]
        "#,
    ));
    let mount = remount(&stage, mount);
    process::ok(&mut bash(
        mount.path(),
        r#"
        cd clone
        # Attributes are as git knows them: it need not read one file again.
        [ -z "$(git status --porcelain)" ] && [ -z "$(git diff-files)" ]
        git fsck --strict --no-dangling
        cmp a/b/f1 ../repo/a/b/f1
        "#,
    ));
    mount.unmount();
}

#[test]
fn sqlite_in_wal_mode_is_shared_by_processes() {
    let stage = Stage::vexfs(128);
    let mount = stage.mount();
    process::ok(&mut python(
        mount.path(),
        r"
import os, sqlite3
def connect():
    db = sqlite3.connect('data.db', timeout=60, isolation_level=None)
    db.execute('pragma journal_mode=wal'); db.execute('pragma synchronous=normal')
    return db
connect().execute('create table t(writer, n)')
children = []
for writer in range(4):
    pid = os.fork()
    if pid == 0:
        db = connect()
        for n in range(100):
            db.execute('insert into t values(?, ?)', (writer, n))
        db.close()
        os._exit(0)
    children.append(pid)
for pid in children:
    assert os.waitpid(pid, 0)[1] == 0
db = connect()
assert db.execute('select count(*), count(distinct writer) from t').fetchone() == (400, 4)
assert db.execute('pragma integrity_check').fetchone() == ('ok',)
",
    ));
    let mount = remount(&stage, mount);
    process::ok(&mut python(
        mount.path(),
        "import sqlite3\ndb = sqlite3.connect('data.db')\nassert db.execute('select count(*) from t').fetchone() == (400,)",
    ));
    mount.unmount();
}

#[test]
fn locks_hold_between_processes() {
    let stage = Stage::vexfs(64);
    let mount = stage.mount();
    process::ok(&mut python(
        mount.path(),
        r"
import errno, fcntl, os
f = open('lock', 'w+'); f.write('0'); f.flush()
def child(work):
    pid = os.fork()
    if pid == 0:
        try:
            work(); os._exit(0)
        except BaseException as e:
            print(e, flush=True); os._exit(1)
    return pid
def ended_well(pid): assert os.waitpid(pid, 0)[1] == 0
def refused(lock):
    try: lock()
    except OSError as e: assert e.errno in (errno.EAGAIN, errno.EACCES), e
    else: raise AssertionError('a lock was given twice')

# flock(2): of open files, refused and then waited for.
fcntl.flock(f, fcntl.LOCK_EX)
r, w = os.pipe()
def other():
    mine = open('lock')
    refused(lambda: fcntl.flock(mine, fcntl.LOCK_SH | fcntl.LOCK_NB))
    os.write(w, b'x')
    fcntl.flock(mine, fcntl.LOCK_SH)
pid = child(other)
os.read(r, 1)
fcntl.flock(f, fcntl.LOCK_UN)
ended_well(pid)

# fcntl(2): of ranges. A cycle of waits is refused.
fcntl.lockf(f, fcntl.LOCK_EX, 10, 0)
fcntl.lockf(f, fcntl.LOCK_EX, 10, 100)
def other():
    mine = open('lock', 'r+')
    refused(lambda: fcntl.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 5))
    fcntl.lockf(mine, fcntl.LOCK_EX, 10, 50)
    os.write(w, b'x')
    fcntl.lockf(mine, fcntl.LOCK_EX, 10, 0)
pid = child(other)
os.read(r, 1)
import time
def waits(pid): return any(line.split()[1] == '->' and line.split()[5] == str(pid) for line in open('/proc/locks'))
while not waits(pid): time.sleep(0.005)
try: fcntl.lockf(f, fcntl.LOCK_EX, 10, 50)
except OSError as e: assert e.errno == errno.EDEADLK, e
else: raise AssertionError('a deadlock was let happen')
fcntl.lockf(f, fcntl.LOCK_UN, 10, 0)
ended_well(pid)

# A counter under a lock.
def count():
    mine = open('lock', 'r+')
    for _ in range(200):
        fcntl.lockf(mine, fcntl.LOCK_EX)
        n = int(os.pread(mine.fileno(), 20, 0)); os.pwrite(mine.fileno(), b'%d' % (n + 1), 0)
        fcntl.lockf(mine, fcntl.LOCK_UN)
fcntl.lockf(f, fcntl.LOCK_UN)
for pid in [child(count) for _ in range(4)]: ended_well(pid)
assert os.pread(f.fileno(), 20, 0) == b'800'
",
    ));
    mount.unmount();
}

#[test]
fn processes_share_mappings_and_append_without_loss() {
    let stage = Stage::vexfs(64);
    let mount = stage.mount();
    process::ok(&mut python(
        mount.path(),
        r"
import mmap, os
with open('shared', 'wb') as f: f.truncate(1 << 20)
with open('log', 'wb'): pass
children = []
for n in range(4):
    pid = os.fork()
    if pid == 0:
        f = open('shared', 'r+b'); m = mmap.mmap(f.fileno(), 0)
        log = os.open('log', os.O_WRONLY | os.O_APPEND)
        for i in range(1000):
            m[(i * 4 + n) * 64] = n + 1
            line = b'%d %d ' % (n, i); line += b'.' * (63 - len(line)) + b'\n'
            assert os.write(log, line) == 64
        if n % 2: m.flush()
        os._exit(0)
    children.append(pid)
for pid in children: assert os.waitpid(pid, 0)[1] == 0
data = open('shared', 'rb').read()
assert all(data[(i * 4 + n) * 64] == n + 1 for i in range(1000) for n in range(4))
lines = open('log').read().splitlines()
assert sorted(l.split()[:2] for l in lines) == sorted([str(n), str(i)] for n in range(4) for i in range(1000))
",
    ));
    let mount = remount(&stage, mount);
    let shared = fs::read(mount.join("shared")).unwrap();
    assert!(
        (0..4000).all(|at| usize::from(shared[at * 64]) == at % 4 + 1),
        "mapped bytes are lost by a remount"
    );
    assert_eq!(fs::metadata(mount.join("log")).unwrap().len(), 256_000);
    mount.unmount();
}

#[test]
fn disk_usage_is_the_truth() {
    let stage = Stage::vexfs(256);
    let mount = stage.mount();
    process::ok(&mut bash(
        mount.path(),
        r#"
        # Of the directory: the kernel does not tell FUSE file systems of sync(2) and syncfs(2).
        used() { sync .; df --output=used -k . | tail -1; }
        kib() { sync "$1"; du -k "$1" | cut -f1; }
        equal() { [ "$1" -eq "$2" ] || { echo "$1 is not $2"; exit 1; }; }
        before=$(used)
        head -c 20M /dev/urandom >file
        equal "$(kib file)" 20480
        grown=$(($(used) - before))
        [ $grown -ge 20480 ] && [ $grown -le 21500 ] || { echo "df grew by $grown KiB"; exit 1; }
        fallocate -p -o 4M -l 8M file
        equal "$(kib file)" 12288
        equal "$(du -k --apparent-size file | cut -f1)" 20480
        # Pages of zeros are never stored, whoever writes them.
        dd if=/dev/zero of=file bs=1M seek=12 count=4 conv=notrunc status=none
        equal "$(kib file)" 8192
        fallocate -d file
        equal "$(kib file)" 8192
        cp --sparse=never file dense && equal "$(kib dense)" 8192 && cmp file dense
        cp --reflink=auto file copy && cmp file copy
        # Beyond the end, and what can't be done.
        fallocate -n -o 20M -l 1M file && equal "$(stat -c %s file)" 20971520
        fallocate -l 30M file && equal "$(stat -c %s file)" 31457280
        if fallocate -c -o 0 -l 4096 file 2>said; then exit 1; fi; grep -qi 'not supported' said
        rm file dense copy said
        left=$(($(used) - before))
        [ $left -le 400 ] || { echo "$left KiB are used by nothing"; exit 1; }
        mkdir many && (cd many && seq 2000 | xargs touch)
        equal "$(find many -type f -empty | wc -l)" 2000
        equal "$(df --output=iused . | tail -1)" "$(find . -printf '%i\n' | sort -u | wc -l)"
        "#,
    ));
    mount.unmount();
}

#[test]
fn replaced_files_are_whole_after_a_crash() {
    let stage = Stage::vexfs(64);
    let mount = stage.mount();
    // As dpkg and editors do it.
    process::ok(&mut python(
        mount.path(),
        r"
import os
os.mkdir('etc')
for version in range(30):
    for name in 'abc':
        with open(f'etc/{name}.new', 'wb') as f:
            f.write(b'%d\n' % version * 5000); f.flush(); os.fsync(f.fileno())
        os.rename(f'etc/{name}.new', f'etc/{name}')
    d = os.open('etc', os.O_RDONLY); os.fsync(d); os.close(d)
os.rename('etc/a', 'etc/unsynced')
",
    ));
    mount.kill();
    let mount = stage.mount();
    for name in ["b", "c"] {
        assert!(fs::read(mount.join("etc").join(name)).unwrap() == b"29\n".repeat(5000), "{name}");
    }
    let (old, new) = (mount.join("etc/a"), mount.join("etc/unsynced"));
    assert!(old.exists() != new.exists(), "a rename is half done");
    mount.unmount();
}

#[test]
fn changes_are_told_by_inotify() {
    let stage = Stage::vexfs(64);
    let mount = stage.mount();
    process::ok(&mut python(
        mount.path(),
        r"
import ctypes, os, struct
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.inotify_init1(0)
CREATE, DELETE, MODIFY, FROM, TO = 0x100, 0x200, 0x2, 0x40, 0x80
assert libc.inotify_add_watch(fd, b'.', CREATE | DELETE | MODIFY | FROM | TO) >= 0
with open('a', 'w') as f: f.write('x')
os.rename('a', 'b'); os.unlink('b')
events, data = [], os.read(fd, 4096)
while data:
    _, mask, _, n = struct.unpack_from('iIII', data)
    events.append((mask, data[16:16 + n].rstrip(b'\0'))); data = data[16 + n:]
assert events == [(CREATE, b'a'), (MODIFY, b'a'), (FROM, b'a'), (TO, b'b'), (DELETE, b'b')], events
",
    ));
    mount.unmount();
}

#[test]
fn users_may_do_what_permissions_say() {
    let stage = Stage::vexfs(64);
    let mount = stage.mount();
    process::ok(&mut bash(
        mount.path(),
        r#"
        chmod 755 .
        as() { setpriv --reuid="$1" --regid="$1" --clear-groups "${@:2}"; }
        denied() {
          if "$@" 2>said; then echo "should be denied: $*"; exit 1; fi
          grep -qE 'Permission denied|not permitted' said || { cat said; exit 1; }
        }
        mkdir -m 1777 tmp && mkdir -m 700 closed && mkdir -m 711 passage
        echo secret >closed/file && echo open >passage/file
        as 1001 sh -c 'echo mine >tmp/mine'

        # Of directories: to list, to pass through, to change; where the sticky bit is, only one's own.
        denied as 1001 cat closed/file
        denied as 1001 ls passage
        [ "$(as 1001 cat passage/file)" = open ]
        denied as 1001 touch new
        denied as 1002 rm -f tmp/mine
        denied as 1002 mv tmp/mine tmp/his
        as 1001 mv tmp/mine tmp/still
        chmod 777 tmp && as 1002 mv tmp/still tmp/his && as 1002 mv tmp/his tmp/still

        # Of files: of the owner, of groups, of nobody else; attributes are the owner's affair.
        chgrp 2000 tmp/still && chmod 640 tmp/still
        denied as 1002 cat tmp/still
        [ "$(setpriv --reuid=1002 --regid=1002 --groups=7,2000 cat tmp/still)" = mine ]
        denied setpriv --reuid=1002 --regid=1002 --groups=7,2000 sh -c 'echo x >>tmp/still'
        denied as 1002 chmod 777 tmp/still
        denied as 1001 chown 1002 tmp/still
        denied as 1002 touch -d 2001-01-01 tmp/still
        denied as 1001 sh -c 'echo x >>passage/file'
        # What is taken away is gone at once, though it was cached.
        chmod 600 passage/file && denied as 1001 cat passage/file
        chmod 700 passage && denied as 1001 stat passage/file

        # The group of a setgid directory goes to all that is made in it, the bit to directories.
        mkdir shared && chgrp 2000 shared && chmod 2777 shared
        as 1001 mkdir shared/d && as 1001 touch shared/f
        [ "$(stat -c '%u %g %a' shared/d shared/f)" = "$(printf '1001 2000 2755\n1001 2000 644')" ]
        "#,
    ));
    mount.unmount();
}

#[test]
fn ioctls_tell_flags_generations_and_the_label() {
    let stage = Stage::empty();
    process::ok(programs::ours("mkfs.vexfs").arg(stage.image()).args(["--size", "64M", "-L", "home"]));
    let mount = stage.mount();
    process::ok(&mut python(
        mount.path(),
        r"
import errno, fcntl, os, struct
GET_FLAGS, SET_FLAGS, GET_VERSION, GET_LABEL = 0x80086601, 0x40086602, 0x80087601, 0x81009431
def number(f, what): return struct.unpack_from('I', fcntl.ioctl(f, what, bytes(8)))[0]
def refused(error, f, what, value):
    try: fcntl.ioctl(f, what, value)
    except OSError as e: assert e.errno == error, e
    else: raise AssertionError('it was taken')
root = os.open('.', os.O_RDONLY)
assert fcntl.ioctl(root, GET_LABEL, bytes(256)).rstrip(b'\0') == b'home'
def make():
    f = os.open('file', os.O_RDWR | os.O_CREAT | os.O_EXCL)
    os.write(f, b'x'); os.fsync(f)
    return f, os.fstat(f).st_ino, number(f, GET_VERSION)
f, ino, generation = make()
assert number(f, GET_FLAGS) == 0
fcntl.ioctl(f, SET_FLAGS, bytes(8))
refused(errno.EOPNOTSUPP, f, SET_FLAGS, struct.pack('Q', 0x10))
refused(errno.ENOTTY, f, 0x5413, bytes(8))
# A number that is used again has another generation (NFS and backups tell the files apart by it).
for attempt in range(1000):
    os.close(f); os.unlink('file'); os.fsync(root)
    f, again, later = make()
    if again == ino: break
assert again == ino and later > generation, (ino, generation, again, later)
",
    ));
    mount.unmount();
}
