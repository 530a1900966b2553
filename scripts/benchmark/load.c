/* load NAME=VALUE...: asks an S13 server over TCP as several MMEs do, holds it to every answer, and prints one JSON document.
 *
 *   port= realm= host=        where to, and whose realm the MMEs are of; host is their Destination-Host's, if any
 *   connections= window=      each connection is an MME of its own, and has `window` requests under way
 *   vary=1                    Session-Ids of each MME behind an agent have seven lengths, by turns
 *   behind=64                 each connection is an agent that brings requests of so many MMEs by turns, each with a Route-Record
 *   rate=                     requests a second over all connections instead, each due at its own time, however late answers are
 *   on_wire=1                 with rate, latency counts all the same from when a request has come to the server's socket until its answer
 *                             has come to the generator's, by the kernel's clock (TCP): how late the generator was itself, where it
 *                             shares its processor, stands in late_us_p99 alone
 *   warmup= seconds=          how long before it counts, and how long it counts
 *   questions=                a file of 16 bytes for each question: 14 digits, then what is to be answered (0, 1, 2 as
 *                             Equipment-Status, u for 5422), then a newline; asked in order, over and over
 *   name=                     what the MMEs' names begin with (mme), so that several generators can ask one server
 *   shed=3004                 an answer with this result, E bit set, is counted as turned away, and its latency is not
 *   always=0                  the server knows no list: this is to be answered, whatever the file says
 *   server=                   process ids, parted by commas: their processor time is measured too
 *   constant=1                the server gives one constant answer, in order: it is counted, and cannot be looked at
 *   settle= patience=         seconds between the capabilities exchange and the first request, and for late answers at the end
 *
 * One thread on epoll, one write for each read. An answer's latency counts from the write of its request, or with `rate` from
 * when the request was due: a slow server cannot hide behind a generator that waits for it. Exit status 2 if it could not run;
 * whether the answers were right stands in `errors`.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "on_wire.h"
#include "wire.h"

enum { RECEIVE = 1 << 18, REQUEST_ROOM = 1024, WINDOW_MAX = 1 << 15, CONNECTIONS_MAX = 1024, BEHIND_MAX = 4096, LENGTHS = 7, SESSION_DIGITS = 10, IMSI_DIGITS = 15 };
enum { SLACK_NS = 1000 }; /* a wait ends so much too late at most; the kernel's 50,000 are as long as an answer takes */
enum { PATIENCE_MS = 10000, QUESTION_BYTES = 16, IMEI_DIGITS = 14 };
#define WAKE_EVERY 0.00005 /* s: with a rate, requests that are due within this time are sent together */

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec * 1e-9;
}

__attribute__((noreturn, format(printf, 1, 2))) static void give_up(const char *format, ...)
{
	va_list values;
	va_start(values, format);
	fputs("load: ", stderr);
	vfprintf(stderr, format, values);
	fputc('\n', stderr);
	exit(2);
}

/* ---- what to do ---- */

static struct {
	const char *realm, *host, *questions, *server, *always, *name;
	double port, connections, window, rate, warmup, seconds, constant, settle, patience, shed, behind, vary, on_wire;
} option = {.realm = "example", .name = "mme", .port = 3868, .connections = 1, .window = 1, .warmup = 1, .seconds = 3, .patience = 10};

