import concurrent.futures
import os
import time

from rewards.sandbox import LocalSandbox, SandboxRefused

import pytest

SANDBOX = LocalSandbox(seconds=4, memory_mb=512, output_bytes=200_000)


@pytest.fixture(scope="module", autouse=True)
def layers():
    try:
        return SANDBOX.run("").layers
    except SandboxRefused as refusal:
        pytest.skip(str(refusal))


HONEST = {
    "print": ("print(2 + 3 * 4)", "14\n"),
    "stdin": ("print(sum(map(int, input().split())))", "6\n"),
    "stdin lines": ("import sys\nprint(sum(int(x) for line in sys.stdin for x in line.split()))", "6\n"),
    "exit": ("print(1)\nexit()", "1\n"),
    "sys.exit": ("import sys\nprint(1)\nsys.exit(0)", "1\n"),
    "recursion": (
        "import sys\nsys.setrecursionlimit(50000)\ndef f(n): return n and 1 + f(n - 1)\nprint(f(20000))",
        "20000\n"
    ),
    "thread": ("import threading\nt = threading.Thread(target=print, args=(1,))\nt.start()\nt.join()", "1\n"),
    "temporary file": (
        "import tempfile\nwith tempfile.TemporaryFile('w+') as f:\n    f.write('1'); f.seek(0); print(f.read())",
        "1\n"
    ),
    "numpy": ("import numpy as np\nprint(int(np.arange(4).sum()))", "6\n"),
    "libraries": (
        "import math, itertools, collections, heapq, bisect, re, json, random, decimal, fractions, datetime\nprint(1)",
        "1\n"
    ),
    "unicode": ("print('中文 é')", "中文 é\n"),
    "big": ("print(len(str(3 ** 20000)))", "9543\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", HONEST)
def test_honest_programs_run(name, layers):
    if name == "temporary file" and "tmpfs" not in layers:
        pytest.skip("the kernel gives no mount namespace: nothing can be written")
    program, printed = HONEST[name]
    run = SANDBOX.run(program, "1 2 3\n")
    assert (run.stdout, run.exit_code, run.stopped) == (printed, 0, None), run.stderr


# Each prints HACKED where it gets what it is after.
ATTACKS = {
    "read /etc/passwd": "open('/etc/passwd').read()",
    "read /proc/1/environ": "assert open('/proc/1/environ').read()",
    "read own environ of the parent": "import os; assert open(f'/proc/{os.getppid()}/environ').read()",
    "list /": "import os; os.listdir('/')",
    "list /tmp": "import os; os.listdir('/tmp')",
    "list home": "import os; os.listdir(os.path.expanduser('~root'))",
    "read the tests": "import glob; assert glob.glob('/tmp/sandbox-*/stdin')",
    "read another run": "import os; os.listdir('../..')",
    "write /tmp": "open('/tmp/hacked', 'w').close()",
    "write beside": "open('../hacked', 'w').close()",
    "write the interpreter": "import os, sys; "
    "open(os.path.join(os.path.dirname(os.__file__), 'hacked.py'), 'w').close()",
    "overwrite the program": "open(__file__, 'w').write('x')",
    "unlink outside": "import os; os.unlink(__file__)",
    "rename outside": "import os; os.rename(__file__, __file__ + '2')",
    "chmod outside": "import os; os.chmod('/tmp', 0o777)",
    "chmod program": "import os; os.chmod(__file__, 0o777)",
    "chown": "import os; os.chown(__file__, 0, 0)",
    "utime": "import os; os.utime('/tmp')",
    "xattr": "import os; os.setxattr('/tmp', 'user.a', b'1')",
    "truncate": "import os; os.truncate(__file__, 0)",
    "symlink": "import os; os.symlink('/etc/passwd', 'p'); open('p').read()",
    "hard link": "import os; os.link(__file__, 'p')",
    "fifo": "import os; os.mkfifo('p')",
    "mknod": "import os, stat; os.mknod('p', 0o600 | stat.S_IFCHR, os.makedev(1, 3))",
    "fork": "import os; os.fork()",
    "subprocess": "import subprocess; subprocess.run(['/bin/true'], check=True)",
    "posix_spawn": "import os; os.posix_spawn('/bin/true', ['true'], {})",
    "os.system": "import os; assert os.system('true') == 0",
    "multiprocessing": "import multiprocessing as m; p = m.Process(target=print); p.start(); p.join(); "
    "assert p.exitcode == 0",
    "tcp": "import socket; socket.socket()",
    "udp": "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "unix socket": "import socket; socket.socket(socket.AF_UNIX)",
    "socketpair": "import socket; socket.socketpair()",
    "dns": "import socket; socket.getaddrinfo('example.org', 80)",
    "urlopen": "import urllib.request; urllib.request.urlopen('http://127.0.0.1:80', timeout=1)",
    "kill all": "import os; os.kill(-1, 0)",
    "kill parent": "import os; os.kill(os.getppid(), 9)",
    "kill group": "import os; os.killpg(0, 9)",
    "ptrace": "import ctypes; assert ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0",
    "unshare": "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "mount": "import ctypes; assert ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0",
    "chroot": "import os; os.chroot('.')",
    "setuid": "import os; os.setuid(0); os.setgid(0); os.setgroups([0])",
    "memfd": "import os; os.memfd_create('x')",
    "shared memory": "open('/dev/shm/x', 'w').close()",
    "io_uring": "import ctypes; assert ctypes.CDLL(None).syscall(425, 1, ctypes.create_string_buffer(120)) >= 0",
    "bpf": "import ctypes; assert ctypes.CDLL(None).syscall(321, 0, ctypes.create_string_buffer(120), 120) >= 0",
    "keyctl": "import ctypes; assert ctypes.CDLL(None).syscall(250, 0, -3, 1) >= 0",
    "new session": "import os; os.setsid()",
    "raise limits": "import resource; resource.setrlimit(resource.RLIMIT_CPU, (10**6, 10**6))",
    "execve": "import os; os.execv('/bin/sh', ['sh', '-c', 'cat /etc/passwd && echo HACKED'])",
    "priority": "import os; os.nice(-5)",
    "inotify": "import ctypes; assert ctypes.CDLL(None).inotify_init() >= 0",
    "hostname": "import socket; socket.sethostname('x')",
    "32-bit calls": "import ctypes; assert ctypes.CDLL(None).syscall(0x40000000 + 39) > 0",
    "int 0x80": "import ctypes, mmap; m = mmap.mmap(-1, 4096, prot=7); m.write(bytes.fromhex('b814000000cd80c3')); "
    "p = ctypes.addressof(ctypes.c_char.from_buffer(m)); assert ctypes.CFUNCTYPE(ctypes.c_int)(p)() > 0",
    "outlive the parent": "import ctypes; assert ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) == 0",
    "vfork": "import ctypes; assert ctypes.CDLL(None).syscall(58) >= 0",
    "clone without thread": "import ctypes; assert ctypes.CDLL(None).syscall(56, 0x100, 0, 0, 0, 0) >= 0",
    "clone3": "import ctypes; assert ctypes.CDLL(None).syscall(435, ctypes.create_string_buffer(88), 88) >= 0",
    "linker": "import os; os.execv('/lib64/ld-linux-x86-64.so.2', ['ld', '/bin/echo', 'HACKED'])",
    "execveat": "import ctypes; c = ctypes.CDLL(None); a = (ctypes.c_char_p * 3)(b'echo', b'HACKED', None); "
    "assert c.syscall(322, -100, b'/bin/echo', a, None, 0) == 0",
    "own memory": "open('/proc/self/mem', 'r+b')",
    "own standard input": "open('/proc/self/fd/0', 'w')",
    "root through proc": "import os; os.listdir('/proc/self/root/etc')",
    "kernel settings": "open('/proc/sys/kernel/core_pattern').read()",
    "sys": "import os; os.listdir('/sys')",
    "cgroup": "import os; os.listdir('/sys/fs/cgroup')",
    "pidfd": "import os; os.pidfd_open(1)",
    "process_vm_readv": "import ctypes; assert ctypes.CDLL(None).syscall(310, 1, 0, 0, 0, 0, 0) >= 0",
    "perf events": "import ctypes; b = ctypes.create_string_buffer(128); "
    "assert ctypes.CDLL(None).syscall(298, b, 0, -1, -1, 0) >= 0",
    "userfaultfd": "import ctypes; assert ctypes.CDLL(None).syscall(323, 1) >= 0",
    "netlink": "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "kernel crypto": "import socket; socket.socket(38, socket.SOCK_SEQPACKET)",
    "abstract socket": "import socket; socket.socket(socket.AF_UNIX).bind('\\0hacked')",
    "message queue": "import ctypes; assert ctypes.CDLL(None).syscall(240, b'q', 0o102, 0o600, None) >= 0",
    "System V memory": "import ctypes; assert ctypes.CDLL(None).shmget(1, 4096, 0o1600) >= 0",
    "mount by descriptor": "import ctypes; assert ctypes.CDLL(None).syscall(430, b'tmpfs', 0) >= 0",
    "signal by queue": "import ctypes; b = ctypes.create_string_buffer(128); "
    "assert ctypes.CDLL(None).syscall(129, 1, 9, b) >= 0",
    "another filter": "import ctypes; assert ctypes.CDLL(None).syscall(317, 1, 0, None) == 0",
    "read the project": "import rewards",
    "cache of bytecode": "import py_compile, json; py_compile.compile(json.__file__, doraise=True)",
    "device": "open('/dev/mem', 'rb').read(1)",
    "open descriptors": "import os; [os.fstat(fd) for fd in range(4, 64)]",
    "environment": "import os; assert any('TOKEN' in name for name in os.environ)",
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_fail(name, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    run = SANDBOX.run(ATTACKS[name] + "\nprint('HACKED')", "expected")
    assert "HACKED" not in run.stdout and "root:" not in run.stdout


def test_the_sandbox_does_not_change_this_machine(tmp_path):
    mode = os.stat("/tmp").st_mode
    SANDBOX.run("import os; os.chmod('/tmp', 0o700)")
    assert os.stat("/tmp").st_mode == mode
    assert not os.path.exists("/tmp/hacked")


BOMBS = {
    "loop": "while True: pass",
    "sleep": "import time; time.sleep(1000)",
    "closed streams": "import os, time\nfor fd in range(3): os.close(fd)\ntime.sleep(1000)",
    "output": "while True: print('x' * 1000)",
    "errors": "import sys\nwhile True: print('x' * 1000, file=sys.stderr)",
    "memory": "x = []\nwhile True: x.append('x' * 10**7)",
    "threads": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(99,)).start()",
    "disk": "i = 0\nwhile True:\n    open(str(i), 'w').write('x' * 10**7); i += 1",
    "files": "i = 0\nwhile True:\n    open(str(i), 'w').close(); i += 1",
    "long call in C": "7 ** (3 * 10**8)",
    "signals": "import signal\nfor s in range(1, 64):\n"
    "    try: signal.signal(s, signal.SIG_IGN)\n    except Exception: pass\nwhile True: pass",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_end_at_a_limit(name):
    start = time.perf_counter()
    run = SANDBOX.run(BOMBS[name])
    assert time.perf_counter() - start < SANDBOX.seconds + 60
    assert run.stopped is not None or run.exit_code != 0
    assert len(run.stdout) <= SANDBOX.output_bytes


def test_runs_at_once_do_not_meet():
    with concurrent.futures.ThreadPoolExecutor(4) as executor:
        outputs = list(executor.map(lambda i: SANDBOX.run(f"print({i})\nprint(input())", str(i)).stdout, range(8)))
    assert outputs == [f"{i}\n{i}\n" for i in range(8)]


def test_nothing_is_left_behind():
    import glob

    SANDBOX.run("open('x', 'w').write('x')")
    assert not glob.glob(f"/tmp/sandbox-*{os.getpid()}*")


def test_a_kernel_that_offers_too_little_is_refused_by_name(monkeypatch, tmp_path):
    jail = tmp_path / "jail.py"
    source = __import__("rewards.sandbox", fromlist=["JAIL"]).JAIL.read_text()
    jail.write_text(source.replace("abi = _call(444", "abi = _call(100444"))
    monkeypatch.setattr("rewards.sandbox.JAIL", jail)
    with pytest.raises(SandboxRefused, match="Landlock.*piston_url"):
        SANDBOX.run("print(1)")


@pytest.mark.slow
def test_without_namespaces_the_other_layers_hold(monkeypatch, tmp_path):
    """As in a container that forbids them: nothing can be written, and every attack still fails."""
    jail = tmp_path / "jail.py"
    source = __import__("rewards.sandbox", fromlist=["JAIL"]).JAIL.read_text()
    jail.write_text(source.replace("    uid, gid = os.getuid(), os.getgid()\n", "    return ()\n"))
    monkeypatch.setattr("rewards.sandbox.JAIL", jail)
    assert "pid" not in SANDBOX.run("").layers
    with concurrent.futures.ThreadPoolExecutor(2) as executor:
        printed = executor.map(lambda attack: SANDBOX.run(f"{attack}\nprint('HACKED')", "x").stdout, ATTACKS.values())
        assert [name for name, text in zip(ATTACKS, printed, strict=True) if "HACKED" in text] == []
    assert SANDBOX.run(HONEST["stdin"][0], "1 2 3").stdout == "6\n"
    assert SANDBOX.run("open('x', 'w')").exit_code == 1


def test_stdin_can_be_opened_by_its_name():
    assert LocalSandbox().run("print(open('/dev/stdin').read())", "14").stdout == "14\n"
