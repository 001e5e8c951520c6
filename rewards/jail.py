"""Isolates the calling process, then becomes the program. `rewards.sandbox` runs this script; it uses only ctypes.

Usage: python -I -S jail.py <JSON of Jail>. Before the program starts, file descriptor `status` gets one JSON line,
`{"layers": [...]}` or `{"missing": ...}`. It is closed when the program starts.

Layers: namespaces (user, network, pid, ipc, mount) if the kernel has them; resource limits; no capabilities and no new
privileges; Landlock (reads the interpreter, writes a small tmpfs or nothing); seccomp (no sockets, processes, signals
to others, changes of modes or owners, or calls known for privilege escalation). Landlock and seccomp are required.
"""

import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 4, 22, 24
PR_SET_SECUREBITS, PR_SET_NO_NEW_PRIVS = 28, 38
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER = 0x00020000, 0x08000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
CLONE_THREAD = 0x00010000
MS_NOSUID_NODEV, MS_PRIVATE_REC = 2 | 4, 1 << 18 | 1 << 14
EPERM, ENOSYS = 1, 38

# x86_64 system calls that a program does not need for reading stdin and printing.
DENIED = {
    "sockets": (41, 42, 43, 49, 50, 53, 288),
    "processes": (57, 58, 101, 310, 311, 312, 434, 438, 424, 62, 200, 129, 297, 109, 112),  # fork .. setpgid, setsid
    "modes, owners, times, attributes": (
        90, 91, 268, 452, 92, 93, 94, 260, 132, 235, 261, 280, 188, 189, 190, 197, 198, 199),
    "links, nodes, truncate": (86, 88, 265, 266, 133, 259, 76),
    "mounts, namespaces": (165, 166, 155, 161, 272, 308, 428, 429, 430, 431, 432, 433, 442),
    "kernel": (246, 320, 321, 323, 298, 425, 426, 427, 248, 249, 250, 175, 313, 176, 169, 167, 168, 163, 172, 173, 139),
    "handles": (303, 304),
    "clock, host": (164, 227, 305, 159, 170, 171),
    "memory shared with others": (319, 447, 29, 30, 31, 68, 69, 70, 71, 64, 65, 66, 240),
    "limits, scheduling, identity": (
        160, 302, 135, 141, 142, 144, 203, 251, 314, 105, 106, 113, 114, 116, 117, 119, 126),
    "watching files": (253, 294, 300, 301),
}  # fmt: skip


class MissingFeature(Exception):
    """The kernel lacks a feature that the sandbox requires."""


def _call(number, *arguments):
    result = LIBC.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def enter_namespaces(scratch):
    """Enter new namespaces and become their pid 1 -> their names, () if the kernel allows none."""
    uid, gid = os.getuid(), os.getgid()
    spaces = CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWNS
    names = ("network", "pid", "ipc", "mount")
    if uid != 0 or LIBC.unshare(spaces) != 0:
        if LIBC.unshare(CLONE_NEWUSER | spaces) != 0:
            return ()
        LIBC.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # else /proc/self belongs to root and the maps cannot be written
        for path, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{path}", "w") as file:
                file.write(text)
        names = ("user", *names)
    child = os.fork()
    if child:
        os.closerange(0, 256)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        os._exit(code if code >= 0 else 128 - code)
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    LIBC.mount(None, b"/", None, ctypes.c_ulong(MS_PRIVATE_REC), None)
    options = f"size=16m,nr_inodes=256,mode=777,uid={uid},gid={gid}".encode()
    if LIBC.mount(b"tmpfs", scratch.encode(), b"tmpfs", ctypes.c_ulong(MS_NOSUID_NODEV), options) == 0:
        names = (*names, "tmpfs")
    return names