static void read_options(int count, char **arguments)
{
	const struct { const char *name; const char **text; double *number; } known[] = {
		{"realm", &option.realm, 0}, {"host", &option.host, 0}, {"questions", &option.questions, 0}, {"server", &option.server, 0}, {"always", &option.always, 0},
		{"port", 0, &option.port}, {"connections", 0, &option.connections}, {"window", 0, &option.window}, {"rate", 0, &option.rate},
		{"warmup", 0, &option.warmup}, {"seconds", 0, &option.seconds}, {"constant", 0, &option.constant}, {"settle", 0, &option.settle},
		{"patience", 0, &option.patience}, {"name", &option.name, 0}, {"shed", 0, &option.shed}, {"behind", 0, &option.behind}, {"vary", 0, &option.vary}, {"on_wire", 0, &option.on_wire},
	};
	for (int i = 1; i < count; i++) {
		char *value = strchr(arguments[i], '='), *end = "";
		size_t k = 0;
		for (; value && k < sizeof known / sizeof *known; k++)
			if (!strncmp(known[k].name, arguments[i], value - arguments[i]) && !known[k].name[value - arguments[i]])
				break;
		if (!value || k == sizeof known / sizeof *known)
			give_up("unknown: %s (the head of load.c says what there is)", arguments[i]);
		if (known[k].text)
			*known[k].text = value + 1;
		else
			*known[k].number = strtod(value + 1, &end);
		if (*end)
			give_up("no number: %s", arguments[i]);
	}
	if (option.window < 1 || option.window > WINDOW_MAX || option.connections < 1 || option.connections > CONNECTIONS_MAX)
		give_up("window is 1 to %d, connections 1 to %d", WINDOW_MAX, CONNECTIONS_MAX);
	if (option.behind < 0 || option.behind > BEHIND_MAX)
		give_up("behind is 0 to %d", BEHIND_MAX);
	if (strlen(option.realm) > 64 || strlen(option.name) > 16 || (option.host && strlen(option.host) > 64))
		give_up("a name is too long");
}

static const char *questions;
static size_t question_count, next_question;

static void read_questions(void)
{
	struct stat file;
	int opened = open(option.questions ? option.questions : "", O_RDONLY);
	if (opened < 0 || fstat(opened, &file) || file.st_size < QUESTION_BYTES || file.st_size % QUESTION_BYTES)
		give_up("no questions in %s", option.questions ? option.questions : "(no file)");
	questions = mmap(NULL, file.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, opened, 0);
	question_count = file.st_size / QUESTION_BYTES;
	close(opened);
}

/* ---- what was found ---- */

/* Times in ns, in buckets that widen by 1/64. */
enum { FINE = 6, BUCKETS = 60 << FINE };
struct histogram {
	uint64_t counts[BUCKETS], count;
	double highest;
};
static struct histogram latency, lateness;

static void note(struct histogram *in, double seconds)
{
	uint64_t time = seconds > 0 ? seconds * 1e9 : 0, bucket = time;
	if (time >> (FINE + 1)) {
		int shift = 63 - __builtin_clzll(time) - FINE;
		bucket = ((uint64_t)shift << FINE) + (time >> shift);
	}
	in->counts[bucket]++;
	in->count++;
	if (seconds > in->highest)
		in->highest = seconds;
}
/* in us: the middle of the bucket that holds this part of all */
static double at_part(const struct histogram *of, double part)
{
	uint64_t below = 0, bucket = 0;
	if (!of->count)
		return 0;
	while (bucket < BUCKETS - 1 && (below += of->counts[bucket]) <= part * (of->count - 1))
		bucket++;
	if (!(bucket >> (FINE + 1)))
		return bucket / 1e3;
	int shift = (bucket >> FINE) - 1;
	double middle = (((bucket & ((1 << FINE) - 1)) + (1 << FINE) + 0.5) * (1ull << shift)) / 1e3;
	return middle < of->highest * 1e6 ? middle : of->highest * 1e6;
}

static struct {
	uint64_t sent, answered, counted, statuses[3], unknown, other_result, not_sent, shed;
} total;
static struct {
	uint64_t unasked, unanswered, malformed, session, result, status, origin, flags, closed;
} wrong;

/* ---- connections ---- */

struct template { /* a request of one MME, and where in it is what differs */
	uint8_t request[REQUEST_ROOM];
	uint32_t length, session_at, session_length, digits_at, imsi_at, imei_at;
};

struct pending { /* one request that is under way, found by the low half of its hop-by-hop id */
	double since;
	uint32_t end; /* so many bytes were written up to it */
	uint32_t hop_by_hop, end_to_end;
	uint64_t session;
	const struct template *as;
	char status; /* what is to be answered */
	char asked;
};

