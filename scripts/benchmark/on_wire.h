/* When the bytes of TCP connections over loopback arrived, by the kernel's clock: a packet socket sees each packet as its receiver gets it.
 * A program that shares its processor is late to write and late to read; what passed between two arrivals is not of its doing. */
#pragma once
#include <arpa/inet.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

enum { FRAME_BYTES = 128, BLOCK_BYTES = 1 << 16, PORTS = 1 << 16 };
enum { TO_SERVER, FROM_SERVER };
#ifndef PACKET_IGNORE_OUTGOING
#define PACKET_IGNORE_OUTGOING 23
#endif

struct arrival { /* up to this byte of its stream, counted from 1 */
	uint32_t end;
	double at;
};
static struct stream {
	struct arrival *all;
	uint32_t first, count, room;
} *streams[PORTS]; /* by the generator's port: one there, one back */
static struct {
	int socket;
	uint8_t *ring;
	uint32_t frames;
} tap = {.socket = -1};

/* Begin to look, before there is a connection; 0 if that is not permitted. */
static int tap_open(uint16_t port, uint32_t packets)
{
	struct sock_filter code[] = { /* TCP from this port, or to it */
		{BPF_LD | BPF_B | BPF_ABS, 0, 0, 9}, {BPF_JMP | BPF_JEQ | BPF_K, 0, 5, IPPROTO_TCP}, {BPF_LDX | BPF_B | BPF_MSH, 0, 0, 0},
		{BPF_LD | BPF_H | BPF_IND, 0, 0, 0}, {BPF_JMP | BPF_JEQ | BPF_K, 3, 0, port}, {BPF_LD | BPF_H | BPF_IND, 0, 0, 2},
		{BPF_JMP | BPF_JEQ | BPF_K, 1, 0, port}, {BPF_RET | BPF_K, 0, 0, 0}, {BPF_RET | BPF_K, 0, 0, FRAME_BYTES},
	};
	struct sock_fprog filter = {sizeof code / sizeof *code, code};
	uint32_t blocks = packets / (BLOCK_BYTES / FRAME_BYTES) + 1;
	struct tpacket_req request = {BLOCK_BYTES, blocks, FRAME_BYTES, blocks * (BLOCK_BYTES / FRAME_BYTES)};
	struct sockaddr_ll everything = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_IP)};
	int version = TPACKET_V2, yes = 1;
	tap.socket = socket(AF_PACKET, SOCK_DGRAM, 0);
	if (tap.socket < 0 || setsockopt(tap.socket, SOL_PACKET, PACKET_VERSION, &version, sizeof version) ||
	    setsockopt(tap.socket, SOL_PACKET, PACKET_IGNORE_OUTGOING, &yes, sizeof yes) ||
	    setsockopt(tap.socket, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter) ||
	    setsockopt(tap.socket, SOL_PACKET, PACKET_RX_RING, &request, sizeof request) ||
	    (tap.ring = mmap(NULL, (size_t)blocks * BLOCK_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, tap.socket, 0)) == MAP_FAILED ||
	    bind(tap.socket, (struct sockaddr *)&everything, sizeof everything))
		return 0;
	tap.frames = request.tp_frame_nr;
	return 1;
}

static void tap_note(uint16_t port, int back, const struct tcphdr *tcp, uint32_t bytes, double at)
{
	if (!streams[port])
		streams[port] = calloc(2, sizeof **streams);
	struct stream *of = streams[port] + back;
	if (tcp->syn)
		*of = (struct stream){.first = ntohl(tcp->seq) + 1};
	if (!bytes)
		return;
	if (of->count == of->room)
		of->all = realloc(of->all, (of->room = 2 * of->room + 64) * sizeof *of->all);
	of->all[of->count++] = (struct arrival){ntohl(tcp->seq) - of->first + bytes, at};
}

/* Make sense of what was seen; 0 if some packets were not. */
static int tap_read(uint16_t server)
{
	struct tpacket_stats said = {0};
	socklen_t size = sizeof said;
	getsockopt(tap.socket, SOL_PACKET, PACKET_STATISTICS, &said, &size);
	for (uint32_t i = 0; i < tap.frames; i++) {
		const uint8_t *frame = tap.ring + (size_t)i * FRAME_BYTES;
		const struct tpacket2_hdr *head = (const void *)frame;
		if (!(head->tp_status & TP_STATUS_USER))
			break;
		const struct iphdr *ip = (const void *)(frame + head->tp_net);
		const struct tcphdr *tcp = (const void *)((const uint8_t *)ip + ip->ihl * 4);
		int back = ntohs(tcp->source) == server;
		uint32_t bytes = ntohs(ip->tot_len) - ip->ihl * 4u - tcp->doff * 4u;
		tap_note(ntohs(back ? tcp->dest : tcp->source), back, tcp, bytes, head->tp_sec + head->tp_nsec * 1e-9);
	}
	return !said.tp_drops;
}

/* When the byte before this one of a stream had arrived; 0 if it was not seen. */
static double arrived_at(uint16_t port, int back, uint32_t end)
{
	const struct stream *of = streams[port] ? streams[port] + back : NULL;
	uint32_t from = 0, to = of ? of->count : 0;
	while (from < to) {
		uint32_t middle = from + (to - from) / 2;
		if (of->all[middle].end < end)
			from = middle + 1;
		else
			to = middle;
	}
	return of && from < of->count ? of->all[from].at : 0;
}
