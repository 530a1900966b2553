/* echo PORT REALM: an S13 server that looks at nothing, on 127.0.0.1: every ECR is answered 2001 and WHITELISTED at once. What TCP on
 * loopback allows, and the measure for latencies. One thread; each read is answered by one write. */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>
#include "wire.h"

enum { BUFFER = 1 << 18, ANSWER_ROOM = 1024 };

struct connection {
	int socket;
	uint32_t filled;
	uint8_t in[BUFFER];
};

static const char *realm;
static uint8_t out_buffer[BUFFER * 4]; /* an answer is at most four times as long as its request */
static char host[256];

static uint32_t answer(const uint8_t *request, uint8_t *buffer)
{
	uint32_t command = get24(request + 5), length = get24(request + 1);
	struct out out = begin(buffer, request[4] & PROXIABLE, command, get32(request + 8), get32(request + 12), get32(request + 16));
	if (command == ME_IDENTITY_CHECK && length > HEADER + AVP_HEADER) {
		uint32_t session = padded(get24(request + HEADER + 5));
		if (HEADER + session <= length && session < ANSWER_ROOM / 2) {
			memcpy(out.at, request + HEADER, session);
			out.at += session;
		}
	}
	add_number(&out, RESULT_CODE, 0, SUCCESS);
	if (command == ME_IDENTITY_CHECK) {
		add_number(&out, AUTH_SESSION_STATE, 0, NO_STATE_MAINTAINED);
		add_text(&out, ORIGIN_HOST, host);
		add_text(&out, ORIGIN_REALM, realm);
		add_number(&out, EQUIPMENT_STATUS, TGPP, 0);
	} else {
		add_capabilities(&out, host, realm, "echo");
	}
	return finish(&out);
}

static int write_all(int socket, const uint8_t *bytes, uint32_t length)
{
	for (ssize_t sent; length; bytes += sent, length -= sent) {
		struct pollfd writable = {socket, POLLOUT, 0};
		if ((sent = send(socket, bytes, length, MSG_NOSIGNAL)) < 0) {
			poll(&writable, 1, 1000);
			sent = 0;
			if (writable.revents != POLLOUT)
				return 0;
		}
	}
	return 1;
}

/* 0 when the connection is over. */
static int serve(struct connection *from)
{
	ssize_t received = recv(from->socket, from->in + from->filled, BUFFER - from->filled, 0);
	uint32_t at = 0, filled, length, written = 0;
	if (received <= 0)
		return 0;
	filled = from->filled + received;
	for (; filled - at >= HEADER; at += length) {
		length = get24(from->in + at + 1);
		if (length < HEADER || length > BUFFER)
			return 0;
		if (filled - at < length)
			break;
		if (from->in[at + 4] & REQUEST)
			written += answer(from->in + at, out_buffer + written);
		if (written > sizeof out_buffer - ANSWER_ROOM) {
			if (!write_all(from->socket, out_buffer, written))
				return 0;
			written = 0;
		}
	}
	memmove(from->in, from->in + at, from->filled = filled - at);
	return write_all(from->socket, out_buffer, written);
}

int main(int count, char **arguments)
{
	int listener = socket(AF_INET, SOCK_STREAM, 0), poll = epoll_create1(0), yes = 1;
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct epoll_event event = {.events = EPOLLIN}, events[64];
	if (count < 3)
		return fprintf(stderr, "usage: echo PORT REALM\n"), 2;
	address.sin_port = htons(atoi(arguments[1]));
	realm = arguments[2];
	snprintf(host, sizeof host, "echo.%s", realm);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
	if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 128))
		return perror("echo"), 1;
	epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event);
	for (;;) {
		int ready = epoll_wait(poll, events, 64, -1);
		for (int i = 0; i < ready; i++) {
			struct connection *from = events[i].data.ptr;
			if (!from) { /* the listener's */
				int socket = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
				if (socket < 0)
					continue;
				setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
				from = calloc(1, sizeof *from);
				from->socket = socket;
				epoll_ctl(poll, EPOLL_CTL_ADD, socket, &(struct epoll_event){.events = EPOLLIN, .data.ptr = from});
			} else if (!serve(from)) {
				close(from->socket);
				free(from);
			}
		}
	}
}