struct mme {
	int socket, full; /* full: the kernel takes no more for now */
	uint16_t *free_slots;
	int free_count;
	struct pending *pending;
	uint32_t generation;
	uint64_t sessions;
	double *order; /* constant=1: the times of the requests under way, a ring */
	uint64_t asked, answered;
	uint8_t *in, *out;
	uint32_t filled;
	uint16_t port;
	uint32_t bytes_out, bytes_in;
	size_t out_size, written, sent;
	struct template *templates; /* asked by in turns */
	uint32_t template_count, next_template;
	char host[96];
};
static struct mme *mmes;
static int mme_count;
static int epoll, ending;
static double counts_from, counts_to;

static void make_template(struct template *of, const char *host, int number, int behind, int more_digits)
{
	char session[200], imsi[IMSI_DIGITS + 1] = "001010000000000";
	int extra = number % 2; /* every other MME sends the spare digit too (TS 23.003 6.2.1) */
	struct out out = begin(of->request, REQUEST | PROXIABLE, ME_IDENTITY_CHECK, S13, 0, 0);
	of->session_length = snprintf(session, sizeof session, "%s;%u;%0*d", host, (unsigned)time(NULL), SESSION_DIGITS + more_digits, 0);
	of->session_at = add_text(&out, SESSION_ID, session) - of->request;
	of->digits_at = of->session_at + of->session_length - SESSION_DIGITS;
	add_s13(&out);
	add_number(&out, AUTH_SESSION_STATE, 0, NO_STATE_MAINTAINED);
	add_text(&out, ORIGIN_HOST, host);
	add_text(&out, ORIGIN_REALM, option.realm);
	if (option.host)
		add_text(&out, 293, option.host);
	add_text(&out, DESTINATION_REALM, option.realm);
	uint8_t *group = open_avp(&out, TERMINAL_INFORMATION, TGPP, MANDATORY);
	of->imei_at = add(&out, IMEI, TGPP, MANDATORY, "000000000000000", IMEI_DIGITS + extra) - of->request;
	if (!behind || number % 4)
		add(&out, SOFTWARE_VERSION, TGPP, MANDATORY, "01", 2);
	close_avp(&out, group);
	of->imsi_at = add_text(&out, USER_NAME, imsi) - of->request;
	if (behind)
		add_text(&out, ROUTE_RECORD, host);
	of->length = finish(&out);
}

/* What a connection asks by: as the MME that it is, or as those behind the agent that it is, whose names differ in length. */
static void make_templates(struct mme *of, int number)
{
	char host[96];
	of->template_count = option.behind ? (uint32_t)option.behind * (option.vary ? LENGTHS : 1) : 1;
	of->templates = calloc(of->template_count, sizeof *of->templates);
	for (int i = 0; option.behind && i < (int)of->template_count; i++) {
		int mme = i % (int)option.behind;
		snprintf(host, sizeof host, "%s%d%.*s.%s", option.name, number * (int)option.behind + mme + 1, mme % 9, "-of-pool", option.realm);
		make_template(of->templates + i, host, mme, 1, i / (int)option.behind);
	}
	if (!option.behind)
		make_template(of->templates, of->host, number, 0, 0);
}

static void put_digits(uint8_t *at, int count, uint64_t number)
{
	for (; count--; number /= 10)
		at[count] = '0' + number % 10;
}