def drop_privileges(uid):
    """Become `uid` (None: no change) and drop every capability permanently."""
    for capability in range(64):
        LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    LIBC.prctl(PR_SET_SECUREBITS, 0x2F, 0, 0, 0)  # uid 0 has no privileges any more
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    header = struct.pack("Ii", 0x20080522, 0)
    _call(126, ctypes.c_char_p(header), ctypes.c_char_p(bytes(24)))
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # the change of uid has cleared it
    LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def landlock(readable, writable):
    """Allow only reads below `readable` and writes below `writable` -> the ABI version."""
    try:
        abi = _call(444, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    except OSError as error:
        raise MissingFeature(f"Landlock ({error.strerror}; Linux 5.13 or later, enabled at boot)") from error
    files = (1 << 13) - 1
    for version, bit in ((2, 13), (3, 14), (5, 15)):
        files |= (1 << bit) if abi >= version else 0
    rules = struct.pack("QQQ", files, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)[
        : 24 if abi >= 6 else 16 if abi >= 4 else 8
    ]
    ruleset = _call(444, ctypes.c_char_p(rules), ctypes.c_size_t(len(rules)), ctypes.c_uint32(0))
    read = 1 << 0 | 1 << 2 | 1 << 3
    write = files & ~(1 << 6 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13)  # no nodes, links, moves across folders
    for paths, access in (
        (readable, read),
        (("/dev/null", "/dev/zero", "/dev/urandom"), 1 << 1 | 1 << 2),
        (writable, write),
    ):
        for path in paths:
            try:
                descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            allowed = access if os.path.isdir(path) else access & (1 << 0 | 1 << 1 | 1 << 2 | 1 << 14)
            rule = struct.pack("=Qi", allowed & files, descriptor)
            _call(445, ctypes.c_int(ruleset), ctypes.c_int(1), ctypes.c_char_p(rule), ctypes.c_uint32(0))
            os.close(descriptor)
    _call(446, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    os.close(ruleset)
    return abi


def seccomp():
    """Refuse the system calls in `DENIED`. Allow clone only for threads and tgkill only to this process."""
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill, errno = 0x7FFF0000, 0x80000000, 0x00050000

    def step(code, value, yes=0, no=0):
        return struct.pack("HBBI", code, yes, no, value)

    program = [step(load, 4), step(equal, 0xC000003E, 1), step(give, kill)]  # x86_64 only
    program += [step(load, 0), step(at_least, 0x40000000, 0, 1), step(give, kill)]  # not its x32 numbers
    program += [step(equal, 435, 0, 1), step(give, errno | ENOSYS)]  # clone3: libc falls back to clone
    for number, test, wanted, passes in (  # by their first argument
        (56, any_bit, CLONE_THREAD, 1),  # clone: threads only
        (157, equal, PR_SET_PDEATHSIG, 0),  # prctl: keeps its parent-death signal
        (234, equal, os.getpid(), 1),  # tgkill: itself only
    ):
        program += [step(equal, number, 0, 4), step(load, 16), step(test, wanted, passes, 1 - passes)]
        program += [step(give, errno | EPERM), step(give, allow)]
    for number in sorted({number for numbers in DENIED.values() for number in numbers}):
        program += [step(equal, number, 0, 1), step(give, errno | EPERM)]
    program.append(step(give, allow))
    code = ctypes.create_string_buffer(b"".join(program))
    filters = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code))
    if LIBC.prctl(PR_SET_SECCOMP, 2, ctypes.c_char_p(filters), 0, 0) != 0:
        raise MissingFeature(f"seccomp filters ({os.strerror(ctypes.get_errno())})")


def main():
    jail = json.loads(sys.argv[1])
    status = jail["status"]
    try:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if platform.machine() != "x86_64" or sys.platform != "linux":
            raise MissingFeature(f"Linux on x86_64 (this is {sys.platform} on {platform.machine()})")
        layers = list(enter_namespaces(jail["scratch"]))
        drop_privileges(jail["uid"])
        LIBC.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
        megabyte = 1 << 20
        for limit, value in (
            (resource.RLIMIT_CPU, jail["cpu_seconds"]),
            (resource.RLIMIT_AS, jail["memory_mb"] * megabyte),
            (resource.RLIMIT_FSIZE, 16 * megabyte),
            (resource.RLIMIT_NOFILE, 64),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_STACK, 16 * megabyte),
        ):
            resource.setrlimit(limit, (value, value))
        os.chdir(jail["scratch"])
        writable = [jail["scratch"]] if "tmpfs" in layers else []
        layers.append(f"landlock {landlock(jail['readable'], writable)}")
        seccomp()
        layers.append("seccomp")
    except MissingFeature as error:
        os.write(status, json.dumps({"missing": str(error)}).encode() + b"\n")
        os._exit(125)
    except OSError as error:
        os.write(status, json.dumps({"error": str(error)}).encode() + b"\n")
        os._exit(125)
    os.write(status, json.dumps({"layers": layers}).encode() + b"\n")
    os.closerange(3, status)
    os.closerange(status + 1, 256)
    os.set_inheritable(status, False)
    os.execve(jail["command"][0], jail["command"], jail["environment"])


if __name__ == "__main__":
    main()
