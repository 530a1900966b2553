/* Preloaded into linux.uml by scripts/sctp. Where a processor's extended state is larger than the buffer of the user-mode kernel (AMX), the
 * host refuses PTRACE_SETREGSET of NT_X86_XSTATE for a buffer that is too short, and the kernel panics ("ptrace set fp regs failed").
 * This hands over one of the full size. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define XSTATE 0x202 /* NT_X86_XSTATE */

static char whole[65536] __attribute__((aligned(64)));

long ptrace(enum __ptrace_request request, ...)
{
	va_list arguments;
	va_start(arguments, request);
	long pid = va_arg(arguments, long);
	void *address = va_arg(arguments, void *), *data = va_arg(arguments, void *);
	va_end(arguments);
	if (request == PTRACE_SETREGSET && (long)address == XSTATE) {
		struct iovec *given = data, padded = {whole, 0};
		unsigned size = 0, a, c, d;
		__cpuid_count(0xD, 0, a, size, c, d);
		padded.iov_len = size;
		if (given->iov_len < size && size <= sizeof whole) {
			memset(whole, 0, size);
			memcpy(whole, given->iov_base, given->iov_len);
			return syscall(SYS_ptrace, (long)request, pid, address, &padded);
		}
	}
	if (request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER) {
		long word, result = syscall(SYS_ptrace, (long)request, pid, address, &word);
		if (result < 0)
			return result;
		errno = 0;
		return word;
	}
	return syscall(SYS_ptrace, (long)request, pid, address, data);
}