/* Write the next request behind what waits to be sent. */
static void write_request(struct mme *by, double since)
{
	const char *question = questions + QUESTION_BYTES * next_question;
	uint32_t slot = by->free_slots[--by->free_count];
	struct pending *pending = &by->pending[slot];
	const struct template *as = pending->as = by->templates + by->next_template;
	by->next_template = by->next_template + 1 < by->template_count ? by->next_template + 1 : 0;
	if (by->written + as->length > by->out_size)
		by->out = realloc(by->out, by->out_size = by->out_size * 2 + as->length);
	uint8_t *request = by->out + by->written;
	next_question = next_question + 1 < question_count ? next_question + 1 : 0;
	pending->since = since;
	pending->end = by->bytes_out += as->length;
	pending->hop_by_hop = ++by->generation << 16 | slot;
	pending->end_to_end = (uint32_t)(total.sent * 2654435761u) ^ by->generation;
	pending->session = by->sessions++;
	pending->status = option.always && *option.always ? *option.always : question[IMEI_DIGITS];
	pending->asked = 1;
	memcpy(request, as->request, as->length);
	put32(request + 12, pending->hop_by_hop);
	put32(request + 16, pending->end_to_end);
	put_digits(request + as->digits_at, SESSION_DIGITS, pending->session);
	put_digits(request + as->imsi_at + 5, IMSI_DIGITS - 5, total.sent * 7919);
	memcpy(request + as->imei_at, question, IMEI_DIGITS);
	by->written += as->length;
	if (option.constant)
		by->order[by->asked % (uint64_t)option.window] = since;
	by->asked++;
	total.sent++;
}

static void over(struct mme *one)
{
	if (one->socket < 0)
		return;
	wrong.closed += !ending;
	close(one->socket);
	one->socket = -1;
}

static void wait_for_room(struct mme *one, int full)
{
	if (one->full == full)
		return;
	one->full = full;
	epoll_ctl(epoll, EPOLL_CTL_MOD, one->socket, &(struct epoll_event){.events = EPOLLIN | (full ? EPOLLOUT : 0), .data.ptr = one});
}

static void send_written(struct mme *by)
{
	while (by->socket >= 0 && by->sent < by->written) {
		ssize_t sent = send(by->socket, by->out + by->sent, by->written - by->sent, MSG_NOSIGNAL);
		if (sent >= 0)
			by->sent += sent;
		else if (errno == EAGAIN)
			return wait_for_room(by, 1);
		else
			return over(by);
	}
	by->sent = by->written = 0;
	if (by->socket >= 0)
		wait_for_room(by, 0);
}

static void fill_window(struct mme *of)
{
	if (!of->free_count || of->full || of->socket < 0)
		return;
	for (double since = now(); of->free_count;)
		write_request(of, since);
	send_written(of);
}

/* ---- answers ---- */

static struct seen { /* a request and its answer, by their ends in the bytes of their connection */
	uint16_t port;
	uint32_t there, back;
} *seen;
static size_t seen_count, seen_room;

static void counted(const struct mme *by, double since, uint32_t end, double at)
{
	total.answered++;
	if (at < counts_from || at > counts_to)
		return;
	total.counted++;
	if (!option.on_wire)
		return note(&latency, at - since);
	if (seen_count == seen_room)
		seen = realloc(seen, (seen_room = 2 * seen_room + 4096) * sizeof *seen);
	seen[seen_count++] = (struct seen){by->port, end, by->bytes_in};
}

/* Latencies, once all is over. */
static void note_seen(void)
{
	if (!tap_read(option.port))
		give_up("there were more packets than were expected");
	for (size_t i = 0; i < seen_count; i++) {
		double from = arrived_at(seen[i].port, TO_SERVER, seen[i].there), to = arrived_at(seen[i].port, FROM_SERVER, seen[i].back);
		if (!from || !to)
			give_up("a packet was not seen");
		note(&latency, to - from);
	}
}

