"""confined.py SYSCALLS COMMAND...: run a command as a unit with MemoryDenyWriteExecute= and SystemCallFilter= would.

SYSCALLS is a file with the names of the system calls that are allowed; others fail with EPERM. Standard library and libseccomp only.
"""

import ctypes
import errno
import os
import sys
from pathlib import Path

PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
SCMP_ACT_ALLOW, SCMP_ACT_ERRNO = 0x7FFF0000, 0x00050000


def main(syscalls, *command):
    libc = ctypes.CDLL(None, use_errno=True)
    seccomp = ctypes.CDLL("libseccomp.so.2")
    seccomp.seccomp_init.restype = ctypes.c_void_p
    rules = ctypes.c_void_p(seccomp.seccomp_init(SCMP_ACT_ERRNO | errno.EPERM))
    for name in Path(syscalls).read_text().split():
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # a call of another architecture has none
            assert seccomp.seccomp_rule_add(rules, SCMP_ACT_ALLOW, number, 0) == 0, name
    assert seccomp.seccomp_load(rules) == 0, "the kernel takes no filter"
    # Before the filter it would be the filter's own memory that is refused; a kernel without it (before 6.3) says EINVAL.
    if libc.prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) != 0:
        sys.exit(f"prctl(PR_SET_MDWE): {os.strerror(ctypes.get_errno())}")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
