/* For programs that listen on SCTP too, on a kernel without it (LD_PRELOAD): such a socket is one of TCP, and its options are taken for set. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/socket.h>
#define SCTP 132

int socket(int domain, int type, int protocol)
{
	int (*next)(int, int, int) = dlsym(RTLD_NEXT, "socket");

	return next(domain, type, protocol == SCTP ? 0 : protocol);
}

int setsockopt(int fd, int level, int name, const void *value, socklen_t length)
{
	int (*next)(int, int, int, const void *, socklen_t) = dlsym(RTLD_NEXT, "setsockopt");

	return level == SCTP ? 0 : next(fd, level, name, value, length);
}

int getsockopt(int fd, int level, int name, void *value, socklen_t *length)
{
	int (*next)(int, int, int, void *, socklen_t *) = dlsym(RTLD_NEXT, "getsockopt");

	return level == SCTP ? 0 : next(fd, level, name, value, length);
}