/* Hold an answer to its request; every fault is counted once. Returns whether the request was turned away for load. */
static int check(const struct pending *to, const uint8_t *message, uint32_t length)
{
	uint32_t result = 0, experimental = 0, status = ~0u, results = 0, session = 0, host = 0, realm = 0, state = 0, size, head;
	for (uint32_t at = HEADER; at < length; at += padded(size)) {
		const uint8_t *avp = message + at, *data;
		if (length - at < AVP_HEADER || (size = get24(avp + 5)) < (head = avp[4] & 0x80 ? VENDOR_HEADER : AVP_HEADER) || padded(size) > length - at) {
			wrong.malformed++;
			return 0;
		}
		data = avp + head;
		switch (head == VENDOR_HEADER ? (get32(avp + 8) == TGPP && get32(avp) == EQUIPMENT_STATUS ? EQUIPMENT_STATUS : 0) : get32(avp)) {
		case SESSION_ID: { /* it is that of the request, and stands first (RFC 6733 8.8) */
			uint32_t prefix = to->as->session_length - SESSION_DIGITS;
			uint64_t number = 0;
			if (at != HEADER || size - head != to->as->session_length || memcmp(data, to->as->request + to->as->session_at, prefix))
				break;
			for (uint32_t i = prefix; i < to->as->session_length; i++)
				number = number * 10 + data[i] - '0';
			session += number == to->session;
			break;
		}
		case RESULT_CODE:
			results++;
			result = size == 12 ? get32(data) : 0;
			break;
		case EXPERIMENTAL_RESULT:
			results++;
			for (uint32_t i = 0; i + 12 <= size - head; i += padded(get24(data + i + 5)) + 4 * !get24(data + i + 5))
				if (get32(data + i) == EXPERIMENTAL_RESULT_CODE)
					experimental = get32(data + i + 8);
			break;
		case ORIGIN_HOST:
			host++;
			break;
		case ORIGIN_REALM:
			realm++;
			break;
		case AUTH_SESSION_STATE:
			state += size == 12 && get32(data) == NO_STATE_MAINTAINED;
			break;
		case EQUIPMENT_STATUS:
			status = size == 16 ? get32(data) : ~0u;
			break;
		}
	}
	wrong.session += session != 1;
	if (option.shed && result == option.shed && results == 1) { /* the answer-message grammar has no Auth-Session-State */
		wrong.origin += host != 1 || realm != 1;
		wrong.flags += message[4] != (PROXIABLE | ERROR);
		return 1;
	}
	wrong.origin += host != 1 || realm != 1 || state != 1;
	wrong.flags += message[4] != PROXIABLE;
	if (results != 1 || (result != SUCCESS && experimental != EQUIPMENT_UNKNOWN) || (result == SUCCESS) != (status <= 2)) {
		wrong.result++;
		total.other_result++;
		return 0;
	}
	if (experimental)
		total.unknown++;
	else
		total.statuses[status]++;
	wrong.status += (experimental ? 'u' : (char)('0' + status)) != to->status;
	return 0;
}

static void take_answer(struct mme *by, const uint8_t *message, uint32_t length, double at)
{
	if (option.constant) {
		if (by->answered == by->asked) {
			wrong.unasked++;
			return;
		}
		counted(by, by->order[by->answered++ % (uint64_t)option.window], 0, at);
		by->free_slots[by->free_count++] = by->answered % (uint64_t)option.window;
		return;
	}
	uint32_t hop_by_hop = get32(message + 12), slot = hop_by_hop & 0xffff;
	struct pending *to = &by->pending[slot];
	if (slot >= (uint32_t)option.window || !to->asked || to->hop_by_hop != hop_by_hop || to->end_to_end != get32(message + 16) ||
	    get24(message + 5) != ME_IDENTITY_CHECK || get32(message + 8) != S13) {
		wrong.unasked++;
		return;
	}
	int shed = check(to, message, length);
	to->asked = 0;
	by->free_slots[by->free_count++] = slot;
	by->answered++;
	if (shed)
		total.shed++;
	else
		counted(by, to->since, to->end, at);
}

/* A DWR or DPR of the server's. */
static void answer(struct mme *by, const uint8_t *request)
{
	if (by->written + REQUEST_ROOM > by->out_size)
		by->out = realloc(by->out, by->out_size = by->out_size * 2 + REQUEST_ROOM);
	struct out out = begin(by->out + by->written, 0, get24(request + 5), get32(request + 8), get32(request + 12), get32(request + 16));
	add_number(&out, RESULT_CODE, 0, SUCCESS);
	add_text(&out, ORIGIN_HOST, by->host);
	add_text(&out, ORIGIN_REALM, option.realm);
	uint32_t length = finish(&out);
	by->written += length;
	by->bytes_out += length;
}

static void take(struct mme *by)
{
	ssize_t received = recv(by->socket, by->in + by->filled, RECEIVE - by->filled, 0);
	double at = now();
	uint32_t start = 0, length;
	if (received < 0 && errno == EAGAIN)
		return;
	if (received <= 0)
		return over(by);
	for (by->filled += received; by->filled - start >= HEADER; start += length) {
		const uint8_t *message = by->in + start;
		length = get24(message + 1);
		if (message[0] != 1 || length < HEADER || length & 3 || length > RECEIVE) {
			wrong.malformed++;
			return over(by);
		}
		if (by->filled - start < length)
			break;
		by->bytes_in += length;
		if (message[4] & REQUEST)
			answer(by, message);
		else
			take_answer(by, message, length, at);
	}
	memmove(by->in, by->in + start, by->filled -= start);
}

static void receive(struct mme *by)
{
	take(by);
	if (!option.rate && !ending)
		fill_window(by);
	if (by->written && !by->full)
		send_written(by);
}

/* ---- beginning and end of a connection; blocking ---- */

/* The next message with this command and without the R bit; 0 if none comes. */
static uint32_t await_answer(const struct mme *on, uint32_t command, uint8_t *buffer, uint32_t room)
{
	for (;;) {
		uint32_t have = 0, wanted = HEADER;
		while (have < wanted) {
			struct pollfd readable = {on->socket, POLLIN, 0};
			ssize_t received = poll(&readable, 1, PATIENCE_MS) > 0 ? recv(on->socket, buffer + have, wanted - have, 0) : 0;
			if (received <= 0)
				return 0;
			have += received;
			if (have == HEADER && ((wanted = get24(buffer + 1)) > room || wanted < HEADER))
				return 0;
		}
		if (option.constant || (get24(buffer + 5) == command && !(buffer[4] & REQUEST)))
			return wanted;
	}
}

static void connect_mme(struct mme *one, int number)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(option.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	uint8_t buffer[1 << 16];
	uint32_t result = 0, length;
	int yes = 1, window = option.window;
	snprintf(one->host, sizeof one->host, "%s%d.%s", option.name, number + 1, option.realm);
	one->socket = socket(AF_INET, SOCK_STREAM, 0);
	setsockopt(one->socket, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
	setsockopt(one->socket, IPPROTO_TCP, TCP_CONGESTION, "reno", 4); /* bbr paces, on loopback too */
	if (connect(one->socket, (struct sockaddr *)&address, sizeof address))
		give_up("port %.0f: %s", option.port, strerror(errno));
	struct sockaddr_in ours;
	socklen_t size = sizeof ours;
	getsockname(one->socket, (struct sockaddr *)&ours, &size);
	one->port = ntohs(ours.sin_port);
	struct out out = begin(buffer, REQUEST, CAPABILITIES_EXCHANGE, 0, number + 1, number + 1);
	add_capabilities(&out, one->host, option.realm, "load");
	add_number(&out, ORIGIN_STATE_ID, 0, time(NULL));
	one->bytes_out = length = finish(&out);
	if (send(one->socket, buffer, length, MSG_NOSIGNAL) != (ssize_t)length || !(one->bytes_in = length = await_answer(one, CAPABILITIES_EXCHANGE, buffer, sizeof buffer)))
		give_up("%s got no CEA", one->host);
	for (uint32_t at = HEADER; at + 12 <= length && get24(buffer + at + 5) >= AVP_HEADER; at += padded(get24(buffer + at + 5)))
		if (get32(buffer + at) == RESULT_CODE)
			result = get32(buffer + at + 8);
	if (!option.constant && result != SUCCESS)
		give_up("%s got a CEA with %u", one->host, result);
	fcntl(one->socket, F_SETFL, O_NONBLOCK);
	one->pending = calloc(window, sizeof *one->pending);
	one->order = calloc(window, sizeof *one->order);
	one->free_slots = calloc(window, sizeof *one->free_slots);
	for (one->free_count = 0; one->free_count < window; one->free_count++)
		one->free_slots[one->free_count] = window - 1 - one->free_count;
	one->in = malloc(RECEIVE);
	one->out = malloc(one->out_size = 1 << 16);
	make_templates(one, number);
	epoll_ctl(epoll, EPOLL_CTL_ADD, one->socket, &(struct epoll_event){.events = EPOLLIN, .data.ptr = one});
}

static void disconnect(struct mme *one)
{
	uint8_t buffer[1 << 16];
	if (one->socket < 0 || option.constant)
		return;
	fcntl(one->socket, F_SETFL, 0);
	struct out out = begin(buffer, REQUEST, DISCONNECT_PEER, 0, ~0u, ~0u);
	add_text(&out, ORIGIN_HOST, one->host);
	add_text(&out, ORIGIN_REALM, option.realm);
	add_number(&out, DISCONNECT_CAUSE, 0, 2);
	uint32_t length = finish(&out);
	if (send(one->socket, buffer, length, MSG_NOSIGNAL) == (ssize_t)length)
		await_answer(one, DISCONNECT_PEER, buffer, sizeof buffer);
	close(one->socket);
}

/* ---- processor time ---- */

struct usage {
	double at, own, server;
};

static struct usage usage_now(void)
{
	struct usage usage = {.at = now()};
	struct rusage own;
	char list[1024];
	getrusage(RUSAGE_SELF, &own);
	usage.own = own.ru_utime.tv_sec + own.ru_stime.tv_sec + (own.ru_utime.tv_usec + own.ru_stime.tv_usec) * 1e-6;
	snprintf(list, sizeof list, "%s", option.server ? option.server : "");
	for (char *rest, *pid = strtok_r(list, ",", &rest); pid; pid = strtok_r(NULL, ",", &rest)) {
		clockid_t clock;
		struct timespec spent;
		if (!clock_getcpuclockid(atoi(pid), &clock) && !clock_gettime(clock, &spent)) /* to the nanosecond; /proc counts in ticks of 10 ms */
			usage.server += spent.tv_sec + spent.tv_nsec * 1e-9;
	}
	return usage;
}

/* ---- the run ---- */

/* Send what is due; returns when the next request is. */
static double send_due(double start, double at)
{
	static uint64_t due_count, turn;
	int count = option.connections;
	for (uint64_t due = (at - start) * option.rate; due_count < due; due_count++) {
		struct mme *by = NULL;
		double since = start + (due_count + 1) / option.rate;
		if (at >= counts_from)
			note(&lateness, at - since);
		for (int tries = 0; tries < count && !by; tries++) {
			struct mme *next = &mmes[turn++ % count];
			if (next->socket >= 0 && next->free_count && !next->full)
				by = next;
		}
		if (!by) {
			total.not_sent++;
			continue;
		}
		write_request(by, since);
	}
	for (int i = 0; i < count; i++)
		if (mmes[i].written && !mmes[i].full)
			send_written(&mmes[i]);
	return start + (due_count + 1) / option.rate;
}

static void run(struct usage *from, struct usage *to)
{
	struct epoll_event events[64];
	double start = now(), at, wake;
	int counting = 0, count = mme_count;
	counts_from = start + option.warmup;
	counts_to = counts_from + option.seconds;
	*from = usage_now();
	for (int i = 0; i < count && !option.rate; i++)
		fill_window(&mmes[i]);
	for (;;) {
		uint64_t under_way = 0;
		int open = 0;
		at = now();
		for (int i = 0; i < count; i++)
			if (mmes[i].socket >= 0)
				open++, under_way += mmes[i].asked - mmes[i].answered;
		if (!counting && at >= counts_from) {
			counting = 1;
			counts_from = at; /* later than meant, where the machine is busy: the time to come is as long all the same */
			counts_to = at + option.seconds;
			*from = usage_now();
		}
		if (!ending && (at >= counts_to || !open)) {
			ending = 1;
			*to = usage_now();
		}
		if (ending && (!under_way || at >= counts_to + option.patience))
			break;
		wake = ending ? counts_to + option.patience : counting ? counts_to : counts_from;
		if (option.rate && !ending) {
			double due = send_due(start, at);
			due = due < at + WAKE_EVERY ? at + WAKE_EVERY : due;
			wake = due < wake ? due : wake;
		}
		double left = wake > at ? wake - at : 0;
		struct timespec wait = {left, (left - (time_t)left) * 1e9};
		int ready = epoll_pwait2(epoll, events, 64, &wait, NULL);
		for (int i = 0; i < ready; i++) {
			struct mme *one = events[i].data.ptr;
			if (one->socket >= 0 && events[i].events & EPOLLOUT) {
				send_written(one);
				if (!option.rate && !ending)
					fill_window(one);
			}
			if (one->socket >= 0 && events[i].events & ~EPOLLOUT)
				receive(one);
		}
	}
	for (int i = 0; i < count; i++)
		wrong.unanswered += mmes[i].asked - mmes[i].answered;
}

static void print(const struct usage *from, const struct usage *to)
{
	double seconds = to->at - from->at;
	printf("{\"seconds\": %.3f, \"answers\": %lu, \"answers_per_s\": %.1f", seconds, total.counted, total.counted / seconds);
	printf(", \"latency_us\": {\"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f, \"p99.9\": %.1f, \"max\": %.1f}", at_part(&latency, .5),
	       at_part(&latency, .9), at_part(&latency, .99), at_part(&latency, .999), latency.highest * 1e6);
	printf(", \"generator_share\": %.4f, \"server_s\": %.4f, \"server_us_per_answer\": %.3f", (to->own - from->own) / seconds,
	       to->server - from->server, total.counted ? (to->server - from->server) / total.counted * 1e6 : 0);
	printf(", \"on_wire\": %s, \"late_us_p99\": %.1f, \"sent\": %lu, \"answered\": %lu, \"not_sent\": %lu, \"shed\": %lu", option.on_wire ? "true" : "false", at_part(&lateness, .99), total.sent, total.answered, total.not_sent, total.shed);
	printf(", \"statuses\": {\"whitelisted\": %lu, \"blacklisted\": %lu, \"greylisted\": %lu, \"unknown\": %lu, \"other\": %lu}", total.statuses[0],
	       total.statuses[1], total.statuses[2], total.unknown, total.other_result);
	printf(", \"errors\": {\"unasked\": %lu, \"unanswered\": %lu, \"malformed\": %lu, \"session\": %lu, \"result\": %lu, \"status\": %lu, \"origin\": %lu, \"flags\": %lu, \"closed\": %lu}}\n",
	       wrong.unasked, wrong.unanswered, wrong.malformed, wrong.session, wrong.result, wrong.status, wrong.origin, wrong.flags, wrong.closed);
}

int main(int count, char **arguments)
{
	struct usage from = {0}, to = {0};
	read_options(count, arguments);
	read_questions();
	prctl(PR_SET_TIMERSLACK, SLACK_NS);
	epoll = epoll_create1(0);
	mme_count = option.connections;
	mmes = calloc(mme_count, sizeof *mmes);
	if (option.on_wire && !tap_open(option.port, 5 * option.rate * (option.warmup + option.seconds) + 10000)) {
		fputs("load: no look at packets is permitted here: latency counts from when a request was due until its answer is read\n", stderr);
		option.on_wire = 0;
	}
	for (int i = 0; i < mme_count; i++)
		connect_mme(&mmes[i], i);
	usleep(option.settle * 1e6);
	run(&from, &to);
	if (option.on_wire)
		note_seen();
	for (int i = 0; i < mme_count; i++)
		disconnect(&mmes[i]);
	print(&from, &to);
	return 0;
}
